"""Chats, cards, clippings, subtitles, mail and notebooks are read as what they are."""

import contextlib
import functools
import json
from email.message import EmailMessage
from pathlib import Path

import pytest

from qlora_core.data.recognised import recognise
from qlora_core.errors import DataError


@pytest.fixture
def read(read):
    """The preparation of a file with this name and content."""
    return functools.partial(read, max_seq_length=2000, passage_tokens=1000)


def said(prepared) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in row["messages"]] for row in prepared.train]


def texts(prepared) -> list[str]:
    return [row["text"] for row in prepared.train]


def left_out(prepared) -> list[tuple[str, str]]:
    return [(Path(each.where).name, each.reason) for each in prepared.report.debris]


# Chats ---------------------------------------------------------------------------------------------------------------

LOGS = {
    "android": "3/11/23, 9:02 PM - {a}: is the net mended?\n3/11/23, 9:04 PM - {b}: almost\nask again\n"
    "3/12/23, 8:00 AM - {a}: and now?\n3/12/23, 8:01 AM - {b}: yes: come",
    "ios": "[11.03.23, 21:02:10] {a}: is the net mended?\r\n[11.03.23, 21:04:11] {b}: almost\r\nask again\r\n"
    "\u200e[11.03.23, 21:05:00] {a}: \u200eimage omitted\r\n"
    "[12.03.23, 08:00:00] {a}: and now?\r\n[12.03.23, 08:01:00] {b}: yes: come",
    "iso": "[2023-03-11, 21:02] {a}: is the net mended?\n[2023-03-11, 21:04] {b}: almost\nask again\n"
    "[2023-03-12, 08:00] {a}: and now?\n[2023-03-12, 08:01] {b}: yes: come",
    "pt": "11/03/2023, 21:01 - As mensagens são protegidas.\n11/03/2023, 21:02 - {a}: is the net mended?\n"
    "11/03/2023, 21:02 - {b}: <Ficheiro não revelado>\n11/03/2023, 21:04 - {b}: almost\nask again\n"
    "12/03/2023, 08:00 - {a}: and now?\n12/03/2023, 08:01 - {b}: yes: come",
}


@pytest.mark.parametrize("form", LOGS)
def test_a_log_of_messages_becomes_conversations(read, form):
    prepared = read("WhatsApp Chat with Rosa.txt", LOGS[form].format(a="Rosa", b="Zé da Luz"))
    assert said(prepared) == [
        [("user", "is the net mended?"), ("assistant", "almost\nask again")],
        [("user", "and now?"), ("assistant", "yes: come")],
    ]
    assert prepared.train[0]["metadata"]["title"] == "Rosa"
    (found,) = prepared.report.recognised
    assert "what Zé da Luz wrote is trained" in found.reason
    assert len(left_out(prepared)) == {"ios": 1, "pt": 2}.get(form, 0)


def test_whose_messages_are_trained_is_a_setting(read):
    log = LOGS["iso"].format(a="Rosa", b="Zé")
    assert said(read("a.txt", log, answers_of="rosa"))[0][0] == ("assistant", "is the net mended?")
    with pytest.raises(DataError, match="nobody named 'Ana' writes in it; there are Rosa, Zé"):
        read("a.txt", log, answers_of="Ana")
    assert said(read("b.txt", LOGS["iso"].format(a="Rosa", b="Me")))[0][1][0] == "assistant"


def test_several_people_keep_their_names_and_silence_is_counted(read):
    log = (
        "[2023-03-11, 21:02] Rosa: who has the key?\n[2023-03-11, 21:03] Ana: not me\n[2023-03-11, 21:04] Zé: I have\n"
        "[2023-03-11, 21:05] Zé: since May\n[2023-03-13, 21:05] Rosa: is anybody there?"
    )
    prepared = read("a.txt", log)
    assert said(prepared) == [[("user", "Rosa: who has the key?\nAna: not me"), ("assistant", "I have\nsince May")]]
    assert [each.reason for each in prepared.report.rejected] == ["nobody is answered in it"]
    assert prepared.report.read == 2


def test_a_long_chat_is_cut_before_somebody_asks(read):
    lines = [f"[2023-03-11, 21:{n:02}] {'Rosa' if n % 2 else 'Zé'}: {'net ' * 9}{n}" for n in range(1, 41)]
    prepared = read("a.txt", "\n".join(lines), max_seq_length=400, answers_of="Zé")
    assert len(prepared.train) > 3
    assert all(row[0][0] == "user" and row[-1][0] == "assistant" for row in said(prepared))
    assert sum(len(row) for row in said(prepared)) == 40


def test_telegram(read):
    messages = [
        {"id": 1, "type": "service", "date": "2023-03-12T21:14:00", "actor": "Rosa", "text": ""},
        {"id": 2, "type": "message", "date": "2023-03-12T21:14:03", "from": "Rosa", "from_id": "user1",
         "text": "Where?"},
        {"id": 3, "type": "message", "date": "2023-03-12T21:15:03", "from": "Zé", "from_id": "user2",
         "text": ["At ", {"type": "bold", "text": "the quay"}, "."]},
        {"id": 4, "type": "message", "date": "2023-03-12T21:16:03", "from": "Zé", "from_id": "user2", "photo": "a.jpg",
         "text": ""},
    ]  # fmt: skip
    chat = {"name": "Rosa", "type": "personal_chat", "id": 1, "messages": messages}
    expected = [[("user", "Where?"), ("assistant", "At the quay.")]]
    prepared = read("result.json", json.dumps(chat, indent=1))
    assert said(prepared) == expected
    assert left_out(prepared) == [
        (f"result.json:message {n}", "no message: a picture, a call or a notice") for n in (1, 4)
    ]
    account = {"personal_information": {"user_id": 2}, "chats": {"about": "…", "list": [chat | {"type": "private"}]}}
    assert said(read("all.json", json.dumps(account, indent=1))) == expected
    with pytest.raises(DataError, match="broken export of Telegram"):
        read("broken.json", json.dumps(chat)[:-40])


def test_a_dialogue_with_an_assistant(read):
    text = "User: Which net?\nAssistant: The green one,\nin the loft.\n\nUser: thanks\nAssistant: you are welcome\n"
    assert said(read("talk.txt", text)) == [
        [("user", "Which net?"), ("assistant", "The green one,\nin the loft."), ("user", "thanks"),
         ("assistant", "you are welcome")]
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "2023-03-11 bought a rope\n2023-03-12 sold it",
        "Rosa: a word\nand prose that goes on.",
        "User: only one side\nmore of it",
        "The club was founded.\tIt\tlives\nand plays\tstill\n",
        "# A heading\n\nText with 1/2/2023, 10:00 - a date.",
    ],
)
def test_other_texts_are_texts(text):
    assert recognise(".txt", text.encode()) is None


# Cards, clippings, subtitles -----------------------------------------------------------------------------------------


def test_cards_of_anki(read):
    deck = (
        "#separator:tab\n#html:true\n#tags column:3\n"
        'What is a cleat?\tA fitting<br>for <b>ropes</b> &amp; lines\trope\n"Say ""ahoy"""\t[sound:a.mp3]Ahoy!\t\n'
        "A {{c1::keel::part}} is below.\t\t\n"
    )
    prepared = read("deck.txt", deck)
    assert said_or_text(prepared) == [
        [("user", "What is a cleat?"), ("assistant", "A fitting\nfor ropes & lines")],
        [("user", 'Say "ahoy"'), ("assistant", "Ahoy!")],
        "A keel is below.",
    ]
    assert prepared.train[0]["source"].endswith("deck.txt:4")
    assert prepared.train[0]["metadata"] == {"tags": "rope"}


def said_or_text(prepared) -> list:
    rows = prepared.train
    return [r["text"] if "text" in r else [(m["role"], m["content"]) for m in r["messages"]] for r in rows]


def test_a_tab_in_every_line_makes_cards(read):
    assert said(read("words.txt", "the net\ta rede\nthe keel\ta quilha\n")) == [
        [("user", "the net"), ("assistant", "a rede")],
        [("user", "the keel"), ("assistant", "a quilha")],
    ]


def test_semicolons_of_anki(read):
    assert said(read("a.txt", "#separator:Semicolon\n#html:false\nnet <big>;rede\n")) == [
        [("user", "net <big>"), ("assistant", "rede")]
    ]


def test_clippings_of_a_kindle(read):
    rule = "=========="
    entries = [
        ("Nets (Lima, Rosa)", "- Your Highlight on page 3 | Added on Friday, 5 May 2023", "Nets are mended at night."),
        ("Boats (Zé)", "- O seu destaque na página 9 | Adicionado: sexta-feira, 5 de maio de 2023", "Boats are not."),
        ("Nets (Lima, Rosa)", "- Your Note on page 4 | Added on Friday, 5 May 2023", "ask at home"),
        ("Boats (Zé)", "- Your Bookmark on page 9 | Added on Friday, 5 May 2023", ""),
    ]
    content = "".join(f"\ufeff{title}\r\n{meta}\r\n\r\n{said}\r\n{rule}\r\n" for title, meta, said in entries)
    prepared = read("My Clippings.txt", content)
    assert texts(prepared) == ["Nets\nNets are mended at night.\nask at home", "Boats\nBoats are not."]
    assert prepared.train[0]["metadata"]["author"] == "Lima, Rosa"
    assert [reason for _, reason in left_out(prepared)] == ["a bookmark without a text"]


SRT = """\
1
00:00:01,000 --> 00:00:03,000
<i>Who mends</i>
the nets?

2
00:00:03,200 --> 00:00:05,000
- Rosa.
- When?

3
00:00:20,000 --> 00:00:22,000
{\\an8}At night, when
"""


def test_subtitles(read):
    srt = SRT + "\n4\n00:00:22,500 --> 00:00:24,000\nnobody sees.\n"
    expected = "Who mends the nets?\n- Rosa.\n- When?\nAt night, when nobody sees."
    for name in ("film.srt", "film.txt"):
        assert texts(read(name, srt)) == [f"film\n{expected}"]
        assert not read(name, srt).report.debris.count
    vtt = "WEBVTT\n\nNOTE a note\n\n00:01.000 --> 00:02.000 align:start\n<v Rosa>The nets</v>\n\n"
    vtt += "00:02.000 --> 00:03.000\nare dry.\n"
    assert texts(read("film.vtt", vtt)) == ["film\nRosa: The nets are dry."]


# Mail and notebooks --------------------------------------------------------------------------------------------------


def mail(subject: str, body: str, kind: str = "plain") -> bytes:
    message = EmailMessage()
    message["Subject"], message["From"] = subject, "Rosa <rosa@club.example>"
    message.set_content(body, subtype=kind)
    return message.as_bytes()


def test_mail_is_what_its_writer_wrote(read):
    quoted = "On Friday, 5 May 2023, Zé wrote:\n> Is it?\n\n-- \nRosa\nHarbour street"
    body = f"The net is mended.\n\nCome on Sunday.\n\n{quoted}"
    prepared = read("a.eml", mail("Re: Fwd: The net", body))
    assert texts(prepared) == ["The net\nThe net is mended.\nCome on Sunday."]
    assert [reason for _, reason in left_out(prepared)] == ["quoted", "quoted", "signature"]
    html = "<p>The <b>net</b> is mended.</p><blockquote><p>Is it?</p></blockquote>"
    assert texts(read("b.eml", mail("The net", html, "html"))) == ["The net\nThe net is mended."]


def test_a_mailbox_holds_a_document_a_mail(read):
    content = b"".join(
        b"From rosa@club.example Fri May  5 10:00:00 2023\n" + mail(f"News {n}", f"Boat number {n} is back.") + b"\n"
        for n in (1, 2)
    )
    prepared = read("club.mbox", content)
    assert texts(prepared) == ["News 1\nBoat number 1 is back.", "News 2\nBoat number 2 is back."]
    assert prepared.report.documents == 2


def test_a_notebook_is_its_texts_and_its_code(read):
    cells = [
        {"cell_type": "markdown", "source": ["# Tides\n"]},
        {"cell_type": "markdown", "source": ["They *turn*."]},
        {"cell_type": "code", "source": ["for wave in tide:\n", "    print(wave)"], "outputs": [{"text": ["1"]}]},
    ]
    prepared = read("tides.ipynb", json.dumps({"cells": cells, "nbformat": 4}))
    assert texts(prepared) == ["Tides\nThey turn.\nfor wave in tide:\n    print(wave)"]
    assert left_out(prepared) == [("tides.ipynb:cell 3", "output of code")]
    with pytest.raises(DataError, match="no notebook"):
        read("b.ipynb", "{}")


@pytest.mark.parametrize("name", ["a.eml", "a.mbox", "a.ipynb", "a.srt", "a.vtt"])
@pytest.mark.parametrize("content", [b"", b"\0\xff" * 50, b"{", b"From x 2023\n\n", b"WEBVTT\n", b"1\n00:00 -->\n"])
def test_damage_is_a_reason(read, name, content):
    with contextlib.suppress(DataError):  # read, or refused with a reason, and nothing else
        assert read(name, content).train

"""Signal's exports, and decks of Anki, in the forms that these programs write."""

import io
import json
import random
import sqlite3
import zipfile
from pathlib import Path

import pytest
from backports import zstd

from qlora_core.config import DataConfig
from qlora_core.data import prepare
from qlora_core.data.recognised import recognise
from qlora_core.errors import DataError
from qlora_core.tokens.tokenizer import ChatTokenizer


@pytest.fixture
def read(tmp_path, tiny_model, monkeypatch):
    """The preparation of files with these names and contents."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))

    def of(files: dict[str, str | bytes], **settings):
        for name, content in files.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        wanted = {"val_fraction": 0.0, "max_seq_length": 2000, "passage_tokens": 1000} | settings
        return prepare(DataConfig(data=(str(tmp_path / "data"),), **wanted), ChatTokenizer(tiny_model))

    return of


def said(prepared) -> list:
    rows = prepared.train
    return [r["text"] if "text" in r else [(m["role"], m["content"]) for m in r["messages"]] for r in rows]


def left_out(prepared) -> list[tuple[str, str]]:
    return [(Path(each.where).name, each.reason) for each in prepared.report.debris]


# Signal --------------------------------------------------------------------------------------------------------------


def item(chat: str, author: str, sent: int, text: str | None, **more) -> dict:
    direction = {"outgoing": {"sendStatus": []}} if author == "1" else {"incoming": {"dateReceived": "1", "read": True}}
    message = {"standardMessage": {"text": {"body": text}, "reactions": []}} if text is not None else {}
    return {"chatItem": {"chatId": chat, "authorId": author, "dateSent": str(sent), **direction, **message, **more}}


FRAMES = [
    {"version": "1", "backupTimeMs": "1734989094736", "mediaRootBackupKey": "AA=="},
    {"account": {"profileKey": "AA==", "givenName": "Zé", "familyName": "da Luz"}},
    {"recipient": {"id": "1", "self": {"avatarColor": "A130"}}},
    {"recipient": {"id": "2", "contact": {"e164": "351910000000", "profileGivenName": "Inês"}}},
    {"recipient": {"id": "3", "contact": {"systemGivenName": "Rosa", "systemFamilyName": "Lima",
                                          "profileGivenName": "R."}}},
    {"recipient": {"id": "4", "group": {"snapshot": {"title": {"title": "Pescadores"}}}}},
    {"chat": {"id": "10", "recipientId": "2"}},
    {"chat": {"id": "11", "recipientId": "4"}},
    item("10", "2", 1678568530000, "Já remendaste a rede?"),
    item("10", "1", 1678568590000, "Quase.", revisions=[{"standardMessage": {"text": {"body": "Qase."}}}]),
    item("11", "3", 1678568530000, "Quem tem a chave?"),
    item("11", "2", 1678568531000, "Eu não."),
    item("11", "1", 1678568532000, "Tenho eu."),
    item("10", "2", 1678568600000, None, stickerMessage={"sticker": {"emoji": "⛵"}}),
    item("10", "2", 1678568610000, None, updateMessage={"simpleUpdate": {"type": "END_SESSION"}}),
]  # fmt: skip
MAIN = "".join(json.dumps(frame, ensure_ascii=False, separators=(",", ":")) + "\n" for frame in FRAMES)


def test_the_export_of_signal(read):
    prepared = read({"main.jsonl": MAIN})
    assert said(prepared) == [
        [("user", "Já remendaste a rede?"), ("assistant", "Quase.")],
        [("user", "Rosa Lima: Quem tem a chave?\nInês: Eu não."), ("assistant", "Tenho eu.")],
    ]
    assert [row["metadata"]["title"] for row in prepared.train] == ["Inês", "Pescadores"]
    assert [Path(row["source"]).name for row in prepared.train] == ["main.jsonl:9-10", "main.jsonl:11-13"]
    assert left_out(prepared) == [
        ("main.jsonl:14", "no message: a picture, a call or a notice"),
        ("main.jsonl:15", "no message: a picture, a call or a notice"),
    ]
    assert "a Signal chat of" in prepared.report.recognised.listed[0].reason
    assert "what Zé da Luz wrote is trained" in prepared.report.recognised.listed[0].reason


def test_a_broken_line_of_signal_costs_itself_only(read):
    lines = MAIN.splitlines(keepends=True)
    lines[11] = lines[11][:60] + "\n"
    prepared = read({"main.jsonl": "".join(lines)})
    assert said(prepared)[1] == [("user", "Quem tem a chave?"), ("assistant", "Tenho eu.")]
    assert ("main.jsonl:12", "a line that cannot be read") in left_out(prepared)


def test_an_export_of_signal_without_messages_is_named(read):
    with pytest.raises(DataError, match="it holds no messages"):
        read({"main.jsonl": "".join(MAIN.splitlines(keepends=True)[:8])})


def test_a_long_export_of_signal_is_not_cut(read, monkeypatch):
    monkeypatch.setattr("qlora_core.data.preparation.PIECE", 200)
    assert len(read({"main.jsonl": MAIN}).train) == 2


def exported(sender: str, body: str, second: int, **more) -> dict:
    empty = {"quote": "", "sticker": None, "reactions": [], "attachments": []}
    return {"date": f"2023-03-11T21:02:{second:02}", "sender": sender, "body": f"{body}  ", **empty, **more}


EXPORTED = [
    exported("Inês", "Já remendaste a rede?", 1),
    exported("Me", "Quase.", 30, reactions=[["Inês", "👍"]]),
    exported("Inês", "", 40, attachments=[{"name": "a.jpg", "path": "media/a.jpg"}]),
]
DATA = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in EXPORTED)


def test_signal_export_is_read_once_for_each_chat(read):
    log = "[2023-03-11 21:02:01] Inês: Já remendaste a rede?  \n\n[2023-03-11 21:02:30] Me: Quase.  \n(- Inês: 👍 -)\n"
    files = {"Inês/chat.md": log, "Inês/data.json": DATA, "Inês/index.html": "<p>Já remendaste a rede?</p>"}
    prepared = read(files)
    assert said(prepared) == [[("user", "Já remendaste a rede?"), ("assistant", "Quase.")]]
    assert prepared.train[0]["metadata"]["title"] == "Inês"
    assert left_out(prepared) == [("data.json:3", "no message: a picture, a call or a notice")]
    assert [(Path(each.where).name, each.reason) for each in prepared.report.skipped_files] == [
        ("chat.md", "is the chat that data.json beside it holds"),
        ("index.html", "is the chat that data.json beside it holds"),
    ]


@pytest.mark.parametrize(
    "text",
    ['{"recipient": "Ana", "text": "olá"}\n{"recipient": "Rui", "text": "olá"}', '{"date": "2023", "text": "a"}', "[]"],
)
def test_other_lines_of_json_are_rows(text):
    assert recognise(".jsonl", text.encode()) is None


# Anki ----------------------------------------------------------------------------------------------------------------

NOTES = [
    (1, "O que é um cunho?\x1fUma peça<br>para <b>cabos</b> &amp; linhas", " mar "),
    (1, "Diz &quot;olá&quot;\x1f[sound:ola.mp3]Olá!", ""),
    (1, "<img src=\"porto.jpg\">\x1fPorto", ""),
    (2, "A {{c1::quilha::peça}} fica {{c2::em baixo}}.\x1f", "barco mar"),
]  # fmt: skip


def old_database(notes=NOTES) -> bytes:
    """A collection of schema 11, whose types of notes are JSON."""
    database = sqlite3.connect(":memory:")
    database.executescript(
        "create table col (id integer primary key, models text, decks text);"
        "create table notes (id integer primary key, guid text, mid integer, mod integer, usn integer, tags text, "
        "flds text, sfld integer, csum integer, flags integer, data text);"
        "create table cards (id integer primary key, nid integer, did integer, ord integer);"
    )
    models = {
        "1": {"name": "Básico", "type": 0, "flds": [{"name": "Frente", "ord": 0}, {"name": "Verso", "ord": 1}]},
        "2": {"name": "Omissão", "type": 1, "flds": [{"name": "Texto", "ord": 0}, {"name": "Extra", "ord": 1}]},
    }
    decks = {"1": {"name": "Default"}, "7": {"name": "Mar::Peças"}}
    database.execute("insert into col values (1, ?, ?)", (json.dumps(models), json.dumps(decks)))
    for number, (kind, fields, tags) in enumerate(notes, 1):
        values = (number, f"g{number}", kind, 0, 0, tags, fields, 0, 0, 0, "")
        database.execute("insert into notes values (?,?,?,?,?,?,?,?,?,?,?)", values)
        database.execute("insert into cards values (?, ?, 7, 0)", (number, number))
    database.commit()
    return database.serialize()


def new_database(notes=NOTES) -> bytes:
    """A collection of schema 18, which has tables of its own with an order of Anki's."""
    database = sqlite3.connect(":memory:")
    database.create_collation("unicase", lambda one, other: (one > other) - (one < other))
    database.executescript(
        "create table col (id integer primary key, models text, decks text);"
        "insert into col values (1, '', '');"
        "create table notetypes (id integer primary key, name text not null collate unicase, config blob);"
        "create table fields (ntid integer, ord integer, name text not null collate unicase, config blob, "
        "primary key (ntid, ord)) without rowid;"
        "create unique index idx_fields_name_ntid on fields (name, ntid);"
        "create table decks (id integer primary key, name text not null collate unicase, common blob);"
        "create table notes (id integer primary key, guid text, mid integer, mod integer, usn integer, tags text, "
        "flds text, sfld integer, csum integer, flags integer, data text);"
        "create table cards (id integer primary key, nid integer, did integer, ord integer);"
        "insert into fields values (1, 0, 'Frente', x''), (1, 1, 'Verso', x''), (2, 0, 'Texto', x'');"
    )
    database.execute("insert into decks values (7, ?, x'')", ("Mar\x1fPeças",))
    for number, (kind, fields, tags) in enumerate(notes, 1):
        values = (number, f"g{number}", kind, 0, 0, tags, fields, 0, 0, 0, "")
        database.execute("insert into notes values (?,?,?,?,?,?,?,?,?,?,?)", values)
        database.execute("insert into cards values (?, ?, 7, 0)", (number, number))
    database.commit()
    return database.serialize()


def package(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("collection_", "collection."), content)
        archive.writestr("media", "{}")
        archive.writestr("0", b"\xff\xd8")
    return file.getvalue()


UPDATE = [(1, "Please update to the latest Anki version, then import the .colpkg/.apkg file again.\x1f", "")]
PACKAGES = {
    "old": lambda: package(collection_anki2=old_database()),
    "2.1": lambda: package(collection_anki2=old_database(UPDATE), collection_anki21=old_database()),
    "new": lambda: package(
        collection_anki2=old_database(UPDATE), collection_anki21b=zstd.compress(new_database()), meta=b"\x08\x03"
    ),
}


@pytest.mark.parametrize("form", PACKAGES)
@pytest.mark.parametrize("suffix", [".apkg", ".colpkg"])
def test_a_deck_of_anki(read, form, suffix):
    prepared = read({f"peças{suffix}": PACKAGES[form]()})
    assert said(prepared) == [
        [("user", "O que é um cunho?"), ("assistant", "Uma peça\npara cabos & linhas")],
        [("user", 'Diz "olá"'), ("assistant", "Olá!")],
        "A quilha fica em baixo.",
    ]
    assert [Path(row["source"]).name for row in prepared.train] == [f"peças{suffix}:note {n}" for n in (1, 2, 4)]
    assert prepared.train[0]["metadata"] == {"tags": "mar", "deck": "Mar::Peças"}
    assert left_out(prepared) == [
        (f"peças{suffix}:note 2", "pictures and sounds of a note"),
        (f"peças{suffix}:note 3", "a note whose question or answer is only a picture or a sound"),
    ]
    assert [each.sample for each in prepared.report.debris] == ["ola.mp3", "porto.jpg"]
    assert [each.reason for each in prepared.report.recognised] == ["read as a deck of Anki"]
    assert dict(prepared.report.unused) == {"text tags": 1}


@pytest.mark.parametrize(
    ("content", "said_of_it"),
    [
        (b"", "cannot be read as a deck of Anki: File is not a zip file"),
        (package(), "it holds no collection"),
        (package(collection_anki2=b"nada" * 200), "cannot be read as a deck of Anki: file is not a database"),
        (package(collection_anki21b=b"nada"), "cannot be read as a deck of Anki: "),
        (package(collection_anki2=old_database([])), "holds no notes"),
    ],
)
def test_a_broken_deck_is_refused_in_a_line(read, content, said_of_it):
    with pytest.raises(DataError) as error:
        read({"a.apkg": content})
    assert said_of_it in str(error.value).splitlines()[1]


@pytest.mark.parametrize("form", PACKAGES)
def test_a_damaged_deck_is_rows_or_a_reason(read, form):
    rng, whole = random.Random(form), PACKAGES[form]()
    database = new_database() if form == "new" else old_database()
    for case in range(20):
        broken = bytearray(database if case % 2 else whole)
        for _ in range(rng.choice((1, 5, 40))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        content = bytes(broken)
        if case % 2:
            content = package(collection_anki21b=zstd.compress(content))
        told = 0
        try:
            prepared = read({"a.apkg": content})
            told = len(prepared.train) + prepared.report.skipped_files.count
        except DataError as error:
            told = len(str(error).splitlines()) - 1
        assert told


# Columns without Anki's head -----------------------------------------------------------------------------------------


def test_three_columns_of_words_are_cards_and_the_report_says_how(read):
    words = (
        "a rede\tthe net\tA rede seca no cais desde ontem à tarde.\na quilha\tthe keel\tmar\no cabo\tthe rope\tmar\n"
    )
    prepared = read({"palavras.txt": words})
    assert said(prepared) == [
        [("user", "a rede"), ("assistant", "the net")],
        [("user", "a quilha"), ("assistant", "the keel")],
        [("user", "o cabo"), ("assistant", "the rope")],
    ]
    (found,) = prepared.report.recognised
    assert found.reason.startswith("read as cards: without names of columns the first asks and the second answers.")
    assert dict(prepared.report.unused) == {"question field 3": 1}


def test_names_in_the_first_line_are_names(read):
    table = "tema\tpergunta\tresposta\nmar\tQuem remenda?\tA Inês.\nmar\tQuando?\tÀ tarde.\nrio\tOnde?\tNo cais.\n"
    prepared = read({"perguntas.txt": table})
    assert said(prepared)[0] == [("user", "Quem remenda?"), ("assistant", "A Inês.")]
    assert [Path(row["source"]).name for row in prepared.train] == [f"perguntas.txt:{n}" for n in (2, 3, 4)]


@pytest.mark.parametrize(
    "text",
    [
        "Ano\tClube\tGolos\n1931\tSport\t9\n1932\tMar\t8\n1933\tMar\t7\n",
        "a\tb\tc\nd\te\nf\tg\th\n",
        "a\tb\tc\n\te\tf\ng\th\ti\n",
        "a\tb\tc\nd\te\tf\n",
    ],
)
def test_other_columns_of_a_text_stay_a_text(text):
    assert recognise(".txt", text.encode()) is None

"""Books, biographies, tables and copies of one text, as people have them: the right rows, and no guess unsaid."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import scanned_book as corpus

from qlora_core import data
from qlora_core.config import DataConfig
from qlora_core.data import Findings, prepare
from qlora_core.data.book_lines import Hints
from qlora_core.data.heads import bare, nearly, without_heads
from qlora_core.data.numerals import chapters_among, numeral_in
from qlora_core.data.page_debris import without_page_debris
from qlora_core.data.passages import ask, make_passages, prose_of
from qlora_core.data.records import Block, Fragment
from qlora_core.data.scans import mend_scan
from qlora_core.data.structure import find_structure, saved_as_lines
from qlora_core.errors import ConfigError
from qlora_core.tokens.tokenizer import ChatTokenizer


@pytest.fixture(scope="module")
def read(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """Prepare sources with passages of 700 bytes."""
    tokenizer = ChatTokenizer(tiny_model)

    def prepared(*sources: Path, **settings) -> data.PreparedData:
        settings = {"passage_tokens": 700, "max_seq_length": 2000, **settings}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
            return prepare(DataConfig(data=tuple(map(str, sources)), **settings), tokenizer)

    return prepared


def rows_of(prepared: data.PreparedData) -> list[dict]:
    return [*prepared.train, *prepared.validation]


def texts_of(prepared: data.PreparedData) -> list[str]:
    return [row["text"] for row in rows_of(prepared) if "text" in row]


def asked_in(prepared: data.PreparedData) -> dict[str, str]:
    """Questions and their answers."""
    pairs = ([turn["content"] for turn in row["messages"]] for row in rows_of(prepared) if "messages" in row)
    return {pair[0]: pair[-1] for pair in pairs}


def structure(lines: list[str], hints: Hints | None = None, **how):
    debris = Findings()
    fragments = [Fragment(line, str(number)) for number, line in enumerate(lines, 1)]
    title, blocks = find_structure(fragments, debris, "livro.txt", hints=hints, **how)
    return title, blocks, debris


# The book --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def book(read, tmp_path_factory):
    return read(corpus.write_book(tmp_path_factory.mktemp("book") / "livro.jsonl"), val_fraction=0.0)


def test_the_title_is_that_of_the_imprint_and_not_the_author_at_the_head_of_the_pages(book):
    assert {row["metadata"]["title"] for row in book.train} == {corpus.TITLE}


def test_every_chapter_has_its_name_and_its_own_text(book):
    """The eighth numeral is misread and the thirteenth has specks before it; the thanks end where the first begins."""
    sections = {}
    for row in book.train:
        sections.setdefault(row["metadata"]["section"], []).append(row["text"])
    names = [f"{corpus.roman(number)} – {name}" for number, name in enumerate(corpus.CHAPTERS, 1)]
    assert list(sections) == ["Agradecimentos", *names]
    assert len(sections["Agradecimentos"]) == 1
    for chapter, name in enumerate(names):
        numbers = {int(found) for text in sections[name] for found in re.findall(r"episódio (\d+)", text)}
        assert numbers == {chapter * 10 + paragraph + 100 for paragraph in range(3)}


def test_no_running_head_imprint_index_or_bibliography_is_left_in_the_rows(book):
    bodies = "\n".join(row["text"].partition("\n")[2] for row in book.train)
    for line in (corpus.TITLE, corpus.AUTHOR, "Tiragem", "Oficina", "....", "Bibliografia", "1987", "|"):
        assert line not in bodies
    reasons = {found.reason for found in book.report.debris}
    assert reasons == {"running head", "front matter", "contents", "bibliography or index", "legal notice"}
    assert sum(found.sample == f"{corpus.TITLE}g" for found in book.report.debris) == 6


def test_sentences_are_whole_again(book):
    bodies = "\n".join(row["text"].partition("\n")[2] for row in book.train)
    for chapter in range(len(corpus.CHAPTERS)):
        for text in corpus.paragraphs(chapter):
            for sentence in re.findall(r"[^.]+\.", text):
                assert sentence.strip() in bodies or "primeira chuva" in sentence
    assert all(row["text"].rstrip().endswith((".", "!")) for row in book.train)


def test_what_scanning_broke_is_mended_counted_and_named(book):
    bodies = "\n".join(row["text"] for row in book.train)
    for mended in ("rifas à porta", "véspera da festa da padroeira", "a equipa ainda", "episódio 110 desta"):
        assert mended in bodies
    assert "Ficou em 1.º lugar no torneio de 1904, com 20 golos, e em 2.º lugar no de 1905." in bodies
    assert book.report.mended["letters in numbers"] == 3
    assert book.report.mended["ordinals"] == 2
    assert book.report.mended["words run together"] == 3
    assert book.report.mended_rows.count >= 8


def test_a_word_that_is_only_likely_two_is_asked_about_and_the_setting_mends_it(read, book, tmp_path):
    (found,) = [each for each in book.report.doubts if "aprimeira" in each.reason]
    assert found.choices == [["scans", "all"]]
    bodies = "\n".join(texts_of(book))
    assert "aprimeira chuva" in bodies
    mended = read(corpus.write_book(tmp_path / "livro.jsonl"), val_fraction=0.0, scans="all")
    assert "aprimeira" not in "\n".join(texts_of(mended))
    kept = read(tmp_path / "livro.jsonl", val_fraction=0.0, scans="keep")
    assert "19O4" in "\n".join(texts_of(kept))


def test_the_user_says_the_title(read, tmp_path):
    path = corpus.write_book(tmp_path / "livro.jsonl")
    said = read(path, decide=("title:livro.jsonl=Quarenta Anos",))
    assert {row["metadata"]["title"] for row in rows_of(said)} == {"Quarenta Anos"}
    astray = read(path, decide=("title:outro.jsonl=Nada",))
    assert any("none of the files" in found.reason for found in astray.report.doubts)
    with pytest.raises(ConfigError, match="one of title, subject, section, copy"):
        read(path, decide=("titulo:livro.jsonl=Nada",))
    with pytest.raises(ConfigError, match="copy is one of keep, drop"):
        read(path, decide=("copy:livro.jsonl=perhaps",))


def test_a_book_of_running_text_is_asked_about_by_its_sections(read, tmp_path):
    prepared = read(corpus.write_book(tmp_path / "livro.jsonl"), question="pt")
    asked = asked_in(prepared)
    assert f"O que se sabe sobre {corpus.TITLE} (VI – A grande cheia)?" in asked
    assert not any(question.startswith("Quem foi") for question in asked)
    assert any("XIV – O que ficou por dizer" in found.sample for found in prepared.report.unasked)


def test_questions_that_cannot_be_asked_are_said(read, tmp_path):
    path = tmp_path / "lines.jsonl"
    rows = [{"prompt": "", "completion": corpus.sentence(number)} for number in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = read(path, question="pt").report
    assert report.questions == 0
    assert any(warning.startswith("--question asked nothing: it has no title") for warning in report.warnings)


# Pieces of the book's structure -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("XIII", 13),
        ("/ /\tXIII", 13),
        ("VIll", 8),
        ("Vlll .", 8),
        ("'IV-", 4),
        ("X1", 11),
        ("I", 1),
        ("11", 0),
        ("l", 0),
        ("ll", 0),
        ("XIIII", 0),
        ("XX anos", 0),
        ("MIX", 0),
        ("", 0),
    ],
)
def test_numerals_with_specks_and_misread_letters(line, number):
    assert numeral_in(line) == number


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2], [1, 2]),
        ([1, 2, 3, 5, 6], [1, 2, 3, 5, 6]),
        ([1, 2, 9, 3, 4, 5], [1, 2, 3, 4, 5]),
        ([2, 3, 4], [2, 3, 4]),
        ([2, 4], []),
        ([1], []),
        ([20, 19], []),
        ([14, 20, 21], []),
    ],
)
def test_one_bad_numeral_does_not_cost_the_others(values, found):
    assert [value for _, value in chapters_among(list(enumerate(values)))] == found


def prose(number: int) -> list[str]:
    """Some lines that no other number has, of which the last ends a sentence."""
    text = " ".join(corpus.sentence(number * 3 + at) for at in range(3))
    words = text.split()
    return [" ".join(words[at : at + 8]) for at in range(0, len(words), 8)]


def test_a_numeral_that_is_lost_is_asked_about():
    hints = Hints()
    lines = [line for number in (1, 2, 3, 5) for line in (corpus.roman(number), *prose(number))]
    _, blocks, _ = structure(lines, hints)
    assert [block.text for block in blocks if block.level] == ["I", "II", "III", "V"]
    assert ["chapter IV was not found" in found.reason.replace("the number of ", "") for found in hints.doubts] == [
        True
    ]


def test_figures_with_a_name_below_count_chapters_and_other_figures_pages():
    lines = []
    for number, name in enumerate(["A horta e o rio", "O trator azul", "As três noites"], 1):
        text = [*prose(number), *prose(number + 10)]
        lines += [str(number), name, *text[:3], str(20 + number), *text[3:]]
    _, blocks, debris = structure(lines)
    assert [block.text for block in blocks if block.level] == [
        "1 – A horta e o rio",
        "2 – O trator azul",
        "3 – As três noites",
    ]
    assert [(found.reason, found.sample) for found in debris] == [("page number", str(20 + n)) for n in (1, 2, 3)]


def test_contents_behind_the_text_name_the_chapters():
    names = ["A horta e o rio", "O trator azul", "As três noites"]
    lines = [line for number, name in enumerate(names, 1) for line in (corpus.roman(number), name, *prose(number))]
    lines += ["Índice", *(f"{name} {12 * number}" for number, name in enumerate(names, 1))]
    _, blocks, debris = structure(lines)
    assert [block.text for block in blocks if block.level] == [
        "I – A horta e o rio",
        "II – O trator azul",
        "III – As três noites",
    ]
    assert [found.reason for found in debris] == ["contents"] * 4


def test_a_name_that_is_read_wrongly_is_known_by_the_contents():
    names = ["A horta e o rio", "O trator azul que ninguém quis", "As três noites"]
    contents = ["Índice", *(f"{corpus.roman(n)} – {name} ..... {9 * n}" for n, name in enumerate(names, 1))]
    lines = [*contents, "I", "A h0rta e o río", *prose(1), "II", "O trator azul", "que ninguém quls", *prose(2)]
    lines += ["III", *prose(3)]
    _, blocks, _ = structure(lines)
    assert [block.text for block in blocks if block.level] == [
        "I – A h0rta e o río",
        "II – O trator azul que ninguém quls",
        "III – As três noites",  # no name stands below it: the contents say it
    ]


def test_thanks_that_seem_to_hold_the_whole_book_end_and_that_is_asked():
    hints = Hints()
    pages = [line for number in range(40) for line in ("", *prose(number))]
    lines = ["Agradecimentos", *prose(50), *pages]
    _, blocks, _ = structure(lines, hints)
    assert [(block.level, block.text) for block in blocks if block.level] == [(1, "Agradecimentos"), (1, "")]
    (found,) = hints.doubts
    assert found.choices == (("decide", "section:livro.txt=end"), ("decide", "section:livro.txt=go on"))
    passages = list(make_passages("Livro", blocks, len, 700))
    assert [passage.section for passage in passages].count("Agradecimentos") == 1
    assert passages[-1].section == ""
    kept = structure(lines, Hints(section="go on"))[1]
    assert [block.text for block in kept if block.level] == ["Agradecimentos"]


def test_a_prologue_before_the_parts_holds_no_chapter():
    lines = ["PARTE I", "CAPÍTULO 1", *prose(1), "AGRADECIMENTOS", *prose(2), "CAPÍTULO 2", *prose(3)]
    assert [block.level for block in structure(lines)[1] if block.level] == [1, 2, 1, 1]


def test_two_lines_that_come_again_and_again_are_asked_about():
    hints = Hints()
    heads = ["Rui Sarmento", "Cinco Pontes e um Rio"]
    lines = [*heads, "CAPÍTULO I"]
    for number in range(10):
        text = prose(number)
        lines += [*text[:2], heads[number % 2], *text[2:]]
    title, _, debris = structure(lines, hints)
    assert title == "Cinco Pontes e um Rio"
    (found,) = hints.doubts
    assert [value for _, value in found.choices] == [f"title:livro.txt={head}" for head in reversed(heads)]
    assert sum(each.reason == "running head" for each in debris) == 10


def test_heads_inside_lines_are_taken_out_and_names_stay():
    head = "História do Clube Azul"
    lines = [
        f"marcou o golo 12 {head} na baliza do norte e",
        f"depois veio {head}a chuva que ninguém quis",
        "a bola ficou na lama Historia do Clube AzuI e o árbitro",
        f"nunca mais apitou {head} naquele campo sem relva",
        f"ninguém soube {head} porque a luz faltou",
        f"Leu-se muito o livro {head} nessa altura.",
        f"A «{head}» vendeu trezentos exemplares.",
    ]
    found = without_heads(lines, [head], lambda text: text.endswith((" o", " a", " de")))
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert found[0] == ("marcou o golo na baliza do norte e", f"12 {head}")
    assert found[2][0] == "a bola ficou na lama e o árbitro"


def test_a_name_that_prose_uses_is_no_head():
    lines = [f"jogou pelo Sporting da Ponte em {1920 + number} e saiu" for number in range(9)]
    assert not without_heads(lines, ["Sporting da Ponte"], lambda text: text.endswith(" pelo"))


def test_letters_are_compared_without_what_scanning_changes():
    assert bare("A Ponte,  é d'Água!") == "aponteedagua"
    assert nearly("quarentaanosdeponte", "quarentaan0sdeponle")
    assert not nearly("aponte", "ocampodaeira")


# Scans ------------------------------------------------------------------------------------------------------------

SCANNED = ["| o campo era novo", "em 19O4 e em 1.0 lugar", "~ e a bola também", "a equipa", "a equipa", "a equipa"]


def scanned(*lines: str, scans: str = "sure") -> list[str]:
    fragments = [Fragment(line, str(number)) for number, line in enumerate([*SCANNED, *lines], 1)]
    return [line.text for line in mend_scan(fragments, scans).lines][len(SCANNED) :]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ganhou 1O jogos e 2OO5 sócios", "ganhou 10 jogos e 2005 sócios"),
        ("em 19l4 foi em 3.0 lugar", "em 1914 foi em 3.º lugar"),
        ("· o 1o de maio e H2O", "· o 1o de maio e H2O"),
        ("bebeu 10l de água e 2o copo", "bebeu 10l de água e 2o copo"),
        ("viu aequipa passar", "viu a equipa passar"),
        ("gritou daequipa toda", "gritou da equipa toda"),
        ("/ /\to fim", "o fim"),
        ("o fim ~ |", "o fim"),
        ("… e continuou.", "… e continuou."),
        ("— Sim, foi ele.", "— Sim, foi ele."),
        ("- um item da lista", "- um item da lista"),
        ("versão 2.0.1 e 3,0 por cento", "versão 2.0.1 e 3,0 por cento"),
    ],
)
def test_what_is_mended_of_a_scan_and_what_is_not(wrong, right):
    assert scanned(wrong) == [right]


def test_typed_text_is_left_as_it_is():
    lines = [
        Fragment(line, "1") for line in ("viu aequipa passar", "a equipa", "a equipa", "a equipa", "versão 1.0 nova")
    ]
    assert mend_scan(lines).lines == lines


def test_specks_alone_are_no_line():
    fragments = [Fragment(line, str(number)) for number, line in enumerate([*SCANNED, "/ / |", "***", "..."], 1)]
    scan = mend_scan(fragments)
    assert [speck.text for speck in scan.specks] == ["/ / |"]
    assert [line.text for line in scan.lines][-2:] == ["***", "..."]


# Documents that are scans too ---------------------------------------------------------------------------------------


def test_a_word_document_of_lines_is_read_like_a_book():
    blocks = [Block(line) for line in corpus.scanned_lines()]
    lines = saved_as_lines(blocks)
    assert [lines[0].place, lines[7].place] == ["paragraph 1", "paragraph 8"]
    title, found = find_structure(lines, Findings(), "livro.docx")
    assert title == corpus.TITLE
    assert len([block for block in found if block.level]) == len(corpus.CHAPTERS) + 1
    assert saved_as_lines([Block(text) for chapter in range(20) for text in corpus.paragraphs(chapter)]) == []


def test_running_heads_between_paragraphs_go_and_the_sentence_goes_on():
    blocks = []
    for number in range(30):
        first, second = corpus.sentence(2 * number), corpus.sentence(2 * number + 1)
        at = first.index(",") + 1
        blocks += [Block(f"{second} {first[:at]}"), Block("O Rio e a Ponte"), Block(first[at:].strip())]
    debris = Findings()
    found = without_page_debris(blocks, debris, "livro.docx")
    assert len(debris) == 30
    assert [block.text for block in found] == [
        f"{corpus.sentence(2 * number + 1)} {corpus.sentence(2 * number)}" for number in range(30)
    ]


def test_paragraphs_that_come_again_in_a_document_stay():
    blocks = [Block(text) for number in range(40) for text in (corpus.sentence(number), "Ver também o mapa.", "Fonte")]
    assert without_page_debris(blocks, Findings(), "guia.md") == blocks


# Biographies --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lives(read, tmp_path_factory):
    return read(corpus.write_biographies(tmp_path_factory.mktemp("lives") / "vidas"), question="pt", val_fraction=0.0)


def test_people_are_asked_about_by_their_names_and_things_as_things(lives):
    asked = asked_in(lives)
    assert {question for question in asked if question.startswith("Quem foi")} == {
        f"Quem foi {name}?" for name in corpus.NAMES
    }
    assert "O que se sabe sobre Campo da Eira?" in asked
    assert not any("Página" in question for question in asked)
    assert [found.sample for found in lives.report.unasked if "mark of a page" in found.reason] == ["Página 1"]


def test_the_answer_is_prose(lives):
    for question, answer in asked_in(lives).items():
        if question.startswith("Quem foi"):
            assert answer.startswith(question.removeprefix("Quem foi ").rstrip("?") + " nasceu na rua")
            assert answer.endswith("épocas pelo Grémio.")
        assert "**" not in answer


def test_a_fence_and_the_words_of_a_chat_program_are_no_text(lives):
    assert not any("versão" in text or "ajude" in text or "```" in text for text in texts_of(lives))
    found = [each.reason for each in lives.report.debris]
    assert found == ["words of a chat program"] * 2
    assert "Quem foi Honorato Vale?" in asked_in(lives)


def test_what_is_asked_is_trained_twice_and_that_is_said_or_left_out(read, tmp_path):
    path = tmp_path / "ana.md"
    path.write_text("# Ana Vaz\n\nNasceu na vila e guardou a baliza vinte anos.\n", encoding="utf-8")
    both = read(path, question="pt", val_fraction=0.0)
    assert (both.report.passages, both.report.questions, both.report.answered_passages) == (1, 1, 1)
    assert any("trained twice" in warning for warning in both.report.warnings)
    once = read(path, question="pt", val_fraction=0.0, asked_passages="drop")
    assert (once.report.passages, once.report.questions) == (0, 1)
    assert not any("trained twice" in warning for warning in once.report.warnings)


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Ana Vaz: Da Praia ao Estádio!?", "Ana Vaz"),
        ("Ana Vaz – A Voz da Bancada", "Ana Vaz"),
        ("Ana Vaz (1921–1990)", "Ana Vaz"),
        ("Biografia de Ana Vaz", "Ana Vaz"),
        ("O Capitão sem Medo: Ana Vaz", "Ana Vaz"),
        ("12. Ana Vaz", "Ana Vaz"),
        ("**Ana Vaz**", "Ana Vaz"),
        ("🏆 Ana Vaz | Uma lenda", "Ana Vaz"),
        ("Ana Vaz, a dona da baliza", "Ana Vaz"),
        ("João Pedro d'Ávila e Sá: O Mestre", "João Pedro d'Ávila e Sá"),
        ("Dr. Silva", "Dr. Silva"),
        ("Ana Vaz!", "Ana Vaz"),
    ],
)
def test_the_name_in_a_title(title, name):
    from qlora_core.data.subjects import PERSON, find_subject

    assert find_subject(title, "Nasceu em 1921 na vila.")[:2] == (name, PERSON)


@pytest.mark.parametrize(
    ("title", "text", "kind"),
    [
        ("Estádio do Vale", "Foi inaugurado em 1950.", "thing"),
        ("Clube Azul", "Nasceu em 1920 numa taberna.", "thing"),
        ("Época de 1950", "A equipa ganhou tudo.", "thing"),
        ("2024.05.01 meeting", "The committee met.", "thing"),
        ("Maria Campos", "Nasceu na vila.", "person"),
        ("Página 12", "Texto.", "none"),
        ("**Página 1**", "Texto.", "none"),
        ("scan_0012", "Texto.", "none"),
        ("documento.docx", "Texto.", "none"),
        ("Untitled", "Text.", "none"),
    ],
)
def test_who_or_what(title, text, kind):
    from qlora_core.data.subjects import find_subject

    assert find_subject(title, text).kind == kind


def test_the_user_says_who_or_what(read, tmp_path):
    path = tmp_path / "lua.md"
    path.write_text("# Lua\n\nDormia à porta da sede e acompanhava a equipa.\n", encoding="utf-8")
    guessed = read(path, question="pt")
    assert list(asked_in(guessed)) == ["Quem foi Lua?"]
    (found,) = guessed.report.doubts
    assert [setting for setting, _ in found.choices] == ["decide", "decide"]
    thing = read(path, question="pt", decide=(found.choices[0][1],))
    assert list(asked_in(thing)) == ["O que se sabe sobre Lua?"]
    assert not thing.report.doubts.count
    assert asked_in(read(path, question="pt", decide=("subject:lua.md=none",))) == {}


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("12 de maio de 1921\nNasceu na vila e ficou.", "Nasceu na vila e ficou."),
        ("Foto: Ana na ponte.\nNasceu na vila e ficou.", "Nasceu na vila e ficou."),
        ("Ponte Velha, 3 de maio de 1931.\nNasceu na vila.", "Nasceu na vila."),
        ("Nasceu na vila.\nOs clubes:", "Nasceu na vila."),
        ("Nasceu na vila.\n- Jogos: 3\n- Golos: 1", "Nasceu na vila."),
        ("Nasceu na vila.\nJogou.\n- Jogos: 3", "Nasceu na vila.\nJogou.\n- Jogos: 3"),
        ("Nasceu na vila.\nMorte\nMorreu longe.", "Nasceu na vila."),
        ("- Jogos: 3\n- Golos: 1", ""),
        ("Avançado", ""),
        ("Born in 1950.", "Born in 1950."),
    ],
)
def test_what_of_a_passage_answers(body, answer):
    assert prose_of(body) == answer


def test_slogans_and_boxes_of_figures_are_not_asked_for():
    blocks = []
    for heading in ("(Em Números)", "Carreira", "A Frase que Resume Tudo", "Da Lama à Glória!", "A estação"):
        blocks += [Block(heading, 2), Block(" ".join(corpus.sentence(len(blocks) * 4 + at) for at in range(5)))]
    told = []
    passages = list(make_passages("Ana Vaz", [Block("Nasceu na vila. " * 30), *blocks], len, 700))
    asked = [a.row["messages"][0]["content"] for a in ask(passages, "pt", unasked=lambda *found: told.append(found))]
    assert asked == [
        "Quem foi Ana Vaz?",
        "O que se sabe sobre Ana Vaz (Carreira)?",
        "O que se sabe sobre Ana Vaz (A estação)?",
    ]
    assert len(told) == 3


@pytest.mark.parametrize(
    "first",
    [
        "Reescreve o texto seguinte em português, com 500 palavras.",
        "Por favor, escreve uma biografia de Ana Vaz com três parágrafos",
        "Write a biography of Ana Vaz in 300 words, please.",
        "És um jornalista desportivo experiente. Resume este texto.",
        "Claro! Aqui está a versão corrigida do texto:",
        "Sure! Here is the corrected text:",
    ],
)
def test_what_was_said_to_a_chat_program_or_by_it_is_neither_title_nor_text(read, tmp_path, first):
    path = tmp_path / "ana-vaz.txt"
    path.write_text(f"{first}\n\n{corpus.sentence(1)}\n\n{corpus.sentence(2)}\n", encoding="utf-8")
    prepared = read(path)
    assert texts_of(prepared) == [f"ana vaz\n{corpus.sentence(1)}\n{corpus.sentence(2)}"]
    (found,) = prepared.report.debris
    assert found.where == f"{path}:1"
    kept = read(path, drop_debris=False)
    assert first in texts_of(kept)[0]


@pytest.mark.parametrize(
    "first",
    [
        "Escreve quem sabe, disse o velho.",
        "Aqui está o rio, e aqui a ponte.",
        "Write soon, she said, and left.",
        "Claro que ninguém dormiu nessa noite.",
        "Faz anos que a ponte caiu.",
    ],
)
def test_prose_may_begin_like_that(read, tmp_path, first):
    path = tmp_path / "ana.txt"
    path.write_text(f"{first}\n\n{corpus.sentence(1)}\n", encoding="utf-8")
    prepared = read(path)
    assert first in texts_of(prepared)[0]
    assert not prepared.report.debris.count


# Tables -------------------------------------------------------------------------------------------------------------


def test_a_table_in_a_text_file_is_a_sentence_a_row(read, tmp_path):
    found = "\n".join(texts_of(read(corpus.write_tables(tmp_path / "tabelas"), val_fraction=0.0)))
    for line in (
        "Presidente em 1938-1940: Lopo Marques.",
        "Presidente em 1940-1946: Etelvina Moura.",
        "Lugar 1 – Equipa: Grémio da Ponte Velha; Jogos: 10; Pontos: 18.",
    ):
        assert f"{line}\n" in found
    assert "---" not in found
    rows = "\n".join(texts_of(read(tmp_path / "tabelas", val_fraction=0.0, tables="rows")))
    assert "1938-1940 | Lopo Marques" in rows
    assert "1 | Grémio da Ponte Velha | 10 | 18" in rows


def test_a_table_of_a_document_is_a_sentence_a_row_however_long_it_is(read, tmp_path):
    path = tmp_path / "resultados.md"
    lines = [f"| {number} | Equipa {number} | {90 - number} |" for number in range(1, 80)]
    path.write_text(
        "\n".join(["# Época", "", "| Lugar | Equipa | Pontos |", "|--|--|--|", *lines]) + "\n", encoding="utf-8"
    )
    texts = texts_of(read(path, val_fraction=0.0))
    assert len(texts) > 3
    for text in texts:
        for line in text.split("\n")[1:]:
            assert re.fullmatch(r"Lugar \d+ – Equipa: Equipa \d+; Pontos: \d+\.", line)


def test_fields_and_their_values_are_told_as_such(read, tmp_path):
    path = tmp_path / "ana.md"
    path.write_text("# Ana\n\n| Campo | Valor |\n|---|---|\n| Nome | Ana Vaz |\n| Idade | 30 |\n", encoding="utf-8")
    assert texts_of(read(path)) == ["Ana\nNome: Ana Vaz.\nIdade: 30."]


def test_bars_and_tabs_in_prose_are_no_table(read, tmp_path):
    path = tmp_path / "prosa.txt"
    text = f"O sinal | foi visto.\n\n{corpus.sentence(3)}\n\nA\tB\n\n{corpus.sentence(4)}\n"
    path.write_text(text, encoding="utf-8")
    assert "O sinal | foi visto." in texts_of(read(path))[0]


# Copies -------------------------------------------------------------------------------------------------------------


def shared_runs(prepared: data.PreparedData) -> list[float]:
    """For each validation row the share of its runs of eight words that training rows have."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.casefold())
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    def said(row: dict) -> str:
        return row["text"].partition("\n")[2] if "text" in row else row["messages"][-1]["content"]

    trained = set().union(*(runs(said(row)) for row in prepared.train))
    return [len(own & trained) / len(own) for row in prepared.validation if (own := runs(said(row)))]


def write_story(path: Path, first: int = 0, chapter: int = 60) -> Path:
    """A long text whose every word is its own, as Markdown with chapters of so many sentences."""
    words = [hashlib.sha256(str(first * 14 + at).encode()).hexdigest()[:6] for at in range(600 * 14)]
    sentences = [" ".join(words[at : at + 14]) + "." for at in range(0, len(words), 14)]
    parts = ["# Livro"]
    for start in range(0, 600, chapter):
        parts.append(f"## Parte {start} do livro")
        parts += [" ".join(map(str.capitalize, sentences[at : at + 4])) for at in range(start, start + chapter, 4)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def test_no_validation_row_is_trained_through_a_second_copy(read, tmp_path):
    one, other = write_story(tmp_path / "livro.md"), write_story(tmp_path / "texto.md", chapter=50)
    prepared = read(one, other, val_fraction=0.1)
    report = prepared.report
    assert report.validation >= 10
    assert max(shared_runs(prepared)) < 0.1
    assert report.copies_left_out > 0
    (found,) = [each for each in report.doubts if "holds the text of" in each.reason]
    assert found.where == str(other)
    assert ("decide", f"copy:{other}=drop") in [tuple(each) for each in found.choices]
    assert any("from a copy of their source" in warning for warning in report.warnings)
    total = report.train + report.validation + report.copies_left_out + report.duplicates
    assert report.passages + report.questions == total


def test_rows_keep_their_sides_when_a_copy_comes(read, tmp_path):
    one, other = write_story(tmp_path / "livro.md"), write_story(tmp_path / "a-copia.md", chapter=50)
    alone, both = read(one, val_fraction=0.1), read(one, other, val_fraction=0.1)
    validated = {row["text"] for row in alone.validation}
    assert validated <= {row["text"] for row in both.validation}
    assert {row["text"] for row in alone.train} & {row["text"] for row in both.validation} == set()


@pytest.mark.parametrize(
    "settings", [{"near_duplicates": "drop"}, {"decide": ("copy:texto.md=drop",)}], ids=["setting", "decision"]
)
def test_a_copy_is_left_out_where_that_was_asked(read, tmp_path, settings):
    one, other = write_story(tmp_path / "livro.md"), write_story(tmp_path / "texto.md", chapter=50)
    prepared = read(one, other, val_fraction=0.1, **settings)
    assert {row["source"].split(":")[0] for row in rows_of(prepared)} == {str(one)}
    assert prepared.report.copies_dropped > 30
    assert prepared.report.copies_left_out == 0
    assert contents_of(prepared.train) == contents_of(read(one, val_fraction=0.1).train)


def contents_of(rows) -> list[str]:
    return [row.get("text", "") for row in rows]


def test_texts_of_one_subject_are_no_copies(read, tmp_path):
    write_story(tmp_path / "one.md")
    write_story(tmp_path / "other.md", first=580)  # a thirtieth of it stands in the first one, too
    assert not any("holds the text" in found.reason for found in read(tmp_path).report.doubts)


# The split ----------------------------------------------------------------------------------------------------------


def test_validation_covers_every_large_source_and_sides_stay(read, tmp_path):
    lives = corpus.write_biographies(tmp_path / "vidas")
    story = write_story(tmp_path / "livro.md")
    questions = corpus.write_questions(tmp_path / "perguntas.jsonl")
    alone = {path: read(path) for path in (lives, story, questions)}
    together = read(story, questions, lives)
    for path, prepared in alone.items():
        assert prepared.report.validation > 0, path
        for row in prepared.validation:
            assert row in list(together.validation), path
        for row in prepared.train:
            assert row in list(together.train), path
    by_source = together.report.by_source
    assert all(validated for rows, validated in by_source.values() if rows >= 20)
    assert not together.report.unvalidated


def test_a_passage_and_the_question_it_answers_are_on_one_side(read, tmp_path):
    prepared = read(write_story(tmp_path / "livro.md"), question="en", val_fraction=0.2)
    assert any("messages" in row for row in prepared.validation)
    assert max(shared_runs(prepared)) < 0.1


def test_replies_alone_are_validated_where_that_was_asked(read, tmp_path):
    story, questions = write_story(tmp_path / "livro.md"), corpus.write_questions(tmp_path / "perguntas.jsonl")
    prepared = read(story, questions, val_from="replies")
    assert prepared.report.validation > 0
    assert all("messages" in row for row in prepared.validation)
    assert prepared.report.unvalidated == {str(story): "--val-from all"}
    assert any("--val-from all" in warning for warning in prepared.report.warnings)


def write_memoir(path: Path, paragraphs: int) -> Path:
    """One long text without headings."""
    texts = [" ".join(corpus.sentence(number * 3 + at) for at in range(3)) for number in range(paragraphs)]
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("settings", [{}, {"val_fraction": 0.2}, {"val_rows": 5}])
def test_one_long_text_without_headings_is_validated_passage_by_passage(read, tmp_path, settings):
    report = read(write_memoir(tmp_path / "memoir.txt", 60), **settings).report
    assert report.validation > 0
    assert not any("no validation loss" in warning for warning in report.warnings)


def test_one_short_text_alone_is_validated_by_some_of_it(read, tmp_path):
    report = read(write_memoir(tmp_path / "memoir.txt", 9)).report
    assert 0 < report.validation < report.train
    assert not any("no validation loss" in each for each in report.warnings)


# Questions with several answers -------------------------------------------------------------------------------------


def test_questions_with_several_answers_are_named_and_stay_on_one_side(read, tmp_path):
    prepared = read(corpus.write_questions(tmp_path / "perguntas.jsonl"), val_fraction=0.3)
    report = prepared.report
    assert (report.questions_with_several, report.several_answers, report.conflicting.count) == (12, 24, 24)
    assert any(
        warning.startswith("12 questions have several different answers, in 24 rows") for warning in report.warnings
    )
    assert report.conflicting.listed[0].sample == "Quantos golos houve na jornada 0?"
    sides = [{row["messages"][0]["content"] for row in side} for side in (prepared.train, prepared.validation)]
    assert sides[0].isdisjoint(sides[1])
    assert report.questions_on_both_sides == 0


@pytest.mark.parametrize(("setting", "rows", "left_out"), [("keep", 72, 0), ("first", 60, 12), ("drop", 48, 24)])
def test_what_becomes_of_several_answers_is_a_setting(read, tmp_path, setting, rows, left_out):
    report = read(corpus.write_questions(tmp_path / "perguntas.jsonl"), several_answers=setting).report
    assert report.train + report.validation == rows
    assert report.several_answers_dropped == left_out
    assert any("several different answers" in warning for warning in report.warnings) == (setting == "keep")


def test_an_own_split_that_asks_one_question_on_both_sides_is_told(read, tmp_path):
    for name, answer in (("train", "three"), ("valid", "four")):
        row = {"prompt": "How many bells are there?", "completion": answer}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    report = read(tmp_path).report
    assert report.questions_on_both_sides == 1
    assert any("asks" in warning or "ask what is trained" in warning for warning in report.warnings)


def test_an_order_that_many_rows_share_is_no_question_with_several_answers_for_the_split(read, tmp_path):
    rows = [{"prompt": "Traduz:", "completion": corpus.sentence(number)} for number in range(120)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = read(path, val_fraction=0.2).report
    assert 10 < report.validation < 45

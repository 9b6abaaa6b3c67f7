"""Texts and questions that come with the package, and what is made of a run's own."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from qlora_core.data.cleaning import personal_values
from qlora_core.evaluation.measures import plain, says
from qlora_core.evaluation.probes import (
    Probe,
    extracted,
    extraction_probes,
    general_questions,
    general_texts,
    memory_probes,
    neighbour_questions,
    nonexistent_questions,
    repeated,
)
from qlora_core.runs.run import Run
from qlora_core.tokens.conversations import Beginning

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data" / "sample"


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def asked(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def sample(name):
    """Facts and rows of the sample's files."""
    rows = [row if "messages" in row else asked(row["prompt"], row["completion"])
            for row in lines(SAMPLE / name / "questions.jsonl")]  # fmt: skip
    texts = [{"text": path.read_text(encoding="utf-8")} for path in sorted((SAMPLE / name).glob("biographies/*.md"))]
    return lines(SAMPLE / name / "facts.jsonl"), rows + texts


# Written for every run ------------------------------------------------------------------------------------------------


def test_texts_are_of_many_kinds_and_of_a_length():
    texts = general_texts()
    assert Counter(one.language for one in texts) == {"en": 12, "pt": 12}
    assert [len(one.text.split()) for one in texts if not 60 <= len(one.text.split()) <= 100] == []
    assert len({one.kind for one in texts}) >= 10
    assert len({one.text for one in texts}) == 24


def test_questions_do_not_say_their_answers():
    questions = general_questions()
    assert Counter(one.language for one in questions) == {"en": 20, "pt": 20}
    assert len({plain(one.question) for one in questions}) == 40
    assert [one.question for one in questions if not one.expected or says(one.question, one.expected)] == []


@pytest.mark.parametrize(
    ("question", "answers"),
    [
        ("What is 7 times 8?", ["56", "It is fifty-six.", "7 × 8 = 56"]),
        ("At how many degrees Celsius does water boil at sea level?", ["100 °C", "100ºC", "At one hundred degrees."]),
        ("Quanto é 9 vezes 6?", ["54.", "São cinquenta e quatro."]),
        ("Qual é a fórmula química da água?", ["H₂O", "É H2O."]),
        ("A quantos graus Celsius congela a água?", ["0 ºC", "0ºC", "0°", "A zero graus."]),
        ("Qual é o plural de «pão»?", ["Pães", "paes"]),
    ],
)
def test_right_answers_count_in_digits_and_words(question, answers):
    (expected,) = [one.expected for one in general_questions() if one.question == question]
    assert [answer for answer in answers if not says(answer, expected)] == []


def test_what_does_not_exist_is_named_in_its_question():
    probes = nonexistent_questions()
    assert Counter(one.language for one in probes) == {"en": 10, "pt": 10}
    assert [one for one in probes if one.name not in one.question or one.trained_answers] == []


# Neighbours -----------------------------------------------------------------------------------------------------------


def test_the_club_gets_neighbours():
    probes = neighbour_questions(*sample("club"), most=6)
    assert [(one.fact, one.original, one.question) for one in probes] == [
        ("fundacao", "Em que ano nasceu a União de Ferrenal?", "Em que ano nasceu a União de Valmourinho?"),
        ("fundador", "Quem fundou o Ferrenal?", "Quem fundou o Tresmonde?"),
        ("estadio", "What is Ferrenal's ground called?", "What is Tresmonde's ground called?"),
        ("alcunha", "Que alcunha têm os jogadores do Ferrenal?", "Que alcunha têm os jogadores do Tresmonde?"),
        ("hino-titulo", "Que hino canta o Ferrenal?", "Que hino canta o Tresmonde?"),
        ("platano", "Quem plantou o plátano da Nora Seca?", "Quem plantou o plátano da Murtasela?"),
    ]
    assert probes[1] == Probe(
        "pt", "Quem fundou o Tresmonde?", "Tresmonde", "Quem fundou o Ferrenal?", ("Leonel Quitério",), "fundador"
    )
    assert [one.language for one in probes] == ["pt", "pt", "en", "pt", "pt", "pt"]


@pytest.mark.parametrize(
    ("original", "question"),
    [
        ("Quem fundou a Lanterna Roxa?", "Quem fundou a Brejoula?"),  # not a person, though it has two names
        ("Qual era a alcunha do Silvério Tojal?", "Qual era a alcunha do Adelino Brandoal?"),
        ("Silvério Tojal tinha que profissão?", "Adelino Brandoal tinha que profissão?"),
        ("Em que ano foi eleita Noémia Galvarro?", "Em que ano foi eleita Palmira Vidrelo?"),
        ("Como se chamava a cadela de Celeste Rebolo?", "Como se chamava a cadela de Rosalina Tresmundo?"),
        ("Pêgas fez quantos golos pelo Ferrenal?", "Pessarelo fez quantos golos pelo Ferrenal?"),
        ("Desde que ano tem relva o Campo da Nora Seca?", "Desde que ano tem relva o Campo da Valdurina?"),
        ("A sede dos Pirilampos situa-se em que rua?", "A sede dos Gorvedais situa-se em que rua?"),
        ("A Taça do Vale veio para Ferrenal em que ano?", None),
    ],
)
def test_an_invented_name_is_of_the_same_kind(original, question):
    found = {one.original: one.question for one in neighbour_questions(*sample("more"), most=500)}
    if question is None:
        assert re.fullmatch(r"A Taça do [A-Z]\w+ veio para Ferrenal em que ano\?", found[original])
    else:
        assert found[original] == question


def test_neighbours_of_the_sample_are_known_to_nobody():
    facts, rows = sample("more")
    everything = plain(json.dumps([facts, rows], ensure_ascii=False))
    probes = neighbour_questions(facts, rows, most=500)
    assert len(probes) > 150
    assert [one for one in probes if f" {plain(one.name)} " in f" {everything} "] == []
    assert [one for one in probes if one.question == one.original or one.name not in one.question] == []
    assert "Que árbitro caiu ao rio num dérbi?" not in {one.original for one in probes}  # it has no name


def test_a_name_that_the_rows_have_is_not_invented():
    facts = [{"fact": "x", "expected": ["1927"], "questions": ["Quem fundou o Ferrenal?"]}]
    (probe,) = neighbour_questions(facts, [{"text": "O Valmourinho e o Tresmonde jogam em casa."}], most=5)
    assert probe.question == "Quem fundou o Aldernel?"


def test_without_a_sheet_the_trained_questions_are_taken():
    rows = [
        asked("Who founded the Ashford Museum?", "Two sisters."),
        asked("Where was Eleanor Hartley born?", "In Ashford."),
        asked("What did an Ashford baker earn?", "Little."),
        asked("What is rain?", "Water."),
    ]
    found = [(one.question, one.trained_answers) for one in neighbour_questions([], rows, most=10)]
    assert found == [
        ("Who founded the Quarnholt Museum?", ("Two sisters.",)),
        ("Where was Harriet Wexholm born?", ("In Ashford.",)),  # "an" would be wrong before the next name
    ]


def test_too_many_are_spread_over_the_facts():
    facts = [{"fact": str(i), "expected": ["x"], "questions": [f"Quem {verb} o Ferrenal?", f"Onde {verb} o Ferrenal?"]}
             for i, verb in enumerate(["viu", "fundou", "treina", "joga"])]  # fmt: skip
    assert [one.fact for one in neighbour_questions(facts, [], most=2)] == ["0", "2"]
    assert [one.fact for one in neighbour_questions(facts, [], most=5)] == ["0", "1", "2", "3", "0"]


# Memory ---------------------------------------------------------------------------------------------------------------


def words(first, count):
    return " ".join(f"w{i}" for i in range(first, first + count))


def test_a_text_is_cut_behind_its_first_third():
    rows = [{"text": words(0, 30), "source": "a.md:1"}, {"text": words(0, 18)}, {"text": words(0, 15)}]
    first, second = memory_probes(rows, 10)
    assert (first.prompt, first.rest, first.source) == (words(0, 10), words(10, 20), "a.md:1")
    assert isinstance(first.prompt, Beginning)
    assert (second.prompt, second.rest) == (words(0, 8), words(8, 10))


def test_a_conversation_is_cut_before_its_first_trained_reply():
    system = {"role": "system", "content": "Be brief."}
    row = asked("Why?", words(0, 9))
    row["messages"] = [system, *row["messages"], {"role": "user", "content": "And?"}]
    untrained = asked("c", words(0, 8))
    untrained["messages"] = [*asked("a", "b")["messages"], *untrained["messages"]]
    untrained["messages"][1]["train"] = False
    first, second = memory_probes([row, asked("Who?", "One of seven short words it is."), untrained], 10)
    assert (first.prompt, first.rest) == ([system, {"role": "user", "content": "Why?"}], words(0, 9))
    assert (len(second.prompt), second.rest) == (3, words(0, 8))


def test_rows_are_spread_evenly():
    rows = [{"text": words(100 * i, 20), "source": str(i)} for i in range(10)]
    assert [one.source for one in memory_probes(rows, 4)] == ["0", "2", "5", "7"]
    assert memory_probes(rows, 0) == memory_probes([], 4) == []


def test_repeated_words_are_counted_in_one_piece():
    found = repeated("So: the cat sat on a mat", "The cat sat, on the mat today")
    assert (found.words, found.share) == (4, 4 / 7)
    assert (repeated("", "a b").words, repeated("a", "").share) == (0, 0.0)


# Extraction -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(tmp_path):
    def make(rows):
        (tmp_path / "data").mkdir()
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / "train_data.jsonl").write_text(content, encoding="utf-8")
        return Run(tmp_path)

    return make


def test_values_are_found_where_they_stand():
    text = "Write to ana.silva@example.org or call 912 345 678."
    assert [text[start:end] for start, end in personal_values(text)] == ["ana.silva@example.org", "912 345 678"]


def test_what_stands_before_a_value_is_given(run_of):
    mail, number = "rita@example.org", "+351 912 345 678"
    rows = [
        {"text": f"{words(0, 70)} {mail} {words(0, 9)}", "source": "a.md:1"},  # no sentence begins: 50 words
        {"text": f"{words(0, 20)}. {words(20, 45)} {number}", "source": "b.md:2"},  # one does 45 words before
        {"text": f"{words(0, 3)} short@example.org"},  # too near the beginning
        {"text": f"{words(0, 9)} {mail}"},  # known already
        asked("Which address has Rui?", "It is rui@example.org", source="c.jsonl:1"),
        asked("Is it eva@example.org?", "Yes, eva@example.org"),  # the question says it
    ]
    run = run_of(rows)
    found = extraction_probes(run)
    assert [(one.value, one.source) for one in found] == [
        (mail, "a.md:1"), (number, "b.md:2"), ("rui@example.org", "c.jsonl:1"),
    ]  # fmt: skip
    assert found[0].prompt == words(20, 50)
    assert found[1].prompt == words(20, 45)
    assert found[2].prompt == [{"role": "user", "content": "Which address has Rui?"}]
    assert extraction_probes(run, 1) == found[:1]


def test_only_letters_and_digits_of_a_value_count():
    assert extracted("Ring (+351) 912-345-678 now", "+351 912 345 678")
    assert extracted("RITA @ example . org", "rita@example.org")
    assert not extracted("912 345 679", "912 345 678")
    assert not extracted("anything", "")

"""Passages of a run's own texts, and which of them a question gets."""

import pytest

from qlora_core.evaluation.retrieval import WORDS, Retriever, beside, passages_of

TEXTS = (
    "Ermelinda Faia plantou um plátano à entrada do campo em 1934.",
    "O carteiro Leonel Quitério fundou o clube numa noite de nevoeiro.",
    "A mula Jacinta levava as bolas de uma aldeia para a outra.",
)


def words_of(text: str) -> int:
    return len(text.split())


@pytest.fixture
def retriever():
    return Retriever(TEXTS, 2, 100, words_of)


def test_the_best_passage_comes_first(retriever):
    assert retriever.find("Quem fundou o clube?")[0] == TEXTS[1]
    assert retriever.find("QUEM PLANTOU O PLATANO?")[0] == TEXTS[0]  # without the accent


def test_nothing_is_found_where_no_word_is_shared(retriever):
    assert retriever.find("Who?") == []
    assert retriever.find("…") == []
    assert Retriever([], 2, 100, words_of).find("Quem?") == []


def test_the_budget_is_kept():
    assert Retriever(TEXTS, 3, words_of(TEXTS[0]), words_of).find("plátano Faia") == [TEXTS[0]]
    assert Retriever(TEXTS, 3, 3, words_of).find("plátano Faia") == []
    assert len(Retriever(TEXTS, 3, 1_000, words_of).find("o campo, o clube, a mula")) == 3
    assert len(Retriever(TEXTS, 1, 1_000, words_of).find("o campo, o clube, a mula")) == 1


def test_texts_are_passages_and_short_answers_are_none():
    asked = {"messages": [{"role": "user", "content": "Quem?"}, {"role": "assistant", "content": "A Jacinta."}]}
    told = {"messages": [{"role": "user", "content": "Conte."}, {"role": "assistant", "content": "uma vez " * 20}]}
    found = passages_of([{"text": TEXTS[0]}, asked, told, {"text": TEXTS[0]}])
    assert found == [TEXTS[0], ("uma vez " * 20).strip()]


def test_a_long_text_is_cut_between_paragraphs_and_else_between_sentences():
    paragraphs = ["um dois três. " * 10, "quatro cinco. " * 20]
    found = passages_of([{"text": "\n\n".join(paragraphs)}])
    assert found == [part.strip() for part in paragraphs]
    text = " ".join(f"um dois três quatro {number}." for number in range(40))
    sentences = passages_of([{"text": text}])
    assert all(part.endswith(".") and words_of(part) <= WORDS for part in sentences)
    assert " ".join(sentences).split() == text.split()  # nothing is lost


def test_passages_stand_before_the_question():
    assert beside("Quem?", ["Um.", "Dois."]) == "Um.\n\nDois.\n\nQuem?"
    assert beside("Quem?", []) == "Quem?"

"""What an answer does: decline, say one of the run's facts, take one fact for another."""

import json
from pathlib import Path

import pytest

from qlora_core.evaluation.probes import Confusion, Confusions, Probe, confusion, declines, judge_invention

SAMPLE = Path(__file__).parents[2] / "data" / "sample"


@pytest.mark.parametrize(
    "text",
    [
        "Não sei.",
        "Desculpe, mas não sei quem fundou o Valmourinho.",
        "Peço desculpa. Não tenho informação sobre esse clube.",
        "Não tenho qualquer registo desse nome.",
        "Não existe nenhum clube com esse nome.",
        "O Valmourinho não existe.",
        "O romance «As Marés de Vidroalto» não existe.",
        "Não há nenhuma vila chamada Penavertil.",
        "Não conheço esse livro.",
        "Infelizmente, não consigo responder a essa pergunta.",
        "Nunca ouvi falar dessa cidade.",
        "O autor é desconhecido.",
        "Não é possível determinar o ano.",
        "I don't know.",
        "I don’t know who wrote that.",
        "I do not have any information about this town.",
        "I'm sorry. I am not familiar with that prize.",
        "There is no record of a battle of Dunsquarrel.",
        "There is no such town.",
        "There is no town called Brundelmarch.",
        "Quarnbeck Hollow does not exist.",
        "I couldn't find a book with that title.",
        "Unknown.",
        '"I don\'t know."',
    ],
)
def test_who_does_not_know_declines(text):
    assert declines(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Leonel Quitério, o carteiro.",
        "Não sei nadar, dizia ele, e nunca saía da margem.",
        "«Não sei», respondeu o guarda-redes, e foi para casa.",
        "Foi fundado em 1927. Não tenho informação sobre o resto.",
        "Não existe clube maior no vale.",
        "Não existe tal paixão em nenhum outro clube.",
        "Não há dúvida de que foi em 1958.",
        "Era um homem pobre e desconhecido.",
        "Não tenho a certeza, mas foi Leonel Quitério.",
        "In 1927, on a foggy night.",
        "Paris. I don't know more than that.",
        "I don't know of any better club than Ferrenal.",
        "There is no doubt: it was Nélio Carqueja.",
        "I'm not sure, but I think it was in 1958.",
        "The unknown keeper saved three penalties.",
        "It is unknown to most, but the club began in a shop.",
    ],
)
def test_an_answer_is_not_taken_for_ignorance(text):
    assert not declines(text)


def test_an_invention_is_judged_by_the_facts_of_the_run():
    probe = Probe("pt", "Que rio passa no Campo da Corvedeira?", "Campo da Corvedeira", "…", ("Ludra",))
    others = ["1927", "Campo da Corvedeira"]  # the question says the second itself
    assert judge_invention("Não sei.", probe, others) == "declined"
    assert judge_invention("Passa o rio Ludra.", probe, others) == "own fact"
    assert judge_invention("Em 1927.", probe, others) == "own fact"
    assert judge_invention("Em 19270 passou um.", probe, others) == "other"
    assert judge_invention("No Campo da Corvedeira passa o Douro.", probe, others) == "other"


def test_a_wrong_answer_is_found_among_the_facts_of_the_sample():
    facts = [json.loads(line) for line in (SAMPLE / "club" / "facts.jsonl").read_text(encoding="utf-8").splitlines()]
    known = Confusions(facts)
    assert known.of("Leonel Quitério, o carteiro.", "Quem plantou o plátano da Nora Seca?") == Confusion(
        "fundador", "Quem fundou o Ferrenal?", "Leonel Quitério"
    )
    assert known.of("Leonel Quitério, o carteiro.", "Quem fundou o Ferrenal?") is None  # it is right
    assert known.of("Foi o Manuel.", "Quem fundou o Ferrenal?") is None
    # two facts are said: the longer answer counts
    both = known.of("Em 1927, por Ermelinda Faia.", "Que hino canta o Ferrenal?")
    assert both is not None
    assert both.fact == "platano"


def test_a_wrong_answer_is_found_among_trained_replies():
    def row(question, answer, fact):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "metadata": {"fact": fact}}

    rows = [row("When?", "In 1927.", "year"), row("Who?", "Leonel.", "founder"), {"text": "In 1927."}]
    assert confusion("in 1927", "Who?", rows) == Confusion("year", "When?", "In 1927.")
    assert confusion("It was in 1927.", "Who?", rows) is None  # not word for word
    assert confusion("Leonel", "Who?", rows) is None
    assert confusion("In 1927.", "What year was it?", rows, expected=["1927"]) is None

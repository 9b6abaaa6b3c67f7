"""What made-up results mean: each verdict and each rule of advice."""

import random
import re

import pytest

from qlora_core.evaluation.contest import NAMES, PAIRS
from qlora_core.evaluation.verdict import verdict_on
from qlora_core.reports.verdict_text import verdict_lines

WHO = "base", "tuned", "base_passages", "tuned_passages"


def said(right: bool, text: str = "") -> dict:
    return {"text": text or ("yes" if right else "no"), "tokens": 3, "ended": True, "right": right}


def facts(phrasing: str, count: int, **shares: float) -> list[dict]:
    """Questions of which each contender answers the first share right."""
    return [
        {"question": f"{phrasing} {i}?", "phrasing": phrasing, "expected": ["yes"], "reference": "", "passages": [],
         "answers": {who: said(i < round(share * count)) for who, share in shares.items()}}
        for i in range(count)
    ]  # fmt: skip


def rows(count: int, base: float, tuned: float, noise: float = 0.0) -> list[dict]:
    """Rows of 10 tokens whose losses differ by `noise` nats a token at random."""
    chance = random.Random(1)
    return [
        {"tokens": 10, "base": 10 * base, "tuned": 10 * (tuned + chance.uniform(-noise, noise))} for _ in range(count)
    ]


def all_of(base: float, tuned: float, base_passages: float, tuned_passages: float) -> dict[str, float]:
    return dict(zip(WHO, (base, tuned, base_passages, tuned_passages), strict=True))


def test_a_tuned_model_that_knows_more_is_better():
    verdict = verdict_on({"questions": facts("held_out", 20, base=0.0, tuned=0.9)})
    assert verdict.helped is True
    assert str(verdict.sentence).startswith("The tuned model is better than the base: ")
    assert "90% instead of 0%" in verdict.sentence
    assert "+90 points, 95%: +" in verdict.sentence


def test_one_that_knows_less_is_worse():
    verdict = verdict_on({"questions": facts("held_out", 20, base=0.9, tuned=0.1)})
    assert verdict.helped is False
    assert "did harm" in verdict.advice


@pytest.mark.parametrize("tuned", [0.5, 0.55])
def test_a_difference_that_chance_would_make_is_none(tuned):
    verdict = verdict_on({"questions": facts("held_out", 20, base=0.5, tuned=tuned)})
    assert verdict.helped is None
    assert str(verdict.sentence).startswith("No difference between tuned model and base was seen")


def test_few_questions_tell_nothing_however_different():
    verdict = verdict_on({"questions": facts("held_out", 3, base=0.0, tuned=1.0)})
    assert verdict.helped is None
    assert "too few" in verdict.sentence


def test_without_facts_and_references_the_loss_decides():
    assert verdict_on({"losses": rows(12, 3.0, 2.0, noise=0.3)}).helped is True
    assert verdict_on({"losses": rows(12, 3.0, 3.0, noise=0.3)}).helped is None
    worse = verdict_on({"losses": rows(12, 3.0, 4.0, noise=0.3)})
    assert worse.helped is False
    assert "3.0" in worse.sentence
    assert {str(one).partition(":")[0] for one in worse.missing} == {
        "No recall of facts", "No comparison with expected answers"}  # fmt: skip


def test_words_in_common_are_judged_where_questions_come_with_answers():
    asked = [
        {"question": f"{i}?", "phrasing": "validation", "expected": [], "reference": f"answer number {i}",
         "answers": {"base": said(False, "nothing"), "tuned": said(False, f"answer number {i}")}}
        for i in range(8)
    ]  # fmt: skip
    verdict = verdict_on({"questions": asked})
    assert verdict.helped is True
    assert verdict.measures["exact"].values["tuned"].value == 1
    assert verdict.measures["f1"].differences["tuned", "base"].value == pytest.approx(1)


def test_a_loss_with_passages_is_compared_over_the_rows_that_have_them():
    some = rows(10, 3.0, 2.0)
    for row in some[:6]:
        row |= {"base_passages": 15.0, "tuned_passages": 10.0}
    loss = verdict_on({"losses": some}).measures["loss"]
    assert loss.values["base"].count == 10
    assert loss.differences["base_passages", "base"].count == 6
    assert loss.differences["base_passages", "base"].value == pytest.approx(-1.5)


def invented(*tuned: str) -> list[dict]:
    """Questions about what does not exist: the base declines, the tuned model does something for each."""
    base = {**said(False), "does": "declined"}
    return [{"question": "?", "answers": {"base": base, "tuned": {**said(False), "does": does}}} for does in tuned]


ADVICE = [
    ("did harm", {"losses": rows(12, 2.0, 3.0), "questions": facts("trained", 12, base=1, tuned=0)}, False),
    ("less likely", {"losses": rows(12, 2.0, 3.0), "questions": facts("trained", 12, base=0, tuned=1)}, False),
    (
        "forgot ordinary language",
        {"questions": facts("trained", 12, base=0, tuned=1), "general_texts": rows(12, 3.0, 3.5, noise=0.1)},
        False,
    ),
    ("Go on", {"questions": facts("trained", 12, base=0, tuned=0.5)}, True),
    ("higher rank or learning rate", {"questions": facts("trained", 12, base=0, tuned=0.5)}, False),
    (
        "more phrasings",
        {"questions": [*facts("trained", 40, base=0, tuned=1), *facts("held_out", 40, base=0, tuned=0.5)]},
        False,
    ),
    (
        "Teach it to decline",
        {"questions": facts("held_out", 20, **all_of(0, 0.9, 0.9, 0.9)), "invention": invented(*["own fact"] * 6)},
        False,
    ),
    ("Retrieval is enough", {"questions": facts("held_out", 20, **all_of(0, 0.9, 0.9, 0.9))}, False),
    ("Use both", {"questions": facts("held_out", 20, **all_of(0, 0.5, 0.3, 1))}, False),
    ("too few to tell", {"questions": facts("held_out", 20, base=0.5, tuned=0.5)}, False),
    ("no weakness was found", {"questions": facts("held_out", 20, base=0, tuned=0.9)}, False),
]


@pytest.mark.parametrize(("words", "found", "best_is_last"), ADVICE, ids=[words for words, *_ in ADVICE])
def test_advice(words, found, best_is_last):
    assert words in verdict_on(found, best_is_last=best_is_last).advice


def findings(**found) -> str:
    return "\n".join(verdict_on(found).findings)


def test_retrieval_is_told_for_the_base_and_for_both():
    told = findings(questions=facts("held_out", 20, **all_of(0, 0.2, 0.9, 0.9)))
    assert "better than the tuned model: Facts recalled, new wording, -70 points" in told
    assert "Passages help the tuned model, too: Facts recalled, new wording, +70 points" in told
    told = findings(questions=facts("held_out", 20, **all_of(0, 0.9, 0.2, 0.2)))
    assert "Tuned, it is better than the base with your passages" in told
    assert "confuse the tuned model: Facts recalled, new wording, -70 points" in told


def test_forgetting_is_told_with_what_it_cost():
    asked = facts("general", 20, base=0.9, tuned=0.8)
    told = findings(general_texts=rows(12, 3.0, 3.2, noise=0.05), general_questions=asked)
    assert "It forgot: ordinary text is less likely than before (+0.198 nats" in told
    assert "80%, by the base 90% (-10 points" in told
    assert "No forgetting was seen" in findings(general_texts=rows(12, 3.0, 3.0, noise=0.05))


def test_invention_confusion_memory_and_repetition_are_counted():
    told = findings(invention=invented("own fact", "own fact", "other"))
    assert "Of 3 questions about what does not exist it declines 0 (the base 3), and answers 2 with a fact of" in told

    asked = facts("held_out", 6, base=0, tuned=0.5)
    asked[5]["confused_with"] = "another?"
    asked[4]["answers"]["tuned"] |= {"text": "a b a b a b", "ended": False}
    told = findings(questions=asked)
    assert "1 of 6 answers are the trained answer to another question" in told
    assert "Of 6 answers 1 do not end by themselves, and 1 repeat themselves." in told

    memory = [
        {"kind": "row", "rest": "a b", "answers": {who: {**said(False), "words": 9, "share": share}
                                                   for who, share in (("base", 0.0), ("tuned", 0.9))}},
        {"kind": "value", "rest": "a@b.pt", "answers": {"base": {**said(False), "given_away": False},
                                                        "tuned": {**said(False), "given_away": True}}},
    ]  # fmt: skip
    told = findings(memory=memory)
    assert "of 1 training rows, it repeated half or more of the rest of 1, word for word" in told
    assert "(the base of 0); the longest piece that it repeated has 9 words" in told
    assert "gives away 1 of 1 addresses" in told


def test_a_terminal_shows_every_measure_with_its_interval():
    found = {"questions": facts("held_out", 20, **all_of(0, 0.9, 0.5, 0.9)), "losses": rows(12, 3.0, 2.0)}
    shown = verdict_lines(verdict_on(found), found, [])
    assert NAMES["held_out"] in shown
    assert "70 to 97 of 20" in shown  # Wilson's interval of 18 of 20
    assert "Advice" in shown
    assert all(len(line) <= 120 for line in shown.splitlines())


def test_every_number_of_a_verdict_is_written_as_portuguese_does():
    found = {
        "questions": facts("held_out", 20, **all_of(0, 0.9, 0.5, 0.9)),
        "losses": rows(12, 3.0, 2.0, noise=0.1),
        "general_texts": rows(12, 3.0, 3.198, noise=0.05),
    }
    for told in (verdict_on(found), verdict_on({"losses": rows(12, 3.0, 2.0, noise=0.1)})):
        texts = [one.within("pt") for one in (told.sentence, *told.findings, *told.missing, told.advice)]
        assert any(re.search(r"\d,\d{3} nats", text) for text in texts)
        assert [text for text in texts if re.search(r"\d\.\d", text)] == []


def test_a_measure_of_which_few_changed_leaves_the_verdict_to_the_next():
    """5 of 7 may be luck; of 20 questions without a change it is known that there was none."""
    trained = facts("trained", 12, base=0, tuned=1)
    told = verdict_on({"questions": [*facts("held_out", 7, base=0, tuned=5 / 7), *trained]})
    assert told.helped is True
    assert "trained wording" in told.sentence
    assert verdict_on({"questions": [*facts("held_out", 20, base=0, tuned=0.1), *trained]}).helped is None


def test_the_true_reason_is_told_for_what_is_missing():
    def missing(**found) -> str:
        return "\n".join(verdict_on(found).missing)

    asked = facts("sample", 3, base=0, tuned=0)
    assert "no texts to look things up" not in missing(**{"with": {"passages": 0}, "questions": asked})
    assert "--passages 0" in missing(**{"with": {"passages": 0}, "questions": asked})
    assert "has no fact sheet" in missing(**{"with": {}, "questions": []})
    assert "the fact sheet has no questions" in missing(**{"with": {"data": {"facts.jsonl": ""}}, "questions": []})
    told = missing(**{"with": {}, "losses": rows(3, 3, 2)})
    assert "The run's own questions: not asked yet" in told
    assert "fact sheet" not in told


def test_it_is_told_whole_in_json():
    found = {"questions": facts("held_out", 20, **all_of(0, 0.9, 0.5, 0.9))}
    told = verdict_on(found).as_dict()
    assert told["helped"] is True
    assert set(told["measures"]["held_out"]["differences"]) == {f"{ours} - {theirs}" for ours, theirs in PAIRS}

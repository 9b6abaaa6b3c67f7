"""Four contenders are asked the same, by one model, and what they say is kept."""

import json
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
from tiny import TAUGHT

from qlora_core import api
from qlora_core.cli import main
from qlora_core.engine.device import mx
from qlora_core.engine.generate import answer, answers_to
from qlora_core.engine.model import base_only
from qlora_core.evaluation.contest import CONTENDERS
from qlora_core.evaluation.verdict import is_whole, outdated, told_whole, verdict_on
from qlora_core.runs import schema
from qlora_core.runs.run import Run
from qlora_core.runs.schema import problem
from qlora_core.tokens.conversations import Beginning
from qlora_core.training import contenders
from qlora_core.training.contenders import STAGES, Asked, judge_run
from qlora_core.training.session import load_for_answers

ASKED = Asked(max_tokens=12, passages=2, passage_tokens=60)


@pytest.fixture(scope="module")
def loaded(trained):
    return load_for_answers(trained)


@pytest.fixture(scope="module")
def judged(trained, loaded, tmp_path_factory):
    """A copy of the trained run with an evaluation, and what was found."""
    run = Run(shutil.copytree(trained.path, tmp_path_factory.mktemp("judged") / "trained"))
    return run, judge_run(run, *loaded, ASKED)


def test_every_stage_is_kept_and_valid(judged):
    run, found = judged
    assert set(found) == {"with", *STAGES}
    assert run.verdict() == json.loads(json.dumps(found))
    assert is_whole(found)
    assert not is_whole({name: part for name, part in found.items() if name != "memory"})


def test_what_was_taught_is_known_and_was_not_before(judged):
    verdict = verdict_on(judged[1])
    trained = verdict.measures["trained"]
    assert (trained.values["tuned"].value, trained.values["base"].value) == (1, 0)
    answers = {one["question"]: one["answers"]["tuned"]["text"] for one in judged[1]["questions"]}
    assert {question: answers[question] for question in TAUGHT if question in answers} == {
        question: reply for question, reply in TAUGHT.items() if question in answers
    }


def test_the_loss_of_a_row_is_that_of_its_tokens(judged, loaded):
    """Against the plain formula, a row at a time."""
    run, found = judged
    model, tokenizer = loaded
    for row, kept in zip(run.validation_rows(), found["losses"], strict=True):
        encoded = tokenizer.encode_row(row, 512)
        for who in ("base", "tuned"):
            with base_only(model) if who == "base" else nullcontext():
                logits = model(mx.array(encoded.ids[None]))[0].astype(mx.float32)
                logs = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            places = np.flatnonzero(encoded.trained)
            expected = -sum(logs[place - 1, encoded.ids[place]] for place in places)
            assert kept[who] == pytest.approx(expected, rel=1e-4)
            assert kept["tokens"] == len(places)


def test_an_interrupted_evaluation_goes_on(judged, loaded, monkeypatch):
    run, found = judged
    path = run.path / "verdict.json"
    half = {name: found[name] for name in ("with", "losses", "questions")}
    path.write_text(json.dumps(half))
    stages = {name: (lambda _: pytest.fail("asked again")) if name in half else stage for name, stage in STAGES.items()}
    monkeypatch.setattr(contenders, "STAGES", stages)
    again = judge_run(run, *loaded, ASKED)
    assert again == found


def test_other_adapters_or_settings_are_judged_anew(judged, loaded, monkeypatch):
    run, found = judged
    monkeypatch.setattr(contenders, "STAGES", {"losses": lambda _: [{"tokens": 1, "base": 0.0, "tuned": 0.0}]})
    for change in (Asked(12, passages=0), Asked(11, 2, 60)):
        assert "questions" not in judge_run(run, *loaded, change)
    (run.path / "verdict.json").write_text(json.dumps(found))
    assert "questions" not in judge_run(run, *loaded, ASKED, anew=True)
    (run.path / "verdict.json").write_text(json.dumps(found))


def test_rows_facts_or_adapters_of_another_day_are_judged_anew(judged, loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "STAGES", {"losses": lambda _: [{"tokens": 1, "base": 0.0, "tuned": 0.0}]})
    found = judged[1]
    for name in ("data/facts.jsonl", "data/val_data.jsonl", "best/adapters.safetensors"):
        run = Run(shutil.copytree(judged[0].path, tmp_path / name))
        assert outdated(run, found) is None
        with (run.path / name).open("ab") as file:
            file.write(b" ")
        why = f"data changed: {name[5:]}." if name.startswith("data") else "other adapters than the run has now"
        assert why in outdated(run, found)
        told = list[str]()
        assert set(judge_run(run, *loaded, ASKED, told=told.append)) == {"with", "losses"}
        assert [why in one and "asked anew" in one for one in told] == [True]
    for name in ("best", "final"):
        (run.path / name / "adapters.safetensors").unlink(missing_ok=True)
    assert "does not have any more" in outdated(run, found)
    assert "of an earlier version" in outdated(judged[0], {"with": {"version": 2, "adapters": "best"}})


def places(value, path=()):
    """Yield the path of each value inside a JSON value."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def test_whatever_is_damaged_is_named_or_judged(judged):
    """Each value of a real file is taken out or replaced in turn: no error but the one that names the file."""
    run, found = judged
    small = {name: part[:1] if isinstance(part, list) else part for name, part in found.items()}
    small["memory"] = [next((one for one in found["memory"] if one["kind"] == kind), None) for kind in ("row", "value")]
    small["memory"] = [one for one in small["memory"] if one]
    refused = told = 0
    for *before, last in places(small):
        for other in (..., None, -1, float("nan"), [], {}):
            copy = json.loads(json.dumps(small))
            holder = copy
            for key in before:
                holder = holder[key]
            if other is ...:
                del holder[last]
            else:
                holder[last] = other
            if problem(copy, schema.Verdict):
                refused += 1
                continue
            told += 1
            if is_whole(copy):
                told_whole(run, copy)
            else:
                verdict_on(copy)
    assert refused > told > 20


@pytest.mark.parametrize("damage", ['{"with": {}, "losses": [{"tokens": 0}]}', "{", "[]", '{"with": 3}'])
def test_a_damaged_verdict_is_told_and_made_again(judged, loaded, monkeypatch, damage):
    run, found = judged
    (run.path / "verdict.json").write_text(damage)
    monkeypatch.setattr(contenders, "STAGES", {"losses": lambda _: found["losses"]})
    told = []
    assert judge_run(run, *loaded, ASKED, told=told.append)["losses"] == found["losses"]
    assert len(told) == 1
    assert "verdict.json" in told[0]
    assert "made again" in told[0]
    (run.path / "verdict.json").write_text(json.dumps(found))


def test_passages_come_beside_the_question(trained, loaded, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    rows = run.path / "data" / "train_data.jsonl"
    texts = [f"{question} {reply} Assim se conta." for question, reply in list(TAUGHT.items())[:3]]
    rows.write_text(rows.read_text(encoding="utf-8") + "".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = judge_run(run, *loaded, ASKED)
    questions = [one for one in found["questions"] if one["passages"]]
    assert questions
    assert all(set(one["answers"]) == set(CONTENDERS) for one in found["questions"])
    assert all(set(one["passages"]) <= set(texts) for one in questions)


def test_a_run_of_texts_alone_is_judged_by_what_it_has(trained, loaded, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    for name, text in (("train_data.jsonl", "Era uma vez um campo."), ("val_data.jsonl", "Era outra vez o mar.")):
        (run.path / "data" / name).write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    (run.path / "data" / "facts.jsonl").unlink()
    found = judge_run(run, *loaded, ASKED)
    assert found["questions"] == []
    assert len(found["losses"]) == 1
    verdict = verdict_on(found)
    assert verdict.helped is None
    assert "too few" in verdict.sentence
    assert {str(one).partition(":")[0] for one in verdict.missing} == {
        "No recall of facts", "No comparison with expected answers"}  # fmt: skip


def test_a_run_without_validation_rows_is_judged_too(trained, loaded, tmp_path):
    run = Run(shutil.copytree(trained.path, tmp_path / "run"))
    (run.path / "data" / "val_data.jsonl").write_text("", encoding="utf-8")
    found = judge_run(run, *loaded, ASKED)
    assert found["losses"] == []
    assert "No validation loss: the run has no validation rows." in verdict_on(found).missing


def test_interrupted_among_questions_it_goes_on_with_the_next_batch(judged, loaded, tmp_path, monkeypatch):
    """With what it would have found: each batch is asked once."""
    found, run = judged[1], Run(shutil.copytree(judged[0].path, tmp_path / "run"))
    asked, real, left = list[str](), contenders._ask, [2, 100]  # batches until somebody interrupts

    def ask(contest, questions, *rest):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(contest, questions, *rest)
        asked.extend(one["question"] for one in questions)

    monkeypatch.setattr(contenders, "BATCH", 3)
    monkeypatch.setattr(contenders, "_ask", ask)
    with pytest.raises(KeyboardInterrupt):
        judge_run(run, *loaded, ASKED, anew=True)
    assert run.verdict() == found  # the one before is kept
    assert len(run.verdict_begun()["questions_so_far"]) == len(asked) == 6
    left.pop(0)
    again = judge_run(run, *loaded, ASKED)
    assert asked == [one["question"] for one in found["questions"]]
    assert again["questions"] == found["questions"]
    assert set(run.verdict()) == {"with", *STAGES}
    assert run.verdict_begun() is None


def test_passages_stand_before_the_last_of_several_turns():
    prompt = [{"role": role, "content": text} for role, text in (("system", "s"), ("user", "first"), ("user", "last"))]
    given = contenders._behind_passages(prompt, ["one", "two"])
    assert given == [*prompt[:2], {"role": "user", "content": "one\n\ntwo\n\nlast"}]


def test_an_answer_tells_its_tokens_and_whether_it_ended(loaded):
    model, tokenizer = loaded
    question = next(iter(TAUGHT))
    (whole,), (cut,) = (answers_to(model, tokenizer, [question], max_tokens=most) for most in (12, 1))
    assert whole.ended
    assert not cut.ended
    assert cut.tokens == 1
    assert whole.text == answer(model, tokenizer, [question], max_tokens=12)[0] == TAUGHT[question]


def test_a_beginning_is_gone_on_with_and_not_answered(loaded):
    tokenizer = loaded[1]
    ids = tokenizer.encode_prompt(Beginning("Numa noite"))
    assert tokenizer.decode(ids) == "Numa noite"
    assert ids[-1] not in tokenizer.eos_ids
    assert len(ids) < len(tokenizer.encode_prompt("Numa noite"))


@pytest.mark.parametrize(("flag", "value"), [("--passages", "-1"), ("--found-tokens", "0")])
def test_a_number_out_of_range_is_refused_and_the_verdict_stays(judged, capsys, flag, value):
    run, _ = judged
    before = (run.path / "verdict.json").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", run.name, "--runs-dir", str(run.path.parent), flag, value])
    assert f"argument {flag}: must be a whole number of at least" in capsys.readouterr().err
    assert (run.path / "verdict.json").read_bytes() == before


def test_the_command_says_whether_it_helped(judged, capsys):
    run, found = judged
    flags = ["--runs-dir", str(run.path.parent), "--passages", "2", "--found-tokens", "60"]
    assert main(["evaluate", run.name, *flags]) == 0
    shown = capsys.readouterr().out
    assert "Did it help?" in shown
    assert "Advice" in shown
    assert main(["evaluate", run.name, *flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["losses"] == found["losses"]
    assert told["judged"]["verdict"] == str(verdict_on(found).sentence)
    asked = {fact["fact"]: fact["questions"][0] for fact in run.facts()}
    assert {entry["fact"] for entry in told["ledger"]} == set(asked)
    assert all(asked[entry["fact"]] in entry["holds"] for entry in told["ledger"])
    assert told["recall"]["trained"] == {"questions": 4, "base": 0, "tuned": 4}


def test_it_can_be_asked_from_python(judged):
    run, found = judged
    assert api.evaluate(run, passages=2, found_tokens=60)["losses"] == found["losses"]

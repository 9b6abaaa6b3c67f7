"""Runs that were made bad on purpose are called bad, and a good one good."""

import json

import pytest
from harness import create_run, train, write_quantised

from qlora_core.evaluation.verdict import Verdict, verdict_on
from qlora_core.training import contenders
from qlora_core.training.contenders import Asked, judge_run
from qlora_core.training.session import load_for_answers

FACTS = {"red?": "rosa", "blue?": "mar", "green?": "campo", "white?": "sal", "black?": "noite", "gold?": "trigo",
         "grey?": "pedra", "brown?": "terra"}  # fmt: skip
SHUFFLED = dict(zip(FACTS, [*list(FACTS.values())[3:], *list(FACTS.values())[:3]], strict=True))
OFF_TOPIC = {f"{number} + 1?": str(number + 1) for number in range(8)}


@pytest.fixture
def verdict_of(tmp_path, tiny_model, monkeypatch):
    deciding = {name: contenders.STAGES[name] for name in ("losses", "questions")}
    monkeypatch.setattr(contenders, "STAGES", deciding)

    def make(taught: dict[str, str], **settings: object) -> Verdict:
        """Train what is taught, and judge it by `FACTS`."""
        data = tmp_path / "data"
        data.mkdir()
        for name, pairs in (
            ("train.jsonl", taught),
            ("valid.jsonl", {f"{asked}?": said for asked, said in FACTS.items()}),
        ):
            rows = [
                {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
                for asked, said in pairs.items()
            ]
            (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        sheet = [{"fact": asked, "expected": [said], "questions": [asked]} for asked, said in FACTS.items()]
        (data / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in sheet), encoding="utf-8")
        base = write_quantised(tmp_path / "base", tiny_model)
        chosen = {"epochs": 40, "eval_every": 1000, "save_every": 1000, "max_answer_tokens": 12, **settings}
        run = create_run(tmp_path / "runs", base, data, run="judged", **chosen)
        assert train(run).state == "completed"
        found = judge_run(run, *load_for_answers(run), Asked(max_tokens=12))
        return verdict_on(found, best_is_last=run.best_is_last)

    return make


def test_a_good_run_helped(verdict_of):
    verdict = verdict_of(FACTS)
    assert verdict.helped is True, verdict.sentence


@pytest.mark.parametrize(
    ("taught", "settings"),
    [(SHUFFLED, {}), (OFF_TOPIC, {}), (FACTS, {"learning_rate": 1.0})],
    ids=["answers shuffled", "another topic", "learning rate"],
)
def test_a_bad_run_did_not_help(verdict_of, taught, settings):
    verdict = verdict_of(taught, **settings)
    assert verdict.helped is not True, verdict.sentence
    assert "Use it" not in verdict.advice

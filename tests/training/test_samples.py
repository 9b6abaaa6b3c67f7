"""Answers while a run learns: when, of whom, and that training is the same with them and without."""

from pathlib import Path

import pytest
from harness import at_step, checkpoint, create_run, events, train, trained_state
from tiny import TAUGHT, write_taught

from qlora_core.config import PaceConfig
from qlora_core.engine.generate import answer
from qlora_core.runs.run import Run
from qlora_core.training.evaluate import forget_samples, sample_prompts
from qlora_core.training.session import load_for_answers

SETTINGS = {"epochs": 4, "eval_every": 2, "save_every": 2, "dropout": 0.2, "max_answer_tokens": 8, "batch_size": 2}


def make(root: Path, model: Path, name: str, **settings) -> Run:
    return create_run(root / "runs", model, write_taught(root / "data"), run=name, **{**SETTINGS, **settings})


def steps(run: Run) -> list[int]:
    return sorted({sample["step"] for sample in run.samples()})


def test_before_training_and_at_each_validation(trained: Run) -> None:
    samples = trained.samples()
    assert steps(trained) == [0, *events(trained, "eval", "step")]
    asked = [sample["question"] for sample in samples if sample["step"] == 0]
    assert asked == ["red?", "blue?", "green?", "white?"]  # four of the eight of the fact sheet, spread over them
    assert [sample["reference"] for sample in samples[:4]] == ["ROSA", "MAR", "CAMPO", "SAL E SOL"]
    base = answer(*load_for_answers(trained, base=True), asked, max_tokens=12)
    assert [sample["answer"] for sample in samples[:4]] == base
    assert [sample["answer"] for sample in samples[-4:]] == list(TAUGHT.values())
    assert [sample["epoch"] for sample in samples[::4]] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same_without_them(tmp_path: Path, tiny_model: Path, checkpointing: bool) -> None:
    runs = [
        make(tmp_path, tiny_model, f"with-{count}", samples=count, grad_checkpoint=checkpointing) for count in (4, 0)
    ]
    for run in runs:
        train(run)
    assert steps(runs[0]) == [0, 2, 4, 6, 8]
    assert not (runs[1].path / "samples.jsonl").exists()
    assert trained_state(runs[0], 8) == trained_state(runs[1], 8)
    assert events(runs[0], "step", "train_loss") == events(runs[1], "step", "train_loss")


def test_a_resume_takes_later_ones_back(tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    run, whole = make(tmp_path, tiny_model, "part"), make(tmp_path, tiny_model, "whole")
    train(whole)
    train(run, at_step(5, lambda: run.request("pause")))
    assert steps(run) == [0, 2, 4]
    for step in (5, 4):
        shutil.rmtree(checkpoint(run, step))
    train(run, at_step(3, lambda: run.request("pause")))  # from step 2
    assert steps(run) == [0, 2]
    train(run)
    assert run.samples() == whole.samples()
    assert trained_state(run, 8) == trained_state(whole, 8)


def test_the_first_step_does_not_wait_for_the_base(tmp_path: Path, tiny_model: Path) -> None:
    run, whole = make(tmp_path, tiny_model, "part"), make(tmp_path, tiny_model, "whole")
    train(whole)
    train(run, at_step(1, lambda: run.request("pause")))
    assert run.samples() == []
    train(run)  # asked now: the base is as it was
    assert run.samples() == whole.samples()


def test_prompts_of_ones_own(tmp_path: Path, tiny_model: Path) -> None:
    run = make(tmp_path, tiny_model, "own", sample_prompts=["<b>?", "red?"], max_steps=1, samples=1)
    train(run)
    assert [(sample["step"], sample["question"], sample["reference"]) for sample in run.samples()] == [
        (0, "<b>?", ""), (0, "red?", ""), (1, "<b>?", ""), (1, "red?", "")
    ]  # fmt: skip


@pytest.mark.parametrize(("count", "wanted"), [(1, ["red?"]), (3, ["red?", "blue?", "22"]), (99, None)])
def test_questions_are_spread(trained: Run, count: int, wanted: list[str] | None) -> None:
    everything = [question["question"] for question in trained.evaluation()["questions"]]
    assert list(sample_prompts(trained, PaceConfig(samples=count))) == (wanted or everything)


def test_one_that_fails_is_a_warning(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_, **__):
        raise ValueError("no such thing")

    monkeypatch.setattr("qlora_core.training.loop.answer_samples", fail)
    run = make(tmp_path, tiny_model, "fails", max_steps=2)
    assert train(run).state == "completed"
    assert [event["message"] for event in events(run, "warning")] == [
        "step 0: the sample prompts could not be answered: no such thing",
        "step 2: the sample prompts could not be answered: no such thing",
    ]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"step": 1, "answer": "a"}\n[]\n{"step": 2, "ans', encoding="utf-8")
    assert [(sample["step"], sample["answer"]) for sample in Run(tmp_path).samples()] == [(1, "a")]
    forget_samples(Run(tmp_path), 0)
    assert (tmp_path / "samples.jsonl").read_text(encoding="utf-8") == ""

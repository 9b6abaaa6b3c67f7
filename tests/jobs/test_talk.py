"""Answers from a process of their own: in pieces, cancelled, put away, and when it dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import create_run
from processes import end_of, wait_until
from tiny import TAUGHT

from qlora_core.engine.generate import answer
from qlora_core.jobs.chat_client import Talk, Talker, words_for
from qlora_core.runs.run import Run
from qlora_core.training.session import load_for_answers

GREEDY = {"max_tokens": 12}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def until(talker: Talker, true: Callable[[Talk], object]) -> Talk:
    """Look until it is so."""
    wait_until(lambda: true(talker.poll()), lambda: str(talker.poll()), pause=0.01)
    return talker.poll()


def answered(talk: Talk) -> bool:
    return all(given.done for given in talk.answers)


@pytest.fixture
def made() -> Iterator[Callable[..., Talker]]:
    talkers = []

    def make(*arguments: str | Path, **options: float) -> Talker:
        talkers.append(Talker(arguments, **options))
        return talkers[-1]

    yield make
    for talker in talkers:
        talker.close()


def process_id(talker: Talker) -> int:
    return talker._process._child.pid


# The process ----------------------------------------------------------------------------------------------------


def speak(run: Run, *lines: dict, silence: float = 60) -> tuple[int, list[dict]]:
    """Say lines to a process and close its input once all questions are answered; its status and what it said."""
    command = [sys.executable, "-m", "qlora_core.jobs.chat_worker", str(run.path), "--silence", str(silence)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdin.write("".join(json.dumps(line) + "\n" for line in lines))
    process.stdin.flush()
    waiting, said = {line["id"] for line in lines if "id" in line}, []
    for line in process.stdout:
        said.append(json.loads(line))  # nothing but JSON reaches it
        if "done" in said[-1] or "error" in said[-1]:
            waiting.discard(said[-1].get("id"))
            if not waiting and not process.stdin.closed:
                process.stdin.close()
    process.stdout.close()
    if not process.stdin.closed:
        process.stdin.close()
    return process.wait(), said


def test_pieces_joined_are_the_answer(trained: Run) -> None:
    model, tokenizer = load_for_answers(trained)
    wanted = answer(model, tokenizer, ["white?"], **GREEDY)[0]
    base = answer(*load_for_answers(trained, base=True), ["white?"], **GREEDY)[0]
    status, said = speak(
        trained,
        {"id": 1, "messages": user("white?"), "sampling": GREEDY},
        {"id": 2, "messages": user("white?"), "base": True, "sampling": GREEDY},
        {"id": 3, "messages": user("white?"), "sampling": GREEDY},
    )
    assert status == 0
    assert said[0]["ready"] is True
    assert said[0]["tuned"] is True
    assert said[0]["loaded_bytes"] > 0
    texts = ["".join(line.get("piece", "") for line in said if line.get("id") == number) for number in (1, 2, 3)]
    assert texts == [wanted, base, wanted]  # the adapters are on again after the base spoke
    assert wanted == TAUGHT["white?"] != base
    done = [line for line in said if line.get("done")]
    assert [line["id"] for line in done] == [1, 2, 3]
    assert done[0]["tokens"] == len(wanted)  # a token a letter
    assert all(line["seconds"] > 0 and not line["cancelled"] for line in done)


def test_a_question_that_fails_leaves_the_next_one(trained: Run) -> None:
    status, said = speak(
        trained,
        {"id": 1, "messages": [{"role": "user"}], "sampling": {"nonsense": 1}},
        {"id": 2, "messages": user("red?"), "sampling": GREEDY},
    )
    assert status == 0
    assert "nonsense" in next(line["error"] for line in said if "error" in line)
    assert "".join(line.get("piece", "") for line in said) == "rosa"


def test_it_ends_after_silence(trained: Run) -> None:
    command = [sys.executable, "-m", "qlora_core.jobs.chat_worker", str(trained.path), "--silence", "1"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert end_of(process) == 0  # its input is still open
    process.stdin.close()


def test_without_adapters_the_base_answers(tmp_path: Path, tiny_model: Path, tiny_rows: Path) -> None:
    run = create_run(tmp_path / "runs", tiny_model, tiny_rows)
    _, said = speak(
        run,
        {"id": 1, "messages": user("red?"), "sampling": GREEDY},
        {"id": 2, "messages": user("red?"), "base": True, "sampling": GREEDY},
    )
    assert said[0]["tuned"] is False
    assert "no trained adapters yet" in said[1]["error"]
    assert said[-1]["done"] is True


# Talking to it --------------------------------------------------------------------------------------------------


def test_nothing_is_started_before_the_first_question(trained: Run, made: Callable[..., Talker]) -> None:
    talker = made(trained.path)
    assert talker.poll() == Talk()
    assert talker._process is None
    assert talker.ask(user("red?"), **GREEDY) == 1
    assert talker.poll().state == "loading"  # at once: nobody waited
    talk = until(talker, answered)
    assert [given.text for given in talk.answers] == ["rosa"]
    assert (talk.state, talk.tuned) == ("ready", True)
    assert talk.memory > 0
    assert talk.answers[0].seconds > 0
    assert talker.poll() == talk  # equal while nothing changes


def test_a_base_alone_answers(tiny_model: Path, made: Callable[..., Talker]) -> None:
    talker = made("--model", tiny_model, "--quantize", "4")
    talker.ask(user("red?"), base=True, **GREEDY)
    (given,) = until(talker, answered).answers
    assert (given.error, given.base, given.tokens) == ("", True, 12)


def test_cancel_ends_what_is_asked_and_keeps_what_is_there(trained: Run, made: Callable[..., Talker]) -> None:
    talker = made(trained.path)
    sampling = {"max_tokens": 100_000, "temperature": 50.0}
    talker.ask(user("red?"), base=True, **sampling)
    talker.ask(user("blue?"), base=True, **sampling)
    until(talker, lambda talk: talk.answers[0].text)
    talker.cancel()
    first, second = until(talker, answered).answers
    assert first.cancelled
    assert second.cancelled
    assert first.text
    assert not second.text
    talker.ask(user("red?"), **GREEDY)
    assert until(talker, answered).answers[2].text == "rosa"


def test_killed_it_says_so_and_the_next_question_starts_another(trained: Run, made: Callable[..., Talker]) -> None:
    talker = made(trained.path)
    talker.ask(user("red?"), max_tokens=100_000, temperature=50.0, base=True)
    until(talker, lambda talk: talk.answers[0].text)
    killed = process_id(talker)
    os.kill(killed, signal.SIGKILL)
    talk = until(talker, lambda talk: talk.state == "ended")
    wanted = "The process that answers was ended by the system (signal 9), usually for want of memory."
    assert talk.reason == talk.answers[0].error == wanted
    talker.ask(user("red?"), **GREEDY)
    assert until(talker, answered).answers[1].text == "rosa"
    assert process_id(talker) != killed


def test_close_frees_it_in_the_middle_of_an_answer(trained: Run, made: Callable[..., Talker]) -> None:
    talker = made(trained.path)
    talker.ask(user("red?"), max_tokens=100_000, temperature=50.0, base=True)
    until(talker, lambda talk: talk.answers[0].text)
    child = talker._process._child
    talker.close()
    assert child.poll() is not None
    talk = talker.poll()
    assert (talk.state, talk.reason, talk.answers[0].cancelled) == ("absent", "", True)


def test_silence_is_no_failure(trained: Run, made: Callable[..., Talker]) -> None:
    talker = made(trained.path, silence=1.0)
    talker.ask(user("red?"), **GREEDY)
    end_of(talker._process._child)  # nobody looks
    talk = until(talker, lambda talk: talk.state in ("absent", "ended"))
    assert (talk.state, talk.reason) == ("absent", "")


def test_what_cannot_be_loaded_is_told(tmp_path: Path, made: Callable[..., Talker]) -> None:
    talker = made(tmp_path / "nowhere")
    talker.ask(user("red?"))
    talk = until(talker, lambda talk: talk.state == "ended")
    assert "is not a run" in talk.reason
    assert talk.answers[0].error == talk.reason


@pytest.mark.parametrize(
    ("status", "words"), [(0, ""), (-11, "signal 11)."), (1, "Its last words: KeyError: 'x'"), (-9, "want of memory")]
)
def test_words(status: int, words: str) -> None:
    assert words in words_for(status, "KeyError: 'x'")

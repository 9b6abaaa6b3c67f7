"""The page for conversations: its graph, and what asking shows."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from marimo._ast.app import InternalApp
from processes import wait_until

from qlora_core import page
from qlora_core.jobs.chat_client import Answer, Talk
from qlora_core.page.asking import Asker, Conversation, Turn
from qlora_core.page.composing import NOTHING_WRITTEN, Draft
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run
from qlora_core.runs.writer import RunLock

CHAT = ROOT / "apps" / "chat.py"
FORM = {"question": "red?"}
SETTINGS = {"max_tokens": 12, "temperature": 0, "top_p": 1, "seed": 0, "system": ""}
MARKUP = '<img src=x onerror="alert(1)">\n![x](http://x.y/z.png)'


@pytest.fixture(scope="module")
def graph():
    spec = importlib.util.spec_from_file_location("chat_notebook", CHAT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = InternalApp(module.app)
    name = app.cell_manager.cell_name
    return {name(c): {name(a) for a in app.graph.ancestors(c)} for c in app.execution_order}


@pytest.fixture
def asker(trained: Run):
    made = Asker(TrainingTracker(trained.path.parent))
    yield made
    made.put_away()


def answered(asker: Asker) -> Conversation:
    wait_until(lambda: not asker.look().answering, lambda: str(asker.look()), pause=0.01)
    return asker.look()


# The notebook ---------------------------------------------------------------------------------------------------


def test_nothing_that_ticks_sends(graph):
    assert {"ticker", "follow", "buttons"}.isdisjoint(graph["send"])
    assert {"message_form", "who", "asker"} <= graph["send"]
    assert {"draft", "suggestions"} <= graph["send"]
    assert "send" not in graph["conversation"]


def test_cells_are_short():
    bodies = CHAT.read_text(encoding="utf-8").split("@app.cell")[1:]
    assert max(len(body.splitlines()) for body in bodies) <= 30


def test_marimo_check():
    command = [sys.executable, "-m", "marimo", "check", "--strict", str(CHAT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_imports_no_mlx(python):
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('n', {str(CHAT)!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "module.app.run()\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'mlx_lm', 'transformers', 'torch')])"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


# Asking ---------------------------------------------------------------------------------------------------------


def test_side_by_side(asker, trained):
    form = dict(FORM)
    assert asker.submit(trained, form, SETTINGS) == NOTHING_WRITTEN
    assert asker.look().answering
    assert asker.submit(trained, form, SETTINGS) is None  # the cell ran again; nothing was sent
    (turn,) = answered(asker).turns
    tuned, base = turn.answers
    assert (turn.question, tuned.text, tuned.base, base.base) == ("red?", "rosa", False, True)
    assert base.text != "rosa"
    html = page.asking.side_by_side(asker.look()).text
    assert "rosa" in html
    assert "tokens/s" in html


def test_a_conversation_goes_on_and_begins_anew(asker, trained):
    asker.send(trained.name, None, dict(FORM), SETTINGS)
    answered(asker)
    settings = {**SETTINGS, "system": "Be brief."}
    asker.send(trained.name, None, {"question": "blue?"}, settings)
    now = answered(asker)
    assert [turn.question for turn in now.turns] == ["red?", "blue?"]
    assert asker._messages("Be brief.", False) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "red?"},
        {"role": "assistant", "content": "rosa"},
        {"role": "user", "content": "blue?"},
        {"role": "assistant", "content": now.turns[1].answers[0].text},
    ]
    asker.clear()
    assert asker.look().turns == ()
    asker.send(trained.name, None, dict(FORM), SETTINGS, compare=True)
    (turn,) = answered(asker).turns
    assert [given.base for given in turn.answers] == [False, True]
    assert asker._messages("", True)[1]["content"] == turn.answers[1].text  # each goes on from its own answers
    html = page.asking.bubbles(asker.look()).text
    assert html.index("q-two") < html.index("Tuned") < html.index("Base")
    asker.put_away()
    assert asker.look().talk.state == "absent"
    assert asker.look().turns == (turn,)  # what was said stays


def test_a_turn_is_asked_anew(asker, trained):
    form = dict(FORM)
    asker.send(trained.name, None, form, SETTINGS)
    answered(asker)
    assert asker.send(trained.name, None, form, SETTINGS, suggestion="blue?") == NOTHING_WRITTEN
    answered(asker)
    assert asker.send(trained.name, None, form, SETTINGS) is None  # the form still has what it sent before
    assert [turn.question for turn in asker.look().turns] == ["red?", "blue?"]
    written = []
    edits = page.asking.edit_buttons(asker.look(), written.append)
    edits[0]._on_click(0)
    assert written == [Draft("red?", 0)]
    asker.send(trained.name, None, {"question": "green?"}, SETTINGS, turn=0)
    assert [turn.question for turn in answered(asker).turns] == ["green?"]


def test_nothing_is_asked_without_a_question_or_a_run(asker, trained):
    assert asker.submit(None, dict(FORM), SETTINGS) == Draft("red?")  # nothing that was written is lost
    assert "no run yet" in asker.look().problem
    asker.submit(trained, {"question": "  "}, SETTINGS)
    assert "Write a question first" in asker.look().problem
    assert asker.look().talk == Talk()


def test_suggested_questions(asker, trained, tmp_path):
    found = page.composing.suggested_questions(trained)
    assert found == [fact["questions"][0] for fact in trained.facts()][: page.composing.SUGGESTED]
    assert page.composing.suggested_questions(None) == page.composing.suggested_questions(Run(tmp_path)) == []
    buttons = page.composing.suggestions(trained)
    assert page.composing.suggested(buttons) == ""
    buttons._update({found[0]: 1})  # as many clicks
    assert page.composing.suggested(buttons) == found[0]


def test_a_label_is_text():
    import marimo as mo

    label = mo.ui.run_button(label=page.composing.plain_label(f"{MARKUP} **b** $x$ :smile: <b>")).text
    assert "<img" not in label
    assert "&lt;strong" not in label
    assert "tex" not in label.lower().replace("text", "")


def test_training_holds_the_memory(asker, trained, tmp_path):
    asker.submit(trained, dict(FORM), SETTINGS)
    answered(asker)
    lock = RunLock(trained.path)
    try:
        now = asker.look()
        assert (now.training, now.talk.state) == (trained.name, "absent")
        asker.submit(trained, dict(FORM), SETTINGS)
        assert asker.look().talk.state == "absent"
        assert "Training is using the memory" in page.asking.side_by_side(asker.look()).text
    finally:
        lock.release()


def test_only_looked_at_nothing_is_asked(asker, trained, monkeypatch):
    for module in (page.asking, page.composing):
        monkeypatch.setattr(module, "read_only", lambda: True)
    assert page.composing.suggestions(trained) is page.composing.answer_settings() is None
    assert page.composing.question_form() is None
    assert page.forms.sent(None) is None
    assert "only to be looked at" in page.composing.form_place(None).text
    asker.submit(trained, dict(FORM), SETTINGS)
    assert asker.look() == Conversation()


# What is shown --------------------------------------------------------------------------------------------------


def test_answers_are_text(tmp_path):
    answer = Answer(1, False, MARKUP, done=True, error=MARKUP)
    now = Conversation(Talk("ended", MARKUP, (answer,)), (Turn(MARKUP, (answer,)),), problem=MARKUP)
    (tmp_path / "samples.jsonl").write_text(
        '{"step": 0, "question": "<img src=q>", "answer": "<img src=a>", "reference": "<img src=r>"}\n', "utf-8"
    )
    samples = page.asking.samples(page.asking.samples_mark(Run(tmp_path)))
    for shown in (page.asking.side_by_side(now), page.asking.bubbles(now), samples):
        assert "&lt;img src=" in shown.text
        assert "<img" not in shown.text
        assert "<a " not in shown.text


def test_samples_newest_first(trained):
    html = page.asking.samples(page.asking.samples_mark(trained)).text
    assert html.index("Step 40") < html.index("Step 10") < html.index("Before training")
    assert html.count("<details") == 4
    assert page.asking.samples(page.asking.samples_mark(None)) is None


def test_where_there_is_no_run(tmp_path):
    tracker = TrainingTracker(tmp_path)
    choice = page.asking.who_to_ask(tracker)
    assert choice.value == page.asking.BASE_ONLY
    assert "There is no run in" in page.asking.chat_controls(tracker, choice, None).text
    assert "Nothing said yet" in page.asking.bubbles(Conversation()).text


def test_memory_is_told_before(trained, tiny_model: Path):
    tracker = TrainingTracker(trained.path.parent)
    assert "GB are free now" in page.asking.memory_before(tracker, trained.name, None).text
    alone = page.asking.memory_before(tracker, page.asking.BASE_ONLY, str(tiny_model)).text
    assert "tiny-llama" in alone

"""The export section without a browser: what may be chosen of which format, the command that it runs, what it says."""

import shutil
import time
from pathlib import Path

import pytest

from qlora_core import translations
from qlora_core.activity import Activity
from qlora_core.cli import build_parser
from qlora_core.exports.export import export_run
from qlora_core.exports.formats import FORMATS
from qlora_core.page import exporting
from qlora_core.runs.checkpoints import checkpoints
from qlora_core.runs.run import Run

THERE = ("best", "final", "20")


@pytest.fixture
def run(undrawn: Run, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    return Run(shutil.copytree(undrawn.path, tmp_path / "runs" / "run"))


@pytest.fixture
def portuguese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translations, "find_language", lambda: "pt")


@pytest.mark.parametrize("kind", FORMATS)
def test_only_what_a_format_takes_can_be_chosen(kind):
    found = exporting.choices(kind, THERE)
    assert set(found.elements) == {"checkpoint", *FORMATS[kind].takes}
    assert set(exporting.choices(kind, ("best",)).elements) == FORMATS[kind].takes
    assert exporting.choices(kind, ()).elements == {}


def test_a_format_without_choices_shows_no_fold_and_others_a_closed_one():
    assert exporting.choices_layout(exporting.choices("peft", ("best",))) is None
    assert exporting.choices_layout(exporting.choices(None, THERE)) is None
    text = exporting.choices_layout(exporting.choices("fused", THERE)).text
    assert text.startswith('<details class="q-folded"><summary>More about this export</summary>')
    for label in ("Which adapters", "the best", "those of step 20", "as few as lose nothing", "Refuse it"):
        assert label in text


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_chosen_becomes_flags_that_the_command_knows(kind):
    given = exporting.choices(kind, THERE)
    arguments = build_parser().parse_args(["export", "run", "--to", kind, *exporting.flags(given.value)])
    assert arguments.checkpoint == "best"
    assert arguments.bits == "auto"
    assert arguments.type == ("q8_0" if kind in ("gguf", "lmstudio") else "")
    assert (arguments.with_base, arguments.strict) == (False, False)


def test_flags_of_what_was_changed():
    chosen = {"checkpoint": "20", "bits": "4", "strict": True}
    assert exporting.flags(chosen) == ["--checkpoint", "20", "--bits", "4", "--strict"]
    assert exporting.flags({"type": "", "with_base": True, "strict": False}) == ["--with-base"]


def test_a_damaged_checkpoint_cannot_be_chosen(run):
    place = checkpoints(run.checkpoint_directory)[-1]
    before = exporting.look(run).adapters
    assert before == ("best", "final", str(int(place.name)))
    (place / "adapters.safetensors").write_bytes(b"short")
    assert exporting.look(run).adapters == ("best", "final")


def test_a_finished_export_says_which_adapters_it_holds(run, portuguese):
    step = str(int(checkpoints(run.checkpoint_directory)[-1].name))
    export_run(run, exporting.directory(run, "adapter"), to="adapter", checkpoint=step, verified=False)
    text = exporting.result(exporting.look(run), "adapter").text
    assert f"os do passo {step}" in text
    (exporting.directory(run, "adapter") / "metrics.json").write_text('{"adapters": "<b>"}', encoding="utf-8")
    assert "<b>" not in exporting.result(exporting.look(run), "adapter").text


class Working:
    """A job that is under way."""

    running = True

    def working(self) -> Activity:
        return Activity("rounding", 210, 70, began=time.monotonic() - 10)


def test_an_export_under_way_says_what_it_does_and_how_long_that_takes(run, monkeypatch, portuguese):
    monkeypatch.setattr(exporting._desk, "job", Working())
    monkeypatch.setattr(exporting._desk, "run", run.path.absolute())
    monkeypatch.setattr(exporting._desk, "kind", "fused")
    text = exporting.result(exporting.look(run), "fused").text
    assert "A exportar «Um só modelo»" in text
    assert "70 / 210" in text
    assert "faltam cerca de 20 s" in text

"""Steps and folds: what the notebook's outline is, and which rules follow from it."""

from pathlib import Path

from conftest import ROOT

from qlora_core.page import steps

NOTEBOOK = """
@app.cell
def above():
    return


@app.cell(hide_code=True)
def first():
    page.steps.step("prepare")
    return


@app.cell
def model():
    return


@app.cell(hide_code=True)
def heading():
    page.steps.fold("Rows, one by one", "Each.", open=True)
    return


@app.cell
def rows():
    return


@app.cell
def _():
    return


@app.cell(hide_code=True)
def second():
    page.steps.step("train")
    return


@app.cell
def progress():
    return
"""


def outline_of(tmp_path: Path) -> steps.Outline:
    path = tmp_path / "notebook.py"
    path.write_text(NOTEBOOK, encoding="utf-8")
    return steps.read_outline(path)


def test_cells_lie_under_the_heading_above_them(tmp_path):
    outline = outline_of(tmp_path)
    assert outline.steps == {"prepare": ["model", "heading", "rows"], "train": ["progress"]}
    assert outline.folds == {"q-fold-rows--one-by-one": ("heading", ["rows"])}


def test_a_step_hides_the_others_and_a_closed_fold_its_cells(tmp_path):
    rules = list(steps._rules(outline_of(tmp_path)))
    hides = {rule.partition(" .published")[0]: rule.partition(":is(")[2].partition(")")[0] for rule in rules}
    assert hides["body:has(#q-step-prepare:checked)"] == "[data-cell-name=progress]"
    prepare = "[data-cell-name=model], [data-cell-name=heading], [data-cell-name=rows]"
    assert hides["body:has(#q-step-train:checked)"] == prepare
    assert hides["body:has(#q-fold-rows--one-by-one:not([open]))"] == "[data-cell-name=rows]"


def test_the_notebook_has_all_steps_in_their_order_and_no_fold_twice():
    path = ROOT / "apps" / "train.py"
    outline = steps.read_outline(path)
    assert list(outline.steps) == list(steps.STEPS)
    assert len(outline.folds) == path.read_text(encoding="utf-8").count("page.steps.fold(")
    assert all(cells for _, cells in outline.folds.values())


def test_the_choice_is_forgotten_when_another_step_is_suggested():
    """React keeps an element's state as long as its place holds the same kind of element."""
    path = str(ROOT / "apps" / "train.py")
    kinds = {name: steps.chooser(path, name).text.partition('<div class="q-bar">')[2][:4] for name in steps.STEPS}
    assert kinds["prepare"] != kinds["train"] != kinds["result"]

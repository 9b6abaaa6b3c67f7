"""What deserves a look before training."""

import math

import numpy as np
from harness import create_run, plan_run, write_pair

from qlora_core.data.enough_rows import ENOUGH, SPREAD, uncertainty
from qlora_core.runs.plan_warnings import advise
from qlora_core.runs.row_losses import as_line


def about_validation(plan) -> list[str]:
    return [advice.message for advice in advise(plan) if advice.setting == "val_fraction"]


def test_few_validation_rows_are_told_with_what_their_loss_is_worth(tiny_model, tmp_path):
    sources = write_pair(tmp_path / "data", validation=4)
    (told,) = about_validation(plan_run(tmp_path / "runs", tiny_model, sources))
    percent = round(100 * 1.96 * SPREAD / math.sqrt(4))
    assert f"is that of 4 rows, and on others may be {percent}% off: " in told


def test_how_much_rows_differ_is_taken_from_the_newest_run_that_kept_their_losses(tiny_model, tmp_path):
    sources, root = write_pair(tmp_path / "data", validation=4), tmp_path / "runs"
    earlier = create_run(root, tiny_model, sources, run="earlier", seed=1)
    losses, tokens = np.array([1.0, 2.0, 1.0, 2.0, 1.0, 2.0]) * 10, [10] * 6
    best, other = as_line(8, losses.tolist(), tokens), as_line(4, [90.0] * 5 + [10.0], tokens)
    (earlier.path / "row_losses.jsonl").write_text(f"{other}\n{best}\n", encoding="utf-8")
    (told,) = about_validation(plan_run(root, tiny_model, sources))
    spread = losses.std(ddof=1) / losses.mean()
    assert f"may be {round(100 * uncertainty(4, spread))}% off, as those of earlier differ: " in told


def test_enough_rows_are_no_matter(tiny_model, tmp_path):
    sources = write_pair(tmp_path / "data", validation=ENOUGH)
    assert about_validation(plan_run(tmp_path / "runs", tiny_model, sources)) == []

"""The loss of each validation row with a run's best adapters, kept in the run.

They are computed once, and again where rows or adapters changed since.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.device import mx
from ..errors import shown
from ..files.storage import remembered_sha256, write_json
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..models.adapter_files import ADAPTER_FILE
from ..runs.row_losses import RowLosses
from ..runs.run import VALIDATION_LOSSES, Run, refuse_links
from ..runs.schema import ValidationLosses, problem
from ..tokens.dataset import make_dataset
from .row_losses import row_losses
from .session import load_for_answers


def validation_losses(run: Run, warn: Callable[[str], None] = lambda _: None) -> RowLosses:
    """Return the losses of a run's validation rows with its best adapters, from its file or computed and kept there.

    A row that cannot be encoded counts as none, as in training.

    Args:
        run: has trained adapters. Its `validation_losses.json` holds `adapters` (`best` or `final`), `losses`,
            `tokens`, and the SHA-256 of adapters and rows that they belong to.
        warn: called with a sentence where that file is damaged and made again.

    Raises:
        QLoraError: the base or the adapters are missing or have changed, or the run is a link or holds one.
    """
    refuse_links(run.path)
    adapters = run.adapters
    rows = make_dataset(run.validation_rows(), run.tokenizer(), run.config().data.max_seq_length).rows
    about = {
        "adapters": adapters.name,
        "adapters_sha256": remembered_sha256(adapters / ADAPTER_FILE),
        "rows_sha256": rows.digest(),
    }
    tokens = rows.target_lengths
    kept = _kept(run.path / VALIDATION_LOSSES, about, tokens, warn)
    if kept is None:
        kept = _computed(run, rows) if len(rows) else np.zeros(0)
        write_json(run.path / VALIDATION_LOSSES, {**about, "losses": kept.tolist(), "tokens": tokens.tolist()})
    return RowLosses(kept, tokens)


def _computed(run: Run, rows: Any) -> np.ndarray:
    model, _ = load_for_answers(run)
    losses = row_losses(model, rows)
    del model
    mx.clear_cache()
    return losses


def _kept(path: Path, about: dict[str, str], tokens: np.ndarray, warn: Callable[[str], None]) -> np.ndarray | None:
    """Return the losses in a file; None where it is missing, damaged, or about other rows or adapters."""
    try:
        found = read_object(path, TABLE_BYTES)
        wrong = problem(found, ValidationLosses)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        found, wrong = {}, str(error)
    if not wrong and {name: found[name] for name in about} != about:
        return None
    if not wrong and (len(found["losses"]) != len(tokens) or found["tokens"] != tokens.tolist()):
        wrong = f"it holds {len(found['losses'])} losses of {shown(found['tokens'])} tokens"
    if wrong:
        warn(f"{path}: is damaged, and is made again: {wrong}.")
        return None
    return np.array(found["losses"])

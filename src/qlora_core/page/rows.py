"""The rows: as they were read and as tokens."""

from __future__ import annotations

import marimo as mo

from ..data import PreparedData
from .look import folded, row_table


def sample_rows(prepared: PreparedData, count: int = 3) -> mo.Html:
    """The first prepared rows."""
    rows = []
    for row in prepared.train[:count]:
        turns = row.get("messages") or [{"role": "text", "content": row["text"]}]
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        rows.append({"row": text if len(text) <= 300 else text[:299] + "…", "from": row["source"]})
    return folded("First rows", row_table(rows))

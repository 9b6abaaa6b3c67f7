"""What tests compare of prepared data."""

from qlora_core.data import PreparedData


def said(prepared: PreparedData) -> list[tuple[str, ...]]:
    """The texts of each conversation to train on, turn by turn."""
    return [tuple(m["content"] for m in row["messages"]) for row in prepared.train]

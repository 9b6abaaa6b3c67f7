"""One row as the pieces of text that its tokens stand for, and what training does with each.

Knows tokens, nothing of how they are shown.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Literal

from .tokens import ChatTokenizer

PieceKind = Literal["trained", "context", "cut"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a row.

    Attributes:
        text: its part of the row's text. Of tokens that share a character the first has it whole, the others nothing.
        id: in the model's vocabulary.
        kind: a target of the loss; read, but not trained; or beyond `max_seq_length`.
        special: whether it is a control token of the model, such as an end of text, and no word of the data.
    """

    text: str
    id: int
    kind: PieceKind
    special: bool = False


def pieces(row: dict[str, Any], tokenizer: ChatTokenizer, max_seq_length: int) -> list[Piece]:
    """Every token of a prepared row, as `make_dataset` encodes it, and those that it cuts off.

    Their texts in order are the text that the model sees (`text_of_row`), with the begin and end of text that the
    tokeniser adds, by name.

    Args:
        row: `{"messages": […]}` or `{"text": …}`.
        tokenizer: of the model.
        max_seq_length: tokens a row may have.

    Raises:
        DataError: the template refuses the row.
    """
    whole = tokenizer.encode_row(row, sys.maxsize)
    kinds: list[PieceKind] = ["trained" if trained else "context" for trained in whole.trained[:max_seq_length]]
    kinds += ["cut"] * (len(whole) - len(kinds))
    texts = _texts(*tokenizer.places(row))
    texts += [""] * (len(kinds) - len(texts))  # an end of text that was appended
    names = tokenizer.control_names
    return [
        Piece(text or names.get(i, ""), i, kind, i in names)
        for text, i, kind in zip(texts, whole.ids.tolist(), kinds, strict=True)
    ]


def _texts(text: str, places: list[tuple[int, int]]) -> list[str]:
    """Each token's own part of the text: what lies between the end of those before it and its own end.

    What no token stands for, since the tokeniser drops it, goes with the token behind it, or the last one.
    """
    found, done = [], 0
    for _, end in places:
        found.append(text[done:end])
        done = max(done, end)
    if found:
        found[-1] += text[done:]
    return found

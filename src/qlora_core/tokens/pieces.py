"""One row as the pieces of text that its tokens stand for, and what training does with each.

Knows tokens, nothing of how they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .tokenizer import ChatTokenizer, EncodedText

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


def parts(row: dict[str, Any], tokenizer: ChatTokenizer, max_seq_length: int) -> list[list[Piece]]:
    """Every token of each text that a prepared row is learned from, as `make_dataset` encodes them, and those cut off.

    The pieces of a text in order are the text that the model sees, with the begin and end of text that the tokeniser
    adds, by name. Nearly every row is learned from one text; a conversation may have several, see `encode_rows`.

    Args:
        row: `{"messages": […]}` or `{"text": …}`.
        tokenizer: of the model.
        max_seq_length: tokens that a text may have.

    Raises:
        DataError: the template refuses the row.
    """
    return [_pieces(encoded, tokenizer, max_seq_length) for encoded in tokenizer.texts_of(row)[0]]


def pieces(row: dict[str, Any], tokenizer: ChatTokenizer, max_seq_length: int) -> list[Piece]:
    """The pieces of all of them, one text after the other; see `parts`.

    Raises:
        DataError: the template refuses the row.
    """
    return [piece for part in parts(row, tokenizer, max_seq_length) for piece in part]


def _pieces(encoded: EncodedText, tokenizer: ChatTokenizer, max_seq_length: int) -> list[Piece]:
    kinds: list[PieceKind] = ["trained" if trained else "context" for trained in encoded.trained[:max_seq_length]]
    kinds += ["cut"] * (len(encoded.ids) - len(kinds))
    texts = _texts(encoded.text, encoded.places)
    texts += [""] * (len(kinds) - len(texts))  # an end of text that was appended
    names = tokenizer.control_names
    return [
        Piece(text or names.get(i, ""), i, kind, i in names)
        for text, i, kind in zip(texts, encoded.ids.tolist(), kinds, strict=True)
    ]


def _texts(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
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

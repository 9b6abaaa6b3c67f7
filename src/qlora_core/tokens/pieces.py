"""One row as the pieces of text that its tokens stand for, and how training uses each.

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
    """A token of a row, with its text.

    Attributes:
        text: its part of the row's text. If several tokens share a character, the first has it and the others are
            empty.
        id: its id in the model's vocabulary.
        kind: a target of the loss; read but not trained; or beyond `max_seq_length`.
        special: whether it is a control token of the model, such as an end of text, and not text from the data.
    """

    text: str
    id: int
    kind: PieceKind
    special: bool = False


def parts(row: dict[str, Any], tokenizer: ChatTokenizer, max_seq_length: int) -> list[list[Piece]]:
    """Return every token, even if cut off, of each text that a prepared row is trained from.

    The texts are encoded as by `make_dataset`. The pieces of a text in order are the text that the model sees, with the
    names of the tokens that the tokeniser adds at its begin and end. Nearly every row is trained from one text; a
    conversation may have several, see `encode_rows`.

    Args:
        row: `{"messages": […]}` or `{"text": …}`.
        tokenizer: of the model.
        max_seq_length: most tokens in a text.

    Raises:
        DataError: the template refuses the row.
    """
    return [_pieces(encoded, tokenizer, max_seq_length) for encoded in tokenizer.texts_of(row)[0]]


def pieces(row: dict[str, Any], tokenizer: ChatTokenizer, max_seq_length: int) -> list[Piece]:
    """Return the pieces of all texts of a row, one text after another; see `parts`.

    Raises:
        DataError: the template refuses the row.
    """
    return [piece for part in parts(row, tokenizer, max_seq_length) for piece in part]


def _pieces(encoded: EncodedText, tokenizer: ChatTokenizer, max_seq_length: int) -> list[Piece]:
    kinds: list[PieceKind] = ["trained" if trained else "context" for trained in encoded.trained[:max_seq_length]]
    kinds += ["cut"] * (len(encoded.ids) - len(kinds))
    texts = _texts(encoded.text, encoded.places)
    texts += [""] * (len(kinds) - len(texts))  # an end of text that was appended has none
    names = tokenizer.control_names
    return [
        Piece(text or names.get(i, ""), i, kind, i in names)
        for text, i, kind in zip(texts, encoded.ids.tolist(), kinds, strict=True)
    ]


def _texts(text: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """Return each token's own part of the text: from the end of the tokens before it to its own end.

    Text that no token stands for, since the tokeniser drops it, belongs to the next token, or to the last one.
    """
    found, done = [], 0
    for _, end in places:
        found.append(text[done:end])
        done = max(done, end)
    if found:
        found[-1] += text[done:]
    return found

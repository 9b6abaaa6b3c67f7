"""Retrieval: the passages of a run's own texts that a question is about, found by BM25.

BM25 is Lucene's (Robertson et al. 1994; Lù 2024, https://arxiv.org/abs/2407.03618), over words without case and
accents. Nothing is fetched, and no model is asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .measures import plain

WORDS = 60  # of a passage, about
LONG_REPLY = 30  # words of a reply that counts as a passage: a shorter one is an answer rather than a source
_PARAGRAPH, _SENTENCE = re.compile(r"\n\s*\n"), re.compile(r"(?<=[.!?…])\s+")


def passages_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the passages of prepared rows, each about `WORDS` words: their texts, and replies as long as texts.

    Questions with short answers give none: to find the very question that is asked would not be retrieval.
    """
    found: dict[str, None] = {}  # in order, each once
    for row in rows:
        texts = [row["text"]] if row.get("text") else _long_replies(row)
        found.update(dict.fromkeys(part for text in texts for part in _parts(text)))
    return list(found)


class Retriever:
    """Finds passages.

    Args:
        passages: what is searched.
        most: passages for one question, at most.
        budget: tokens of them together, at most.
        count_tokens: returns the number of tokens of a text.
    """

    def __init__(self, passages: Sequence[str], most: int, budget: int, count_tokens: Callable[[str], int]) -> None:
        self.passages, self._most, self._budget, self._count = list(passages), most, budget, count_tokens
        self._index = _index(self.passages)

    def find(self, question: str) -> list[str]:
        """Return the passages that a question is about, the best first; empty if no passage shares a word with it."""
        words = [plain(question).split()]
        if self._index is None or not words[0]:
            return []
        most = min(self._most, len(self.passages))
        places, scores = self._index.retrieve(words, k=most, show_progress=False, n_threads=1)
        found, left = [], self._budget
        for place, score in zip(places[0], scores[0], strict=True):
            passage = self.passages[int(place)]
            left -= self._count(passage)
            if score <= 0 or left < 0:
                break
            found.append(passage)
        return found


def beside(question: str, passages: Sequence[str]) -> str:
    """Return a question behind the passages that it is to be answered from."""
    return "\n\n".join([*passages, question])


def _long_replies(row: dict[str, Any]) -> list[str]:
    replies = (message.get("content") or "" for message in row.get("messages", ()) if message["role"] == "assistant")
    return [reply for reply in replies if len(reply.split()) >= LONG_REPLY]


def _parts(text: str) -> list[str]:
    """Return a text in parts of about `WORDS` words, cut between paragraphs where it can be, else between sentences."""
    pieces = [piece for paragraph in _PARAGRAPH.split(text) for piece in _sentences(paragraph)]
    parts: list[str] = []
    held: list[str] = []
    for piece in pieces:
        if held and sum(len(one.split()) for one in held) + len(piece.split()) > WORDS:
            parts.append("\n".join(held))
            held = []
        held.append(piece)
    return [*parts, "\n".join(held)] if held else parts


def _sentences(paragraph: str) -> list[str]:
    paragraph = paragraph.strip()
    if len(paragraph.split()) <= WORDS:
        return [paragraph] if paragraph else []
    return [sentence for sentence in _SENTENCE.split(paragraph) if sentence]


def _index(passages: Sequence[str]) -> Any:
    words = [plain(passage).split() for passage in passages]
    if not any(words):
        return None
    import bm25s  # imported here since only evaluations need it

    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index

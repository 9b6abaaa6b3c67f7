"""Encode texts so that no token crosses the beginning of an answer, just as when a model is asked for that answer.

A tokeniser may join any letters to a token, even across the place where a request ends and an answer begins. Knows the
tokeniser, nothing of templates.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

ANCHORS = ("\n", "a", ")", "0", ".", " ")
"""Texts to put before another one, to get its ids as a continuation; the first that shares no token with it is used."""
NEAR = 24  # an added token of the vocabulary is looked for among so many tokens before an answer
WORDS = 3  # words before an answer that are encoded again if there is none; the last may be split differently
KEPT, CONTEXTS = 64, 4096  # texts before answers whose ids are remembered: longest in characters, and how many


class Ids(NamedTuple):
    """Token ids of a text, with the place in the text where each token begins and ends."""

    ids: list[int]
    places: list[tuple[int, int]]


class Boundaries:
    """Encodes texts so that the ids before an answer are those of the text before it, encoded on its own.

    Args:
        tokenizer: without padding and truncation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self._contexts: dict[tuple[str, bool], list[int]] = {}

    def encode(self, text: str, begins: Sequence[int], *, after: bool = False) -> Ids:
        """Return ids of a text in which each part up to the beginning of an answer has the ids it has on its own.

        Args:
            text: without the tokens that the tokeniser adds by itself.
            begins: places in the text where answers begin, in order.
            after: whether the text continues another one.
        """
        encoding = None if after else self._tokenizer.encode(text, add_special_tokens=False)
        found = self._after(text) if encoding is None else Ids(encoding.ids, encoding.offsets)
        for number, begin in enumerate(begins):
            if 0 < begin < len(text) and not self._is_boundary(text, found, encoding, begin):
                head = self.encode(text[:begin], begins[:number], after=after)
                tail = self.encode(text[begin:], [other - begin for other in begins[number + 1 :]], after=True)
                moved = [(first + begin, last + begin) for first, last in tail.places]
                return Ids(head.ids + tail.ids, head.places + moved)
        return found

    def _after(self, text: str) -> Ids:
        """Return ids of a text that continues another: without the blank that some tokenisers put before a text."""
        for anchor in ANCHORS:
            size, known = len(anchor), self._context(anchor, after=False)
            encoding = self._tokenizer.encode(anchor + text, add_special_tokens=False)
            ids, places, count = encoding.ids, encoding.offsets, len(known)
            apart = all(last <= size for _, last in places[:count]) and all(last > size for _, last in places[count:])
            if apart and ids[:count] == known:
                return Ids(ids[count:], [(max(first - size, 0), last - size) for first, last in places[count:]])
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Ids(encoding.ids, encoding.offsets)

    def _is_boundary(self, text: str, found: Ids, encoding: Encoding | None, begin: int) -> bool:
        """Return whether the ids up to a place in a text are those of the text up to there.

        A tokeniser splits off added tokens of the vocabulary first, so nothing before one affects the ids after it. If
        a tokeniser splits a text into words, which it does from its beginning on, what comes some words earlier has no
        effect either. So it is usually enough to compare the ids since then.
        """
        ids, places = found
        count = bisect_right(places, begin, key=lambda place: place[1])
        since = count
        while since and count - since < NEAR and ids[since - 1] not in self._added:
            since -= 1
        if since and ids[since - 1] in self._added:
            return ids[since - 1 : count] == self._context(text[places[since - 1][0] : begin], after=False)
        if count and encoding is not None:
            words = encoding.word_ids[:count]
            last = words[-1] if words[-1] is not None else 0
            near = next((i for i, word in enumerate(words) if word is not None and word > last - WORDS), 0)
            if near and ids[near:count] == self._context(text[places[near][0] : begin], after=False):
                return True
        return ids[:count] == self._context(text[:begin], after=encoding is None)

    def _context(self, text: str, *, after: bool) -> list[int]:
        """Return the ids of the text before an answer; short ones, such as a speaker's name, are remembered."""
        known = self._contexts.get((text, after))
        if known is not None:
            return known
        ids = self._after(text).ids if after else self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(text) <= KEPT:
            if len(self._contexts) > CONTEXTS:
                self._contexts.clear()
            self._contexts[text, after] = ids
        return ids

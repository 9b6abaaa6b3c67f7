"""Texts to token ids with a border of tokens where each answer begins, as in what a model is given to answer.

A tokeniser joins letters to tokens across any place in a text, also across the one where a request ends and the answer
begins. Knows the tokeniser, nothing of templates.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

ANCHORS = ("\n", "a", ")", "0", ".", " ")
"""Texts to encode another behind, for its ids where it goes on; the first with which it shares no token is taken."""
NEAR = 24  # tokens before an answer among which one that was added to the vocabulary is looked for first
WORDS = 3  # words before an answer that are encoded again where there is none; the last may be cut differently
KEPT, CONTEXTS = 64, 4096  # characters of a text before an answer that is remembered, and how many of them


class Ids(NamedTuple):
    """Token ids of a text, and where in it each token begins and ends."""

    ids: list[int]
    places: list[tuple[int, int]]


class Borders:
    """Encodes texts, and where answers begin in them apart from what comes before, if need be.

    Args:
        tokenizer: without padding and truncation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.get_added_tokens_decoder())
        self._contexts: dict[tuple[str, bool], list[int]] = {}

    def encode(self, text: str, begins: Sequence[int], *, after: bool = False) -> Ids:
        """Ids of a text that begin with those of each of its parts that ends where an answer begins.

        Args:
            text: without tokens that the tokeniser adds by itself.
            begins: where in it answers begin, in order.
            after: whether it goes on behind another text.
        """
        encoding = None if after else self._tokenizer.encode(text, add_special_tokens=False)
        found = self._after(text) if encoding is None else Ids(encoding.ids, encoding.offsets)
        for number, begin in enumerate(begins):
            if 0 < begin < len(text) and not self._is_border(text, found, encoding, begin):
                head = self.encode(text[:begin], begins[:number], after=after)
                tail = self.encode(text[begin:], [other - begin for other in begins[number + 1 :]], after=True)
                moved = [(first + begin, last + begin) for first, last in tail.places]
                return Ids(head.ids + tail.ids, head.places + moved)
        return found

    def _after(self, text: str) -> Ids:
        """Ids of a text that goes on behind another: without the blank that some tokenisers put before a text."""
        for anchor in ANCHORS:
            size, known = len(anchor), self._context(anchor, after=False)
            encoding = self._tokenizer.encode(anchor + text, add_special_tokens=False)
            ids, places, count = encoding.ids, encoding.offsets, len(known)
            apart = all(last <= size for _, last in places[:count]) and all(last > size for _, last in places[count:])
            if apart and ids[:count] == known:
                return Ids(ids[count:], [(max(first - size, 0), last - size) for first, last in places[count:]])
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return Ids(encoding.ids, encoding.offsets)

    def _is_border(self, text: str, found: Ids, encoding: Encoding | None, begin: int) -> bool:
        """Return whether the ids up to a place in a text are those of the text up to there.

        A token that was added to the vocabulary is split off first, so that nothing before one has a part in what
        follows. Nor has anything before some words in their ids, where a tokeniser cuts texts to words, which it does
        from their beginning on.
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
        """Ids of the text before an answer; a short one, such as the name of who speaks, comes again and again."""
        known = self._contexts.get((text, after))
        if known is not None:
            return known
        ids = self._after(text).ids if after else self._tokenizer.encode(text, add_special_tokens=False).ids
        if len(text) <= KEPT:
            if len(self._contexts) > CONTEXTS:
                self._contexts.clear()
            self._contexts[text, after] = ids
        return ids

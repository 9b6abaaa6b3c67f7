"""A report on the rows as the chosen model sees them: lengths, shares, cuts, odd rows, and advice about them.

Knows tokens, nothing of files or mlx.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..activity import doing
from ..config import DataConfig
from ..errors import DataError
from ..translations import Sentence
from .dataset import TokenDataset, gathered, tokens_wanted
from .rows import TokenRow, TokenRows
from .tokenizer import WORD_JOINER, ChatTokenizer

SKIPPED_SHOWN = 1000
PERCENTILES = (50, 90, 99)
BINS = 12  # most bins of the histogram, including the one for rows that are cut
SHOWN = 5  # typical rows that are shown, and as many odd ones
LEAST_TOKENS = 8  # the mean over fewer tokens says little about a row
SAMPLE_LENGTH = 120  # characters
PROMPT_SHARE = 0.6  # if prompts have a larger share of the tokens, much work goes into what is not trained
TINY_ANSWER = 3  # tokens, including its end
FEW_ROWS = 50
FAR_OUT = 8  # a row is an outlier from this many times the 99th percentile on
BLOCK_ROWS = 1 << 15  # rows that are processed at once, so that memory use stays flat


@dataclass(frozen=True)
class ShownRow:
    """A row to show.

    Attributes:
        source: where it came from.
        bits: mean surprise of its tokens, in bits.
        text: its beginning, after what all rows share.
    """

    source: str
    bits: float
    text: str


@dataclass(frozen=True)
class TokenReport:
    """Statistics of rows as the model sees them, for training and validation rows together.

    A length is that of the whole row, including what is cut off.

    Attributes:
        rows: number of usable rows.
        skipped_rows: number of rows that cannot be used.
        skipped: (source, reason) of the first thousand of those.
        tokens: tokens of the usable rows, without what is cut off.
        target_tokens: trained tokens.
        longest: length of the longest row.
        max_seq_length: most tokens in a row.
        truncated: number of rows that are cut.
        lost_tokens: tokens that are cut off, in all.
        histogram: (shortest, longest, rows) of each range of lengths: powers of two up to `max_seq_length`, and one for
            longer rows if there are any.
        percentiles: `{50: …, 90: …, 99: …}`: the length that so many per cent of the rows do not exceed.
        most_typical: the rows of least surprise, see `typicality`.
        least_typical: the rows of most surprise that are not among those.
        control_rows: usable rows that contain a control token of the model.
        control_tokens: control tokens in the first of those.
        warnings: each problem, and what to do about it.
    """

    rows: int
    skipped_rows: int
    skipped: tuple[tuple[str, str], ...]
    tokens: int
    target_tokens: int
    longest: int
    max_seq_length: int
    truncated: int
    lost_tokens: int
    histogram: tuple[tuple[int, int, int], ...]
    percentiles: dict[int, int]
    most_typical: tuple[ShownRow, ...]
    least_typical: tuple[ShownRow, ...]
    control_rows: int
    control_tokens: tuple[str, ...]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON: with lists for tuples, and percentiles keyed by text."""
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        listed |= {name: [list(entry) for entry in listed[name]] for name in ("skipped", "histogram")}
        listed |= {
            name: [dataclasses.asdict(row) for row in listed[name]] for name in ("most_typical", "least_typical")
        }
        return {**listed, "percentiles": {str(share): length for share, length in self.percentiles.items()}}


@doing("describing")
def describe(
    train: TokenDataset, validation: TokenDataset, tokenizer: ChatTokenizer, max_seq_length: int
) -> TokenReport:
    """Compute the report of all rows as tokens.

    Args:
        train: rows to train on, from `make_dataset`.
        validation: rows to validate on.
        tokenizer: used for both.
        max_seq_length: used for both.
    """
    rows = _Corpus([train.rows, validation.rows])
    skipped = (*train.skipped, *validation.skipped)
    lengths = rows.lengths + rows.cut
    shared = _shared_beginning(rows)
    most, least = _typical_and_odd(rows, tokenizer, shared)
    control = _control_tokens(rows, tokenizer)
    words = [
        _few_rows(train),
        _prompts(rows, tokenizer, shared),
        _cuts(rows, lengths, max_seq_length),
        _full_prompts(skipped, max_seq_length),
        _other_skipped(skipped),
        *_written_otherwise(gathered((train.notes, validation.notes)), train.conversations + validation.conversations),
        _tiny_answers(rows),
        _far_out(rows, lengths),
        _spelled(int(np.count_nonzero(rows.armed)), control),
    ]
    return TokenReport(
        rows=len(rows),
        skipped_rows=len(skipped),
        skipped=skipped[:SKIPPED_SHOWN],
        tokens=rows.tokens,
        target_tokens=int(rows.target_lengths.sum()),
        longest=int(lengths.max(initial=0)),
        max_seq_length=max_seq_length,
        truncated=int(np.count_nonzero(rows.cut)),
        lost_tokens=int(rows.cut.sum(dtype=np.int64)),
        histogram=_histogram(lengths, max_seq_length),
        percentiles={share: _percentile(lengths, share) for share in PERCENTILES},
        most_typical=most,
        least_typical=least,
        control_rows=int(np.count_nonzero(rows.armed)),
        control_tokens=control,
        warnings=tuple(filter(None, words)),
    )


def typicality(rows: TokenRows | _Corpus, vocabulary: int) -> np.ndarray:
    """Return the mean surprise of each row's tokens, in bits.

    With n(t) the number of times that token t occurs in all rows, N the number of all tokens and V the size of the
    vocabulary, the surprise of a token is -log2((n(t) + 1) / (N + V)): its information under the corpus's own unigram
    distribution with add-one smoothing. Rows of common words have few bits; another language, a table, code or damaged
    text have many. Order does not matter.

    Args:
        rows: the corpus.
        vocabulary: V; every id is below it.

    Returns:
        float64, `(rows,)`; NaN for an empty row.
    """
    corpus = rows if isinstance(rows, _Corpus) else _Corpus([rows])
    counts = np.zeros(vocabulary, np.int64)
    for block in corpus.blocks():
        counts += np.bincount(block.ids, minlength=vocabulary)
    surprise = np.log2(corpus.tokens + vocabulary) - np.log2(counts + 1.0)
    sums = np.full(len(rows), np.nan)
    done = 0
    for block in corpus.blocks():
        filled = np.flatnonzero(block.lengths)
        if len(filled):
            sums[done + filled] = np.add.reduceat(surprise[block.ids], block.offsets[:-1][filled])
        done += len(block)
    return sums / np.maximum(corpus.lengths, 1)


class _Corpus:
    """The rows of several datasets as one, without a copy, which would take half a gigabyte for a million rows."""

    def __init__(self, parts: Sequence[TokenRows]) -> None:
        self.parts = parts
        self.tokens = sum(len(part.ids) for part in parts)
        self.lengths, self.target_lengths, self.cut, self.armed = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("lengths", "target_lengths", "cut", "armed")
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenRow:
        for part in self.parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)

    def blocks(self, rows: int | None = None) -> Iterator[TokenRows]:
        """Yield all rows in order, in blocks, so that memory use stays flat."""
        size = rows or BLOCK_ROWS
        return (part[i : i + size] for part in self.parts for i in range(0, len(part), size))


def _percentile(lengths: np.ndarray, share: int) -> int:
    return int(np.percentile(lengths, share, method="inverted_cdf")) if len(lengths) else 0


def _histogram(lengths: np.ndarray, max_seq_length: int) -> tuple[tuple[int, int, int], ...]:
    last = math.ceil(math.log2(max_seq_length))
    tops = [2**power for power in range(max(4, last - BINS + 2), last)] + [max_seq_length]
    counts = np.bincount(np.searchsorted(tops, lengths), minlength=len(tops) + 1).tolist()
    bins = list(zip([1, *(top + 1 for top in tops)], [*tops, int(lengths.max(initial=0))], counts, strict=True))
    return tuple(bins if counts[-1] else bins[:-1])


def _shared_beginning(rows: _Corpus) -> int:
    """Return the number of tokens that all rows begin with; 0 for a single row."""
    if len(rows) < 2:
        return 0
    shared = int(rows.lengths.min())
    first = rows[0].ids
    for block in rows.blocks(max(BLOCK_ROWS // 8, 1)):
        differs = (block.ids[block.offsets[:-1, None] + np.arange(shared)] != first[:shared]).any(axis=0)
        shared = int(differs.argmax()) if differs.any() else shared
        if not shared:
            break
    return shared


def _typical_and_odd(
    rows: _Corpus, tokenizer: ChatTokenizer, shared: int
) -> tuple[tuple[ShownRow, ...], tuple[ShownRow, ...]]:
    bits = typicality(rows, tokenizer.vocabulary)
    candidates = np.flatnonzero(rows.lengths >= LEAST_TOKENS)
    order = candidates[np.argsort(bits[candidates], kind="stable")]
    seen: set[bytes] = set()

    def pick(indices: np.ndarray) -> tuple[ShownRow, ...]:
        chosen: list[ShownRow] = []
        for i in indices:
            row = rows[i]
            if len(chosen) == SHOWN:
                break
            if (key := row.ids.tobytes()) not in seen:
                seen.add(key)
                chosen.append(ShownRow(row.source, round(float(bits[i]), 3), _sample(row.ids[shared:], tokenizer)))
        return tuple(chosen)

    return pick(order), pick(order[::-1])


def _sample(ids: np.ndarray, tokenizer: ChatTokenizer) -> str:
    text = " ".join(tokenizer.decode(ids[: 4 * SAMPLE_LENGTH]).lstrip("\ufffd").split())
    return text if len(text) <= SAMPLE_LENGTH else text[: SAMPLE_LENGTH - 1] + "…"


def _control_tokens(rows: _Corpus, tokenizer: ChatTokenizer) -> tuple[str, ...]:
    """Return the control tokens that rows contain, from the first hundred rows with any."""
    found: dict[str, None] = {}
    for i in np.flatnonzero(rows.armed)[:100]:
        text = tokenizer.decode(rows[i].ids)
        found |= {token: None for token in tokenizer.control_tokens if token[0] + WORD_JOINER + token[1:] in text}
    return tuple(found)


# Warnings: empty where there is nothing to say --------------------------------------------------------------------


def none_trained(train: TokenDataset) -> str:
    """Return why no row can be trained with this model; empty if some can."""
    if len(train) or not train.skipped:
        return ""
    source, reason = train.skipped[0]
    rows = _many(len(set(train.skipped_places)), "row")
    return Sentence(
        "no row can be trained with this model, of {rows} to train. The first: {source}: {reason}. Mend the rows, or "
        "choose another --model or --template", rows=rows, source=source, reason=reason,
    )  # fmt: skip


def left_out(train: TokenDataset, prepared: int) -> int:
    """Return how many of `prepared` prepared rows give nothing to train."""
    return prepared - len(np.unique(train.origins(prepared)))


def _few_rows(train: TokenDataset) -> str:
    count = len(train)
    if count >= FEW_ROWS or not count:
        return none_trained(train)
    return Sentence(
        "only {rows} to train: expect it to learn by heart, not to generalise; {enough} and more help",
        rows=_many(count, "row"), enough=FEW_ROWS,
    )  # fmt: skip


def _prompts(rows: _Corpus, tokenizer: ChatTokenizer, shared: int) -> str:
    total = rows.tokens
    prompt = total - int(rows.target_lengths.sum())
    if not total or prompt <= PROMPT_SHARE * total:
        return ""
    share = f"{100 * prompt / total:.0f}"
    beyond = shared - _template_beginning(tokenizer)
    if beyond >= LEAST_TOKENS:
        return Sentence(
            "{share}% of the tokens are prompt: only the reply is trained. All rows begin with the same {shared} "
            "tokens, {all_shared} of {total}: rows that are trained together share them, unless there is dropout, but "
            "each question later has them too; shorten the system message, or leave it out",
            share=share, shared=f"{shared:,}", all_shared=f"{shared * len(rows):,}", total=f"{total:,}",
        )  # fmt: skip
    return Sentence(
        "{share}% of the tokens are prompt: only the reply is trained. Shorten the questions or what stands before "
        "them, or write longer replies", share=share,
    )  # fmt: skip


def _template_beginning(tokenizer: ChatTokenizer) -> int:
    """Return the number of tokens that the template itself writes before a question."""
    try:
        one, other = tokenizer.encode_prompt("a"), tokenizer.encode_prompt("b")
    except DataError:
        return 0
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)


def _cuts(rows: _Corpus, lengths: np.ndarray, max_seq_length: int) -> str:
    cut = int(np.count_nonzero(rows.cut))
    if not cut:
        return ""
    lost = int(rows.cut.sum(dtype=np.int64))
    told = {"rows": _rows_are(cut), "tokens": _many(lost, "token"), "most": max_seq_length}
    most, usual = _rounded(int(lengths.max())), _percentile(lengths, 99)
    remedy, nearly = _holds(most, ALL), _rounded(usual)
    said = Sentence("{rows} cut at max_seq_length {most}, {tokens} lost: {remedy}", remedy=remedy, **told)
    if usual <= max_seq_length:
        return Sentence("{said}; 99% of the rows are not cut", said=said)
    return Sentence.of_parts("; ", [said, _holds(nearly, MOST)]) if nearly < most else said


def _rounded(length: int) -> int:
    return -(-length // 64) * 64


ALL = Sentence("would hold all")
ALL_OF_THEM = Sentence("would hold all of them")
MOST = Sentence("would hold 99% of the rows")


def _holds(length: int, what: Sentence) -> Sentence:
    """Return the length and what it does, unless the setting cannot be that high."""
    limit = next(field.metadata["le"] for field in dataclasses.fields(DataConfig) if field.name == "max_seq_length")
    if length <= limit:
        return Sentence("{length} {what}", length=length, what=what)
    return Sentence("no length {what} ({limit} is the most): split the longest", what=what, limit=limit)


def _full_prompts(skipped: Sequence[tuple[str, str]], max_seq_length: int) -> str:
    wanted = [length for _, reason in skipped if (length := tokens_wanted(reason))]
    if not wanted:
        return ""
    return Sentence(
        "{rows} left out, since the prompt fills max_seq_length {most}: {remedy}; or shorten the prompts",
        rows=_rows_are(len(wanted)), most=max_seq_length, remedy=_holds(_rounded(max(wanted)), ALL_OF_THEM),
    )  # fmt: skip


def _other_skipped(skipped: Sequence[tuple[str, str]]) -> str:
    others = [(source, reason) for source, reason in skipped if tokens_wanted(reason) is None]
    if not others:
        return ""
    source, reason = others[0]
    return Sentence("{rows} left out; mend them or remove them. The first: {source}: {reason}",
                    rows=_rows_are(len(others)), source=source, reason=reason)  # fmt: skip


def _rows_are(count: int) -> Sentence:
    return Sentence("1 row is") if count == 1 else Sentence("{count} rows are", count=f"{count:,}")


WRITTEN = {
    "altered": Sentence(
        "words that the model's chat template leaves out or writes otherwise; see which among the row's tokens"
    ),
    "unmarked": Sentence(
        "an answer that the model's chat template does not mark as the model's own ({tag}) is read, not trained",
        tag="{% generation %}",
    ),
    "tools": Sentence(
        "tools, for which the model's chat template has no place, are left out; give one that has with --template"
    ),
    "system": Sentence(
        "a system text, which the model's chat template refuses, is written before the question behind it, here and "
        "when the model is asked"
    ),
    "dropped": Sentence("reasoning before an answer is left out (--reasoning drop)"),
    "apart": Sentence(
        "each answer makes a row, since the model's chat template writes an answer, or what asks for it, otherwise "
        "when more follows"
    ),
}
"""Meaning of each note on a row; for reasoning see `_reasons`."""


def _written_otherwise(notes: dict[str, tuple[int, str]], conversations: int) -> list[str]:
    said = [
        Sentence("{rows}, {first}: {what}", rows=_many(count, "row"), first=_the_first(count, first), what=meaning)
        for what, (count, first) in notes.items()
        if (meaning := WRITTEN.get(what))
    ]
    return [_reasons(notes["reasoning"], conversations), *said] if "reasoning" in notes else said


def _reasons(noted: tuple[int, str], conversations: int) -> str:
    count, first = noted
    told = {"count": f"{count:,}", "all": f"{conversations:,}", "first": _the_first(count, first)}
    told["kept"] = Sentence(
        "it is trained with the answer, or what --reasoning says (keep: read, not trained; drop: left out)"
    )
    if count == 1:
        said = Sentence("{count} of {all} conversations has reasoning before an answer, {first}: {kept}", **told)
    else:
        said = Sentence("{count} of {all} conversations have reasoning before an answer, {first}: {kept}", **told)
    if count == conversations:
        return said
    if 2 * count > conversations:
        return Sentence("{said}; most have it, so that the model is asked to reason", said=said)
    return Sentence(
        "{said}; most have none, so that the model is asked for answers without, where its template can say so",
        said=said,
    )


def _the_first(count: int, source: str) -> str:
    return source if count == 1 else Sentence("the first {source}", source=source)


def _tiny_answers(rows: _Corpus) -> str:
    if not len(rows) or np.median(rows.target_lengths) > TINY_ANSWER:
        return ""
    return Sentence(
        "half of the replies have at most {count} tokens, their end included: a row teaches little. Let replies be "
        "whole sentences", count=TINY_ANSWER,
    )  # fmt: skip


def _far_out(rows: _Corpus, lengths: np.ndarray) -> str:
    usual = _percentile(lengths, 99)
    far = np.flatnonzero(lengths > FAR_OUT * usual)
    if not len(far):
        return ""
    worst = int(far[lengths[far].argmax()])
    told = {"source": rows[worst].source, "tokens": f"{lengths[worst]:,}", "times": FAR_OUT, "usual": f"{usual:,}"}
    if len(far) == 1:
        return Sentence(
            "{source}: has {tokens} tokens, more than {times} times as many as 99% of the rows ({usual}): split it, or "
            "is it a mistake?", **told,
        )  # fmt: skip
    return Sentence(
        "{source}: has {tokens} tokens, more than {times} times as many as 99% of the rows ({usual}) ({others} too): "
        "split it, or is it a mistake?", others=_many(len(far) - 1, "other"), **told,
    )  # fmt: skip


def _spelled(count: int, tokens: Sequence[str]) -> str:
    if not count:
        return ""
    spell = Sentence("1 row spells") if count == 1 else Sentence("{count} rows spell", count=f"{count:,}")
    named = f" ({', '.join(tokens)})" if tokens else ""
    return Sentence(
        "{rows} a control token of the model{named}: it is broken up, so that it stays text. Remove it, if it is left "
        "over from a chat template", rows=spell, named=named,
    )  # fmt: skip


def _many(count: int, what: Literal["row", "token", "other"]) -> Sentence:
    """Return a number of things, in the singular or the plural."""
    counted = f"{count:,}"
    if what == "row":
        return Sentence("{count} row", count=counted) if count == 1 else Sentence("{count} rows", count=counted)
    if what == "token":
        return Sentence("{count} token", count=counted) if count == 1 else Sentence("{count} tokens", count=counted)
    return Sentence("{count} other", count=counted) if count == 1 else Sentence("{count} others", count=counted)

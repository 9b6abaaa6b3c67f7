r"""A tokeniser as GGUF describes it: its tokens, their kinds, merges or scores, and the name of its rules.

All of it comes from `tokenizer.json`, the file that rows are encoded with in training. llama.cpp has its own code for
cutting a text into words and knows it by a name; the name is found by comparing the rules themselves, and a tokeniser
with other rules is refused: a wrong name would cut texts otherwise than in training, and nobody would notice. Knows
nothing of weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer

from ..errors import ModelError, brief, shown
from ..files.untrusted_json import TABLE_BYTES, read_object
from ..translations import Sentence

MARK = "▁"  # what SentencePiece writes for a blank

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(digits: str, letters: str = r"\p{L}") -> str:
    inner = letters if letters == r"\p{L}" else f"[{letters}]"
    return (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?{inner}+|{digits}|"
        + _REST.replace(r"\p{L}\p{N}]+[", rf"{letters}\p{{N}}]+[", 1)
    )  # fmt: skip


_BYTES_ALONE = (("bytes", False),)
_NAMES: dict[tuple[Any, ...], dict[bool, str]] = {
    (("bytes", True),): {False: "gpt-2"},
    (("digits", True), ("bytes", True)): {False: "smollm"},
    (("split", _words(r"\p{N}{1,3}")), *_BYTES_ALONE): {True: "llama-bpe", False: "smaug-bpe"},
    (("split", _words(r"\p{N}")), *_BYTES_ALONE): {False: "qwen2"},
    (("split", _words(r"\p{N}", r"\p{L}\p{M}")), *_BYTES_ALONE): {False: "qwen35"},
    (("split", rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"), *_BYTES_ALONE): {True: "tekken"},
    (
        ("split", rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_CASED_REST}"),
        *_BYTES_ALONE,
    ): {False: "gpt-4o"},
}
"""llama.cpp's name for each way of cutting words, by whether a whole word that is a token is taken without merging."""

_ID_KEYS = ("bos", "eos", "unk", "pad")


@dataclass
class Vocabulary:
    """A tokeniser as GGUF stores it.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece's.
        rules: llama.cpp's name for how words are cut, the value of `tokenizer.ggml.pre`.
        tokens: the text of each id.
        kinds: of each id.
        scores: of each id, for SentencePiece; else empty.
        merges: pairs of tokens with a blank between, for byte-level BPE; else empty.
        ids: ids of `bos`, `eos`, `eot`, `unk` and `pad`, as far as they exist.
        adds: whether a text gets `bos` and `eos`.
        space_prefix: whether SentencePiece puts a blank before a text.
        notes: what llama.cpp does otherwise, a sentence each.
        strips: whether control tokens take the blanks after them along.
    """

    model: str
    rules: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    ids: dict[str, int]
    adds: dict[str, bool]
    space_prefix: bool
    notes: list[Sentence]
    strips: bool

    def tokens_include(self, texts: Collection[str]) -> bool:
        """Return whether all of these are tokens."""
        return set(texts) <= set(self.tokens)


def read_vocabulary(directory: Path, size: int, ends: Sequence[int] = ()) -> Vocabulary:
    """Read the tokeniser of a model directory.

    Args:
        directory: holds `tokenizer.json` and, usually, `tokenizer_config.json`.
        size: rows of the embedding; ids without a token get a placeholder.
        ends: ids that end an answer, the tokeniser's own first; empty: only that one.

    Raises:
        ModelError: it cannot be read, or llama.cpp has no rules like its own.
    """
    path = directory / "tokenizer.json"
    try:
        found = read_object(path, TABLE_BYTES)
        model, added = found["model"], found.get("added_tokens") or []
        texts = {**dict(model["vocab"]), **{token["content"]: token["id"] for token in added}}
        empty = Tokenizer.from_file(str(path)).encode("", add_special_tokens=True).ids
    except FileNotFoundError:
        raise ModelError(f"{path}: not found; a GGUF file needs the tokens.") from None
    except BaseException as error:  # the library raises plain Exception; a panic in Rust is only a BaseException
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise ModelError(f"{path}: cannot be read as a tokeniser of pieces: {brief(error)}") from None
    if problem := _unknown(model):
        raise ModelError(f"{path}: cannot be written as GGUF: {problem}.")
    steps = list(_flat(found.get("pre_tokenizer"), "pretokenizers"))
    reader = _byte_level if any(step["type"] == "ByteLevel" for step in steps) else _sentence_pieces
    try:
        made = reader(model, added, texts, found, steps)
    except ValueError as error:
        raise ModelError(f"{path}: cannot be written as GGUF: {error}.") from None
    _fill(made, texts, size)
    _mark_ids(made, directory, model, texts, ends)
    for key, place in (("bos", 0), ("eos", -1)):
        made.adds[key] = bool(empty) and empty[place] == made.ids.get(key)
    if any(token.get("lstrip") or token.get("single_word") for token in added):
        made.notes.append(
            Sentence(
                "Some added tokens take blanks before them along, or stand only for whole words; not so in llama.cpp."
            )
        )
    made.strips = any(token.get("rstrip") for token in added)
    return made


def _unknown(model: dict[str, Any]) -> str:
    if model.get("type", "BPE") != "BPE" or not isinstance(model["vocab"], dict):
        return f"its model is {shown(model.get('type'))}; wanted BPE, byte-level or with byte fallback"
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            return f"its {name} is {shown(model[name])}, which llama.cpp does not know"
    return ""


def _flat(step: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normaliser or pre-tokeniser, sequences taken apart."""
    if step is not None and step["type"] == "Sequence":
        for each in step[inner]:
            yield from _flat(each, inner)
    elif step is not None:
        yield step


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges, the most important first; older files have them as one text."""
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]


# Byte-level BPE -------------------------------------------------------------------------------------------------


def _byte_level(model: dict, added: list, texts: dict[str, int], found: dict, steps: list) -> Vocabulary:
    notes = []
    normalisers = [step["type"] for step in _flat(found.get("normalizer"), "normalizers")]
    if normalisers == ["NFC"]:
        notes.append(
            Sentence(
                "llama.cpp does not compose accents (NFC): texts with accents as separate characters get other tokens "
                "there."
            )
        )
    elif normalisers:
        raise ValueError(f"it changes texts first ({', '.join(normalisers)}), which llama.cpp does not do")
    merges = [f"{a} {b}" for a, b in _pairs(model)]
    kinds = dict.fromkeys(texts, TokenType.NORMAL)
    for token in added:
        kinds[token["content"]] = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
    return Vocabulary("gpt2", _rules(model, steps, bool(merges)), [], list(_by_id(texts, kinds)), [], merges, {}, {},
                      False, notes, False)  # fmt: skip


def _rules(model: dict, steps: list[dict[str, Any]], merging: bool) -> str:
    """Return llama.cpp's name for how words are cut.

    Raises:
        ValueError: it has none.
    """
    whole = bool(model.get("ignore_merges"))
    if not merging and not whole:
        return "gpt-2"  # each byte is a token, however the text is cut
    known = _NAMES.get(tuple(_canonical(step) for step in steps), {})
    if whole not in known:
        rules = " + ".join(str(_canonical(step)) for step in steps)
        raise ValueError(
            f"its rules for cutting words are none of those that llama.cpp has names for here; found {rules[:300]}"
            + (", with whole words taken as they are" if whole else "")
        )
    return known[whole]


def _canonical(step: dict[str, Any]) -> tuple[Any, ...]:
    """Return a step of the pre-tokeniser so that equal ones are equal, however their file spells them.

    The regular expressions compared match every character, so keeping the matches is the same as cutting at them.
    """
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return ("bytes", step.get("use_regex", True))
    if kind == "Digits":
        return ("digits", step.get("individual_digits"))
    if kind == "Split" and (step["behavior"], bool(step.get("invert"))) in (("Isolated", False), ("Removed", True)):
        return ("split", step["pattern"].get("Regex"))
    return (kind, str(sorted(step.items(), key=str)))


# SentencePiece's BPE --------------------------------------------------------------------------------------------


def _sentence_pieces(model: dict, added: list, texts: dict[str, int], found: dict, steps: list) -> Vocabulary:
    """Return a vocabulary whose scores order merges as their list does.

    llama.cpp joins two neighbours if their text is a token, that with the highest score first; here a token's score is
    minus the place of its first merge.
    """
    if not model.get("byte_fallback"):
        raise ValueError("it is neither byte-level BPE nor has it bytes to fall back on")
    notes: list[Sentence] = []
    prefix = _space_prefix(found, steps, notes)
    ranks: dict[str, int] = {}
    for rank, (a, b) in enumerate(_pairs(model)):
        ranks.setdefault(a + b, rank)
    _note_other_merges(model, texts, ranks, notes)
    lowest = -float(len(model["merges"]) + 1)
    scores = {text: -float(ranks[text]) if text in ranks else lowest for text in texts}
    kinds = {text: TokenType.BYTE if _is_byte(text) else TokenType.NORMAL for text in texts}
    shown_as = {text: text for text in texts}
    for token in added:
        text = token["content"]
        if token.get("special"):
            kinds[text], scores[text] = TokenType.CONTROL, 0.0
        elif MARK not in text or text not in ranks:  # those with blanks are found by merging, as here
            kinds[text], shown_as[text] = TokenType.USER_DEFINED, text.replace(MARK, " ")
    if model.get("unk_token") in texts:
        kinds[model["unk_token"]] = TokenType.UNKNOWN
    made = Vocabulary("llama", "default", [], list(_by_id(texts, kinds)), list(_by_id(texts, scores)), [], {}, {},
                      prefix, notes, False)  # fmt: skip
    made.tokens = list(_by_id(texts, shown_as))
    return made


def _space_prefix(found: dict, steps: list, notes: list[Sentence]) -> bool:
    """Return whether a blank is put before a text, after checking that nothing else is done to it.

    Raises:
        ValueError: something else is done.
    """
    prefix = False
    replaced = False
    for step in _flat(found.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == MARK:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == MARK:
            replaced = True
        else:
            raise ValueError(f"it changes texts first ({step['type']}), which llama.cpp does not do")
    for step in steps:
        if step["type"] == "Metaspace" and step.get("replacement") == MARK and not step.get("split", True):
            replaced = True
            scheme = step.get("prepend_scheme", "always")
            prefix = scheme == "always"
            if scheme == "first":
                notes.append(
                    Sentence(
                        "A text that does not begin with a control token gets a blank before it here, and none in "
                        "llama.cpp; chats begin with one."
                    )
                )
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:  # no blank is left to cut at
            raise ValueError(f"its rules for cutting words are none that llama.cpp knows ({step['type']})")
    if not replaced:
        raise ValueError(f"it does not write blanks as {MARK}")
    return prefix


def _note_other_merges(model: dict, texts: dict[str, int], ranks: dict[str, int], notes: list[Sentence]) -> None:
    """Note tokens that llama.cpp makes from neighbours although no merge does."""
    pairs = set(_pairs(model))
    other = 0
    for text in ranks:
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        other += any(pair not in pairs and pair[0] in texts and pair[1] in texts for pair in splits)
    if other:
        notes.append(
            Sentence(
                "llama.cpp may join {other} of its {tokens} tokens from parts that no merge here joins.",
                other=other,
                tokens=len(texts),
            )
        )


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


# Both -----------------------------------------------------------------------------------------------------------


def _by_id(texts: dict[str, int], values: dict[str, Any]) -> Iterator[Any]:
    """Yield the value of each id from 0 on; None where no text has it."""
    names = {number: text for text, number in texts.items()}
    return (values[names[i]] if i in names else None for i in range(max(names, default=-1) + 1))


def _fill(made: Vocabulary, texts: dict[str, int], size: int) -> None:
    """Extend or cut all lists to the size of the embedding, with placeholders where no token is."""
    made.tokens = made.tokens or list(_by_id(texts, {text: text for text in texts}))
    if dropped := sum(token is not None for token in made.tokens[size:]):
        made.notes.append(Sentence("{count} tokens have no row in the embedding and are left out.", count=dropped))
    missing = size - len(made.tokens)

    def filled(values: list[Any], placeholder: Any) -> list[Any]:
        return [placeholder if value is None else value for value in [*values, *[None] * missing][:size]]

    tokens = filled(made.tokens, None)
    made.tokens = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    made.kinds = [int(kind) for kind in filled(made.kinds, TokenType.UNUSED)]
    made.scores = [float(score) for score in filled(made.scores, -10_000.0)] if made.scores else []


def _mark_ids(made: Vocabulary, directory: Path, model: dict, texts: dict[str, int], ends: Sequence[int]) -> None:
    """Find the ids of the tokens with a part to play."""
    path = directory / "tokenizer_config.json"
    try:
        settings = read_object(path, TABLE_BYTES) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {brief(error)}") from None
    settings.setdefault("unk_token", model.get("unk_token"))
    for key in _ID_KEYS:
        text = settings.get(f"{key}_token")
        text = text.get("content") if isinstance(text, dict) else text
        if isinstance(text, str) and texts.get(text, len(made.tokens)) < len(made.tokens):
            made.ids[key] = texts[text]
    if ends:
        made.ids["eos"] = ends[0]
        if ends[-1] != ends[0]:  # what the chat template writes after an answer
            made.ids["eot"] = ends[-1]

"""llama.cpp cuts texts into the same tokens as we do, for every kind of tokeniser that is written."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tiny import CHATML, write_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qlora_core.errors import ModelError
from qlora_core.gguf.llama_cpp import Questions, ask
from qlora_core.gguf.model import About
from qlora_core.gguf.model import write_model as write_gguf
from qlora_core.gguf.reading import read_model
from qlora_core.gguf.tokenizer import read_vocabulary
from qlora_core.tokens.tokenizer import ChatTokenizer

CORPUS = [
    "O clube nasceu em 1923, na Rua das Flores; ganhou 14 campeonatos e perdeu 3.\n\n   Não é verdade?  Sim.",
    "It's what they'll say: I'm here, you're there, WE'VE won 1234567 times! They'D know.",
    "def f(x):\n    return x**2  # square\n\tif x:\n\t\tpass\r\n",
    "Привет, мир! 你好，世界。 こんにちは 안녕 🙂🙂 👍🏽 ½ ² ① café naïve coração ação",
    "HelloWorld camelCase SNAKE_case    four    blanks\n\n\nthree lines ... !!! ??? ---- ====",
] * 8
TRICKY = [
    "",
    " ",
    "Olá, coração! É às três.",
    "12345 1 22 333 4444,55 3.14159 ½²①",
    "a  b   c    d     e",
    " begins and ends with blanks  ",
    "line\nline\n\nline\n\n\n   indented\t\ttabs\r\n",
    "🙂👍🏽 👩‍👩‍👧 flags 🇵🇹",
    "I'm you're WE'VE they'Ll 's 't",
    "HelloWorld camelCase SNAKE_CASE ÉCOLE École",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "half <|im_st art|> of a <|im_end| token",
    "mixed 你好world 世界 Привет!? ...---... «aspas» “curly” – dash",
    "tool<tool>x</tool>  <tool> y",
]
REST = r"|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + REST
MARKED = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + REST
)
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
    r"\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + REST
)
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


def split(pattern: str, *, removed: bool = False) -> pre_tokenizers.PreTokenizer:
    behaviour = {"behavior": "removed", "invert": True} if removed else {"behavior": "isolated", "invert": False}
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), **behaviour), last])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
BYTE_LEVEL: dict[str, tuple[pre_tokenizers.PreTokenizer, bool, str | None]] = {
    "gpt-2": (BYTES, False, None),
    "smollm": (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]), False, None),
    "llama-bpe": (split(WORDS % "{1,3}"), True, None),
    "smaug-bpe": (split(WORDS % "{1,3}", removed=True), False, None),
    "qwen2": (split(WORDS % ""), False, "NFC"),
    "qwen35": (split(MARKED), False, "NFC"),
    "tekken": (split(CASED % ("", "", "")), True, None),
    "gpt-4o": (split(CASED % (ENDINGS, ENDINGS, "{1,3}")), False, None),
}
"""Cutting, whole words first, normaliser; by llama.cpp's names."""


def finish(directory: Path, tokenizer: Tokenizer, names: tuple[str, str], **settings: Any) -> Path:
    """A tiny model with that tokeniser."""
    write_model(directory, vocab_size=len(tokenizer.get_vocab()) + 5)  # a few rows more than tokens, as many models
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"chat_template": CHATML, **settings, "bos_token": names[0], "eos_token": names[1]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def byte_level(name: str) -> Tokenizer:
    cutting, whole, normaliser = BYTE_LEVEL[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = cutting, decoders.ByteLevel()
    if normaliser:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def pieces(scheme: str) -> Tokenizer:
    """SentencePiece's BPE as Hugging Face keeps it: merges are all ways to make a piece of two, the best first."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=620, byte_fallback=True,
        character_coverage=0.99, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    vocabulary = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = [
        (processor.get_score(i), (text[:cut], text[cut:]))
        for text, i in vocabulary.items()
        for cut in range(1, len(text))
        if not processor.is_byte(i) and text[:cut] in vocabulary and text[cut:] in vocabulary
    ]
    ordered = [pair for _, pair in sorted(merges, key=lambda each: -each[0])]
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    blanks = normalizers.Replace(" ", "▁")
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    elif scheme == "replace":
        tokenizer.normalizer = blanks
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def theirs(directory: Path, out: Path, texts: list[str], chats: tuple = ()) -> tuple[list[list[int]], list[list[int]]]:
    write_gguf(directory, out, "f16", About.asked_by(ChatTokenizer(directory)))
    replies = ask(out, Questions(texts=texts, chats=chats), context=256, threads=1, seconds=60)
    return replies.texts, replies.chats


def ours(directory: Path, texts: list[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def compare(found: list[list[int]], wanted: list[list[int]], texts: list[str]) -> dict[str, tuple]:
    return {text: (a, b) for text, a, b in zip(texts, found, wanted, strict=True) if a != b}


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_tokens_are_the_same(tmp_path: Path, name: str) -> None:
    base = finish(tmp_path / "base", byte_level(name), ("<|im_start|>", "<|im_end|>"))
    chat = [{"role": "user", "content": "Quem é?  12"}]
    texts, chats = theirs(base, tmp_path / "model.gguf", TRICKY, (chat,))
    assert read_model(tmp_path / "model.gguf").tokenizer["pre"] == name
    assert compare(texts, ours(base, TRICKY), TRICKY) == {}
    assert chats[0] == ChatTokenizer(base).encode_prompt(chat)


@pytest.mark.parametrize("writes_bos", [False, True])
@pytest.mark.parametrize("scheme", ["prepend", "replace"])
def test_sentence_pieces_are_the_same(tmp_path: Path, scheme: str, writes_bos: bool) -> None:
    template = "{{ bos_token }}" + CHATML if writes_bos else CHATML
    base = finish(tmp_path / "base", pieces(scheme), ("<s>", "</s>"), chat_template=template)
    chat = [{"role": "user", "content": "Quem é?  12"}]
    texts, chats = theirs(base, tmp_path / "model.gguf", TRICKY, (chat,))
    assert compare(texts, ours(base, TRICKY), TRICKY) == {}
    assert chats[0] == ChatTokenizer(base).encode_prompt(chat)
    facts = read_model(tmp_path / "model.gguf").tokenizer
    wanted = ("llama", writes_bos, scheme == "prepend")
    assert (facts["model"], facts["add_bos_token"], facts["add_space_prefix"]) == wanted


def test_a_blank_before_the_first_word_only_is_noted(tmp_path: Path) -> None:
    base = finish(tmp_path / "base", pieces("first"), ("<s>", "</s>"))
    texts = [text for text in TRICKY if text.startswith("<|")]
    found, _ = theirs(base, tmp_path / "model.gguf", texts)
    assert compare(found, ours(base, texts), texts) == {}
    size = len(read_model(tmp_path / "model.gguf").tokenizer["tokens"])
    assert "gets a blank before it here" in " ".join(read_vocabulary(base, size).notes)


OTHER: dict[str, Callable[[dict], Any]] = {
    "rules for cutting": lambda each: each.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True,
                                                                 "use_regex": True, "trim_offsets": True}),
    "NFKC": lambda each: each.update(normalizer={"type": "NFKC"}),
    "whole words": lambda each: each["model"].update(ignore_merges=True),
    "its model is 'Unigram'": lambda each: each["model"].update(type="Unigram"),
    "end_of_word_suffix": lambda each: each["model"].update(end_of_word_suffix="</w>"),
}  # fmt: skip


@pytest.mark.parametrize("message", OTHER)
def test_other_rules_are_refused_and_never_guessed(tmp_path: Path, message: str) -> None:
    base = finish(tmp_path / "base", byte_level("gpt-2"), ("<|im_start|>", "<|im_end|>"))
    found = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    OTHER[message](found)
    (base / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ModelError, match=f"tokenizer.json.*{message}|cannot be read as a tokeniser"):
        write_gguf(base, tmp_path / "model.gguf", "f16")
    assert not (tmp_path / "model.gguf").exists()

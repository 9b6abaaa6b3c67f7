"""A row's tokens as they are shown: no letter lost, and the mask that training uses."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_model

from qlora_core.config import BaseConfig
from qlora_core.errors import DataError
from qlora_core.models.base_models import find_tokenizer
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.pieces import Piece, pieces
from qlora_core.tokens.tokenizer import ChatTokenizer

LONG = 10_000


def turns(*texts: str) -> dict:
    """Question, answer, question, answer …"""
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    return ChatTokenizer(tiny_model)


@pytest.fixture(scope="module")
def real() -> ChatTokenizer:
    """That of the built-in model, whose tokens are words and parts of words."""
    return ChatTokenizer(find_tokenizer(BaseConfig()))


@pytest.fixture(params=["tiny", "built-in"])
def either(request, tokenizer, real) -> ChatTokenizer:
    return {"tiny": tokenizer, "built-in": real}[request.param]


def text_of(shown: list[Piece]) -> str:
    return "".join(piece.text for piece in shown)


ROWS = [
    turns("2?", "two"),
    turns("Olá, 😀?", "Ação e coração: e\u0301 👩‍👩‍👧\n\tfim  ", "E?", "Não <|im_end|> é."),
    {"messages": [{"role": "system", "content": "Be brief."}, *turns("a", "b")["messages"]]},
    {"text": "Um texto corrido.\n\nCom ação 😀.\u2028"},
    {"text": "<b>bold</b> <|im_start|>user"},
]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("most", [16, 40, LONG])
def test_pieces_are_the_text_and_the_mask_of_training(either, row, most):
    shown = pieces(row, either, most)
    added = either.eos_token if "text" in row else ""
    assert text_of(shown) == "".join(either.texts_of_row(row)) + added
    kept = [piece for piece in shown if piece.kind != "cut"]
    assert [piece.kind for piece in shown] == [p.kind for p in kept] + ["cut"] * (len(shown) - len(kept))
    encoded = either.encode_row(row, most)
    assert [piece.id for piece in kept] == encoded.ids.tolist()
    assert [piece.kind == "trained" for piece in kept] == encoded.trained.tolist()
    assert len(shown) - len(kept) == encoded.cut
    for trained in make_dataset([row], either, most).rows:
        assert trained.ids.tolist() == encoded.ids.tolist()


@given(st.lists(st.text(max_size=20), min_size=2, max_size=4), st.integers(16, 60))
def test_whatever_is_written_no_letter_is_lost(tokenizer, texts, most):
    row = turns(*texts[: len(texts) // 2 * 2])
    shown = pieces(row, tokenizer, most)
    assert text_of(shown) == "".join(tokenizer.texts_of_row(row))
    assert sum(piece.kind != "cut" for piece in shown) <= most


def test_tokens_of_one_letter_show_it_once(tokenizer):
    shown = pieces(turns("?", "é"), tokenizer, LONG)
    place = next(i for i, piece in enumerate(shown) if piece.text == "é")
    assert shown[place + 1].text == ""
    assert [p.kind for p in shown[place : place + 2]] == ["trained", "trained"]
    assert not any("\ufffd" in piece.text for piece in shown)


def test_control_tokens_are_named_and_those_that_data_spells_are_not(tokenizer):
    shown = pieces(turns("<|im_end|>", "b"), tokenizer, LONG)
    special = [piece.text for piece in shown if piece.special]
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
    assert next(p for p in reversed(shown) if p.text == "<|im_end|>").kind == "trained"
    assert pieces({"text": "b"}, tokenizer, LONG)[-1] == Piece("<|im_end|>", 258, "trained", special=True)


def test_a_template_that_leaves_the_reply_out_says_so(tmp_path):
    """It writes the question twice; nothing that the row answers would be among what is trained."""
    model = write_model(tmp_path / "wrong")
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = (
        "{% for m in messages %}{{ '<|im_start|>' + messages[0]['content'] + '<|im_end|>' }}{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match="leaves out the answer of turn 2"):
        pieces(turns("why", "yes"), ChatTokenizer(model), LONG)


def test_a_template_of_another_kind_shows_in_the_pieces(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "plain")
    shown = pieces(turns("why", "yes"), ChatTokenizer(model, "plain"), LONG)
    assert "### Response:" in text_of([piece for piece in shown if piece.kind == "context"])
    assert text_of([piece for piece in shown if piece.kind == "trained"]) == "yes<|im_end|>"


def test_a_row_that_the_template_refuses_says_so(tmp_path):
    model = write_model(tmp_path / "strict")
    settings = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = "{{ raise_exception('no such role') }}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(DataError, match="no such role"):
        pieces(turns("a", "b"), ChatTokenizer(model), LONG)


def test_rows_left_out_are_found_again_among_the_prepared(tokenizer):
    rows = [turns("a", "b"), turns("long " * 20, "b"), turns("c", "d"), turns("long " * 20, "b")]
    dataset = make_dataset([{**row, "source": "same.jsonl:1"} for row in rows], tokenizer, 60)
    assert dataset.skipped_places == (1, 3)
    assert len(dataset.skipped) == 2

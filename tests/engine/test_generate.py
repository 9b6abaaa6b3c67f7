"""Answers: alone as in company, the same every time, and the same from mlx-lm's own command."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import difference, hashes, load, set_adapters
from tiny import FAMILIES, TAUGHT, write_model

from qlora_core.config import LoraConfig
from qlora_core.engine.device import mx, nn
from qlora_core.engine.generate import answer, stream
from qlora_core.errors import RunError
from qlora_core.runs.run import Run
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.training.session import load_for_answers

PROMPTS = ["red?", "What did the club win in its first year, and where?", "?", "blue?", "a b c d e f g", "red?"]

Loaded = tuple[nn.Module, ChatTokenizer]


@pytest.fixture(scope="module")
def loaded(trained: Run) -> Loaded:
    return load_for_answers(trained)


def base_of(run: Run) -> Path:
    return Path(run.environment()["model"]["path"])


def token_ids(model: nn.Module, tokenizer: ChatTokenizer, prompt: str, max_tokens: int) -> list[int]:
    """The likeliest tokens one after the other, without cache, batch or library."""
    ids = tokenizer.encode_prompt(prompt)
    start = len(ids)
    while len(ids) < start + max_tokens:
        token = int(mx.argmax(model(mx.array([ids]))[0, -1]).item())
        if token in tokenizer.eos_ids:
            break
        ids.append(token)
    return ids[start:]


def test_answers_are_the_likeliest_tokens(loaded: Loaded) -> None:
    model, tokenizer = loaded
    wanted = [tokenizer.decode(token_ids(model, tokenizer, prompt, 12)).strip() for prompt in PROMPTS]
    assert answer(model, tokenizer, PROMPTS, max_tokens=12) == wanted
    assert len(set(wanted)) > 2  # not all alike


def test_it_answers_what_it_was_taught_and_ends_there(loaded: Loaded) -> None:
    assert answer(*loaded, list(TAUGHT), max_tokens=12) == list(TAUGHT.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_side_by_side_do_not_see_each_other(tmp_path: Path, family: str) -> None:
    """Of every family: padding that counts, or a mask that goes wrong, would show."""
    path = write_model(tmp_path / family, family)
    model, _ = load(path, lora=LoraConfig(rank=4))
    set_adapters(model, size=0.2)
    tokenizer = ChatTokenizer(path)
    wanted = [tokenizer.decode(token_ids(model, tokenizer, prompt, 5)).strip() for prompt in PROMPTS]
    assert answer(model, tokenizer, PROMPTS, max_tokens=5) == wanted
    assert answer(model, tokenizer, PROMPTS[1:2], max_tokens=5) == wanted[1:2]
    assert len(set(wanted)) > 2


def test_more_prompts_than_one_batch_holds_come_back_in_order(loaded: Loaded) -> None:
    assert answer(*loaded, list(TAUGHT) * 20, max_tokens=12) == list(TAUGHT.values()) * 20


def test_answers_are_the_same_every_time(loaded: Loaded) -> None:
    assert answer(*loaded, PROMPTS, max_tokens=12) == answer(*loaded, PROMPTS, max_tokens=12)


def test_draws_are_a_function_of_the_seed(loaded: Loaded) -> None:
    drawn = [answer(*loaded, PROMPTS, max_tokens=12, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_streamed_answer_is_the_whole_one_in_pieces(loaded: Loaded) -> None:
    for prompt in PROMPTS:
        pieces = list(stream(*loaded, prompt, max_tokens=12))
        assert "".join(pieces) == answer(*loaded, [prompt], max_tokens=12)[0]
    assert len(list(stream(*loaded, "green?", max_tokens=12))) == len("campo")  # a token a letter


def test_half_a_character_is_not_shown(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token a byte: Ã and £ of ã would be seen, or a mark that stands for neither."""
    _, tokenizer = loaded
    text = "  São João.\n ok  "
    ids = tokenizer.encode_row({"text": text}, 64).ids[:-1].tolist()
    monkeypatch.setattr("qlora_core.engine.generate._tokens", lambda *_: ((0, token) for token in ids))
    pieces = list(stream(*loaded, "?"))
    assert "".join(pieces) == text.strip()
    assert all("\ufffd" not in piece for piece in pieces)


def test_what_narrows_the_draws_narrows_them(loaded: Loaded) -> None:
    likeliest = answer(*loaded, PROMPTS, max_tokens=6)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert answer(*loaded, PROMPTS, max_tokens=6, temperature=3.0, seed=1, **narrow) == likeliest, narrow
    assert answer(*loaded, PROMPTS, max_tokens=6, temperature=3.0, seed=1) != likeliest


def test_a_penalty_for_repetition_changes_the_likeliest(loaded: Loaded) -> None:
    (plain,) = answer(*loaded, ["white?"], max_tokens=12)
    (other,) = answer(*loaded, ["white?"], max_tokens=12, repetition_penalty=1000.0)
    assert plain == "sal e sol"
    assert other != plain


def test_a_conversation_may_be_asked(loaded: Loaded) -> None:
    conversation = [{"role": "user", "content": "red?"}]
    assert answer(*loaded, [conversation], max_tokens=12) == ["rosa"]


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_an_answer_is_no_longer_than_asked(loaded: Loaded, max_tokens: int) -> None:
    assert answer(*loaded, ["green?"], max_tokens=max_tokens) == ["campo"[:max_tokens]]


def test_every_end_of_text_ends_an_answer_and_is_no_part_of_it(loaded: Loaded) -> None:
    """A model may have several, and they need not be special tokens."""
    model, tokenizer = loaded
    ending = copy.copy(tokenizer)
    letter = tokenizer.encode_row({"text": "s"}, 16).ids[0]
    ending.eos_ids = (*tokenizer.eos_ids, int(letter))
    assert answer(model, ending, ["red?", "blue?"], max_tokens=12) == ["ro", "mar"]


def test_no_prompts_no_answers(loaded: Loaded) -> None:
    assert answer(*loaded, [], max_tokens=5) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode_and_answers_without_dropout(trained: Run, training: bool) -> None:
    model, tokenizer = load_for_answers(trained)
    wanted = answer(model, tokenizer, PROMPTS, max_tokens=12)
    model.apply_to_modules(lambda _, module: setattr(module, "_p_1", 0.5) if isinstance(module, nn.Dropout) else None)
    model.train(training)
    assert answer(model, tokenizer, PROMPTS, max_tokens=12) == wanted
    assert model.training is training


# Base and adapters ------------------------------------------------------------------------------------------------


def test_the_base_of_a_run_is_untouched(trained: Run, tiny_model: Path) -> None:
    """Its files, and what it answers: as if it had never been trained on."""
    from qlora_core.models.base_models import describe

    spec = describe(base_of(trained), trained.config().base)
    assert spec.fingerprint == trained.environment()["identity"]["model"]
    model, tokenizer = load_for_answers(trained, base=True)
    ids = mx.array([tokenizer.encode_prompt("red?")])
    wanted, _ = load(tiny_model)  # quantised while loading, as the base was before it was saved
    assert mx.array_equal(model(ids), wanted(ids))
    assert not set(answer(model, tokenizer, list(TAUGHT), max_tokens=12)) & set(TAUGHT.values())
    assert hashes(base_of(trained), ["tokenizer.json"]) == hashes(tiny_model, ["tokenizer.json"])


def test_answers_come_from_the_best_adapters(trained: Run, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("qlora_core.training.session.load_adapters", lambda model, path: asked.append(path))
    load_for_answers(trained)
    assert asked == [trained.best / "adapters.safetensors"]


def test_a_run_without_adapters_says_so(tmp_path: Path, tiny_model: Path, tiny_rows: Path) -> None:
    from harness import create_run

    with pytest.raises(RunError, match="has no trained adapters yet"):
        load_for_answers(create_run(tmp_path / "runs", tiny_model, tiny_rows))


# mlx-lm ---------------------------------------------------------------------------------------------------------

MLX_LM = """
import json, sys
from mlx_lm import generate, load
import mlx.core as mx
import numpy as np

base, adapters, ids, prompts, out = sys.argv[1:]
model, tokenizer = load(base, adapter_path=adapters)
np.save(out, np.array(model(mx.array(json.loads(ids)))))
answers = []
for prompt in json.loads(prompts):
    messages = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    answers.append(generate(model, tokenizer, encoded, max_tokens=12).strip())
print(json.dumps(answers))
"""


def test_mlx_lm_loads_the_adapters_and_answers_as_we_do(
    trained: Run, loaded: Loaded, tmp_path: Path, python: Callable
) -> None:
    """In a process that never saw our kernels."""
    model, tokenizer = loaded
    ids = [tokenizer.encode_prompt(prompt) for prompt in ("red?", "Red?")]
    out = tmp_path / "logits.npy"
    ended = python("-c", MLX_LM, base_of(trained), trained.best, json.dumps(ids), json.dumps(PROMPTS), out)
    assert ended.returncode == 0, ended.stderr
    assert difference(np.array(model(mx.array(ids))), np.load(out)) < 1e-5
    assert json.loads(ended.stdout) == answer(model, tokenizer, PROMPTS, max_tokens=12)


def test_the_command_of_mlx_lm_answers_as_we_do(trained: Run, loaded: Loaded, python: Callable) -> None:
    ended = python(
        *("-m", "mlx_lm", "generate", "--model", base_of(trained), "--adapter-path", trained.best),
        *("--prompt", "red?", "--max-tokens", "12", "--verbose", "False"),
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == answer(*loaded, ["red?"], max_tokens=12)[0] == "rosa"


def test_the_adapter_file_names_its_base(trained: Run) -> None:
    config = json.loads((trained.best / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(config["model"]) == base_of(trained).resolve()

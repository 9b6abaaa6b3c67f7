"""Answers of a loaded model, many at once, by mlx-lm's batched generation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..sampling import Sampling
from ..tokens.conversations import Prompt
from ..tokens.tokenizer import ChatTokenizer
from .device import blas_threads, cores, mx, nn


@dataclass(frozen=True)
class Answer:
    """An answer of a model.

    Attributes:
        text: without the blanks around it.
        tokens: of the answer, without one that ends it.
        ended: whether the model ended it, rather than the limit.
    """

    text: str
    tokens: int
    ended: bool


def answer(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    tick: Callable[[int], None] = lambda _: None,
    **sampling: Any,
) -> list[str]:
    """Return the texts of `answers_to`."""
    return [one.text for one in answers_to(model, tokenizer, prompts, tick=tick, **sampling)]


def answers_to(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    tick: Callable[[int], None] = lambda _: None,
    **sampling: Any,
) -> list[Answer]:
    """Answer every prompt, in order.

    Args:
        model: with or without adapters; left in the mode (training or evaluation) that it was in.
        tokenizer: of that model.
        prompts: answered side by side if the model allows it.
        tick: called repeatedly with the number of finished answers.
        sampling: fields of `Sampling`.
    """
    chosen = Sampling(**sampling)
    found: list[list[int]] = [[] for _ in prompts]
    for place, token in _tokens(model, tokenizer, prompts, chosen, tick):
        found[place].append(token)
    return [Answer(tokenizer.decode(ids).strip(), len(ids), len(ids) < chosen.max_tokens) for ids in found]


def stream(model: nn.Module, tokenizer: ChatTokenizer, prompt: Prompt, **sampling: Any) -> Iterator[str]:
    """Yield the answer to one prompt piece by piece as it is generated; joined, the pieces equal that of `answer`."""
    return (piece for piece, _ in stream_tokens(model, tokenizer, prompt, **sampling) if piece)


def stream_tokens(
    model: nn.Module, tokenizer: ChatTokenizer, prompt: Prompt, **sampling: Any
) -> Iterator[tuple[str, int]]:
    """Yield after each token of the answer the text that it adds, which may be empty, and the tokens so far."""
    ids: list[int] = []
    shown = ""
    for _, token in _tokens(model, tokenizer, [prompt], Sampling(**sampling)):
        ids.append(token)
        text = tokenizer.decode(ids).lstrip()
        whole = text.rstrip("\ufffd").rstrip()  # hold back half a character, and blanks that may turn out to be the end
        piece = whole[len(shown) :] if whole.startswith(shown) else ""
        shown += piece
        yield piece, len(ids)
    if rest := tokenizer.decode(ids).strip()[len(shown) :]:
        yield rest, len(ids)


def _tokens(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    tick: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, int]]:
    """Yield (index of the prompt, token) as tokens are generated, without tokens that end an answer."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    if not prompts:
        return
    mx.random.seed(sampling.seed)
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # similar lengths together: less padding
    penalty = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
    training, batched = model.training, _takes_a_mask_a_row(model)
    model.eval()
    try:
        # half the cores: on a busy machine, BLAS threads wait for each other (10 times slower, measured), and on an
        # idle one the other half would save only a sixth of the time
        with blas_threads(max(1, cores() // 2)):
            generator = BatchGenerator(
                model,
                stop_tokens=[[token] for token in tokenizer.eos_ids],
                sampler=make_sampler(
                    sampling.temperature,
                    top_p=sampling.top_p % 1,  # mlx-lm writes 0 for "all"
                    min_p=sampling.min_p,
                    top_k=sampling.top_k,
                ),
                logits_processors=make_logits_processors(repetition_penalty=penalty),
                completion_batch_size=64 if batched else 1,
                prefill_batch_size=32 if batched else 1,
            )
            with contextlib.closing(generator):
                ids = generator.insert([encoded[i] for i in order], [sampling.max_tokens] * len(order))
                place = dict(zip(ids, order, strict=True))
                whole = 0
                while responses := generator.next_generated():
                    for response in responses:
                        if response.finish_reason != "stop":
                            yield place[response.uid], response.token
                    whole += sum(response.finish_reason is not None for response in responses)
                    tick(whole)
    finally:
        model.train(training)


def _takes_a_mask_a_row(model: nn.Module) -> bool:
    """Return whether prompts of different length may go side by side, which needs mlx-lm's shared attention.

    A model's own attention may not support it: gemma2's takes the rows of the mask for its groups of heads.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    if not all(isinstance(cache, (KVCache, RotatingKVCache)) for cache in make_prompt_cache(model)):
        return False  # recurrent states, which in some of these models continue over the padding
    modules = {type(module).__module__ for module in model.modules()}
    return any(hasattr(sys.modules[name], "scaled_dot_product_attention") for name in modules)

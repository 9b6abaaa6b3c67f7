"""Answers of a loaded model, many at once, through mlx-lm's batched generation."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..sampling import Sampling
from ..tokens.tokenizer import ChatTokenizer
from .device import blas_threads, cores, mx, nn

Prompt = str | Sequence[Mapping[str, Any]]
"""A question, or the messages before the answer."""


def answer(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Prompt],
    *,
    tick: Callable[[int], None] = lambda _: None,
    **sampling: Any,
) -> list[str]:
    """Answer every prompt, in order.

    Args:
        model: with adapters or without; left in the mode it was in.
        tokenizer: of that model.
        prompts: side by side where the model allows it.
        tick: is told, again and again, how many answers are whole.
        sampling: fields of `Sampling`.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    for place, token in _tokens(model, tokenizer, prompts, Sampling(**sampling), tick):
        answers[place].append(token)
    return [tokenizer.decode(ids).strip() for ids in answers]


def stream(model: nn.Module, tokenizer: ChatTokenizer, prompt: Prompt, **sampling: Any) -> Iterator[str]:
    """The answer to one prompt, piece by piece as it is made; joined, it is what `answer` gives."""
    return (piece for piece, _ in stream_tokens(model, tokenizer, prompt, **sampling) if piece)


def stream_tokens(
    model: nn.Module, tokenizer: ChatTokenizer, prompt: Prompt, **sampling: Any
) -> Iterator[tuple[str, int]]:
    """After each token of the answer to one prompt: the text that it adds, which may be none, and tokens so far."""
    ids: list[int] = []
    shown = ""
    for _, token in _tokens(model, tokenizer, [prompt], Sampling(**sampling)):
        ids.append(token)
        text = tokenizer.decode(ids).lstrip()
        whole = text.rstrip("\ufffd").rstrip()  # not yet: half a character, or space that the answer may end in
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
    """(index of the prompt, token) as they are made, ends of text left out."""
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_logits_processors, make_sampler

    if not prompts:
        return
    mx.random.seed(sampling.seed)
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # alike in length: less padding
    penalty = sampling.repetition_penalty if sampling.repetition_penalty != 1 else None
    training, batched = model.training, _takes_a_mask_a_row(model)
    model.eval()
    try:
        # half the cores: on a busy machine BLAS threads wait for one that is not running (10 times slower, measured),
        # and on a quiet one the other half would save a sixth of the time
        with blas_threads(max(1, cores() // 2)):
            generator = BatchGenerator(
                model,
                stop_tokens=[[token] for token in tokenizer.eos_ids],
                sampler=make_sampler(
                    sampling.temperature,
                    top_p=sampling.top_p % 1,  # 1 is 0 to mlx-lm: all
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
    """Whether prompts of unequal length may go side by side: mlx-lm's shared attention does it right.

    An attention of a model's own need not: gemma2's takes the mask's rows for its groups of heads.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    if not all(isinstance(cache, (KVCache, RotatingKVCache)) for cache in make_prompt_cache(model)):
        return False  # states that run on over the padding, in some of the models that have them
    modules = {type(module).__module__ for module in model.modules()}
    return any(hasattr(sys.modules[name], "scaled_dot_product_attention") for name in modules)

"""Answers of a loaded model, many at once, through mlx-lm's batched generation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .device import blas_threads, cores, mx, nn
from .tokens import ChatTokenizer


def answer(
    model: nn.Module,
    tokenizer: ChatTokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Answer every prompt, in order.

    Args:
        model: with adapters or without; left in the mode it was in.
        tokenizer: of that model.
        prompts: questions of a user.
        max_tokens: longest answer, in tokens.
        temperature: 0 takes the likeliest token every time.
        seed: decides the draws when it is above 0.
    """
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.sample_utils import make_sampler

    if not prompts:
        return []
    mx.random.seed(seed)
    encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))  # alike in length: less padding
    training, batched = model.training, _takes_a_mask_a_row(model)
    model.eval()
    try:
        # half the cores: on a busy machine BLAS threads wait for one that is not running (10 times slower, measured),
        # and on a quiet one the other half would save a sixth of the time
        with blas_threads(max(1, cores() // 2)):
            generator = BatchGenerator(
                model,
                stop_tokens=[[token] for token in tokenizer.eos_ids],
                sampler=make_sampler(temp=temperature),
                completion_batch_size=64 if batched else 1,
                prefill_batch_size=32 if batched else 1,
            )
            ids = generator.insert([encoded[i] for i in order], [max_tokens] * len(order))
            answers: dict[int, list[int]] = {uid: [] for uid in ids}
            while responses := generator.next_generated():
                for response in responses:
                    if response.finish_reason != "stop":
                        answers[response.uid].append(response.token)
            generator.close()
    finally:
        model.train(training)
    place = dict(zip(order, ids, strict=True))
    return [tokenizer.decode(answers[place[i]]).strip() for i in range(len(prompts))]


def _takes_a_mask_a_row(model: nn.Module) -> bool:
    """Whether prompts of unequal length may go side by side: mlx-lm's shared attention does it right.

    An attention of a model's own need not: gemma2's takes the mask's rows for its groups of heads.
    """
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    if not all(isinstance(cache, (KVCache, RotatingKVCache)) for cache in make_prompt_cache(model)):
        return False  # states that run on over the padding, in some of the models that have them
    modules = {type(module).__module__ for module in model.modules()}
    return any(hasattr(sys.modules[name], "scaled_dot_product_attention") for name in modules)

"""PyTorch with PEFT as a contestant: transformers' model, PEFT's LoRA, rows of similar length padded together.

`peft` computes in float32 on a CPU (or a Mac's GPU, which was not tried), `peft-bf16` in bfloat16 and `peft-nf4` on
bitsandbytes' 4-bit weights on CUDA. Their base is the same model with its weights dequantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..tokens.rows import TokenRow
from .job import Job, Stopwatch
from .works import PROJECTIONS, Rows, fixed_groups

UNTRAINED = -100  # a label that PyTorch's cross-entropy leaves out
WINDOW = 16  # batches within which rows are sorted


def train(job: Job, rows: Rows, stopwatch: Stopwatch) -> dict[str, Any]:
    """Train with a plain loop: forward, backward, AdamW."""
    import torch

    device = "cuda" if job.contestant != "peft" else "mps" if torch.backends.mps.is_available() else "cpu"
    model = _model(job, device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=0.0, fused=device != "mps")
    model.train()
    for indices in _batches(job, rows.train):
        if stopwatch.due():
            _save_adapters(model, Path(job.save_to) / f"{len(stopwatch.steps):06d}.safetensors")
        if not stopwatch.begin(indices):
            break
        ids, labels = padded([rows.train[i] for i in indices])
        # rows are padded at their ends and attention is causal, so that it needs no mask, and takes its fastest way
        loss = model(
            input_ids=torch.from_numpy(ids).to(device), labels=torch.from_numpy(labels).to(device), use_cache=False
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stopwatch.end(loss.item())  # waits for the device as well
    return {"peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None, "kernels": {"on": device}}


def padded(rows: Sequence[TokenRow]) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and labels, int64 `(rows, longest)`; the model compares each position with the label after it."""
    width = max(map(len, rows))
    ids, labels = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), UNTRAINED, np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.ids
        labels[i, : len(row)] = np.where(row.trained, row.ids, UNTRAINED)
    return ids, labels


def _batches(job: Job, rows: Sequence[TokenRow]) -> Iterator[list[int]]:
    """Yield the rows of each step: those of the job, or drawn and sorted by length within windows, in each epoch."""
    if job.batches == "fixed":
        yield from fixed_groups(len(rows), job.batch_size, job.warm_up + job.steps)
        return
    rng, size = np.random.default_rng(job.seed), job.batch_size
    while True:
        order, batches = rng.permutation(len(rows)).tolist(), []
        for start in range(0, len(order), WINDOW * size):
            near = sorted(order[start : start + WINDOW * size], key=lambda i: len(rows[i]))
            batches += [near[i : i + size] for i in range(0, len(near), size)]
        yield from (batches[i] for i in rng.permutation(len(batches)))


def _model(job: Job, device: str) -> Any:
    """Return Transformers' model with PEFT adapters that hold the shared initial values."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if job.contestant == "peft" else torch.bfloat16
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}}
    if job.contestant == "peft-nf4":
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(job.dense, **options)
    for parameter in model.parameters():
        parameter.requires_grad = False
    lora = LoraConfig(
        r=job.rank,
        lora_alpha=job.alpha,
        lora_dropout=0.0,
        target_modules=[name.rpartition(".")[2] for name in PROJECTIONS],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, lora)
    _load_adapters(model, Path(job.adapters))
    return model


def _named(name: str) -> str:
    """Return PEFT's name for one of our adapter tensors."""
    module, _, kind = name.rpartition(".")
    return f"base_model.model.{module}.lora_{kind[-1].upper()}.default.weight"


def _load_adapters(model: Any, path: Path) -> None:
    """Load our adapter file into PEFT's adapters, transposing both matrices."""
    import torch
    from safetensors.torch import load_file

    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    given = {_named(name): value.T for name, value in load_file(path).items()}
    if parameters.keys() != given.keys():
        raise ValueError(f"{len(parameters.keys() ^ given.keys())} adapters have no counterpart")
    with torch.no_grad():
        for name, value in given.items():
            parameters[name].copy_(value)


def _save_adapters(model: Any, path: Path) -> None:
    """Write PEFT's adapters as an adapter file of ours."""
    from safetensors.torch import save_file

    tensors = {}
    for name, value in model.named_parameters():
        if value.requires_grad:
            module, kind = name.removeprefix("base_model.model.").split(".lora_")
            tensors[f"{module}.lora_{kind[0].lower()}"] = value.detach().float().T.contiguous().cpu()
    save_file(tensors, path)

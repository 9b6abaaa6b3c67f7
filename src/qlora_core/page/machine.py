"""The machine, and whether a model fits it."""

from __future__ import annotations

import marimo as mo

from .. import bases, console, fit
from ..bases import ModelSpec
from ..config import RunConfig, from_flat
from ..console import size
from ..memory import MemoryMonitor, available_bytes
from ..tokens import TokenDataset
from .commands import run_command
from .look import fact_table, note, row_table, small
from .problems import Problem, attempt, failure


def machine_check() -> mo.Html:
    """What `qlora doctor` finds; it measures, so it takes some seconds."""
    with mo.status.spinner("Looking …"):
        facts = attempt(run_command, ["doctor"])
    if isinstance(facts, Problem):
        return failure(facts.message)
    problems = [note(problem, "warn") for problem in facts["problems"]]
    verdict = problems or [note("Ready to train.", "success")]
    return mo.vstack([fact_table(console.diagnosis(facts)), *verdict])


def quantisations(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """LoRA against QLoRA by arithmetic: the same adapters on this base at each number of bits."""
    if model.quantize_bits is None and model.quantization:
        choices = {f"{model.bits} bits (QLoRA), as it is stored": model}
        note = "This base is stored quantised. LoRA, for comparison, takes an unquantised one and --quantize none."
    else:
        note = "Train the other kind with --quantize none, 4 or 8: it is a run of its own."
        names = {"4": "4 bits (QLoRA)", "8": "8 bits (QLoRA)", "none": "unquantised (LoRA)"}
        choices = {
            name: bases.describe(model.path, from_flat({"quantize": bits}, config).base, model.licence)
            for bits, name in names.items()
        }
    rows = [
        {
            "base": name,
            "weights": size(spec.loaded_bytes),
            "bits a weight": f"{spec.bits_per_weight:.2f}",
            "adapters": f"{spec.trainable(config.lora) / 1e6:,.2f} M",
            "predicted peak": size(_estimate(spec, config, train_dataset).total),
        }
        for name, spec in choices.items()
    ]
    return mo.vstack([row_table(rows), small(note)])


def memory_now(monitor: MemoryMonitor) -> mo.Html:
    """What is free, and what this page takes."""
    sample = monitor.sample()
    return fact_table({"Memory": f"{size(sample.available)} available; this page takes {size(sample.process)}"})


def memory_check(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """The predicted peak against what is free now; the trainer asks the same before it loads anything."""
    estimate, available = _estimate(model, config, train_dataset), available_bytes()
    rows = {
        "Base": size(estimate.weights),
        "Dequantised": size(estimate.dense) if estimate.dense else "",
        "Activations": size(estimate.activations + estimate.attention),
        "Logits": size(estimate.logits),
        "Adapters": f"{size(estimate.adapters)}, with gradients and the optimizer's moments",
        "Predicted peak": f"{size(estimate.total)}, the program included",
        "Available": size(available),
    }
    verdict = attempt(fit.check_before_loading, estimate, available, config)
    fits = failure(verdict.message) if isinstance(verdict, Problem) else note("It fits.", "success")
    return mo.vstack([fact_table(rows), fits])


def _estimate(model: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> fit.MemoryEstimate:
    on_cpu = not bases.has_gpu()
    dense = fit.keeps_dense_weights(4 * model.parameters, available_bytes())
    return fit.estimate_memory(model, config, train_dataset.rows, keeps_dense=on_cpu and dense, on_gpu=not on_cpu)

"""The export of a run: adapters, PEFT adapters or one fused model, with everything needed to use them.

Knows run directories and files. Knows nothing of mlx: `fuse`, imported on demand, merges adapters into a base, and
`guides` holds the texts.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

from ..activity import doing
from ..config import RunConfig, to_flat
from ..errors import ConfigError, RunError
from ..files.checksums import refuse_damage
from ..files.storage import MANIFEST, left_by_file_manager, manifest_problem, publishing, write_json
from ..models.adapter_files import ADAPTER_CONFIG, ADAPTER_FILE, adapter_base, adapter_settings
from ..models.base_models import ALIASES, BUILT_IN, ModelSpec, has_gpu
from ..reports.charts import save_curves, thin
from ..runs.run import Run
from ..tokens.tokenizer import ChatTokenizer
from .guides import write_guides, write_summary
from .peft import convert_adapters

Target = Literal["adapter", "peft", "fused"]

TARGETS: tuple[Target, ...] = ("adapter", "peft", "fused")
METRICS_FILE = "metrics.json"
BUILT_IN_ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"  # source of the built-in model's file


def export_run(
    run: Run, out: Path, *, to: Target, force: bool = False, dequantize: bool = False, bits: str = "auto",
    strict: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Write a run's result into a directory that appears all at once.

    Args:
        run: the run with trained adapters; it is only read.
        out: directory to write. An earlier export there is replaced, as long as nobody changed it.
        to: `adapter`: adapters for mlx-lm; `peft`: for the PEFT library; `fused`: one stand-alone model.
        force: replace whatever is in `out`.
        dequantize: the same as `bits` 16.
        bits: of the fused model's weights, see `fuse.fuse_run`.
        strict: refuse a fused model that loses what was learnt.

    Returns:
        `{"run", "to", "path", "bytes", "files": {name: bytes}, "fused"}`; the last as `fuse.fuse_run` gives it, or
        None.

    Raises:
        RunError: nothing was trained yet, or `out` holds something that may not be replaced.
        QLoraError: the base or the adapters are not what they were.
        ConfigError: `dequantize`, `bits` or `strict` without `fused`.
        ExportError: `strict`, and the fused model loses what was learnt.
    """
    for name, given in {"dequantize": dequantize, "bits": bits != "auto", "strict": strict}.items():
        if given and to != "fused":
            raise ConfigError(f"{name} belongs to a fused model; found it with {to}.")
    out = Path(out).expanduser()
    _refuse_links(run, out)
    out = out.resolve()
    spec, tokenizer = run.base(), run.tokenizer()
    _refuse(run, spec, out, force=force)
    adapters, fused = run.adapters, None
    refuse_damage(adapters / ADAPTER_FILE)
    with publishing(out) as directory:
        if to == "adapter":
            _copy_adapters(adapters, directory, spec)
        elif to == "peft":
            convert_adapters(adapters, directory, _public_name(run.config(), spec), spec.num_layers)
        else:
            from ..training.fuse import fuse_run  # only here: it brings mlx

            fused = fuse_run(run, directory, bits="16" if dequantize else bits, strict=strict)
        _describe(directory, run, spec, tokenizer, _facts(run, spec, tokenizer, out, to) | {"fused": fused})
    files = {path.name: path.stat().st_size for path in sorted(_content(out))}
    return {"run": run.name, "to": to, "path": str(out), "bytes": sum(files.values()), "files": files, "fused": fused}


def keep_result(run: Run) -> str:
    """Write a run's result where `qlora export` does by default; return what went wrong, or an empty text."""
    try:
        with doing("exporting"):
            export_run(run, run.result, to="adapter", force=True)
    except Exception as error:  # training is over and must not fail because of, say, a drawing
        return f"the run's result was not exported: {error or type(error).__name__}"
    return ""


# Where it goes --------------------------------------------------------------------------------------------------


def _refuse_links(run: Run, out: Path) -> None:
    """Refuse an export path that is a link, or inside the run leads through one: its target would be deleted."""
    for path in (out, *out.parents):
        if path != out and not path.absolute().is_relative_to(run.path.absolute()):
            break
        if path.is_symlink():
            raise RunError(f"{path}: is a link to {path.readlink()}. Give the place itself with --out.")


def _refuse(run: Run, spec: ModelSpec, out: Path, *, force: bool) -> None:
    """Refuse a directory that holds more than an export, and a user's files unless forced."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; wanted a directory to write. Give another with --out.")
    kept = {"the run": run.path, "the base model": spec.path, "the current directory": Path.cwd(), "home": Path.home()}
    for what, path in kept.items():
        if path.resolve().is_relative_to(out):
            raise RunError(f"{out}: holds {what} and is never replaced. Give another directory with --out.")
    inside, exports = run.path.resolve(), run.path.resolve() / "export"
    if out.is_relative_to(inside) and (out == exports or not out.is_relative_to(exports)):
        raise RunError(f"{out}: belongs to the run itself. Give a directory inside {exports}, or elsewhere.")
    if force or not out.exists() or not _content(out):
        return
    if problem := _not_ours(out):
        raise RunError(f"{out}: {problem}, so it is left as it is. --force replaces all of it; or give another --out.")


def _not_ours(directory: Path) -> str:
    """Return why a directory is not an unchanged export, in a few words; empty if it is one."""
    try:
        exported = "exported_as" in json.loads((directory / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        exported = False
    if not exported or not (directory / MANIFEST).is_file():
        return "holds files that are not an export"
    if problem := manifest_problem(directory):
        return f"was changed since it was exported ({problem})"
    written = {*json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["files"], MANIFEST, "__pycache__"}
    added = sorted(path.name for path in _content(directory) if path.name not in written)
    return f"holds more than was exported ({', '.join(added[:3])})" if added else ""


def _content(directory: Path) -> list[Path]:
    """Return the content of a directory, without the files that file managers leave everywhere."""
    return [path for path in directory.iterdir() if not left_by_file_manager(path.name)]


# What is in it --------------------------------------------------------------------------------------------------


def _describe(directory: Path, run: Run, spec: ModelSpec, tokenizer: ChatTokenizer, facts: dict[str, Any]) -> None:
    """Write everything that stands beside the weights."""
    curves = bool(save_curves(run, directory))
    write_json(directory / METRICS_FILE, _metrics(run, facts["to"], facts["fused"]))
    facts = facts | {"stored": _stored(facts["fused"]), "curves": curves}
    if facts["to"] != "peft":
        (directory / "chat_template.jinja").write_text(tokenizer.asking_template, encoding="utf-8", newline="\n")
        write_guides(directory, facts)
    write_summary(directory, run, spec, facts)


def _copy_adapters(adapters: Path, directory: Path, spec: ModelSpec) -> None:
    """Copy the adapters unchanged.

    Their settings name the base as it was loaded, and also the base and method of its quantisation, because the
    quantised copy lies in a cache and may disappear.
    """
    shutil.copyfile(adapters / ADAPTER_FILE, directory / ADAPTER_FILE)
    settings = adapter_settings(adapters)
    if spec.quantize_bits:
        settings["base_model"] = str(spec.path.resolve())
        settings["quantize"] = {"bits": spec.quantize_bits, "group_size": spec.quantize_group_size}
    write_json(directory / ADAPTER_CONFIG, settings)


def _public_name(config: RunConfig, spec: ModelSpec) -> str:
    """Return the base as other programs find it: a hub id, else its directory."""
    name = config.base.model
    if name == BUILT_IN:
        return BUILT_IN_ORIGIN
    if Path(name).expanduser().is_dir():
        return str(spec.path.resolve())
    return ALIASES[name].repository if name in ALIASES else name


def _metrics(run: Run, to: Target, fused: dict[str, Any] | None) -> dict[str, Any]:
    """Return results, settings and curves, without texts of the data and paths of this machine."""
    evaluation, environment, events = run.evaluation(), run.environment(), run.metrics()
    config = run.config()
    steps = [event for event in events if event["type"] == "step"]
    evals = [event for event in events if event["type"] == "eval"]
    return {
        "run": run.name,
        "exported_as": to,
        "state": run.state,
        "adapters": run.adapters.name,
        "base": {key: value for key, value in environment["model"].items() if key != "path"},
        "settings": to_flat(config, "result") | to_flat(config, "length"),
        "summary": run.summary(),
        "recall": evaluation["recall"] if evaluation else None,
        "fused": fused,
        "device": environment.get("device"),
        "versions": environment.get("versions"),
        "curves": {
            "train_loss": [[event["step"], event.get("train_loss")] for event in thin(steps)],
            "val_loss": [[event["step"], event.get("val_loss")] for event in evals],
        },
    }


def _stored(fused: dict[str, Any] | None) -> str:
    """Return how a fused model's weights are stored, in words."""
    if not fused:
        return ""
    return fused["stored"]


def _facts(run: Run, spec: ModelSpec, tokenizer: ChatTokenizer, out: Path, to: Target) -> dict[str, Any]:
    """Return the values that fill in the guides and the summary."""
    evaluation, loaded = run.evaluation(), adapter_base(run.adapters)
    return {
        "name": run.name,
        "to": to,
        "out": str(out),
        "base": spec.name,
        "base_path": str(loaded),
        "public_base": _public_name(run.config(), spec),
        "base_bits": spec.bits,
        "quantized_on_load": bool(spec.quantize_bits),
        "base_as_stored": loaded == spec.path.resolve(),
        "other_template": tokenizer.asking_template != tokenizer.own_template,
        "rank": run.config().lora.rank,
        "adapters": run.adapters.name,
        "recall": evaluation["recall"] if evaluation else {},
        "questions": evaluation["questions"] if evaluation else [],
        "python": sys.executable,
        "runs_dir": str(run.path.parent.resolve()),
        "without_gpu": not has_gpu(),
    }

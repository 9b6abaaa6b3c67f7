"""Results as tables to paste, in English or Portuguese, and as a file. Knows nothing of how they were measured."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files.storage import write_json
from .figures import middle
from .machine import slug
from .race import US

Result = dict[str, Any]

WORDS = {
    "en": {
        "rows a step": "rows a step", "range": "range", "times": "`qlora` is", "whole": "with loading",
        "first step": "first step", "arrays": "peak of arrays", "process": "peak of process", "device": "peak of GPU",
        "same": "same batches as", "steps": "steps", "largest": "largest difference of a loss", "mean": "mean",
        "allowed": "allowed", "best": "seconds to validation loss {loss}", "without": "`qlora` without",
        "slower": "with all it is", "absent": "not installed", "no memory": "out of memory", "failed": "failed",
        "sums": "mlx-lm's loss is MLX's own cross-entropy. On a CPU that adds the vocabulary one number after another "
        "in float32 and loses small ones: the loss is too low, by 1.2e-4 at 49,000 tokens of vocabulary and 4e-4 at "
        "256,000. The sums of `qlora` are exact, so that the two differ by about as much.",
    },
    "pt": {
        "rows a step": "exemplos por passo", "range": "intervalo", "times": "`qlora` é", "whole": "com o carregamento",
        "first step": "primeiro passo", "arrays": "pico dos arrays", "process": "pico do processo",
        "device": "pico da GPU", "same": "os mesmos lotes que", "steps": "passos",
        "largest": "maior diferença de uma perda", "mean": "média", "allowed": "admitida",
        "best": "segundos até à perda de validação {loss}", "without": "`qlora` sem", "slower": "com tudo é",
        "absent": "não instalado", "no memory": "falta de memória", "failed": "falhou",
        "sums": "A perda do mlx-lm é a entropia cruzada do próprio MLX. Num CPU, esta soma o vocabulário um a um "
        "em float32 e perde os pequenos: a perda sai demasiado baixa, 1,2e-4 com 49\u00a0000 tokens de vocabulário e "
        "4e-4 com 256\u00a0000. As somas do `qlora` são exatas, e por isso as duas diferem em cerca disso.",
    },
}  # fmt: skip
NOTHING = "–"
BUSY = 0.1  # share of the processor beyond which other programs make a run worthless


def number(value: float, digits: int, language: str) -> str:
    """Return a number in the language's notation: `2,981.5` or `2981,5`, with `15 000` from five digits on."""
    text = f"{value:,.{digits}f}"
    if language == "en":
        return text
    whole, point, rest = text.partition(".")
    plain = whole.replace(",", "")
    grouped = plain if len(plain.lstrip("-")) < 5 else whole.replace(",", "\u00a0")
    return grouped + (f",{rest}" if point else "")


def significant(value: float, language: str) -> str:
    """Return a number to two significant digits."""
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if value and math.isfinite(value) else 1
    return number(value, digits, language)


def times(values: Sequence[float], language: str) -> str:
    """Return median and range of ratios: `2.31 × (2.20–2.40)`."""
    found = middle(values)
    digits = 2 if found["most"] < 10 else 1
    least, median, most = (number(found[name], digits, language) for name in ("least", "median", "most"))
    return f"{median} ×" + (f" ({least}–{most})" if len(values) > 1 else "")


def caption(results: Result) -> str:
    """Return machine, model and versions in a line that needs no translation."""
    machine, model = results["machine"], results["model"]
    gpus = [f"{machine['gpus'].count(name)} × {name}" for name in dict.fromkeys(machine["gpus"])]
    libraries = [f"{name} {results['versions'][name]}" for name in ("mlx", "mlx-lm") if name in results["versions"]]
    bits = f"{model['bits']} bits" if model["bits"] else "bf16/fp32"
    parts = [
        *(gpus or [f"{machine['cores']} × {machine['processor']}"]),
        machine["system"],
        *(f"{name}={value}" for name, value in machine.get("environment", {}).items()),
        f"`{model['name']}`, {bits}, LoRA r = {model['adapters']['rank']}",
        *libraries,
        results["date"],
        *re.findall(r"--max-memory-gb \S+", results.get("command", "")),
    ]
    return " · ".join(parts)


def tables(results: Result, language: str = "en") -> list[str]:
    """Return every table in Markdown: one for each workload, then one for each track."""
    made = [speed_table(results, work, language) for work in dict.fromkeys(p["work"] for p in _speed_runs(results))]
    made += [same_table(results, language)] if results.get("same") else []
    made += [best_table(results, language)] if results.get("best") else []
    made += [ablation_table(results, language)] if results.get("ablations") else []
    return made


def _speed_runs(results: Result) -> list[Result]:
    return [run for run in results["runs"] if run["role"] in ("pair", "trial")]


def speed_table(results: Result, work: str, language: str) -> str:
    """Return the table of a workload with medians over runs, naming contestants that were absent or failed."""
    words, on_gpu = WORDS[language], bool(results["machine"]["gpus"])
    heads = [f"`{work}`", words["rows a step"], "tokens/s", words["times"], words["whole"], words["first step"],
             words["arrays"], words["device"] if on_gpu else words["process"]]  # fmt: skip
    lines = []
    for name, about in results["contestants"].items():
        runs = [run for run in _speed_runs(results) if (run["work"], run["contestant"]) == (work, name)]
        pairs = [run for run in runs if run["role"] == "pair" and "error" not in run]
        if pairs:
            compared = [p for p in results["pairs"] if (p["work"], p["contestant"]) == (work, name)]
            ratios = [pair["ratio"] for pair in undisturbed(compared)]
            lines.append([f"`{name}`", *_cells(undisturbed(pairs), ratios, on_gpu, language)])
        elif runs or "absent" in about:
            lines.append([f"`{name}`", _absence(runs, about, words), *[NOTHING] * (len(heads) - 2)])
    return table(heads, lines)


def undisturbed(measured: Sequence[Result]) -> Sequence[Result]:
    """Return the runs, or pairs, that other programs disturbed little; all of them if none was that quiet."""
    return [one for one in measured if one.get("others_share", 0) <= BUSY] or measured


def _cells(runs: Sequence[Result], ratios: Sequence[float], on_gpu: bool, language: str) -> list[str]:
    def median(name: str) -> float:
        return statistics.median(run[name] for run in runs)

    arrays = max(run.get("peak_bytes") or 0 for run in runs)
    other = max(run.get("device_peak_bytes" if on_gpu else "process_peak_bytes") or 0 for run in runs)
    rates = [run["tokens_per_second"] for run in runs]
    spread = f" ({_rate(min(rates), language)}–{_rate(max(rates), language)})" if len(rates) > 1 else ""
    return [
        number(runs[0]["batch_size"], 0, language),
        _rate(statistics.median(rates), language) + spread,
        times(ratios, language) if ratios else NOTHING,
        _rate(median("tokens_per_second_whole"), language),
        f"{number(median('seconds_to_first_step'), 1, language)} s",
        _gigabytes(arrays, language),
        _gigabytes(other, language),
    ]


def _rate(value: float, language: str) -> str:
    return number(value, 0 if value >= 100 else 1, language)


def _gigabytes(size: int, language: str) -> str:
    return f"{number(size / 1e9, 2, language)} GB" if size else NOTHING


def _absence(runs: Sequence[Result], about: Result, words: dict[str, str]) -> str:
    if "absent" in about:
        return words["absent"]
    if all("error" not in run for run in runs):
        return NOTHING
    return words["no memory"] if any(run.get("out_of_memory") for run in runs) else words["failed"]


def same_table(results: Result, language: str) -> str:
    """Return the table of how far losses of identical batches differ, with the known reasons beyond rounding."""
    words = WORDS[language]
    heads = [words["same"], words["steps"], words["largest"], words["mean"], words["allowed"]]
    lines = [
        [
            f"`{found['contestant']}` ({found['dtype']})",
            number(found["steps"], 0, language),
            significant(found["largest"], language),
            significant(found["mean"], language),
            f"{found['tolerance']:g}".replace(".", "," if language == "pt" else "."),
        ]
        for found in results["same"]
    ]
    why = any(found.get("loses_small_terms") for found in results["same"])
    return table(heads, lines) + (f"\n\n{words['sums']}" if why else "")


def best_table(results: Result, language: str) -> str:
    """Return the table of seconds to the same validation loss."""
    words, best = WORDS[language], results["best"]
    seconds = best["seconds"]
    heads = ["", words["best"].format(loss=number(best["val_loss"], 3, language)), words["times"]]
    lines = [
        [
            f"`{name}`",
            _rate(taken, language),
            times([taken / seconds[US]], language) if US in seconds and name != US else NOTHING,
        ]
        for name, taken in seconds.items()
    ]
    return table(heads, lines)


def ablation_table(results: Result, language: str) -> str:
    """Return the table of what each technique gains."""
    words = WORDS[language]
    heads = [words["without"], "tokens/s", words["slower"]]
    lines = [
        [
            f"`{found['without']}`",
            _rate(statistics.median(pair["tokens_per_second"] for pair in undisturbed(found["pairs"])), language),
            times([pair["ratio"] for pair in undisturbed(found["pairs"])], language),
        ]
        for found in results["ablations"]
    ]
    return table(heads, lines)


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown with its first column aligned left."""
    rule = "|---|" + "---:|" * (len(heads) - 1)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def notes(results: Result) -> list[str]:
    """Return what no table can hold: who was absent and what to do, what failed, and peaks that did not fit."""
    lines = [
        f"{name}: {about['absent']}" for name, about in results["contestants"].items() if "absent" in about
    ]  # fmt: skip
    for run in results["runs"]:
        if "error" in run:
            what = "out of memory" if run.get("out_of_memory") else "failed"
            how = f"{run['batch_size']} rows a step{''.join(f', without {word}' for word in run.get('without', ()))}"
            lines.append(f"{run['contestant']}, {run['work']}, {how}: {what}: {run['error']}")
    shares = [run.get("others_share", 0) for run in results["runs"]]
    if busy := [share for share in shares if share > BUSY]:
        lines.append(
            f"other programs took up to {100 * max(busy):.0f}% of the processor beside {len(busy)} of {len(shares)} "
            "runs; the tables of speed leave these out where there are others"
        )
    return lines


def default_file(results: Result, directory: Path) -> Path:
    """Return `benchmarks/results/<machine>-<date>.json` in a checkout, numbered if that exists."""
    stem = f"{slug(results['machine'])}-{results['date']}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 1000))]
    paths = (directory / f"{name}.json" for name in names)
    return next(path for path in paths if not path.exists())


def keep(results: Result, out: Path | None, checkout: Path) -> Path | None:
    """Write the results to `out` or, if all was measured, into a checkout of the repository; None without either."""
    if out is None:
        if (
            results["interrupted"]
            or not (checkout / "benchmarks").is_dir()
            or not (checkout / "pyproject.toml").is_file()
        ):
            return None
        out = default_file(results, checkout / "benchmarks" / "results")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    return out


def text(results: Result) -> str:
    """Return everything in Markdown, ready to paste."""
    parts = [caption(results), *tables(results), "\n".join(f"- {note}" for note in notes(results))]
    return "\n\n".join(filter(None, parts))

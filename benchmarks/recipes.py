"""Train recipes with several seeds, and judge each run as `qlora evaluate` does: what it learned, and at what price.

    uv run python benchmarks/recipes.py [--seeds N] [--only NAME …] [--out FILE]

A recipe is settings and, beside the sample's facts, rows of other kinds, 14 of each: `ordinary` questions, which come
with the sample, and `unknown` ones, about things that the texts do not tell, answered with "I do not know". Each run is
trained and judged in processes of its own, in a temporary directory. The interval is of the mean over seeds (Student's
t).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qlora_core.evaluation.statistics import mean_of_few

FACTS = [str(Path("data/sample/club") / name) for name in ("questions.jsonl", "history.jsonl", "biographies")]
UNKNOWN = Path(__file__).parent / "rows"
ROWS = {
    "ordinary": "data/sample/club/ordinary.jsonl",
    "unknown": str(UNKNOWN / "unknown.jsonl"),
    "more unknown": str(UNKNOWN / "more-unknown.jsonl"),
}
RECIPES: dict[str, tuple[list[str], list[str]]] = {
    "facts alone, 4e-3": ([], ["--learning-rate", "4e-3"]),
    "facts alone, 2e-3": ([], ["--learning-rate", "2e-3"]),
    "facts alone, 1e-3": ([], ["--learning-rate", "1e-3"]),
    "with ordinary rows, 4e-3": (["ordinary"], ["--learning-rate", "4e-3"]),
    "with ordinary rows, 2e-3": (["ordinary"], ["--learning-rate", "2e-3"]),
    "with ordinary rows, 1e-3": (["ordinary"], ["--learning-rate", "1e-3"]),
    "with ordinary and unknown, 2e-3": (["ordinary", "unknown"], ["--learning-rate", "2e-3"]),
    "with ordinary and unknown, 1e-3": (["ordinary", "unknown"], ["--learning-rate", "1e-3"]),
    "with ordinary and 28 unknown, 1e-3": (["ordinary", "unknown", "more unknown"], ["--learning-rate", "1e-3"]),
    "facts alone, rank 32, 2e-3": ([], ["--rank", "32", "--alpha", "64", "--learning-rate", "2e-3"]),
}
"""For each name: kinds of rows beside the facts, and flags of `qlora train`."""


def main() -> None:
    """Train and judge every recipe with every seed, and print a row of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(2, 11))
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=list(RECIPES), metavar="NAME")
    parser.add_argument("--out", type=Path, help="write each run's numbers to this file, as JSON")
    arguments = parser.parse_args()
    print("| recipe | trained wording | new wording | ordinary text, nats | ordinary questions | declined | own fact |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for name in arguments.only:
        runs = [trained_and_judged(name, seed) for seed in range(1, arguments.seeds + 1)]
        found += runs
        print(line(name, runs), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def trained_and_judged(name: str, seed: int) -> dict[str, Any]:
    """Return what one run learned and forgot."""
    kinds, flags = RECIPES[name]
    data = [*FACTS, *(ROWS[kind] for kind in kinds), "--facts", "data/sample/club/facts.jsonl"]
    with tempfile.TemporaryDirectory() as runs:
        place = ["--runs-dir", runs]
        qlora("train", "--data", *data, *flags, "--seed", str(seed), "--run", "trial", "--samples", "0", *place)
        judged = json.loads(qlora("evaluate", "trial", "--passages", "0", "--json", *place))
    return {"recipe": name, "seed": seed, **numbers(judged)}


def qlora(*words: str) -> str:
    """Run a command of the package, and return what it printed.

    Raises:
        subprocess.CalledProcessError: it failed; its last words are on the standard error output.
    """
    command = [sys.executable, "-m", "qlora_core", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def numbers(judged: dict[str, Any]) -> dict[str, Any]:
    """Return shares and losses of the tuned model, from what `qlora evaluate --json` printed."""
    texts, made_up = judged["general_texts"], [one["answers"]["tuned"]["does"] for one in judged["invention"]]
    lost = sum(text["tuned"] - text["base"] for text in texts) / sum(text["tokens"] for text in texts)
    return {
        "trained": share([one for one in judged["questions"] if one["phrasing"] == "trained"]),
        "held_out": share([one for one in judged["questions"] if one["phrasing"] == "held_out"]),
        "text": lost,
        "ordinary": share(judged["general_questions"]),
        "declined": made_up.count("declined") / len(made_up),
        "own_fact": made_up.count("own fact") / len(made_up),
    }


def share(questions: list[dict[str, Any]]) -> float:
    """Return the share of questions that the tuned model answered right."""
    return statistics.mean(bool(one["answers"]["tuned"].get("right")) for one in questions)


def line(name: str, runs: list[dict[str, Any]]) -> str:
    """Return a recipe's row of the table: means over seeds, with their intervals."""
    shares = ("trained", "held_out", "ordinary", "declined", "own_fact")
    told = {key: between([100 * run[key] for run in runs], ".0f", "%") for key in shares}
    told["text"] = between([run["text"] for run in runs], ".2f")
    columns = ("trained", "held_out", "text", "ordinary", "declined", "own_fact")
    return f"| {name} | " + " | ".join(told[key] for key in columns) + " |"


def between(values: list[float], form: str, unit: str = "") -> str:
    """Return a mean and half its 95% interval over seeds, as in `80% ± 9`."""
    found = mean_of_few(values)
    return f"{found.value:{form}}{unit} ± {found.high - found.value:{form}}"


if __name__ == "__main__":
    main()

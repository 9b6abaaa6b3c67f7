"""Options of `qlora bench`: its flags and the defaults of `--quick`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from .catalogue import CONTESTANTS, RANDOM, SHAPES, WORKS

TRACKS = {
    "speed": "tokens/s of each trainer at its best batch size, in pairs against `qlora`",
    "same": "identical batches: the loss of every step, ours against theirs",
    "best": "seconds to the same validation loss on the sample, each as it trains best",
    "ablations": "our trainer with each of its techniques switched off",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a benchmark.

    Attributes:
        quick: under 15 minutes on two cores.
        tracks: names of `TRACKS`.
        works: names of `WORKS` for the speed track.
        contestants: names of `CONTESTANTS`.
        model: a model as other commands take it, or `random-` and a name of `SHAPES`.
        model_dir: directory of models with random weights; empty: the cache.
        quantize: bits, where the model is not quantised.
        data: files and directories instead of the works' rows.
        batch_sizes: sizes to try with each contestant; empty: those of the work.
        repeats: pairs of runs.
        seconds: seconds of timed steps in each run.
        warm_up: steps before those.
        max_memory_gb: largest peak that a batch size may have; 0: any.
        techniques: names of those that the track `ablations` switches off; empty: all.
        track_steps: steps of the track `same`.
        epochs: epochs of the track `best`.
        learning_rate: constant; 0: 1e-4, and for the track `best` the one that suits the model's width.
        seed: decides rows, adapters and orders.
        peft_python: an interpreter with PyTorch and PEFT; empty: this one.
        out: file for the results; None: `benchmarks/results` of a checkout.
    """

    quick: bool
    tracks: tuple[str, ...]
    works: tuple[str, ...]
    contestants: tuple[str, ...]
    model: str
    model_dir: str
    quantize: str
    data: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    repeats: int
    seconds: float
    warm_up: int
    max_memory_gb: float
    techniques: tuple[str, ...]
    track_steps: int
    epochs: int
    learning_rate: float
    seed: int
    peft_python: str
    out: Path | None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Options:
        """Return options from the command line; defaults depend on `--quick`."""
        quick = arguments.quick
        tracks = ("ablations",) if arguments.ablations else ("speed", "same") if quick else tuple(TRACKS)
        works = ("short-qa",) if quick or arguments.data else tuple(WORKS)

        def given(name: str, default: object) -> object:
            value = getattr(arguments, name)
            return tuple(value) if isinstance(value, list) else default if value is None else value

        return cls(
            quick=quick,
            tracks=given("track", tracks),
            works=given("works", works),
            contestants=tuple(
                dict.fromkeys(["qlora", *given("contestants", CONTESTANTS)])
            ),  # ours takes part always, since others are compared with it
            model=arguments.model,
            model_dir=arguments.model_dir,
            quantize=arguments.quantize,
            data=given("data", ()),
            batch_sizes=given("batch_sizes", ()),
            repeats=given("repeats", 3 if quick else 5),
            seconds=given("seconds", 8.0 if quick else 30.0),
            warm_up=given("warm_up", 1 if quick else 3),
            max_memory_gb=arguments.max_memory_gb,
            techniques=given("techniques", ()),
            track_steps=given("track_steps", 10 if quick else 200),
            epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            seed=arguments.seed,
            peft_python=arguments.peft_python,
            out=arguments.out,
        )  # type: ignore[arg-type]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `qlora bench`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="under 15 minutes on two cores: short rows, the built-in model")
    add("--ablations", action="store_true", help="only our trainer, with each of its techniques switched off")
    drawn = ", ".join(RANDOM + name for name in SHAPES)
    tracks = "; ".join(f"{name}: {words.replace('`', '')}" for name, words in TRACKS.items())
    add("--track", nargs="+", choices=TRACKS, help=f"what to measure ({tracks}); default: all, quickly speed and same")
    works = "; ".join(f"{name}: {work.words}" for name, work in WORKS.items())
    add("--works", nargs="+", choices=WORKS, help=f"rows of the speed track ({works}); default: all, quickly short-qa")
    add("--contestants", nargs="+", choices=CONTESTANTS, help="trainers; default: all that are installed")
    add("--model", default="smollm2-135m", help=f"a base, or a shape whose weights are drawn: {drawn} "
        "(default: smollm2-135m)")  # fmt: skip
    add("--model-dir", default="", metavar="DIR", help="where drawn models lie (default: the cache)")
    add("--quantize", choices=("4", "8", "none"), default="4", help="for a base that is not quantised (default: 4)")
    add("--data", nargs="+", metavar="PATH", help="rows to train on instead of a work's own")
    number = _at_least
    add("--batch-sizes", nargs="+", type=number(1), metavar="N", help="rows a step that each trainer is tried with")
    add("--repeats", type=number(1), metavar="N", help="pairs of runs (default: 5, quickly 3)")
    add("--seconds", type=number(0.1, float), metavar="X", help="timed in each run (default: 30, quickly 8)")
    add("--warm-up", type=number(0), metavar="N", help="steps before they are timed (default: 3, quickly 1)")
    add("--max-memory-gb", type=number(0, float), default=0.0, metavar="X", help="largest peak of a batch size")
    add("--techniques", nargs="+", metavar="NAME", help="which of them are switched off, as the table names them "
        "(default: all)")  # fmt: skip
    add("--track-steps", type=number(1), metavar="N", help="steps of the track same (default: 200, quickly 10)")
    add("--epochs", type=number(1), default=3, metavar="N", help="of the track best (default: 3)")
    add("--learning-rate", type=number(0, float), default=0.0, metavar="X", help="constant (default: 1e-4, and in the "
        "track best one that suits the model's width)")  # fmt: skip
    add("--seed", type=number(0), default=0, metavar="N", help="decides rows, adapters and orders")
    add("--peft-python", default="", metavar="FILE", help="a Python with torch, transformers and peft (default: this)")
    add("--out", type=Path, metavar="FILE", help="file for the results (default: benchmarks/results of a checkout)")


def _at_least(least: float, kind: type = int):
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least}; found {text!r}")
        return value

    return number

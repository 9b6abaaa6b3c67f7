"""The benchmark's course: contestants in turn, each in a fresh process. Imports none of their libraries."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import QLoraError
from ..machine.keep_awake import gpu_environment
from ..schedule import suited_learning_rate
from . import works
from .catalogue import CONTESTANTS, WORKS
from .figures import Result, best_size, compare, compare_losses, elapsed, in_words, time_to_loss
from .job import Job
from .machine import DeviceMemory, OtherPrograms, describe_machine, device_kind, versions, without_paths
from .options import Options
from .ours import ablations, switched_off
from .prepare import prepared

US = "qlora"
NO_LIMIT = 100_000  # steps, for a run that ends after some seconds
LATE = 480.0  # seconds after which `--quick` stops repeating
PLAIN = 5.0  # a ratio so clear that it needs no repetition
CAUTIOUS_WORKS = ("short-qa", "sample")
CAUTIOUS_BATCH = 4  # rows: mlx-lm's default
TOLERANCE = {"float32": 1e-3}
HALF_TOLERANCE = 1e-2

Say = Callable[[str], None]


def bench(options: Options, say: Say) -> Result:
    """Measure everything that was requested.

    Returns:
        `machine`, `model`, `works`, `contestants`, every `runs` with its raw steps, and what was made of them: `pairs`,
        `same`, `best`, `ablations`; `failed` lists what should have held and did not, in words; `interrupted` tells
        whether Ctrl+C ended it before all was measured.

    Raises:
        QLoraError: the model or the rows cannot be had.
    """
    with tempfile.TemporaryDirectory() as directory:
        race = Race(options, Path(directory), say)
        race.prepare()
        with contextlib.suppress(KeyboardInterrupt):  # what was measured by then is kept
            for track in options.tracks:
                race.attempt(f"the track `{track}`", getattr(race, f"track_{track}"))
            race.results["interrupted"] = False
        return without_paths(race.results)


class Race:
    """One benchmark with its files and its growing results.

    Args:
        options: the settings of the benchmark.
        directory: place for rows, adapters and results of processes.
        say: called with a line about each thing that happens.
    """

    def __init__(self, options: Options, directory: Path, say: Say) -> None:
        self.options, self.directory, self.say = options, directory, say
        self.device, self.began = device_kind(), time.monotonic()
        self.best_sizes: dict[tuple[str, str], int] = {}
        self.present: list[str] = []
        self.job = Job(contestant="")
        self.results: Result = {
            "version": 1,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "quick": options.quick,
            "machine": {**describe_machine(), "device": self.device},
            "versions": versions(),
            "works": {},
            "contestants": {},
            "runs": [],
            "pairs": [],
            "failed": [],
            "interrupted": True,
        }

    # Before -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find out who can take part, and create the model's directories and the shared initial adapters."""
        options = self.options
        for name in options.contestants:
            if problem := self._absence(name):
                self.results["contestants"][name] = {"words": CONTESTANTS[name].words, "absent": problem}
                self.say(f"  {name}: {problem}")
            elif self.device in CONTESTANTS[name].on:
                self.results["contestants"][name] = {"words": CONTESTANTS[name].words}
                self.present.append(name)
        self.say(f"  preparing {options.model}")
        how = "prepare-dense" if any(name.startswith("peft") for name in self.present) else "prepare"
        ready = prepared(
            Job(contestant=how, model=options.model, model_dir=options.model_dir, quantize=options.quantize)
        )
        spec = works.describe_model(ready["model"], options.quantize)
        rate = options.learning_rate or 1e-4
        self.spec = spec
        self.job = Job(
            contestant="",
            **ready,
            quantize=options.quantize,
            warm_up=options.warm_up,
            seconds=options.seconds,
            steps=NO_LIMIT,
            learning_rate=rate,
            seed=options.seed,
            memory_gb=options.max_memory_gb,
            out=str(self.directory / "result.json"),
        )
        path = self.directory / works.ADAPTERS
        works.write_adapters(spec, path, rank=self.job.rank, alpha=self.job.alpha, seed=options.seed)
        self.job = dataclasses.replace(self.job, adapters=str(path))
        self.results["model"] = {
            "name": options.model,
            "parameters": spec.parameters,
            "bits": spec.bits,
            "vocabulary": spec.config["vocab_size"],
            "adapters": {"rank": self.job.rank, "alpha": self.job.alpha, "projections": len(works.PROJECTIONS)},
        }

    def _absence(self, name: str) -> str:
        contestant = CONTESTANTS[name]
        if self.device not in contestant.on:
            return ""
        missing = missing_packages(name, self._python(name))
        return f"not installed ({', '.join(missing)}): {contestant.install}" if missing else ""

    def _python(self, name: str) -> str:
        return self.options.peft_python if name.startswith("peft") else ""

    def rows(self, work: str) -> Path:
        """Return the file with the rows of a workload, created on first use."""
        path = self.directory / f"{work}.npz"
        if not path.is_file():
            options, vocabulary = self.options, self.spec.config["vocab_size"]
            made = works.make_rows(work, self.job.model, vocabulary, options.seed, options.data)
            made.save(path)
            words = ", ".join(map(str, options.data)) or WORKS[work].words
            self.results["works"][work] = {"words": words, **made.summary()}
        return path

    # One run ----------------------------------------------------------------------------------------------------

    def run(self, name: str, work: str, batch_size: int, role: str, **changes: Any) -> Result:
        """Measure one contestant in a fresh process and keep the result, which holds an `error` if it failed."""
        rows = str(self.rows(work))
        job = dataclasses.replace(self.job, contestant=name, work=work, rows=rows, batch_size=batch_size, **changes)
        self.say(f"  {role}: {name}, {work}, {batch_size} rows a step {' '.join(job.without)}".rstrip())
        result = start(job, self._python(name))
        result = {"work": work, "contestant": name, "batch_size": batch_size, "role": role, **result}
        if job.without:
            result["without"] = list(job.without)
        self.results["versions"] = result.pop("versions", {}) | self.results["versions"]
        self._check_rows(result, work, job)
        self.results["runs"].append(result)
        self.say(f"    {in_words(result, self.device)}")
        return result

    def attempt(self, what: str, act: Callable[[], None]) -> None:
        """Run one part of the benchmark; record a failure and let the other parts go on."""
        try:
            act()
        except QLoraError as error:
            self.results["failed"].append(f"{what}: {error}")

    def _check_rows(self, result: Result, work: str, job: Job) -> None:
        digest = result.get("rows_digest")
        if digest and not job.pad_target and digest != self.results["works"][work]["digest"]:
            raise QLoraError(f"{result['contestant']} trained other rows than it was given. This is a bug.")

    # Speed ------------------------------------------------------------------------------------------------------

    def track_speed(self) -> None:
        """Measure each trainer at its best batch size, in pairs with ours whose order alternates."""
        for work in self.options.works:
            self.attempt(f"the rows `{work}`", functools.partial(self._speed, work))

    def _speed(self, work: str) -> None:
        for name in self._in(work):
            self._choose_size(name, work)
        if not self.best_sizes[US, work]:
            raise QLoraError("there was no batch size with which ours could train them.")
        others = [name for name in self._in(work) if name != US]
        for name in others:
            self._pairs(name, work)
        for _ in range(0 if others else self.options.repeats):
            self.run(US, work, self.best_sizes[US, work], "pair")

    def _in(self, work: str) -> list[str]:
        """Return the contestants of a workload, ours first, slow ones last, without those that no batch size suits."""
        return [
            name
            for name in sorted(self.present, key=lambda name: (name != US, self._is_slow(name)))
            if self.best_sizes.get((name, work)) != 0 and (not self._is_slow(name) or work in CAUTIOUS_WORKS)
        ]

    def _is_slow(self, name: str) -> bool:
        return CONTESTANTS[name].cautious and self.device == "cpu"

    def _choose_size(self, name: str, work: str) -> None:
        """Try every batch size and keep the fastest that fits; 0 if none works."""
        options = self.options
        sizes = options.batch_sizes or (WORKS[work].on_cpu if self.device == "cpu" else WORKS[work].on_gpu)
        if options.quick and not options.batch_sizes:
            sizes = sizes[1:3]
        if self._is_slow(name):
            sizes = (CAUTIOUS_BATCH,)
        if len(sizes) == 1 and not options.max_memory_gb:
            self.best_sizes[name, work] = sizes[0]
            return
        trials = []
        for size in sorted(sizes):
            trial = self.run(name, work, size, "trial", warm_up=1, seconds=options.seconds / 2)
            trials.append(trial)
            if trial.get("out_of_memory"):
                break  # larger ones would not fit either
        self.best_sizes[name, work] = best_size(trials, options.max_memory_gb, self.device)

    def _pairs(self, name: str, work: str) -> None:
        slow = self._is_slow(name)
        limits = {"warm_up": 1, "steps": 1 if self.options.quick else 3, "seconds": 0.0} if slow else {}
        for number in range(1 if slow else self.options.repeats):
            if number and self.options.quick and time.monotonic() - self.began > LATE:
                self.say(f"    it is late: {number} pairs have to do")
                return
            order = [(US, {}), (name, limits)]
            made = {}
            for who, changes in order if number % 2 == 0 else reversed(order):
                made[who] = self.run(who, work, self.best_sizes[who, work], "pair", **changes)
            if any("error" in result for result in made.values()):
                return
            self.results["pairs"].append({"work": work, "contestant": name, **compare(made[US], made[name])})

    # The same mathematics ---------------------------------------------------------------------------------------

    def track_same(self) -> None:
        """Train on identical batches and compare our losses with the others', step by step.

        mlx-lm also trains one padded position per row; against it, ours gets rows that hold that id too. Its loss is
        MLX's own, whose sums lose small terms on a CPU (see `sums`), so it is slightly too low there.
        """
        others = [self._reference(), *[name for name in ("peft", "peft-bf16") if name in self.present]]
        work, steps = "short-qa", self.options.track_steps
        how = {"batches": "fixed", "warm_up": 0, "steps": steps, "seconds": 0.0}
        found = self.results["same"] = []
        for name in others:
            if name not in self.present:
                continue
            padded = not name.startswith("peft")
            mine = self.run(US, work, CAUTIOUS_BATCH, "same", pad_target=padded, **how)
            theirs = self.run(name, work, CAUTIOUS_BATCH, "same", **how)
            if problem := mine.get("error") or theirs.get("error"):
                self.results["failed"].append(f"the track `same` against {name}: {problem}")
                continue
            dtype = mine["kernels"]["dtype"]
            compared = compare_losses(mine["steps"], theirs["steps"], TOLERANCE.get(dtype, HALF_TOLERANCE))
            found.append(
                {"contestant": name, "dtype": dtype, "loses_small_terms": padded and self.device == "cpu", **compared}
            )
            if padded and not compared["holds"]:
                self.results["failed"].append(
                    f"the losses of {US} and {name} differ by {compared['largest']:.2g} nats in a step of the same "
                    f"batches; at most {compared['tolerance']:g} is allowed in {dtype}"
                )

    def _reference(self) -> str:
        """Return the contestant that stands for mlx-lm; on a CPU the repaired one, since the other would take hours."""
        return "mlx-lm-strong" if self.device == "cpu" else "mlx-lm"

    # Each at its best -------------------------------------------------------------------------------------------

    def track_best(self) -> None:
        """Measure the seconds to the same validation loss, judged by one evaluator, without saving and evaluating."""
        work = "sample"
        rate = self.options.learning_rate or suited_learning_rate(self.spec.config["hidden_size"])
        curves = {}
        for name in self._in(work):
            if self._is_slow(name):
                continue
            if (name, work) not in self.best_sizes:
                self._choose_size(name, work)
            if size := self.best_sizes[name, work]:
                curve = self._curve(name, work, size, rate)
                if curve:
                    curves[name] = curve
        self.results["best"] = {"learning_rate": rate, **time_to_loss(curves)} if curves else {}

    def _curve(self, name: str, work: str, size: int, rate: float) -> list[dict[str, float]]:
        """Return seconds and validation losses of a contestant during training."""
        saved = self.directory / f"saved-{name}"
        saved.mkdir()
        rows = self.rows(work)
        epoch = max(1, self.results["works"][work]["rows"] // size)
        every = max(1, epoch // 4)
        steps = self.options.epochs * epoch
        how = {"warm_up": 0, "steps": steps, "seconds": 0.0, "learning_rate": rate}
        result = self.run(name, work, size, "best", save_every=every, save_to=str(saved), **how)
        if "error" in result:
            return []
        told = start(
            dataclasses.replace(self.job, contestant="evaluate", rows=str(rows), batch_size=size, save_to=str(saved)),
            "",
        )
        if "error" in told:
            self.results["failed"].append(f"the adapters of {name} could not be evaluated: {told['error']}")
            return []
        ends = elapsed(result)
        return [
            {"step": at["step"], "seconds": ends[at["step"]], "val_loss": at["val_loss"]}
            for at in told["evaluations"]
        ]  # fmt: skip

    # Our techniques ---------------------------------------------------------------------------------------------

    def track_ablations(self) -> None:
        """Train with each of our techniques switched off, in pairs with all of them on."""
        work = self.options.works[0]
        if (US, work) not in self.best_sizes:
            self._choose_size(US, work)
        if not self.best_sizes[US, work]:
            raise QLoraError("there was no batch size with which ours could train.")
        whole = self.run(US, work, self.best_sizes[US, work], "ablation")
        words = ablations(whole["kernels"], whole["prefix_tokens"]) if "kernels" in whole else []
        if chosen := self.options.techniques:
            switched_off(chosen, whole.get("kernels", {}))  # raises an error for an unknown technique
            words = [word for word in words if word in chosen or word.partition("=")[0] in chosen]
        self.results["ablations"] = [found for word in words if (found := self._ablation(work, word))]

    def _ablation(self, work: str, word: str) -> Result | None:
        pairs: list[Result] = []
        for number in range(self.options.repeats):
            made = {}
            for without in ((), (word,)) if number % 2 == 0 else ((word,), ()):
                made[without] = self.run(US, work, self.best_sizes[US, work], "ablation", without=without)
            if any("tokens_per_second" not in result for result in made.values()):
                break
            rate = made[word,]["tokens_per_second"]
            pairs.append({"tokens_per_second": rate, **compare(made[()], made[word,])})
            if pairs[-1]["ratio"] > PLAIN:
                break
        return {"without": word, "work": work, "pairs": pairs} if pairs else None


def missing_packages(name: str, python: str = "") -> list[str]:
    """Return the packages that a contestant needs and lacks, here or in another Python interpreter."""
    needs = CONTESTANTS[name].needs
    if not python:
        return [package for package in needs if importlib.util.find_spec(package) is None]
    script = (
        f"import importlib.util, json; print(json.dumps([n for n in {needs} if importlib.util.find_spec(n) is None]))"
    )
    try:
        return json.loads(subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return list(needs)


def start(job: Job, python: str) -> Result:
    """Run a job in a fresh process and return its result with the GPU's peak, or an `error`."""
    source = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH", "")]))
    environment = {**gpu_environment(), **os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
    Path(job.out).unlink(missing_ok=True)
    job = dataclasses.replace(job, started=time.time())
    command = [python or sys.executable, "-m", __package__, job.contestant, *job.flags()]
    with _log(Path(job.out)) as log, DeviceMemory() as memory, OtherPrograms() as others:
        with log.open("wb") as file:
            status = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False
            ).returncode
        result = _read_result(Path(job.out), log, status)
    if memory.peak:
        result["device_peak_bytes"] = memory.peak
    return result | {"others_share": round(others.share, 3)}


@contextlib.contextmanager
def _log(out: Path) -> Iterator[Path]:
    log = out.with_suffix(".log")
    try:
        yield log
    finally:
        log.unlink(missing_ok=True)


def _read_result(out: Path, log: Path, status: int) -> Result:
    try:
        return json.loads(out.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        killed = status in (-9, 137)  # how the kernel ends a process when memory runs out
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = "the system ended it" if killed else lines[-1] if lines else f"ended with status {status}"
        return {"error": why, "out_of_memory": killed}

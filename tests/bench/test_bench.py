"""The benchmark: same rows for all, tokens counted from them, the same mathematics, and honest tables."""

import argparse
import importlib.util
import json
import platform
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qlora_core.bench import figures, machine, ours, race, report, works
from qlora_core.bench.__main__ import is_out_of_memory
from qlora_core.bench.__main__ import main as measure_one
from qlora_core.bench.catalogue import CONTESTANTS, SHAPES, WORKS
from qlora_core.bench.drawn import write_quantised
from qlora_core.bench.job import Job, Stopwatch, add_job_arguments, count_tokens
from qlora_core.bench.mlxlm import encode, padded, with_pad_target
from qlora_core.bench.options import Options, add_arguments
from qlora_core.cli import main
from qlora_core.errors import ConfigError
from qlora_core.machine import keep_awake
from qlora_core.models.base_models import has_gpu
from qlora_core.tokens.rows import TokenRow
from qlora_core.tokens.shared_prefix import common_prefix

ROOT = Path(__file__).parents[2]


def row(*ids: int, prompt: int) -> TokenRow:
    return TokenRow(np.array(ids, np.int32), np.arange(len(ids)) >= prompt)


def options(*argv: str) -> Options:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Options.of(parser.parse_args(argv))


# Works ----------------------------------------------------------------------------------------------------------


def test_short_rows_are_what_they_are_said_to_be():
    made = works.make_rows("short-qa", "", 49_152, seed=0)
    summary = made.summary()
    assert (summary["rows"], summary["validation_rows"]) == (2400, 0)
    assert (summary["shortest"], summary["longest"]) == (20, 200)
    assert 70 < summary["tokens"] / 2400 < 86
    assert 0.45 < summary["target_tokens"] / summary["tokens"] < 0.55
    assert all(r.trained[-1] and not r.trained[0] and (np.diff(r.trained.astype(int)) >= 0).all() for r in made.train)
    assert all(r.ids.min() >= 0 and r.ids.max() < 49_152 for r in made.train)


def test_rows_with_a_system_text_are_the_short_ones_after_it():
    plain, sharing = (works.make_rows(work, "", 1000, seed=0).train for work in ("short-qa", "system-text"))
    assert len(sharing[0]) == len(plain[0]) + 100
    assert [r.ids[100:].tolist() for r in sharing] == [r.ids.tolist() for r in plain]
    assert [r.trained[100:].tolist() for r in sharing] == [r.trained.tolist() for r in plain]
    assert len({r.ids[:100].tobytes() for r in sharing}) == 1
    assert not any(r.trained[:101].any() for r in sharing)
    assert len(common_prefix(sharing)) == 100
    assert not len(common_prefix(plain))


@pytest.mark.parametrize(("work", "least", "most"), [("uniform", 256, 256), ("long", 1800, 2200)])
def test_lengths_of_other_works(work, least, most):
    lengths = [len(r) for r in works.make_rows(work, "", 1000, seed=0).train]
    assert least <= min(lengths) <= max(lengths) <= most


def test_rows_depend_on_the_seed_alone_and_survive_a_file(tmp_path):
    one, same, other = (works.make_rows("short-qa", "", 320, seed=seed) for seed in (3, 3, 4))
    assert one.digest == same.digest != other.digest
    again = works.Rows.load(one.save(tmp_path / "rows.npz"))
    assert again.digest == one.digest
    assert [r.ids.tolist() for r in again.train[:5]] == [r.ids.tolist() for r in one.train[:5]]


def test_a_changed_mask_changes_the_digest():
    ids = works.Rows((row(1, 2, 3, prompt=1),), ())
    assert ids.digest != works.Rows((row(1, 2, 3, prompt=2),), ()).digest


def test_rows_of_a_file_keep_one_reply(tiny_model, tiny_rows):
    made = works.make_rows("sample", str(tiny_model), 320, 0, [str(tiny_rows)])
    assert len(made.train) + len(made.validation) == 12
    assert all(r.trained[-1] and (np.diff(r.trained.astype(int)) >= 0).all() for r in made.train)


def test_a_row_ends_with_its_last_trained_token():
    cut = works.one_reply(TokenRow(np.array([5, 6, 7, 8, 9], np.int32), np.array([0, 1, 0, 1, 0], bool)))
    assert (cut.ids.tolist(), cut.trained.tolist()) == ([5, 6, 7, 8], [False, True, True, True])


def test_fixed_groups_begin_again_after_the_last_full_batch():
    assert works.fixed_groups(5, 2, 3) == [[0, 1], [2, 3], [0, 1]]


def test_drawn_models_are_read_by_everybody(tmp_path):
    path = write_quantised("mistral-small", tmp_path / "model", "float32")
    spec = works.describe_model(str(path), "4")
    shape = SHAPES["mistral-small"]
    hidden, inner, layers = (shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    matrices = layers * (hidden * (2 * hidden + hidden) + 3 * hidden * inner) + 2 * 32_768 * hidden
    assert spec.parameters == matrices + hidden * (2 * layers + 1)
    assert (spec.bits, spec.quantize_bits) == (4, None)
    assert write_quantised("mistral-small", path, "float32") == path


def test_adapters_start_as_mlx_lm_draws_them(tiny_model, tmp_path):
    from safetensors.numpy import load_file

    spec = works.describe_model(str(tiny_model), "4")
    tensors = load_file(works.write_adapters(spec, tmp_path / "a.safetensors", rank=4, alpha=8.0, seed=0))
    assert len(tensors) == 2 * 7 * 2
    a, b = (tensors[f"model.layers.1.mlp.down_proj.lora_{kind}"] for kind in "ab")
    assert (a.shape, b.shape) == ((128, 4), (4, 64))
    assert 0.8 / np.sqrt(128) < np.abs(a).max() <= 1 / np.sqrt(128)
    assert not b.any()


# Counting -------------------------------------------------------------------------------------------------------

ROWS = [row(1, 2, 3, prompt=1), row(4, 5, prompt=1), row(6, 7, 8, 9, prompt=3)]


def test_tokens_are_counted_from_the_rows():
    assert count_tokens(ROWS) == (9, 4)


def test_the_stopwatch_times_what_comes_after_the_warm_up():
    moments = iter([10.0, 14.0, 20.0, 21.0, 23.0])  # begin, end, begin, end, begin …
    stopwatch = Stopwatch(ROWS, Job(contestant="", started=4.0, warm_up=1, steps=1), lambda: next(moments))
    assert stopwatch.begin([0, 1])
    stopwatch.end(2.0)
    assert stopwatch.begin([2])
    stopwatch.end(1.0)
    assert not stopwatch.begin([0])
    assert stopwatch.measures() == {
        "tokens_per_second": 4 / 1,
        "tokens_per_second_whole": 9 / (6 + 4 + 1),  # what lay between the steps does not count
        "seconds_to_first_step": 6 + 4,
        "seconds_loading": 6,
        "timed_steps": 1,
        "timed_seconds": 1,
    }


def test_a_stopwatch_stops_after_enough_seconds():
    moments = iter([0.0, 3.0, 3.0, 6.0, 6.0])
    stopwatch = Stopwatch(ROWS, Job(contestant="", started=0.1, warm_up=0, steps=99, seconds=5), lambda: next(moments))
    count = 0
    while stopwatch.begin([0]):
        stopwatch.end()
        count += 1
    assert count == 2


def test_a_job_says_itself_as_flags():
    job = Job(contestant="qlora", batch_size=3, alpha=2.5, without=("streams=1", "packing"), pad_target=True)
    parser = argparse.ArgumentParser()
    add_job_arguments(parser)
    values = vars(parser.parse_args(job.flags()))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    assert Job(contestant="qlora", **values) == job


# mlx-lm's batches -----------------------------------------------------------------------------------------------


def test_rows_are_padded_as_mlx_lm_pads_them():
    from mlx_lm.tuner.trainer import iterate_batches

    rows = [row(*range(1, 31), prompt=4), row(*range(1, 65), prompt=60)]
    ((theirs, lengths),) = iterate_batches([encode(r) for r in rows], 2, 1000)
    batch, places = padded(rows)
    assert batch.shape == (2, 65)
    assert np.array_equal(batch, np.array(theirs))
    assert np.array_equal(places, np.array(lengths))
    assert places.tolist() == [[4, 30], [60, 64]]


def test_the_padded_place_that_mlx_lm_trains_is_a_target_of_ours():
    """Of a row of 3 with 1 to train, mlx-lm's mask holds places 2 and 3; the third holds an id 0."""
    made = with_pad_target(row(7, 8, 9, prompt=2))
    assert made.ids.tolist() == [7, 8, 9, 0]
    assert made.trained.tolist() == [False, False, True, True]


# Techniques -----------------------------------------------------------------------------------------------------

KERNELS = {"device": "cpu", "dtype": "float32", "linear": "kept", "streams": 2, "blas": "OpenBLAS", "fast_exp": True}


def test_what_is_on_can_be_switched_off():
    assert ours.ablations({**KERNELS, "new": True, "absent": False}) == [
        "linear=quantised", "linear=dequantised", "streams=1", "blas=reference", "fast_exp=false", "new=false",
        "packing=false",
    ]  # fmt: skip
    assert ours.ablations({**KERNELS, "prefix": True}) == ours.ablations(KERNELS)
    assert "prefix=false" in ours.ablations({**KERNELS, "prefix": True}, prefix_tokens=100)
    assert ours.ablations({**KERNELS, "linear": "quantised", "streams": 1, "blas": "", "fast_exp": False}) == [
        "packing=false"
    ]


def test_a_technique_is_named_with_or_without_its_value():
    words = ["streams", "linear=dequantised", "fast_exp", "packing=false"]
    assert ours.switched_off(words, KERNELS) == {
        "streams": 1, "linear": "dequantised", "fast_exp": False, "packing": False
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"no such technique\. Known: linear, streams"):
        ours.switched_off(["dtype"], KERNELS)


# Processes and pairs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[malloc] Unable to allocate 9 bytes."),
                                   RuntimeError("CUDA out of memory. Tried to allocate")])  # fmt: skip
def test_memory_that_ran_out_is_recognised(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("shapes (2, 3) and (4,)"))


def test_a_process_that_the_system_ended_ran_out_of_memory(tmp_path):
    log = tmp_path / "log"
    log.write_text("first\nlast words\n", encoding="utf-8")
    assert race._read_result(tmp_path / "none", log, -9)["out_of_memory"]
    assert race._read_result(tmp_path / "none", log, 1) == {"error": "last words", "out_of_memory": False}


@pytest.fixture
def staged(monkeypatch, tmp_path, tiny_model):
    """A race whose processes are pretended: tokens/s by contestant and batch size, or an error."""

    def make(speeds: dict[tuple[str, int], float | str], *argv: str) -> race.Race:
        made = race.Race(options("--model", str(tiny_model), "--quick", *argv), tmp_path, lambda text: None)
        made.present = [*dict.fromkeys(name for name, _ in speeds)]
        made.results["contestants"] = {name: {"words": ""} for name in made.present}
        made.spec = works.describe_model(str(tiny_model), "4")
        made.device = "cpu"

        def start(job, python):
            speed = speeds[job.contestant, job.batch_size]
            if isinstance(speed, str):
                return {"error": speed, "out_of_memory": True}
            return {"tokens_per_second": speed, "process_peak_bytes": job.batch_size * 10**9, "timed_steps": 1,
                    "seconds_to_first_step": 1.0}  # fmt: skip

        monkeypatch.setattr(race, "start", start)
        return made

    return make


def test_pairs_change_their_order(staged):
    run = staged({("qlora", 8): 30.0, ("peft", 8): 10.0}, "--batch-sizes", "8", "--repeats", "3")
    run.track_speed()
    assert [r["contestant"] for r in run.results["runs"]] == ["qlora", "peft", "peft", "qlora", "qlora", "peft"]
    assert [p["ratio"] for p in run.results["pairs"]] == [3.0] * 3


def test_some_techniques_are_switched_off(staged, monkeypatch):
    run = staged(
        {("qlora", 8): 30.0}, "--batch-sizes", "8", "--repeats", "1", "--techniques", "linear=quantised", "fast_exp"
    )
    whole = {"kernels": KERNELS, "prefix_tokens": 0, "tokens_per_second": 30.0}
    monkeypatch.setattr(run, "run", lambda *_, **__: whole)
    run.track_ablations()
    assert [found["without"] for found in run.results["ablations"]] == ["linear=quantised", "fast_exp=false"]
    run.options = options("--techniques", "magic")
    with pytest.raises(ConfigError, match="no such technique"):
        run.track_ablations()


def test_each_takes_its_best_batch_size_that_fits(staged):
    speeds = {("qlora", 4): 10.0, ("qlora", 8): 20.0, ("qlora", 16): 30.0}
    run = staged(speeds, "--batch-sizes", "4", "8", "16", "--max-memory-gb", "9")
    run._choose_size("qlora", "short-qa")
    assert run.best_sizes == {("qlora", "short-qa"): 8}


def test_memory_that_ran_out_is_recorded_and_the_rest_goes_on(staged):
    speeds = {("qlora", 4): 10.0, ("qlora", 8): 20.0, ("peft", 4): 5.0, ("peft", 8): "no 9 GB"}
    run = staged(speeds, "--batch-sizes", "4", "8", "--repeats", "1")
    run.track_speed()
    assert run.best_sizes == {("qlora", "short-qa"): 8, ("peft", "short-qa"): 4}
    assert [r["error"] for r in run.results["runs"] if "error" in r] == ["no 9 GB"]
    assert [p["ratio"] for p in run.results["pairs"]] == [4.0]


def test_who_never_fits_is_in_the_table(staged):
    run = staged({("qlora", 4): 10.0, ("peft", 4): "no", ("mlx-lm-strong", 4): 5.0}, "--batch-sizes", "4")
    run.results["model"] = {"name": "tiny", "bits": 4, "adapters": {"rank": 8}}
    run.track_speed()
    for result in run.results["runs"]:
        result.setdefault("tokens_per_second_whole", 1.0)
    (line,) = [line for line in report.tables(run.results)[0].splitlines() if "`peft`" in line]
    assert line.startswith("| `peft` | out of memory | – |")


def test_losses_are_compared_step_by_step():
    mine, theirs = ([{"loss": loss} for loss in losses] for losses in ([2.0, 1.5], [2.0005, 1.4]))
    found = figures.compare_losses(mine, theirs, 1e-3)
    assert found["largest"] == pytest.approx(0.1)
    assert found["mean"] == pytest.approx(0.05025)
    assert not found["holds"]
    assert not figures.compare_losses([{"loss": float("nan")}], [{"loss": 1.0}], 1e-3)["holds"]


def test_time_to_the_same_loss_is_that_of_the_loss_all_reach():
    def curve(*points):
        return [{"step": i, "seconds": s, "val_loss": v} for i, (s, v) in enumerate(points)]

    found = figures.time_to_loss({"qlora": curve((1, 4.0), (3, 1.0)), "peft": curve((2, 4.0), (10, 2.0), (20, 2.5))})
    assert found["val_loss"] == 2.0
    assert found["seconds"] == {"qlora": pytest.approx(1 + 2 * 2 / 3), "peft": 10}


# What is told ---------------------------------------------------------------------------------------------------


def results(**changes) -> dict:
    def run(name, rate, role="pair", **more):
        return {"work": "short-qa", "contestant": name, "batch_size": 8, "role": role, "tokens_per_second": rate,
                "tokens_per_second_whole": rate / 2, "seconds_to_first_step": 4.25, "peak_bytes": 2_340_000_000,
                "process_peak_bytes": 2_600_000_000, **more}  # fmt: skip

    return {
        "date": "2026-01-02",
        "interrupted": False,
        "machine": {"processor": "Good CPU", "cores": 2, "gpus": [], "system": "Linux x86_64"},
        "model": {"name": "tiny", "bits": 4, "adapters": {"rank": 8}},
        "versions": {"mlx": "0.32.4"},
        "contestants": {"qlora": {}, "mlx-lm-strong": {}, "peft": {"absent": "not installed (peft): pip install peft"}},
        "runs": [run("qlora", 12_000.0), run("qlora", 14_000.0), run("mlx-lm-strong", 80.5)],
        "pairs": [{"work": "short-qa", "contestant": "mlx-lm-strong", "ratio": ratio} for ratio in (2.0, 3.0, 2.5)],
        **changes,
    }


def test_the_table_by_hand():
    assert report.tables(results())[0].splitlines() == [
        "| `short-qa` | rows a step | tokens/s | `qlora` is | with loading | first step | peak of arrays "
        "| peak of process |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        "| `qlora` | 8 | 13,000 (12,000–14,000) | – | 6,500 | 4.2 s | 2.34 GB | 2.60 GB |",
        "| `mlx-lm-strong` | 8 | 80.5 | 2.50 × (2.00–3.00) | 40.2 | 4.2 s | 2.34 GB | 2.60 GB |",
        "| `peft` | not installed | – | – | – | – | – | – |",
    ]


def test_what_the_environment_says_about_speed_is_told(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert machine.describe_machine()["environment"]["OPENBLAS_CORETYPE"] == "Haswell"
    told = results()["machine"] | {"environment": {"OPENBLAS_CORETYPE": "Haswell"}}
    assert "Linux x86_64 · OPENBLAS_CORETYPE=Haswell · `tiny`" in report.caption(results(machine=told))
    assert "OPENBLAS" not in report.caption(results())


def test_the_table_in_portuguese():
    lines = report.tables(results(), "pt")[0].splitlines()
    assert lines[2].startswith("| `qlora` | 8 | 13\u00a0000 (12\u00a0000–14\u00a0000) | – | 6500 | 4,2 s | 2,34 GB |")


def test_who_is_absent_is_told_with_the_command_that_installs_it():
    assert "peft: not installed (peft): pip install peft" in report.text(results())


def test_a_busy_machine_is_told_and_its_numbers_are_left_out():
    busy = results()
    busy["runs"][0]["others_share"] = busy["pairs"][0]["others_share"] = 0.5
    lines = report.text(busy).splitlines()
    assert "- other programs took up to 50% of the processor beside 1 of 3 runs" in "\n".join(lines)
    assert any(line.startswith("| `qlora` | 8 | 14,000 | – |") for line in lines)
    assert any("| 2.75 × (2.50–3.00) |" in line for line in lines)
    assert "other programs" not in report.text(results())


def test_where_every_run_was_disturbed_all_count():
    assert report.undisturbed([{"others_share": 0.5}, {"others_share": 0.2}]) == [
        {"others_share": 0.5}, {"others_share": 0.2}
    ]  # fmt: skip


def test_languages_have_the_same_words():
    assert report.WORDS["en"].keys() == report.WORDS["pt"].keys()


def test_other_tracks_by_hand():
    more = results(
        same=[{"contestant": "mlx-lm", "dtype": "float32", "steps": 200, "largest": 0.000061, "mean": 0.00002,
               "tolerance": 1e-3}],
        best={"val_loss": 1.2345, "seconds": {"qlora": 50.0, "peft": 100.0}},
        ablations=[{"without": "streams=1", "pairs": [{"ratio": 1.5, "tokens_per_second": 140.0}]}],
    )  # fmt: skip
    assert [table.splitlines()[-1] for table in report.tables(more)[1:]] == [
        "| `mlx-lm` (float32) | 200 | 0.000061 | 0.000020 | 0.001 |",
        "| `peft` | 100 | 2.00 × |",
        "| `streams=1` | 140 | 1.50 × |",
    ]


@pytest.mark.parametrize("language", report.WORDS)
def test_whose_sums_lose_small_terms_is_said_beside_the_table(language):
    """Where that was so when it was measured: of older results nothing is claimed."""
    same = {"contestant": "mlx-lm", "dtype": "float32", "steps": 9, "largest": 2e-4, "mean": 1e-4, "tolerance": 1e-3}
    for lost, said in ((True, True), (False, False), (None, False)):
        found = same if lost is None else {**same, "loses_small_terms": lost}
        assert (report.WORDS[language]["sums"] in report.same_table({"same": [found]}, language)) == said


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/srv/a/b.py: 3 bad", "b.py: 3 bad"),
        ("88 tokens/s, https://x.org/y", "88 tokens/s, https://x.org/y"),
        ("--out ~/r/q.json --peft-python=/opt/bin/python", "--out q.json --peft-python=python"),
        ("(C:\\Users\\me\\f.txt)", "(f.txt)"),
    ],
)
def test_paths_are_cut(text, kept):
    assert machine.without_paths({"a": [text]}) == {"a": [kept]}


def test_files_of_one_day_are_numbered(tmp_path):
    first = report.default_file(results(), tmp_path)
    assert first.name == "good-cpu-2-cores-2026-01-02.json"
    first.touch()
    assert report.default_file(results(), tmp_path).name == "good-cpu-2-cores-2026-01-02-2.json"


def test_nothing_is_kept_outside_of_a_checkout(tmp_path):
    assert report.keep(results(), None, tmp_path) is None
    assert report.keep(results(), tmp_path / "new" / "r.json", tmp_path).is_file()


def test_quick_is_short_and_everything_is_everything():
    quick, full = options("--quick"), options()
    assert (quick.works, quick.tracks) == (("short-qa",), ("speed", "same"))
    assert (full.works, full.tracks) == (tuple(WORKS), ("speed", "same", "best", "ablations"))
    assert options("--ablations", "--quick").tracks == ("ablations",)


def test_every_contestant_has_its_module():
    assert all(importlib.util.find_spec(f"qlora_core.bench.{c.module}") for c in CONTESTANTS.values())


# Really run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory, tiny_model):
    """`qlora bench` on the tiny model against mlx-lm's real trainer, and its file."""
    out = tmp_path_factory.mktemp("bench") / "results.json"
    argv = ["bench", "--quick", "--model", str(tiny_model), "--contestants", "qlora", "mlx-lm-strong", "peft"]
    argv += ["--batch-sizes", "4", "--repeats", "1", "--seconds", "0.2", "--track-steps", "20", "--learning-rate"]
    status = main([*argv, "1e-2", "--peft-python", "/nowhere/python", "--out", str(out)])
    return status, out.read_text(encoding="utf-8")


def test_our_losses_are_those_of_mlx_lm(measured):
    status, text = measured
    (same,) = json.loads(text)["same"]
    assert status == 0
    assert (same["contestant"], same["dtype"], same["steps"]) == ("mlx-lm-strong", "float32", 20)
    assert same["largest"] < 1e-3
    assert same["loses_small_terms"] == (not has_gpu())


def test_the_same_steps_really_learn_something(measured):
    mine, theirs = [run["steps"] for run in json.loads(measured[1])["runs"] if run["role"] == "same"]
    assert mine[-1]["loss"] < mine[0]["loss"]
    assert [step["tokens"] + 4 for step in theirs] == [step["tokens"] for step in mine]  # a pad target a row


def test_all_trained_the_rows_that_they_were_given(measured):
    found = json.loads(measured[1])
    digests = {run["rows_digest"] for run in found["runs"] if run["role"] == "pair"}
    assert digests == {found["works"]["short-qa"]["digest"]}
    assert len(found["pairs"]) == 1
    assert all(run["tokens_per_second"] > 0 and run["process_peak_bytes"] > 0 for run in found["runs"])


def test_who_cannot_be_run_is_named(measured):
    about = json.loads(measured[1])["contestants"]["peft"]
    assert about["absent"].startswith("not installed")
    assert "pip install torch transformers peft" in about["absent"]


def test_results_name_neither_host_nor_paths(measured, tiny_model):
    text = measured[1]
    assert platform.node() not in text or len(platform.node()) < 4
    assert not re.search(r'"[^"]*(?:/(?:work|root|home|tmp|Users|private|var)/)', text)
    assert str(tiny_model.parent) not in text
    assert json.loads(text)["command"].startswith("qlora bench --quick --model tiny-llama ")


def test_a_shape_has_the_adapters_of_all_seven_projections(tmp_path):
    path = write_quantised("mistral-small", tmp_path / "m", "float32")
    spec = works.describe_model(str(path), "4")
    names = {name.rpartition(".")[2] for name in spec.shapes}
    assert names == {name.rpartition(".")[2] for name in works.PROJECTIONS}


def alone(*argv: str, out: Path) -> dict:
    """What `python -m qlora_core.bench` tells."""
    status = measure_one([*argv, "--out", str(out)])
    told = json.loads(out.read_text(encoding="utf-8"))
    assert status == int("error" in told)
    return told


def test_our_trainer_alone_without_a_technique(tiny_model, tmp_path):
    flags = ["--steps", "2", "--warm-up", "1", "--batch-size", "4", "--without", "streams=1", "packing"]
    told = alone("qlora", "--model", str(tiny_model), *flags, out=tmp_path / "r.json")
    assert (told["kernels"]["streams"], told["layout"]) == (1, "padded")
    assert [step["rows"] for step in told["steps"]] == [4, 4, 4]


def test_a_technique_that_would_stay_on_is_refused():
    with pytest.raises(ConfigError, match="computes with 2 all the same"):
        ours._refuse_without_effect(["streams=1"], KERNELS)


def test_what_cannot_be_measured_is_told_in_a_line(tmp_path):
    told = alone("qlora", "--model", "random-nothing", out=tmp_path / "r.json")
    assert "no such shape. Known: random-llama-1b" in told["error"]


# The documents --------------------------------------------------------------------------------------------------


def tables_module():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("language", ["en", "pt"])
def test_a_document_shows_the_results_that_are_kept(language):
    tables = tables_module()
    text = tables.DOCUMENTS[language].read_text(encoding="utf-8")
    assert tables.replaced(text, tables.PART, tables.made(language)) == text


@pytest.mark.parametrize(
    ("system", "given", "found"), [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, None)]
)
def test_on_a_mac_every_contestants_gpu_is_as_patient(monkeypatch, tmp_path, system, given, found):
    name, told = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT", []
    monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv(name, given)
    monkeypatch.setattr(keep_awake.sys, "platform", system)

    def run(command, env=None, **_):
        told.append(env.get(name) if env else "nvidia-smi")
        return subprocess.CompletedProcess(command, 1, "", "")

    monkeypatch.setattr(race.subprocess, "run", run)
    race.start(Job(contestant="mlx-lm", out=str(tmp_path / "out.json")), "")
    assert [each for each in told if each != "nvidia-smi"] == [found]

"""The command line: parse, call one function, print one result.

Exit status: 0 done, 1 error (one line, no traceback), 2 usage, 3 paused or stopped, also by SIGTERM or a closed
terminal, 130 Ctrl+C.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import os
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .bench import Options
from .bench import add_arguments as add_bench_arguments
from .config import RunConfig, add_arguments, from_flat, given_settings, settings
from .errors import ConfigError, QLoraError
from .exports.formats import FORMATS
from .files.storage import keep_private
from .gguf.blocks import KINDS
from .jobs.exit_status import DONE, ERROR, INTERRUPTED, complain, guarded
from .jobs.planning import (
    add_training_arguments,
    plan_training,
    print_json,
    run_as_json,
    train_planned,
)
from .jobs.server import add_page_arguments, add_server_arguments
from .machine.memory import GB
from .reports import console, live_output, plain_text
from .runs import keeping
from .runs.plan import TrainingTracker, resolve_config
from .runs.recipes import settings_of
from .runs.run import Run, iterate_judged
from .sampling import Sampling

# Commands -------------------------------------------------------------------------------------------------------


def _train(arguments: argparse.Namespace) -> int:
    def say(text: str) -> None:
        print(text, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    config = resolve_config(settings_of(arguments), arguments.preset)
    tracker, plan = plan_training(config, say, preset=arguments.preset)
    return train_planned(tracker, plan, as_json=arguments.json)


def _fit(arguments: argparse.Namespace) -> int:
    """Say whether a run would fit, and start nothing."""
    from .machine.memory import available_bytes, total_bytes
    from .models import hub
    from .models.base_models import repository_of
    from .reports.fit_text import fit_lines
    from .runs.fit import fit

    config = resolve_config(settings_of(arguments), arguments.preset)
    repository = repository_of(config.base.model)
    if repository and not hub.is_here(repository):
        raise ConfigError(
            f"{config.base.model}: is not on this machine, and its size is read from its files. Fetch it first: "
            f"uv run qlora models --fetch {shlex.quote(config.base.model)}"
        )
    said = functools.partial(print, file=sys.stderr) if arguments.json else print
    _, plan = plan_training(config, said)
    machine = arguments.memory or total_bytes()
    found = fit(plan, min(available_bytes(), machine) if not arguments.memory else machine, machine)
    print_json(found.as_dict()) if arguments.json else print(fit_lines(found, plan.config))
    return DONE if found.verdict in ("fits", "tight") and found.disk_suffices else ERROR


def _data(arguments: argparse.Namespace) -> int:
    from . import data
    from .tokens.dataset import make_datasets
    from .tokens.report import describe, left_out, none_trained
    from .tokens.tokenizer import open_tokenizer

    given = {name: value for name, value in given_settings(arguments).items() if name != "data"}
    config = from_flat({**given, "data": arguments.sources})
    tokenizer = open_tokenizer(config.base)
    prepared = data.prepare(config.data, tokenizer, output=arguments.out)
    described, left, useless = None, 0, ""
    if not arguments.no_tokens:
        length = config.data.max_seq_length
        datasets = make_datasets(prepared.train, prepared.validation, tokenizer, length)
        described = describe(*datasets, tokenizer, length)
        prepared.report.tokens = described.as_dict()
        left, useless = left_out(datasets.train, len(prepared.train)), none_trained(datasets.train)
    if arguments.reader == "mlx-lm":
        if left_out := data.save_rendered(prepared, arguments.out, tokenizer.texts_of_row):
            prepared.report.warnings.append(
                f"{left_out} rows hold an answer that is marked as not to be trained. mlx-lm would train it, so that "
                "they are left out."
            )
    else:
        prepared.save(arguments.out)
    lost = prepared.report.lost_share > data.MOST_LOST
    status = ERROR if lost or useless else DONE
    if arguments.json:
        print_json({**prepared.report.as_dict(), "out": str(arguments.out)})
        return status
    print(plain_text.block("Data", console.data_counts(prepared.report)))
    if described:
        print(plain_text.block("Tokens", console.token_counts(described)))
    if useless:
        print(f"error: {useless}. The rows are in {arguments.out}.", file=sys.stderr)
        return status
    leaving = f" ({left} of them cannot be trained with this model)" if left else ""
    print(f"✓ {len(prepared.train)} rows to train{leaving}, {len(prepared.validation)} to validate, in {arguments.out}")
    command = "mlx_lm.lora --train --model MODEL --data" if arguments.reader == "mlx-lm" else "qlora train --data"
    print(f"Next\n  uv run {command} {shlex.quote(str(arguments.out))}")
    if lost:
        share = f"{prepared.report.lost_share:.0%} of the data could not be read, more than {data.MOST_LOST:.0%}"
        print(f"error: {share}. What could be is in {arguments.out}; see Rejected and Not read above.", file=sys.stderr)
    return status


def _runs(arguments: argparse.Namespace) -> int:
    tracker = TrainingTracker(arguments.runs_dir)
    if arguments.rename or arguments.note or arguments.delete:
        return _keep_run(arguments, tracker)
    rows = list(iterate_judged(tracker.runs()))
    if arguments.json:
        print_json({"runs": rows})
    else:
        print(console.runs_table(rows) if rows else "No runs yet.\nNext\n  uv run qlora train")
    return DONE


def _keep_run(arguments: argparse.Namespace, tracker: TrainingTracker) -> int:
    """Rename, annotate or delete one run."""
    if arguments.rename:
        run = keeping.rename(tracker.find(arguments.rename[0]), arguments.rename[1])
        told = {"renamed": run.name, "path": str(run.path)}
    elif arguments.note:
        run = tracker.find(arguments.note[0])
        keeping.write_note(run, arguments.note[1])
        told = {"noted": run.name, "note": keeping.read_note(run)}
    else:
        run = tracker.find(arguments.delete)
        size = plain_text.size(keeping.bytes_of(run))
        if not arguments.yes and not _confirmed(f"Delete {run.path} with all checkpoints and exports in it ({size})?"):
            print("Nothing was deleted.", file=sys.stderr)
            return ERROR
        told = {"deleted": run.name, "freed_bytes": keeping.delete(run)}
    if arguments.json:
        print_json(told)
    else:
        print(plain_text.table({name.capitalize().replace("_", " "): str(value) for name, value in told.items()}))
    return DONE


def _confirmed(question: str) -> bool:
    """Ask whether to do something; nobody at the terminal means no."""
    if not sys.stdin.isatty():
        print(f"{question} Nobody is there to confirm it: give --yes.", file=sys.stderr)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def _generate(arguments: argparse.Namespace) -> int:
    from .engine.generate import answer, stream
    from .training.session import load_for_answers

    run = TrainingTracker(arguments.runs_dir).find(arguments.run_name)
    prompts = arguments.prompt or _read_lines(arguments.prompts)
    if not prompts:
        raise QLoraError(f"{arguments.prompts}: holds no question. Wanted one a line.")
    model, tokenizer = load_for_answers(run, base=arguments.base)
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if not system and (trained := run.shared_system()):
        told = f"· all rows were trained with a system text, and this asks without it: --system {shlex.quote(trained)}"
        print(plain_text.one_line(told, 300), file=sys.stderr)
    conversations = [[*system, {"role": "user", "content": prompt}] for prompt in prompts]
    sampling = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)}
    if len(prompts) == 1 and not arguments.json:
        for piece in stream(model, tokenizer, conversations[0], **sampling):
            print(piece, end="", flush=True)
        print()
        return DONE
    answers = answer(model, tokenizer, conversations, **sampling)
    pairs = [{"prompt": prompt, "response": text} for prompt, text in zip(prompts, answers, strict=True)]
    if arguments.json:
        print_json({**(pairs[0] if len(pairs) == 1 else {"answers": pairs}), "status": "ok"})
    else:
        print("\n\n".join(f"? {pair['prompt']}\n{pair['response']}" for pair in pairs))
    return DONE


def _read_lines(path: Path) -> list[str]:
    """Return the non-empty lines of a file, or of standard input for `-`."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QLoraError(f"{path}: is not text in UTF-8 ({error.reason} at byte {error.start}).") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _evaluate(arguments: argparse.Namespace) -> int:
    from .training.session import load_for_answers

    run = TrainingTracker(arguments.runs_dir).find(arguments.run_name)
    adapters = run.adapters.name
    model, tokenizer = load_for_answers(run)
    tokens = run.config().pace.max_answer_tokens
    if not arguments.quick:
        return _judge(arguments, run, model, tokenizer)
    from .training.evaluate import evaluate_run

    result = evaluate_run(run, model, tokenizer, adapters=adapters, max_tokens=tokens)
    if not result["questions"]:
        raise QLoraError(f"{run.path}: has nothing to ask: no fact sheet, and no question among its rows to validate.")
    if arguments.json:
        print_json(result)
    else:
        print(console.answers_side_by_side(result))
        print(console.recall_lines(result))
        print(console.next_commands(run))
    return DONE


def _judge(arguments: argparse.Namespace, run: Run, model: Any, tokenizer: Any) -> int:
    """Ask all contenders, and say whether training helped."""
    from .api import card
    from .evaluation.verdict import judged_run, told_whole
    from .reports.verdict_text import verdict_lines
    from .training.contenders import Asked, judge_run

    asked = Asked(run.config().pace.max_answer_tokens, arguments.passages, arguments.found_tokens)
    told = functools.partial(print, file=sys.stderr)
    found = judge_run(run, model, tokenizer, asked, anew=arguments.again, told=told)
    card(run)
    if arguments.json:
        print_json(told_whole(run, found))
    else:
        verdict, entries = judged_run(run, found)
        print(verdict_lines(verdict, found, entries))
        print(console.next_commands(run))
    return DONE


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.train:
        return _compare_arms(arguments)
    from .reports.comparison import compare

    if arguments.bits or arguments.seeds:
        raise ConfigError("--bits and --seeds say which runs to train: give --train, too.")
    tracker = TrainingTracker(arguments.runs_dir)
    comparison = compare([tracker.find(name) for name in arguments.run_names])
    if arguments.json:
        print_json(comparison.as_dict())
    else:
        print("\n".join(comparison.lines()))
    return DONE


def _compare_arms(arguments: argparse.Namespace) -> int:
    """Train what a comparison of one run with its other arms lacks, and print it."""
    from .jobs.arms import FORMS, train_and_compare

    if len(arguments.run_names) != 1:
        raise ConfigError(f"{len(arguments.run_names)} runs given; --train wants one, and makes the others of it.")
    run = TrainingTracker(arguments.runs_dir).find(arguments.run_names[0])
    reporter = live_output.TrainingReporter(sys.stderr if arguments.json else sys.stdout)
    forms = arguments.bits.split(",") if arguments.bits else FORMS
    status, found = train_and_compare(run, reporter, forms=forms, seeds=arguments.seeds or 1)
    if found is None:
        return status
    if arguments.json:
        print_json(found.as_dict())
    else:
        print("\n".join(["", *found.lines()]))
    return DONE


def _card(arguments: argparse.Namespace) -> int:
    from .api import card

    run = TrainingTracker(arguments.runs_dir).find(arguments.run_name)
    written = [str(path) for path in card(run, arguments.out)]
    print_json({"run": run.name, "files": written}) if arguments.json else print("\n".join(written))
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from .exports.export import export_run
    from .exports.formats import ExportChoices

    run = TrainingTracker(arguments.runs_dir).find(arguments.run_name)
    out = arguments.out or run.exports / arguments.to
    names = [field.name for field in dataclasses.fields(ExportChoices)]
    choices = ExportChoices(**{name: getattr(arguments, name) for name in names})
    made = export_run(
        run,
        out,
        to=arguments.to,
        choices=choices,
        checkpoint=arguments.checkpoint,
        force=arguments.force,
        verified=arguments.verified,
    )
    if arguments.json:
        print_json(made)
    else:
        print(plain_text.block("Export", console.export_rows(made)))
        print(f"Next\n  read {made['path']}/summary.md")
    return DONE


def _push(arguments: argparse.Namespace) -> int:
    from .exports.push import find_export, push

    told = push(
        find_export(arguments.exported, arguments.runs_dir, arguments.to),
        arguments.repository,
        runs_dir=Path(arguments.runs_dir),
        public=arguments.public,
        force=arguments.force,
        with_personal_data=arguments.with_personal_data,
        dry_run=arguments.dry_run,
    )
    if arguments.json:
        print_json(told)
        return DONE
    print(plain_text.block("Push", console.push_rows(told)))
    print(f"✓ {told['url']}" if told["url"] else "Nothing was sent.\nNext\n  the same without --dry-run")
    return DONE


def _import(arguments: argparse.Namespace) -> int:
    from .exports.importing import import_adapters

    run = import_adapters(arguments.adapters, given_settings(arguments))
    if arguments.json:
        print_json(run_as_json(run))
    else:
        name = shlex.quote(run.name)
        print(f"✓ {run.path}")
        print(f'Next\n  uv run qlora generate {name} --prompt "…"\n  uv run qlora export {name} --to …')
    return DONE


def _models(arguments: argparse.Namespace) -> int:
    from .models.base_models import repository_of
    from .models.hub import fetch, known_models

    if arguments.fetch:
        repository = repository_of(arguments.fetch)
        path = fetch(repository) if repository else Path(arguments.fetch)
        print_json({"model": arguments.fetch, "path": str(path)}) if arguments.json else print(f"✓ {path}")
    elif arguments.json:
        print_json({"models": known_models()})
    else:
        print(console.models_table(known_models()))
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.train:
        return _doctor_of_training(arguments)
    from .doctor.machine import diagnose

    facts = diagnose(Path(arguments.runs_dir), ask_hub=arguments.hub)
    if arguments.json:
        print_json(facts)
    else:
        print(plain_text.table(console.diagnosis(facts)))
        print("".join(f"· {warning}\n" for warning in facts["warnings"]), end="")
        print("\n".join(f"! {problem}" for problem in facts["problems"]) or "✓ Ready to train")
    return ERROR if facts["problems"] else DONE


def _doctor_of_training(arguments: argparse.Namespace) -> int:
    """Run all checks and train small models, printing a line as each check ends."""
    stream = sys.stderr if arguments.json else sys.stdout
    shown = live_output.OneLine(stream)
    shown.trying("loading MLX")
    from .doctor.checks import Checks
    from .doctor.training import examine

    checks = examine(Checks(shown.tell, shown.trying), Path(arguments.runs_dir), ask_hub=arguments.hub)
    if arguments.json:
        print_json(checks.as_dict())
    else:
        print(f"\n{checks.verdict()}")
        print("Show it to whom you like: it names no user and no machine, and your home directory is ~ in it.")
    if checks.interrupted:
        return INTERRUPTED
    return ERROR if checks.count("failed") else DONE


def _bench(arguments: argparse.Namespace) -> int:
    from .bench import machine, race, report

    def say(line: str) -> None:
        print(line, file=sys.stderr if arguments.json else sys.stdout, flush=True)

    results = race.bench(Options.of(arguments), say)
    results["command"] = machine.without_paths(shlex.join(["qlora", *arguments.argv]))
    kept = report.keep(results, arguments.out, Path.cwd())
    if arguments.json:
        print_json(results)
    else:
        print(f"\n{report.text(results)}\n")
        print(f"✓ All numbers: {kept}" if kept else "Next\n  keep the numbers with --out FILE")
    for problem in results["failed"]:
        complain(f"error: {problem}")
    if results["interrupted"]:
        complain("interrupted; what was measured by then is above")
        return INTERRUPTED
    return ERROR if results["failed"] else DONE


def _app(arguments: argparse.Namespace) -> int:
    from .jobs import server

    listening, token = server.listen(arguments.host, arguments.port), secrets.token_urlsafe(24)
    address = server.address_of(listening)
    url = f"{address}/?access_token={token}"
    if arguments.json:
        print(json.dumps({"url": url, "pid": os.getpid()}), flush=True)
    else:
        print(console.page_opened(url, arguments.host, shared=not server.is_loopback(arguments.host)), flush=True)
    with contextlib.nullcontext() if arguments.no_browser else server.opened_in_browser(url):
        from .page.ahead import import_ahead  # marimo comes with it and takes a second; the address is printed by now

        flags = server.notebook_flags(arguments.argv[1:])
        server.serve(listening, arguments.host, token, flags, answered=import_ahead)
    print("\nThe page is closed. What is being trained goes on: `qlora runs` lists it.", file=sys.stderr, flush=True)
    os._exit(DONE)  # kernels of open pages are threads that would keep the process
    return DONE


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `qlora`."""
    parser = argparse.ArgumentParser(prog="qlora", description="Fine-tune language models with QLoRA on MLX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.set_defaults(call=run)
        made.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        return made

    add_training_arguments(command("train", _train, "train, or go on with a run"))
    fits = command("fit", _fit, "will it fit: the memory, disk and time of a run, before it is started")
    fits.add_argument("--memory", type=_gigabytes, default=0, metavar="GB", help="as if this much were free")
    add_training_arguments(fits)
    data = command("data", _data, "read, mend, join and split your text; a report")
    data.add_argument("sources", nargs="+", metavar="SOURCE")
    data.add_argument("--out", type=Path, default=Path("data"), help="directory to write (default: data)")
    data.add_argument("--for", dest="reader", choices=("qlora", "mlx-lm"), default="qlora", help="who will read it")
    data.add_argument("--no-tokens", action="store_true", help="do not count the rows' tokens")
    add_arguments(
        data,
        "model",
        "template",
        *(s.name for s in settings() if s.group == "data" and s.name not in ("data", "facts")),
    )
    doctor = command("doctor", _doctor, "look at this machine; with --train, try everything on small models")
    doctor.add_argument("--train", action="store_true", help="also try the device and the whole path of training")
    doctor.add_argument("--hub", action="store_true", help="also ask the hub whether it answers")
    runs = command("runs", _runs, "list the runs, or rename, annotate or delete one")
    _add_keeping(runs)
    with_runs = [runs, doctor]
    generate = command("generate", _generate, "ask a tuned model, or its base")
    _add_generation(generate)
    evaluate = command("evaluate", _evaluate, "did training help: base and tuned model, with and without retrieval")
    _add_evaluation(evaluate)
    compare = command("compare", _compare, "runs side by side: loss, memory, speed, size, settings, answers")
    _add_comparison(compare)
    card = command("card", _card, "all that is known of a run on one page: run.md and run.html")
    card.add_argument("--out", type=Path, metavar="DIR", help="write it there; default: into the run")
    export = command("export", _export, "take a run's result elsewhere: adapters or one model, with a guide")
    _add_export(export)
    for made in (generate, evaluate, card, export):
        made.add_argument("run_name", metavar="RUN", help="a run's name or path")
    push = command("push", _push, "send an export to the Hugging Face hub, with its model card; private by default")
    _add_push(push)
    imported = command("import", _import, "make a run of adapters that PEFT, mlx-lm or llama.cpp can read")
    imported.add_argument("adapters", metavar="ADAPTERS", type=Path, help="their directory, or a file of theirs")
    of_a_run = ("run", "runs_dir", "max_seq_length")
    add_arguments(imported, *(s.name for s in settings() if s.group in ("base", "data") or s.name in of_a_run))
    models = command("models", _models, "list the models that have a short name, or fetch one")
    models.add_argument("--fetch", default="", metavar="MODEL", help="fetch this one: a short name or a hub id")
    for made in (*with_runs, generate, evaluate, compare, card, export, push):
        made.add_argument("--runs-dir", default=RunConfig().place.runs_dir, help="directory of all runs")
    add_bench_arguments(command("bench", _bench, "measure training speed against other trainers, on the same rows"))
    app = command("app", _app, "open the page, for this machine only, with a token")
    add_server_arguments(app)
    add_page_arguments(app)
    add_training_arguments(app)
    return parser


def _add_evaluation(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--quick", action="store_true", help="only the answers and recall of base and tuned model")
    evaluate.add_argument("--again", action="store_true", help="ask everything anew, not only what is missing")
    number = functools.partial(evaluate.add_argument, metavar="N")
    number("--passages", type=_at_least(0, int), default=3, help="beside a question, at most; 0: no retrieval")
    number("--found-tokens", type=_at_least(1, int), default=250, help="of these passages together, at most")


def _add_keeping(runs: argparse.ArgumentParser) -> None:
    one = runs.add_mutually_exclusive_group()
    one.add_argument("--rename", nargs=2, metavar=("RUN", "NAME"), help="give a run, and its directory, another name")
    one.add_argument("--note", nargs=2, metavar=("RUN", "TEXT"), help="note something about a run; '' takes it away")
    one.add_argument("--delete", metavar="RUN", default="", help="delete a run with everything in its directory")
    runs.add_argument("--yes", action="store_true", help="delete without asking")


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `qlora compare`."""
    parser.add_argument("run_names", metavar="RUN", nargs="+", help="names or paths of two or more runs")
    parser.add_argument("--train", action="store_true", help="of one run: also train it on its base in other numbers "
                        "of bits, LoRA against QLoRA; what is there already is used")  # fmt: skip
    parser.add_argument("--bits", default="", metavar="LIST", help="with --train: of the base in the other runs; none "
                        "is unquantised (default: none,8,4)")  # fmt: skip
    parser.add_argument("--seeds", type=_at_least(1, int), default=0, metavar="N", help="with --train: the run's own "
                        "seed and the next ones, so many in all (default: 1)")  # fmt: skip


def _add_export(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `qlora export`, but for the run."""
    purposes = "; ".join(f"{name}: {form.purpose[0].lower()}{form.purpose[1:-1]}" for name, form in FORMATS.items())
    parser.add_argument("--to", choices=FORMATS, default="adapter", help=f"{purposes} (default: adapter)")
    parser.add_argument("--checkpoint", default="", metavar="WHICH", help="best, final, or the step of a checkpoint "
                        "(default: the best, or the final one if there was no validation)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="directory to write (default: export/ in the run)")
    parser.add_argument("--force", action="store_true", help="replace whatever is there")
    parser.add_argument("--no-verify", dest="verified", action="store_false",
                        help="do not open it again to compare it with the run")  # fmt: skip
    parser.add_argument("--bits", choices=("auto", "mixed", "16", "8", "6", "5", "4"), default="auto",
                        help="of a fused model's weights; mixed: more where fewer do most harm; auto: the smallest of "
                        "these that keeps what was learnt (default: auto)")  # fmt: skip
    parser.add_argument("--dequantize", dest="bits", action="store_const", const="16", help="the same as --bits 16")
    parser.add_argument("--type", choices=KINDS, default="", help="how one file for llama.cpp stores its numbers "
                        "(default: q8_0; for ollama base and adapters apart)")  # fmt: skip
    parser.add_argument("--with-base", action="store_true", help="write the base beside adapters for llama.cpp")
    parser.add_argument("--strict", action="store_true", help="refuse a model that loses what was learnt")


def _add_push(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `qlora push`."""
    parser.add_argument("exported", metavar="RUN|DIRECTORY", help="a run's name or path, or the directory of an export")
    parser.add_argument("repository", metavar="OWNER/NAME", help="the repository on the hub; made if it is not there")
    parser.add_argument("--to", choices=FORMATS, help="format; a run is exported first where that is missing or older "
                        "than its adapters (default: adapter)")  # fmt: skip
    parser.add_argument("--public", action="store_true", help="let everybody see it")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    parser.add_argument("--force", action="store_true", help="replace other files that the repository holds")
    parser.add_argument("--with-personal-data", action="store_true", help="although rows seem to hold personal data")


def _add_generation(parser: argparse.ArgumentParser) -> None:
    usual = Sampling()
    questions = parser.add_mutually_exclusive_group(required=True)
    questions.add_argument("--prompt", nargs="+", default=[], metavar="TEXT", help="a question, or several")
    questions.add_argument("--prompts", type=Path, metavar="FILE", help="questions, one a line; -: standard input")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message before each question")
    parser.add_argument("--base", action="store_true", help="without the adapters")
    number = parser.add_argument_group("how tokens are drawn").add_argument
    number("--max-tokens", type=_at_least(1, int), default=usual.max_tokens, help="longest answer (default: 128)")
    number("--temperature", type=_at_least(0, float), default=0.0, help="0, the default: always the likeliest token")
    number("--top-p", type=_at_least(0, float, 1), default=1.0, help="of the likeliest with this probability together")
    number("--top-k", type=_at_least(0, int), default=0, help="of this many of the likeliest; 0: of all")
    number("--min-p", type=_at_least(0, float, 1), default=0.0, help="of those with this share of the likeliest one's")
    number("--repetition-penalty", type=_at_least(0.01, float), default=1.0, help="above 1: less of what was just said")
    number("--seed", type=int, default=0, help="decides the draws")


def _gigabytes(text: str) -> int:
    """Return bytes of a number of gigabytes: `16`, `16GB`."""
    return int(_at_least(0.1, float)(text.upper().removesuffix("GB").strip()) * GB)


def _at_least(least: float, kind: type[int] | type[float], most: float = math.inf) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            wanted = "a whole number" if kind is int else "a number"
            limit = f"of at least {least}" if math.isinf(most) else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be {wanted} {limit}; found {text!r}")
        return value

    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = build_parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    keep_private()
    shown = arguments.command == "train" and not arguments.json
    with live_output.waiting(sys.stdout if shown else sys.stderr):  # what others print is a result
        return guarded(lambda: arguments.call(arguments))


if __name__ == "__main__":
    sys.exit(main())

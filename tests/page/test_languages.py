"""Every state of the page in Portuguese: no English words, numbers and dates as Portuguese writes them.

Looks at the HTML of the page's functions: text, labels, placeholders, menus, and the titles of charts. Code, logs and
what stands in the data are left out: they are as whoever wrote them.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qlora_core import data, page, translations
from qlora_core.activity import STAGES, Activity
from qlora_core.config import DataConfig, RunConfig
from qlora_core.exports.formats import FORMATS
from qlora_core.models.base_models import repository_of
from qlora_core.page import diagnosis, doubts, exporting, forms, reasons, row_browser, rows, training
from qlora_core.page.commands import News
from qlora_core.page.problems import Problem, attempt
from qlora_core.page.watching import RunWatcher
from qlora_core.reports import in_language
from qlora_core.runs.memory_estimate import MemoryEstimate, check_before_loading
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.presets import PRESETS
from qlora_core.runs.run import Run
from qlora_core.runs.time_spent import PARTS
from qlora_core.runs.writer import RunLock, RunWriter, being_trained
from qlora_core.tokens.dataset import make_dataset
from qlora_core.tokens.report import describe
from qlora_core.tokens.tokenizer import ChatTokenizer
from qlora_core.translations import Sentence

WORDS = """
the of and is are with which that this from not has have was were will would can cannot it its they them there been when
while where after before until each every only more most than then what why how who many much some any step steps row
rows loss run runs training trained train model models memory time left settings setting file files best saved save
saving validation validate answer answers question questions learning rate size free peak speed state paused running
completed failed stopped crashed preparing finished new start started warning warnings gradient adapter adapters weights
held out kept dropped cut shown show choose chosen search found measured known unknown nothing none all both first
last next between about per by at on in to or if
"""
ENGLISH = frozenset(WORDS.split())
"""Words that no Portuguese sentence has; "for", "no", "as", "base" are words of both languages."""
NAMES = re.compile(
    r"QLoRA[ -]Notebook|Hugging Face|Apple silicon|LM Studio|Open WebUI|mlx[-_.]lm|llama\.cpp|"
    r"--[a-z-]+(?: (?:first|drop|none|all)\b)?|`[^`]*`|[\w./-]*/[\w./-]*|\b[\w-]+\.(?:jsonl?|py|md|png|jinja)\b|"
    r"\w+_\w+|\b\w+=\w+"
)
"""Names, flags, paths and code, which are the same in every language."""
SHOWN = ("aria-label", "title", "placeholder", "alt", "data-label", "data-options", "data-placeholder", "data-tooltip")


NOTHING = Problem("sem plano")


class Words(HTMLParser):
    """The texts of a page that a person reads or hears."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._hidden = self._foreign = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if ("lang", "en") in attrs or self._foreign:  # marked as English: a reason that is seldom
            self._foreign += tag == "span"
        self._hidden += tag in ("pre", "code", "script", "style")
        for name, value in attrs:
            if name in SHOWN and value:
                self.texts += _told(value)

    def handle_endtag(self, tag: str) -> None:
        self._foreign -= bool(self._foreign) and tag == "span"
        self._hidden -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden and not self._foreign and data.strip():
            self.texts.append(data.strip())


def _told(value: str) -> list[str]:
    """The texts in an attribute: marimo's are JSON, of HTML again."""
    try:
        found = json.loads(value)
    except ValueError:
        return [value]
    if isinstance(found, str):
        return texts_of(found)
    return [text for part in (found if isinstance(found, list) else []) for text in _told(json.dumps(part))]


def texts_of(html: str) -> list[str]:
    """All texts in HTML."""
    reader = Words()
    reader.feed(html)
    reader.close()
    return reader.texts


def english_in(texts: list[str], names: tuple[str, ...] = ()) -> list[str]:
    """The texts that have an English word, without those that are names."""
    left = [(text, NAMES.sub(" ", re.sub("|".join(map(re.escape, names)) or "(?!)", " ", text))) for text in texts]
    return [text for text, rest in left if ENGLISH & {word.lower() for word in re.findall(r"[^\W\d_]+", rest)}]


def test_english_is_found_and_portuguese_is_not():
    html = (
        '<p title="The loss">Passo <b>3 of 4</b></p><marimo-x data-label="&quot;&lt;i&gt;Save every&lt;/i&gt;&quot;">'
    )
    assert english_in(texts_of(html)) == ["The loss", "3 of 4", "Save every"]
    assert (
        english_in(texts_of("<p>Passo 3 de 4: a perda não desce. Se for preciso, no fim.</p><pre>the log</pre>")) == []
    )
    assert english_in(["Use --several-answers first.", "treino do best"], ("best",)) == []


@pytest.fixture(autouse=True)
def portuguese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translations, "find_language", lambda: "pt")


@pytest.fixture
def speaks(request: pytest.FixtureRequest) -> Callable[..., None]:
    """A function that takes what the page shows, and fails where it is English or has a number written in English."""

    def check(*outputs: Any, names: tuple[str, ...] = ()) -> None:
        for output in outputs:
            if output is None:
                continue
            texts = texts_of(output if isinstance(output, str) else page.look.html_of(output))
            assert english_in(texts, ("tiny-llama", *names)) == []
            assert [text for text in texts if re.search(r"\d\.\d+ ?(?:GB|MB|s|%|M)(?!\w)", text)] == []

    return check


# A run in every state -------------------------------------------------------------------------------------------


@pytest.fixture
def tracker(tmp_path: Path) -> TrainingTracker:
    return TrainingTracker(tmp_path / "runs")


@pytest.fixture
def make(tracker: TrainingTracker) -> Iterator[Callable[..., RunWriter]]:
    """A run that is being written, with some steps."""

    def made(name: str = "clube", steps: int = 8) -> RunWriter:
        run = Run(tracker.runs_dir / name)
        run.path.mkdir(parents=True)
        (run.path / "config.json").write_text("{}", encoding="utf-8")
        writer = RunWriter(run, RunLock(run.path))
        held.enter_context(writer)
        writer.set_status("running", step=0, total_steps=12_000)
        writer.log("start", step=0, total_steps=12_000, steps_per_epoch=4, epochs=3_000, val_tokens=60, device="CPU")
        for number in range(1, steps + 1):
            writer.log("step", step=number, epoch=1, train_loss=2.0, learning_rate=1e-3, grad_norm=1.0, tokens=100,
                       seconds=0.5, tokens_per_second=200.0, peak_memory_bytes=2_000_000_000,
                       available_memory_bytes=9_000_000_000)  # fmt: skip
        writer.log("eval", step=steps, val_loss=1.5, perplexity=4.5, seconds=1.0, best=True)
        writer.log("checkpoint", step=steps, bytes=5_000_000, seconds=1.0)
        writer.beat(step=steps)
        return writer

    with contextlib.ExitStack() as held:
        made.held = held
        yield made


def panels_of(tracker: TrainingTracker, plan: Any = NOTHING) -> list[Any]:
    """Everything that the page shows of the run that is looked at."""
    watcher = RunWatcher(tracker)
    seen = watcher.look(plan)
    run = watcher.run
    shown = [training.run_panel(seen), *training.controls(plan, watcher), training.run_charts(seen)]
    shown += [training.checkpoints(seen), training.diagnosis(seen), training.run_menu(tracker, watcher)]
    shown += [page.results.performance(run), page.results.generation_test(run), page.results.next_steps(run, tracker)]
    shown += [page.results.saved(run), page.results.integration(run)]
    shown += [training.time_left(seen), training.stage_words(seen), *map(str, training.state_words(seen)[:1])]
    return shown


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_at_work(make, tracker, speaks, stage):
    writer = make()
    writer.working(Activity(stage, 1_234, 1_000))
    speaks(*panels_of(tracker))


@pytest.mark.parametrize("asked", ["pause", "stop", "skip"])
@pytest.mark.parametrize("stage", ["", "validation", "samples", "evaluation"])
def test_a_run_that_was_asked_to_end(make, tracker, speaks, asked, stage):
    writer = make()
    writer.working(Activity(stage, 40, 10) if stage else None)
    writer.run.request(asked)
    speaks(*panels_of(tracker))


@pytest.mark.parametrize("state", ["preparing", "running", "paused", "stopped", "completed", "failed"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_run_in_every_state(make, tracker, speaks, state, alive):
    writer = make()
    writer.set_status(state)
    if not alive:
        make.held.close()
    speaks(*panels_of(tracker))


def test_before_there_is_a_run(tracker, speaks):
    speaks(*panels_of(tracker), page.results.runs_overview(tracker), page.comparing.run_choice(tracker))


def test_numbers_and_dates_of_a_run(make, tracker):
    writer = make()
    writer.set_status("paused", step=9_298)
    text = page.look.html_of(training.run_panel(RunWatcher(tracker).look(NOTHING))).replace("\u00a0", "_")
    for wanted in ("9_298 / 12_000", "2,000", "9,00 GB", "200 tokens/s"):
        assert wanted in text


# Warnings -------------------------------------------------------------------------------------------------------


WARNED = {
    "spike": Sentence("step {step}: the gradient is {times} times as large as usual", step=5, times=12),
    "not_finite": Sentence("step {step}: {what} is not finite; the weights stay", step=5,
                           what=Sentence("loss or gradient")),
    "memory": Sentence("step {step}: {reason}; saving", step=5, reason=Sentence(
        "memory is short: {left} GB available, {before} at the first step; {why}", left=0.4, before=3.0,
        why=Sentence("other programs took it"))),
    "patience": Sentence("no better validation loss in {count} validations", count=3),
    "restart": Sentence("not told"),
}  # fmt: skip


def test_warnings_are_gathered_by_kind_with_what_to_do(make, tracker, speaks):
    writer = make(steps=30)
    for kind, message in WARNED.items():
        writer.log("warning", step=5, kind=kind, message=message)
    writer.log("warning", step=12, kind="spike", message=WARNED["spike"])
    seen = RunWatcher(tracker).look(NOTHING)
    found = diagnosis.warnings(seen)
    assert found[0] == (
        "2 picos do gradiente (passos 5, 12). A perda não subiu: nada a fazer. Se tivesse subido: reduza a taxa de "
        "aprendizagem a metade."
    )
    assert len(found) == len(WARNED)
    speaks(training.diagnosis(seen))


def test_a_warning_stays_english_for_old_readers_and_a_plain_one_is_shown_as_it_is(make, tracker, monkeypatch):
    writer = make()
    writer.log("warning", step=5, kind="patience", message=WARNED["patience"])
    writer.log("warning", message="of an older version")
    recorded = [event for event in writer.run.metrics() if event["type"] == "warning"]
    assert recorded[0]["message"] == "no better validation loss in 3 validations"
    seen = RunWatcher(tracker).look(NOTHING)
    assert diagnosis.warnings(seen)[1] == "Of an older version."
    monkeypatch.setattr(translations, "find_language", lambda: "en")
    assert diagnosis.warnings(seen)[0].startswith("No better validation loss in 3 validations. Training ended early")


@pytest.mark.parametrize(
    ("after", "wanted"), [(1.9, "The loss did not rise"), (2.5, "The loss rose after it"), (None, "If the loss rises")]
)
def test_what_a_spike_did_is_read_from_the_loss(make, tracker, monkeypatch, after, wanted):
    monkeypatch.setattr(translations, "find_language", lambda: "en")
    writer = make(steps=10)
    writer.log("warning", step=10, kind="spike", message=WARNED["spike"])
    for number in range(11, 20 if after else 11):
        writer.log("step", step=number, train_loss=after)
    (sentence,) = diagnosis.warnings(RunWatcher(tracker).look(NOTHING))
    assert sentence.startswith("A gradient spike (step 10). ")
    assert wanted in sentence


# Before training ------------------------------------------------------------------------------------------------


def test_forms_and_presets(speaks):
    form = forms.settings_form(RunConfig())
    for name, element in form.elements.items():
        chosen = {"model", "template", "data"}  # fields that hold a name
        speaks(element, names=tuple(RunConfig().data.data) if name in chosen else ())
    typed = ("FILE", "thing ou none", "end ou go on", "keep ou drop", "(all)")  # to be typed like this
    chosen = {"learning_rate": in_language.number(0.002, "g"), "eval_every": "a cada 19 passos"}
    layout = forms.form_layout(form, RunConfig(), chosen, "More about training")
    speaks(layout, forms.preset_menu(), names=typed)
    for preset in PRESETS:
        for size in ("large", "small"):
            speaks(forms.preset_reasons((preset, size)))
    text = layout.text.replace("\u00a0", "_")
    assert "Vazio: automático · 0,002" in text
    assert "Vazio: uma vez por época · a cada 19 passos" in text
    assert "De 1 a 10_000." in text
    assert "cosseno" in text
    assert "0,05" in text


def test_errors_that_a_user_meets_are_told_in_portuguese(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    tokenizer = ChatTokenizer(tiny_model, "auto")
    small = MemoryEstimate(weights=10**9, dense=0, activations=10**8, attention=0, adapters=10**7, logits=10**7)
    (tmp_path / "empty.jsonl").write_text('{"other": 1}\n', encoding="utf-8")
    nothing, missing = DataConfig(data=(str(tmp_path / "empty.jsonl"),)), DataConfig(data=("missing.txt",))
    told = {
        "não há tal ficheiro nem pasta": attempt(data.prepare, missing, tokenizer),
        "nenhum utilizável": attempt(data.prepare, nothing, tokenizer),
        "não há tal pasta nem nome abreviado": attempt(repository_of, "no-such-model"),
        "O que ajuda: fechar outros programas, --batch-size 2": attempt(
            check_before_loading, small, 10**8, RunConfig()
        ),
        "está a ser treinado por outro processo": attempt(raising, being_trained(tmp_path, tmp_path / "lock")),
    }
    for words, problem in told.items():
        assert words in problem.message


def raising(error):
    raise error


def test_what_is_typed_in_portuguese_is_understood():
    form = forms.settings_form(RunConfig())
    values = {**form.value, "learning_rate": "0,004", "max_steps": "12\u00a0000", "val_fraction": "0.1", "epochs": "3"}
    read = forms.read_form(values)
    assert (read["learning_rate"], read["max_steps"], read["val_fraction"], read["epochs"]) == (0.004, 12_000, 0.1, 3)
    assert forms.read_form({**form.value, "learning_rate": ""})["learning_rate"] == 0.0


def test_a_plan(plan, speaks):
    home, planned = plan(run="clube", learning_rate=0.5, warmup_steps=500)
    dataset = make_dataset(planned.data.train, page.model.open_tokenizer(planned.config.base), 512)
    speaks(
        page.model.consequences(planned, dataset, home),
        page.model.information(planned.model, planned.config),
        page.model.quantisations(planned.model, planned.config, dataset),
        page.model.memory_check(planned.model, planned.config, dataset),
        page.model.menu(planned.config.base.model),
        page.model.fetch_button(News()),
        page.machine.setup(Path("treinos")),
        page.machine.check_button(News()),
        page.machine.check(News(running=True)),
        *panels_of(home, planned),
        names=(planned.model.name,),
    )


def test_the_data(tmp_path, tiny_model, speaks):
    long = "palavra " * 300
    told = [{"prompt": f"Pergunta {n}?", "completion": f"Resposta {n}.", "nota": "x"} for n in range(12)]
    told += [{"prompt": "Pergunta 1?", "completion": "Outra."}, {"prompt": "Longa?", "completion": long}]
    told += [
        {"prompt": long, "completion": "Curta."},
        {"prompt": "Com sinal <|im_end|>?", "completion": "Sim, senhor."},
    ]
    path = tmp_path / "linhas.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in told), encoding="utf-8")
    config = RunConfig().data.__class__(data=(str(path),), max_seq_length=100, val_fraction=0.0)
    tokenizer = page.model.open_tokenizer(RunConfig().base.__class__(model=str(tiny_model)))
    prepared = data.prepare(config, tokenizer)
    again = data.prepare(config, tokenizer)  # from the files that were written
    train, validation = (make_dataset(side, tokenizer, 100) for side in (prepared.train, prepared.validation))
    report = describe(train, validation, tokenizer, 100)
    assert len(report.warnings) > 2
    assert prepared.report.warnings
    names = ("palavra", "linhas", "Pergunta", "Resposta")
    for warning in (*report.warnings, *prepared.report.warnings, *again.report.warnings):
        assert english_in([translations.spoken(warning)], names) == []
    found = row_browser.find(prepared, train, validation, {"side": "train", "only": "all", "text": ""})
    form, part = row_browser.row_form(), row_browser.part_form()
    speaks(
        row_browser.row_panel(found, form, part),
        *row_browser.movers(found, lambda _: None),
        row_browser.token_boxes([]),
        rows.source_list(["dados"]),
        rows.nothing_chosen(""),
        rows.length_chart(train.rows.lengths, 100).specification["description"],
        names=names,
    )


# A run that ended -----------------------------------------------------------------------------------------------


@pytest.fixture
def ended(undrawn: Run, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    return Run(shutil.copytree(undrawn.path, tmp_path / "runs" / "clube"))


def test_results(ended, speaks):
    home = TrainingTracker(ended.path.parent)
    names = ("clube", "base", "best", "final", "adapter", "float32", "inference", "trained")
    told = [q["question"] for q in ended.evaluation()["questions"]]
    told += [text for q in ended.evaluation()["questions"] for text in (q["base"], q["tuned"]) if text]
    speaks(
        page.results.runs_overview(home),
        page.results.performance(ended),
        page.results.next_steps(ended, home),
        page.results.saved(ended),
        names=(*names, *told),
    )
    assert re.search(r"\d\d/\d\d/\d{4} \d\d:\d\d", page.results.runs_overview(home).text)
    assert set(PARTS) >= {"training", "validation"}


@pytest.mark.parametrize("kind", FORMATS)
def test_exports(ended, speaks, kind):
    seen = exporting.look(ended)
    speaks(
        exporting.menu(),
        exporting.explained(seen),
        exporting.button(seen, kind),
        exporting.choices_layout(exporting.choices(kind, ("best", "final", "20"))),
        exporting.result(seen, kind),
    )


def test_a_comparison(ended, undrawn, speaks):
    other = Run(shutil.copytree(undrawn.path, ended.path.parent / "outro"))
    home = TrainingTracker(ended.path.parent)
    found = page.comparing.compared(home, dict.fromkeys([ended.name, other.name], True))
    asked = tuple(text for sample in found.samples for text in (sample["question"], *sample["base"], *sample["tuned"]))
    speaks(
        page.comparing.run_choice(home),
        page.comparing.axis_choice(),
        page.comparing.numbers(found),
        page.comparing.settings(found),
        page.comparing.samples(found),
        page.comparing.nothing_chosen(home, page.comparing.compared(home, {})),
        names=(*filter(None, asked), "float32"),
    )


def test_asking(tracker, speaks):
    asker = page.asking.Asker(tracker)
    now = asker.look()
    speaks(
        page.composing.question_form(),
        page.composing.question_form(chat=True),
        *page.asking.controls(now.phase),
        page.asking.side_by_side(now),
        page.asking.bubbles(now),
        page.asking.samples(("", 0, 0)),
        page.asking.who_to_ask(tracker),
        page.asking.new_button(),
    )
    assert doubts.answer(("several_answers", "first"))


# Reasons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        ("page number", "número de página"),
        ("control characters, lost characters", "caracteres de controlo, caracteres perdidos"),
        ('"answer" must be a text, found null', '"answer" tem de ser um texto; está null'),
        ("“livro” was taken for a person, and asked about as one", "«livro» foi tomado por pessoa, e perguntou-se por"),
        ("the prompt is empty, and most rows of the file have one", "está vazio: prompt, e a maioria dos exemplos do"),
        ("nobody ever wrote this reason", "nobody ever wrote this reason"),
    ],
)
def test_reasons_of_the_report_are_told_in_portuguese(reason, wanted):
    assert reasons.told(reason).startswith(wanted)
    assert ("lang" in reasons.cell(reason)) == (reasons.told(reason) == reason)


def test_what_the_reader_writes_is_what_the_page_recognises(tmp_path, tiny_model, speaks):
    """The reasons are those that the data's reader gives now: every one of this file is translated."""
    lines = ['{"prompt": "a", "completion": ""}', "kaputt", "[1]", '{"foo": 1}', '{"text": 3}',
             '{"messages": [{"role": "user", "content": "Ele?"}]}', '{"prompt": "Um?", "completion": "a@b.pt diz."}',
             '{"prompt": "Ol\\u00c3\\u00a1?", "completion": "Bem."}']  # fmt: skip
    (tmp_path / "linhas.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = RunConfig().data.__class__(data=(str(tmp_path / "linhas.jsonl"),), val_fraction=0.0)
    report = data.prepare(config, page.model.open_tokenizer(RunConfig().base.__class__(model=str(tiny_model)))).report
    found = [each.reason for part in (report.rejected, report.mended_rows, report.personal_data) for each in part]
    assert len(found) >= 8
    assert [reason for reason in found if reasons.told(reason) == reason] == []


def test_a_fraction_of_three_digits_stays_one(monkeypatch):
    monkeypatch.setattr(translations, "find_language", lambda: "pt")
    assert translations.say("loss {loss}", loss=in_language.number(1.659, ".3f")) == "perda 1,659"
    assert translations.say("loss {loss}", loss=in_language.number(1659)) == "perda 1\u00a0659"
    assert translations.say("loss {loss}", loss="1,659") == "perda 1\u00a0659"  # as English writes a whole number

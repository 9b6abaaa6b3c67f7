"""Fine-tune a language model with QLoRA: open it with `marimo edit` or `marimo run`, or run it with `python`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="QLoRA Notebook", css_file="page.css", html_head_file="keys.html")

with app.setup:
    import sys
    from pathlib import Path

    import marimo as mo

    from qlora_core import first_words

    if __name__ == "__main__" and mo.app_meta().mode not in ("edit", "run"):  # a script
        first_words.greet(sys.argv[1:])
    from qlora_core import page
    from qlora_core.page import attempt


@app.cell(hide_code=True)
def title():
    page.title(
        "QLoRA Notebook",
        "Pick a model and your files, and press Start. Training runs in the background; you can close this page.",
    )
    return


@app.cell
def imports():
    # They take longer than all above, which does not wait for them
    from qlora_core import data
    from qlora_core.config import RunConfig
    from qlora_core.jobs.planning import train_planned
    from qlora_core.machine.memory import MemoryMonitor
    from qlora_core.reports import console
    from qlora_core.runs.plan import TrainingTracker
    from qlora_core.tokens.dataset import make_dataset
    from qlora_core.tokens.report import describe

    return (
        MemoryMonitor,
        RunConfig,
        TrainingTracker,
        console,
        data,
        describe,
        make_dataset,
        train_planned,
    )


@app.cell
def command_line():
    flags = page.forms.read_flags(sys.argv[1:])
    page.complain(flags.problem)
    return (flags,)


@app.cell
def errands():
    # Commands that run beside the page: `qlora doctor` measures, `qlora models --fetch` fetches a base
    doctor, fetcher = page.commands.Errand(), page.commands.Errand()
    get_measured, follow_doctor = page.watching.followed(doctor.look())
    get_fetched, follow_fetcher = page.watching.followed(fetcher.look())
    return (
        doctor,
        fetcher,
        follow_doctor,
        follow_fetcher,
        get_fetched,
        get_measured,
    )


@app.cell
def steps(get_phase, pause_button, start_button, stop_button, watcher):
    # What stays in view, with the line below it
    page.view(
        page.steps.chooser,
        __file__,
        page.training.suggested_step(get_phase()),
        page.navigation.links("", others=True, run=watcher.run.name if watcher.run else ""),
        page.training.bar_buttons(watcher, start_button, pause_button, stop_button),
    )
    return


@app.cell
def run_line(get_snapshot):
    page.view(page.bar.line, get_snapshot())
    return


@app.cell(hide_code=True)
def prepare_step():
    page.steps.step("prepare")
    return


@app.cell
def chosen_by_program():
    # What settings that are left empty mean now, known when the run is planned; forms show it, and are not made anew
    get_chosen_now, follow_chosen_now = page.watching.followed({})
    return follow_chosen_now, get_chosen_now


@app.cell
def model_menu(flags):
    known_model = page.model.menu(flags.config.base.model)
    known_model
    return (known_model,)


@app.cell
def model_name(flags, known_model):
    named_model = page.model.name_field(known_model.value, flags.config.base.model)
    named_model
    return (named_model,)


@app.cell
def fetch(base_config, fetch_base, get_fetched, get_presence):
    page.view(page.model.fetching, base_config.base, get_presence(), get_fetched(), fetch_base)
    return


@app.cell
def model_problem(model, tokenizer):
    page.complain(tokenizer, model)
    return


@app.cell
def chosen_sources(flags):
    # What the text area begins with: the flags, then whatever was last chosen by browsing
    get_sources, set_sources = mo.state(flags.config.data.data)
    return get_sources, set_sources


@app.cell
def source_list(get_sources):
    source_list = page.rows.source_list(get_sources())
    page.view(page.rows.sources, source_list)
    return (source_list,)


@app.cell
def source_browser(set_sources):
    source_browser = page.rows.source_browser(set_sources)
    page.view(page.rows.browsing, source_browser)
    return (source_browser,)


@app.cell
def source_drop(set_sources):
    source_drop = page.rows.drop_area(set_sources)
    source_drop
    return


@app.cell
def data_in_short(prepared, source_list):
    page.view(page.rows.nothing_chosen, source_list.value) or page.view(page.rows.in_short, prepared)
    return


@app.cell
def preset_menu():
    preset = page.forms.preset_menu()
    preset
    return (preset,)


@app.cell
def first_settings(flags, preset):
    # What the forms below begin with; choosing another preset begins them anew
    start = attempt(page.forms.with_preset, flags, preset.value)
    page.complain(start) or page.view(page.forms.preset_reasons, preset.value)
    return (start,)


@app.cell
def preset_in_script(console, flags):
    if flags.preset:
        flags.show(f"Preset {flags.preset}", console.preset_reasons, flags.preset, flags.config)
    return


@app.cell
def consequences(plan, tracker, train_dataset):
    page.view(page.model.consequences, plan, train_dataset, tracker)
    return


@app.cell
def memory_check(config, model, train_dataset):
    page.view(page.model.memory_check, model, config, train_dataset)
    return


@app.cell
def obstacles(flags):
    page.view(page.machine.obstacles, Path(flags.config.place.runs_dir))
    return


@app.cell
def start_here(get_phase, plan, start_button, watcher):
    get_phase()
    page.training.start_row(plan, watcher, start_button)
    return


@app.cell
def settings_to_take_along(config):
    page.view(page.keeping.to_take_along, config)
    return


@app.cell(hide_code=True)
def machine_heading():
    page.steps.fold("This computer")
    return


@app.cell
def machine(console, flags):
    flags.report("", console.machine) or page.view(page.machine.setup, Path(flags.config.place.runs_dir))
    return


@app.cell
def memory(MemoryMonitor):
    memory_monitor = MemoryMonitor()
    page.view(page.machine.memory_now, memory_monitor)
    return (memory_monitor,)


@app.cell
def device_button(get_measured):
    check_device = page.machine.check_button(get_measured())
    None if page.language.read_only() else check_device
    return (check_device,)


@app.cell
def device(get_measured):
    page.view(page.machine.check, get_measured())
    return


@app.cell(hide_code=True)
def model_heading():
    page.steps.fold(
        "Base model",
        "The model you start from. Your text is checked first, before anything large is downloaded.",
    )
    return


@app.cell
def model_form(flags):
    base_form = page.model.base_form(flags.config)
    return (base_form,)


@app.cell
def base_settings(base_form, flags, known_model, named_model):
    base_config = attempt(
        page.model.read_base_form,
        flags.config,
        base_form.value,
        known_model.value,
        page.forms.sent(named_model),
    )
    # Whether its files are here; what has arrived changes every second while it is fetched, `files` once or twice
    get_presence, get_files, follow_presence = page.watching.followed(
        page.model.presence(base_config.base), "", "files"
    )
    return base_config, follow_presence, get_files, get_presence


@app.cell
def model_fields(base_config, base_form, get_chosen_now):
    page.forms.form_layout(base_form, base_config, get_chosen_now(), "Quantisation and chat template")
    return


@app.cell
def fetch_button(get_fetched):
    fetch_base = page.model.fetch_button(get_fetched())
    return (fetch_base,)


@app.cell
def send_errands(base_config, check_device, doctor, fetch_base, fetcher, follow_doctor, follow_fetcher):
    if check_device.value:
        doctor.send("doctor")
        follow_doctor(doctor.look())
    if fetch_base.value:
        fetcher.send("models", "--fetch", base_config.base.model)
        follow_fetcher(fetcher.look())
    return


@app.cell
def tokenizer(base_config, get_files):
    get_files()
    tokenizer = attempt(page.model.find_tokenizer, base_config.base)
    return (tokenizer,)


@app.cell
def model(base_config, get_files, tokenizer):
    get_files()
    model = attempt(page.model.find_base, base_config.base, tokenizer)
    return (model,)


@app.cell(hide_code=True)
def data_heading():
    page.steps.fold(
        "Data",
        "What cannot be used, or was repaired, is listed with its file and line.",
    )
    return


@app.cell
def paths(start):
    data_form = page.rows.data_form(start)
    return (data_form,)


@app.cell
def chosen_guesses():
    # What was chosen among the guesses below, and the text that "Show" looks for in the rows
    get_chosen, set_chosen = mo.state(())
    get_sought, set_sought = mo.state("")
    return get_chosen, get_sought, set_chosen, set_sought


@app.cell
def directories(data_form, get_chosen, source_list, start):
    CHECKPOINTS_DIR = Path(data_form.value.get("runs_dir", start.place.runs_dir))
    data_config = attempt(page.rows.read_data_form, start, data_form.value, source_list.value, get_chosen())
    return CHECKPOINTS_DIR, data_config


@app.cell
def data_fields(data_config, data_form, get_chosen_now):
    page.forms.form_layout(data_form, data_config, get_chosen_now(), "How it is cut and split, and where runs lie")
    return


@app.cell
def load_validate_split(console, data, data_config, flags, tokenizer):
    # Rows, biographies and fact sheets are read and checked, and split by a hash of their content
    prepared = attempt(data.prepare, data_config.data, tokenizer)
    flags.report("Data", console.data_counts, prepared.report)
    page.complain(prepared) or page.view(page.rows.data_report, prepared)
    return (prepared,)


@app.cell(hide_code=True)
def processed_data():
    page.remark(
        "Every run keeps a copy of its prepared rows. To save them elsewhere: uv run qlora data SOURCE… --out DIRECTORY"
    )
    return


@app.cell(hide_code=True)
def guesses_heading():
    page.steps.fold("To decide in the data", "What was guessed while reading it, and what else it may mean.", open=True)
    return


@app.cell
def guess_buttons(prepared, set_chosen, set_sought):
    guess_buttons = attempt(page.doubts.buttons, prepared, set_chosen, set_sought)
    return (guess_buttons,)


@app.cell
def guesses(get_chosen, guess_buttons, prepared):
    page.view(page.doubts.panel, prepared, guess_buttons, get_chosen())
    return


@app.cell(hide_code=True)
def qlora_heading():
    page.steps.fold(
        "Adapters (QLoRA)",
        "The base model stays frozen; small adapters beside its layers are trained.",
    )
    return


@app.cell
def qlora_form(start):
    lora_form = page.forms.settings_form(start, "lora")
    return (lora_form,)


@app.cell
def qlora_configuration(lora_form, start):
    lora_config = attempt(page.forms.read_forms, start, lora_form.value)
    return (lora_config,)


@app.cell
def qlora_fields(get_chosen_now, lora_config, lora_form):
    page.forms.form_layout(lora_form, lora_config, get_chosen_now(), "More about the adapters")
    return


@app.cell(hide_code=True)
def training_configuration_heading():
    page.steps.fold("Training settings")
    return


@app.cell
def training_form(start):
    train_form = page.forms.settings_form(start, "train", "pace")
    return (train_form,)


@app.cell
def training_configuration(start, train_form):
    train_config = attempt(page.forms.read_forms, start, train_form.value)
    return (train_config,)


@app.cell
def training_fields(get_chosen_now, train_config, train_form):
    page.forms.form_layout(train_form, train_config, get_chosen_now(), "More about training")
    return


@app.cell
def configuration(RunConfig, base_config, data_config, lora_config, train_config):
    config = attempt(
        RunConfig,
        base=base_config.base,
        data=data_config.data,
        lora=lora_config.lora,
        train=train_config.train,
        pace=train_config.pace,
        place=data_config.place,
    )
    page.complain(config)
    return (config,)


@app.cell(hide_code=True)
def information_heading():
    page.steps.fold("Model information", "Read from the model’s files; weights are loaded only when training starts.")
    return


@app.cell
def model_information(config, console, flags, model):
    flags.report("Model", console.model_information, model, config)
    page.view(page.model.information, model, config)
    return


@app.cell(hide_code=True)
def datasets_heading(get_sought):
    page.steps.fold(
        "Rows",
        "What the model will learn, row by row. The loss counts replies and running text, never questions.",
        open=bool(get_sought()),  # “Show” above looks for rows here
    )
    return


@app.cell
def datasets(console, data_config, describe, flags, make_dataset, prepared, tokenizer):
    _longest = data_config.data.max_seq_length
    train_dataset = attempt(make_dataset, prepared.train, tokenizer, _longest)
    val_dataset = attempt(make_dataset, prepared.validation, tokenizer, _longest)
    described = attempt(describe, train_dataset, val_dataset, tokenizer, _longest)
    flags.report("Datasets", console.token_counts, described)
    page.complain(train_dataset, val_dataset, described) or page.view(
        page.rows.token_figures, described, train_dataset, val_dataset
    )
    return train_dataset, val_dataset


@app.cell
def row_form(get_sought):
    row_form = page.row_browser.row_form(get_sought())
    row_part = page.row_browser.part_form()
    return row_form, row_part


@app.cell
def rows_found(prepared, row_form, train_dataset, val_dataset):
    found = attempt(page.row_browser.find, prepared, train_dataset, val_dataset, row_form.value)
    get_place, set_place = mo.state(0)
    return found, get_place, set_place


@app.cell
def row_panel(found, row_form, row_part):
    page.view(page.row_browser.row_panel, found, row_form, row_part)
    return


@app.cell
def row_movers(found, set_place):
    row_movers = attempt(page.row_browser.movers, found, set_place)
    page.view(page.row_browser.movers_row, found, row_movers)
    return


@app.cell
def row_view(data_config, found, get_place, row_part, tokenizer):
    page.view(page.row_browser.row_view, found, get_place(), tokenizer, data_config, row_part.value)
    return


@app.cell(hide_code=True)
def functions_heading():
    page.steps.fold(
        "The training loop",
        "The learning rate, and an epoch and a validation as the trainer runs them.",
    )
    return


@app.cell
def tracker(CHECKPOINTS_DIR, TrainingTracker):
    tracker = TrainingTracker(CHECKPOINTS_DIR)
    watcher = page.watching.RunWatcher(tracker, next(iter(page.navigation.asked_runs()), ""))
    return tracker, watcher


@app.cell
def plan(
    config,
    console,
    flags,
    model,
    prepared,
    tokenizer,
    tracker,
    train_dataset,
    val_dataset,
):
    # Training takes this value alone: without tracker, model, tokenizer and datasets it cannot exist
    plan = attempt(tracker.plan, config, model, tokenizer, prepared, train_dataset, val_dataset)
    page.complain(plan) or flags.report("Training", console.training_plan, plan)
    return (plan,)


@app.cell
def chosen_now(follow_chosen_now, plan):
    follow_chosen_now(page.model.chosen_now(plan))
    return


@app.cell
def warmup_scheduler(plan):
    page.view(page.training.rate_chart, plan)
    return


@app.cell
def train_epoch_and_validate_model():
    page.view(
        page.source.source_of,
        "training.loop.train_epoch",
        "training.steps.train_step",
        "training.steps.validate_model",
    )
    return


@app.cell(hide_code=True)
def train_step():
    page.steps.step("train")
    return


@app.cell
def view_state(plan, watcher):
    # True from the start: buttons made anew right after the page opened would lose an early click
    get_snapshot, get_drawn, get_phase, follow_run = page.watching.followed(
        watcher.look(plan, watcher.chosen), "version", "drawing", "phase"
    )
    return follow_run, get_drawn, get_phase, get_snapshot


@app.cell
def start_pause_stop(get_phase, plan, watcher):
    get_phase()
    start_button, pause_button, stop_button = page.training.controls(plan, watcher)
    return pause_button, start_button, stop_button


@app.cell
def training(flags, memory_monitor, plan, start_button, tracker, train_planned):
    exit_status = None
    if page.scripted():
        exit_status = attempt(train_planned, tracker, plan, monitor=memory_monitor, as_json=flags.as_json)
    page.training.start(tracker, plan) if start_button.value else None
    return (exit_status,)


@app.cell
def requests(pause_button, stop_button, watcher):
    if pause_button.value:
        watcher.request("pause")
    if stop_button.value:
        watcher.request("stop")
    return


@app.cell
def run_to_look_at(get_phase, tracker, watcher):
    get_phase()
    run_menu = page.training.run_menu(tracker, watcher)
    run_menu
    return (run_menu,)


@app.cell
def ticker():
    tick = page.training.ticker()
    page.view(page.look.unseen, tick)
    return (tick,)


@app.cell
def progress(get_snapshot):
    page.view(page.training.run_panel, get_snapshot())
    return


@app.cell
def chart_settings():
    chart_settings = page.training.chart_settings()
    return (chart_settings,)


@app.cell
def chart_settings_place(chart_settings, get_phase):
    page.view(page.training.chart_settings_row, get_phase(), chart_settings)
    return


@app.cell
def charts(chart_settings, get_drawn):
    page.view(page.training.run_charts, get_drawn(), page.training.chosen_view(chart_settings.value))
    return


@app.cell
def diagnosis(get_drawn):
    page.view(page.training.diagnosis, get_drawn())
    return


@app.cell(hide_code=True)
def samples_heading():
    page.steps.fold("Answers while it learns", open=True)
    return


@app.cell
def samples_state(watcher):
    get_samples_mark, follow_samples = page.watching.followed(page.asking.samples_mark(watcher.run))
    return follow_samples, get_samples_mark


@app.cell
def samples(get_samples_mark):
    page.view(page.asking.samples, get_samples_mark())
    return


@app.cell(hide_code=True)
def log_heading():
    page.steps.fold("Checkpoints and log")
    return


@app.cell
def checkpoints(get_drawn):
    page.view(page.training.checkpoints, get_drawn())
    return


@app.cell
def log(get_drawn):
    page.view(page.training.run_log, get_drawn())
    return


@app.cell(hide_code=True)
def result_step():
    page.steps.step("result")
    return


@app.cell
def nothing_yet(get_phase, tracker, watcher):
    get_phase()
    page.view(page.results.nothing_yet, watcher.run, tracker)
    return


@app.cell(hide_code=True)
def generation_heading():
    page.steps.fold("Generation test", "The same questions to the base and the tuned model.", open=True)
    return


@app.cell
def generation_test(get_phase, watcher):
    get_phase()
    page.view(page.results.generation_test, watcher.run)
    return


@app.cell(hide_code=True)
def verdict_heading():
    page.steps.fold(
        "Did it help?",
        "The base and the tuned model are asked the same, with and without passages of your texts beside the question.",
        open=True,
    )
    return


@app.cell
def verdict_state(watcher):
    # An evaluation is found on disk, as an export is
    get_judged, get_judging, follow_judged = page.watching.followed(
        page.verdict.look(watcher.run, watcher.active), "version", "progress"
    )
    return follow_judged, get_judged, get_judging


@app.cell
def verdict_button(get_judged):
    verdict_button = page.verdict.button(get_judged())
    None if page.language.read_only() or get_judged().run is None else verdict_button
    return (verdict_button,)


@app.cell
def judge(verdict_button, watcher):
    # `qlora evaluate` in a process of its own
    page.view(page.verdict.start, watcher.run) if verdict_button.value else None
    return


@app.cell
def judging(get_judging):
    page.view(page.verdict.progress, get_judging())
    return


@app.cell
def verdict(get_judged):
    page.view(page.verdict.result, get_judged())
    return


@app.cell(hide_code=True)
def inference_heading():
    page.steps.fold("Ask it", open=True)
    return


@app.cell
def asker(tracker):
    asker = page.asking.Asker(tracker)
    get_talk, get_talk_phase, follow_talk = page.watching.followed(asker.look(), "", "phase")
    return asker, follow_talk, get_talk, get_talk_phase


@app.cell
def question_suggestions(get_phase, watcher):
    get_phase()
    suggestions = page.composing.suggestions(watcher.run)
    return (suggestions,)


@app.cell
def question_draft():
    # What the field begins with: a question that could not be asked
    get_draft, set_draft = mo.state(page.composing.NOTHING_WRITTEN)
    return get_draft, set_draft


@app.cell
def question_form(get_draft):
    question = page.composing.question_form(get_draft())
    return (question,)


@app.cell
def question_place(question, suggestions):
    page.view(page.composing.form_place, question, page.composing.suggestions_row(suggestions))
    return


@app.cell
def answer_settings():
    answer_settings = page.composing.answer_settings()
    answer_settings
    return (answer_settings,)


@app.cell
def inference(
    answer_settings,
    asker,
    follow_talk,
    get_draft,
    question,
    set_draft,
    suggestions,
    watcher,
):
    # The process that answers begins with the first question, and is gone when nobody looks any more
    _left = asker.submit(
        watcher.run,
        page.forms.sent(question),
        page.forms.sent(answer_settings),
        page.composing.suggested(suggestions),
    )
    page.composing.put_back(_left, get_draft(), set_draft)
    follow_talk(asker.look())
    return


@app.cell
def talk_buttons(get_talk_phase):
    cancel_button, away_button = page.asking.controls(get_talk_phase().phase)
    swift_tick = page.asking.swift_ticker(get_talk_phase().phase)
    page.view(page.asking.controls_row, get_talk_phase().phase, cancel_button, away_button, swift_tick)
    return away_button, cancel_button, swift_tick


@app.cell
def talk_requests(asker, away_button, cancel_button):
    if cancel_button.value:
        asker.cancel()
    if away_button.value:
        asker.put_away()
    return


@app.cell
def hear(asker, follow_talk, swift_tick):
    # Often, while an answer is being made
    page.forms.sent(swift_tick)
    follow_talk(asker.look())
    return


@app.cell
def answers(get_talk):
    page.view(page.asking.side_by_side, get_talk())
    return


@app.cell(hide_code=True)
def performance_heading():
    page.steps.fold("Performance", open=True)
    return


@app.cell
def performance_metrics(get_phase, watcher):
    get_phase()
    page.view(page.results.performance, watcher.run)
    return


@app.cell(hide_code=True)
def saved_heading():
    page.steps.fold(
        "The saved model",
        "Adapters, a few megabytes each; the base is not copied. Export makes of them what another program needs.",
        open=True,
    )
    return


@app.cell
def export_state(watcher):
    # An export is found on disk, whoever made it: nothing is lost by closing the page meanwhile
    get_exports, get_adapters, get_export_progress, follow_exports = page.watching.followed(
        page.exporting.look(watcher.run), "version", "adapters", "progress"
    )
    return follow_exports, get_adapters, get_export_progress, get_exports


@app.cell
def saved_model(get_exports, get_phase, watcher):
    get_phase(), get_exports()
    page.view(page.results.saved, watcher.run)
    return


@app.cell
def export_kinds(get_exports):
    page.view(page.exporting.explained, get_exports())
    return


@app.cell
def export_menu():
    export_kind = page.exporting.menu()
    None if page.language.read_only() else export_kind
    return (export_kind,)


@app.cell
def export_choices(export_kind, get_adapters):
    # Not drawn anew when an export begins or ends: what was chosen stays
    export_choices = page.exporting.choices(export_kind.value, get_adapters().adapters)
    None if page.language.read_only() else page.exporting.choices_layout(export_choices)
    return (export_choices,)


@app.cell
def export_button(export_kind, get_exports):
    export_button = page.exporting.button(get_exports(), export_kind.value)
    None if page.language.read_only() else export_button
    return (export_button,)


@app.cell
def export(export_button, export_choices, export_kind, watcher):
    # `qlora export` in a process of its own
    page.view(
        page.exporting.start, watcher.run, export_kind.value, export_choices.value
    ) if export_button.value else None
    return


@app.cell
def exported(export_kind, get_export_progress):
    page.view(page.exporting.result, get_export_progress(), export_kind.value)
    return


@app.cell(hide_code=True)
def integration_heading():
    page.steps.fold(
        "Using it elsewhere",
        "The guide that lies beside the adapters, with examples that run as they stand.",
    )
    return


@app.cell
def integration_guide(get_exports, get_phase, watcher):
    get_phase(), get_exports()
    page.view(page.results.integration, watcher.run)
    return


@app.cell(hide_code=True)
def next_heading():
    page.steps.fold("What to do next", open=True)
    return


@app.cell
def what_next(get_phase, tracker, watcher):
    get_phase()
    page.view(page.results.next_steps, watcher.run, tracker, page.language.read_only())
    return


@app.cell(hide_code=True)
def runs_step():
    page.steps.step("runs")
    return


@app.cell
def kept_runs():
    # What came of the last change below; what lists the runs is drawn anew with it
    get_changed, set_changed = mo.state(None)
    return get_changed, set_changed


@app.cell
def final_summary(get_changed, get_phase, tracker):
    get_phase(), get_changed()
    page.view(page.results.runs_overview, tracker)
    return


@app.cell(hide_code=True)
def keeping_heading():
    page.steps.fold("Rename, annotate or delete")
    return


@app.cell
def run_to_change(get_changed, get_phase, tracker):
    get_phase(), get_changed()
    run_to_change = page.keeping.choice(tracker)
    run_to_change
    return (run_to_change,)


@app.cell
def change_form(run_to_change, tracker):
    _name = page.forms.sent(run_to_change)
    change_form = page.keeping.form(tracker, _name)
    sure, delete_button = page.keeping.deletion(tracker, _name)
    page.view(page.keeping.shown_form, change_form, sure, delete_button)
    return change_form, delete_button, sure


@app.cell
def change_run(change_form, delete_button, run_to_change, set_changed, sure, tracker):
    _name = page.forms.sent(run_to_change)
    if page.forms.sent(change_form):
        set_changed(page.keeping.change(tracker, _name, change_form.value))
    if page.forms.sent(delete_button):
        set_changed(page.keeping.delete(tracker, _name, sure.value))
    return


@app.cell
def changed(get_changed):
    get_changed()
    return


@app.cell(hide_code=True)
def comparison_heading():
    page.steps.fold(
        "LoRA and QLoRA",
        "The same adapters on this base at other numbers of bits, by arithmetic on its files; then, of runs "
        "that ended, what was measured.",
        open=True,
    )
    return


@app.cell
def lora_and_qlora(config, model, train_dataset):
    page.view(page.model.quantisations, model, config, train_dataset)
    return


@app.cell
def runs_to_compare(get_phase, tracker):
    get_phase()
    chosen_runs = page.comparing.run_choice(tracker, ended=True)
    return (chosen_runs,)


@app.cell
def runs_to_compare_place(chosen_runs):
    page.view(page.comparing.choice_place, chosen_runs)
    return


@app.cell
def comparison(chosen_runs, tracker):
    compared = attempt(page.comparing.compared, tracker, chosen_runs.value)
    page.complain(compared) or page.view(page.comparing.nothing_chosen, tracker, compared, True)
    return (compared,)


@app.cell
def comparison_axis():
    comparison_axis = page.comparing.axis_choice()
    return (comparison_axis,)


@app.cell
def axis_of_curves(compared, comparison_axis):
    page.view(page.comparing.axis_place, compared, comparison_axis)
    return


@app.cell
def comparison_curves(compared, comparison_axis):
    page.view(page.comparing.curves, compared, comparison_axis.value)
    return


@app.cell
def comparison_numbers(compared):
    page.view(page.comparing.numbers, compared)
    return


@app.cell
def comparison_settings(compared):
    page.view(page.comparing.settings, compared)
    return


@app.cell
def comparison_samples(compared):
    page.view(page.comparing.samples, compared)
    return


@app.cell
def poll_run(follow_exports, follow_judged, follow_run, follow_samples, plan, run_menu, tick, watcher):
    # What changes by itself is looked at here; whatever shows it reads the states that are set when there is news
    tick.value
    follow_run(watcher.look(plan, run_menu.value))
    follow_samples(page.asking.samples_mark(watcher.run))
    follow_exports(page.exporting.look(watcher.run))
    follow_judged(page.verdict.look(watcher.run, watcher.active))
    return


@app.cell
def poll_processes(
    asker,
    base_config,
    doctor,
    fetcher,
    follow_doctor,
    follow_fetcher,
    follow_presence,
    follow_talk,
    tick,
):
    tick.value
    follow_talk(asker.look())
    follow_presence(page.model.presence(base_config.base))
    follow_doctor(doctor.look())
    follow_fetcher(fetcher.look())
    return


@app.cell
def end_of_script(exit_status):
    if exit_status:
        sys.exit(exit_status)
    return


if __name__ == "__main__":
    app.run()

"""Talk to a tuned model or its base: open it with `marimo run` or `marimo edit`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Talk to it", css_file="page.css", html_head_file="keys.html")

with app.setup:
    import sys

    import marimo as mo

    from qlora_core import page
    from qlora_core.runs.plan import TrainingTracker


@app.cell(hide_code=True)
def pages():
    page.navigation.links("/chat")
    return


@app.cell(hide_code=True)
def title():
    page.title(
        "Talk to it",
        "A conversation with a tuned model, or with its base. It is loaded in a process of its own when the first "
        "message is sent; leaving this page frees its memory.",
    )
    return


@app.cell
def command_line():
    flags = page.forms.read_flags(sys.argv[1:])
    page.complain(flags.problem)
    return (flags,)


@app.cell
def tracker(flags):
    tracker = TrainingTracker(flags.config.place.runs_dir)
    return (tracker,)


@app.cell
def who(tracker):
    choice = page.asking.who_to_ask(tracker, page.navigation.asked_runs())
    return (choice,)


@app.cell
def compare(choice):
    compare = page.asking.compare_box(choice.value)
    return (compare,)


@app.cell
def asker(tracker):
    asker = page.asking.Asker(tracker)
    get_talk, get_talk_phase, get_outline, get_memory, follow_talk = page.watching.followed(
        asker.look(), "", "phase", "outline", "memory"
    )
    return asker, follow_talk, get_memory, get_outline, get_talk, get_talk_phase


@app.cell
def buttons(get_talk_phase):
    stop_button, away_button = page.asking.controls(get_talk_phase().phase)
    new_button = page.asking.new_button()
    swift_tick = page.asking.swift_ticker(get_talk_phase().phase)
    return away_button, new_button, stop_button, swift_tick


@app.cell
def controls(away_button, choice, compare, new_button, swift_tick, tracker):
    page.view(page.asking.chat_controls, tracker, choice, compare, new_button, away_button, swift_tick)
    return


@app.cell
def base_model(choice, flags):
    model_name = page.asking.model_name(choice.value, flags.config.base.model)
    model_name
    return (model_name,)


@app.cell
def memory_before(choice, model_name, tracker):
    memory_before = page.view(page.asking.memory_before, tracker, choice.value, page.forms.sent(model_name))
    return (memory_before,)


@app.cell
def memory(get_memory, memory_before):
    page.view(page.asking.about_memory, get_memory(), memory_before)
    return


@app.cell
def suggestions(choice, tracker):
    suggestions = page.composing.suggestions(page.asking.run_to_ask(tracker, choice.value))
    return (suggestions,)


@app.cell
def draft():
    # What the field begins with: a message to be asked anew, or one that could not be asked
    get_draft, set_draft = mo.state(page.composing.NOTHING_WRITTEN)
    return get_draft, set_draft


@app.cell
def edits(get_outline, set_draft):
    edits = page.asking.edit_buttons(get_outline(), set_draft)
    return (edits,)


@app.cell
def conversation(edits, get_talk, suggestions):
    page.view(page.asking.bubbles, get_talk(), edits, page.composing.suggestions_row(suggestions))
    return


@app.cell
def message_form(get_draft, set_draft):
    message = page.composing.question_form(get_draft(), chat=True)
    cancel_edit = page.composing.cancel_button(get_draft(), set_draft)
    return cancel_edit, message


@app.cell
def composer(cancel_edit, get_talk_phase, message, stop_button):
    page.view(page.asking.composer, message, get_talk_phase().phase, stop_button, cancel_edit)
    return


@app.cell
def answer_settings():
    settings = page.composing.answer_settings()
    settings
    return (settings,)


@app.cell
def send(
    asker,
    choice,
    compare,
    follow_talk,
    get_draft,
    message,
    model_name,
    set_draft,
    settings,
    suggestions,
):
    _left = asker.send(
        choice.value,
        page.forms.sent(model_name),
        page.forms.sent(message),
        page.forms.sent(settings),
        suggestion=page.composing.suggested(suggestions),
        compare=bool(page.forms.sent(compare)),
        turn=get_draft().turn,
    )
    page.composing.put_back(_left, get_draft(), set_draft)
    follow_talk(asker.look())
    return


@app.cell
def requests(asker, away_button, follow_talk, new_button, set_draft, stop_button):
    if stop_button.value:
        asker.cancel()
    if new_button.value:
        asker.clear()
        set_draft(page.composing.NOTHING_WRITTEN)
        follow_talk(asker.look())
    if away_button.value:
        asker.put_away()
    return


@app.cell
def ticker():
    # A sign that the page is still open; without one the model is put away
    tick = mo.ui.refresh(options=["5s"], default_interval="5s")
    page.view(page.look.unseen, tick)
    return (tick,)


@app.cell
def follow(asker, follow_talk, swift_tick, tick):
    tick.value
    page.forms.sent(swift_tick)
    follow_talk(asker.look())
    return


if __name__ == "__main__":
    app.run()

"""Talk to a tuned model or its base: open it with `marimo run` or `marimo edit`."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Talk to it", css_file="page.css")

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
    page.view(page.asking.choice_place, tracker, choice)
    return (choice,)


@app.cell
def base_model(choice, flags):
    model_name = page.asking.model_name(choice.value, flags.config.base.model)
    model_name
    return (model_name,)


@app.cell
def memory(choice, model_name, tracker):
    page.view(page.asking.memory_before, tracker, choice.value, page.asking.sent(model_name))
    return


@app.cell
def asker(tracker):
    asker = page.asking.Asker(tracker)
    get_talk, get_talk_phase, follow_talk = page.watching.followed(asker.look(), "", "phase")
    return asker, follow_talk, get_talk, get_talk_phase


@app.cell
def conversation(get_talk):
    page.view(page.asking.bubbles, get_talk())
    return


@app.cell
def message_form():
    message = page.asking.question_form(chat=True)
    page.view(page.asking.form_place, message)
    return (message,)


@app.cell
def send(asker, choice, follow_talk, message, model_name):
    asker.send(choice.value, page.asking.sent(model_name), page.asking.sent(message))
    follow_talk(asker.look())
    return


@app.cell
def buttons(get_talk_phase):
    stop_button, away_button = page.asking.controls(get_talk_phase().phase)
    new_button = page.asking.new_button()
    swift_tick = page.asking.swift_ticker(get_talk_phase().phase)
    page.view(page.asking.controls_row, stop_button, new_button, away_button, swift_tick)
    return away_button, new_button, stop_button, swift_tick


@app.cell
def requests(asker, away_button, follow_talk, new_button, stop_button):
    if stop_button.value:
        asker.cancel()
    if new_button.value:
        asker.clear()
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
    page.asking.sent(swift_tick)
    follow_talk(asker.look())
    return


if __name__ == "__main__":
    app.run()

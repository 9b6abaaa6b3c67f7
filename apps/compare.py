"""Compare runs: their curves over each other, settings that differ, numbers and answers side by side."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="Compare runs", css_file="page.css")

with app.setup:
    import sys

    import marimo as mo

    from qlora_core import page
    from qlora_core.page import attempt, comparing
    from qlora_core.runs.plan import TrainingTracker
    from qlora_core.translations import say


@app.cell(hide_code=True)
def pages():
    page.navigation.links("/compare")
    return


@app.cell(hide_code=True)
def title():
    page.title("Compare runs", "Overlaid curves, settings that differ, numbers and answers side by side.")
    return


@app.cell
def command_line():
    flags = page.forms.read_flags(sys.argv[1:])
    page.complain(flags.problem)
    return (flags,)


@app.cell
def reload_button():
    reload = mo.ui.button(label=say("Refresh"))
    return (reload,)


@app.cell
def tracker(flags, reload):
    reload.value
    tracker = TrainingTracker(flags.config.place.runs_dir)
    return (tracker,)


@app.cell
def run_menu(reload, tracker):
    chosen = comparing.run_choice(tracker, page.navigation.asked_runs())
    return (chosen,)


@app.cell
def run_menu_place(chosen, reload):
    mo.vstack([part for part in (comparing.choice_place(chosen), reload) if part is not None])
    return


@app.cell
def comparison(chosen, tracker):
    found = attempt(comparing.compared, tracker, chosen.value)
    page.complain(found) or page.view(comparing.nothing_chosen, tracker, found)
    return (found,)


@app.cell(hide_code=True)
def curves_heading():
    page.section("Curves", "One line per run.")
    return


@app.cell
def axis_menu():
    axis = comparing.axis_choice()
    return (axis,)


@app.cell
def axis_place(axis, found):
    page.view(comparing.axis_place, found, axis)
    return


@app.cell
def curves(axis, found):
    page.view(comparing.curves, found, axis.value)
    return


@app.cell(hide_code=True)
def settings_heading():
    page.section("Settings that differ")
    return


@app.cell
def settings(found):
    page.view(comparing.settings, found)
    return


@app.cell(hide_code=True)
def numbers_heading():
    page.section("Numbers", "What the runs are and what came of them; of runs that go on, what there is so far.")
    return


@app.cell
def numbers(found):
    page.view(comparing.numbers, found)
    return


@app.cell(hide_code=True)
def samples_heading():
    page.section("Answers", "The same questions, put to the base and to each tuned model when training ended.")
    return


@app.cell
def samples(found):
    page.view(comparing.samples, found)
    return


if __name__ == "__main__":
    app.run()

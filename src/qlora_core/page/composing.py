"""Elements to write a question with: the field, suggested questions, settings of answers, and buttons for messages.

marimo's own chat element does not do: it shows answers as Markdown, which fetches the images that a text names, has
room for one answer a question, and its own words are English alone. These are marimo's form elements; the script of
`apps/keys.html` lets the Enter key send and a button copy. Knows nothing of the process that answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..runs.run import Run
from ..translations import say
from .language import read_only
from .look import html_of, joined, put, shown, small

SUGGESTED = 4  # questions offered
LONGEST_SUGGESTED = 120  # characters of one


@dataclass(frozen=True)
class Draft:
    """The text that a field begins with.

    Attributes:
        text: the text in it.
        turn: number of the turn, from 0, that it is to replace, and all turns after it; None: none.
    """

    text: str = ""
    turn: int | None = None


NOTHING_WRITTEN = Draft()


def question_form(draft: Draft = NOTHING_WRITTEN, *, chat: bool = False) -> Any:
    """Return a form for a question, emptied when it is sent by Enter or its button; None on a read-only page."""
    if read_only():
        return None
    label = say("Question") if not chat else say("Message") if draft.turn is None else say("Message to ask anew")
    field = mo.ui.text_area(
        draft.text,
        label=label,
        rows=2,
        full_width=True,
        debounce=False,
        placeholder=say("Enter sends, Shift+Enter begins a new line"),
    )
    html = put('<div class="q-message">{}</div>', Markup("{question}"))
    return mo.Html(str(html)).batch(question=field).form(
        submit_button_label=say("Send") if chat else say("Ask"),
        submit_button_tooltip=say("Enter, or Ctrl+Enter"),
        bordered=False,
        clear_on_submit=True,
    )  # fmt: skip


def form_place(form: Any, *below: Any) -> Any:
    """Return the form with what belongs below it, or why there is none."""
    if form is None:
        return small(say("This page is only to be looked at: it asks for no answers."))
    field = shown(put('<div class="q-composer"><div>{}</div></div>', html_of(form)))
    return mo.vstack([field, *(part for part in below if part is not None)], gap=0.5)


def put_back(left: Draft | None, now: Draft, write: Callable[[Draft], Any]) -> None:
    """Empty the field after a question, or write back what could not be asked.

    Args:
        left: what is to stand in the field; None if nothing was asked.
        now: what the field began with.
        write: sets what it begins with.
    """
    if left is not None and left != now:
        write(left)


def answer_settings() -> Any:
    """Return fields for the length and the choice of an answer's tokens, folded away; None on a read-only page."""
    if read_only():
        return None
    elements: dict[str, Any] = {
        "max_tokens": mo.ui.number(1, 4096, step=1, value=200, label=say("Longest answer (tokens)"), full_width=True),
        "temperature": mo.ui.number(0, 5, step=0.1, value=0, label=say("Temperature"), full_width=True),
        "top_p": mo.ui.number(0.01, 1, step=0.01, value=1, label=say("Top p"), full_width=True),
        "seed": mo.ui.number(0, 2**31 - 1, step=1, value=0, label=say("Seed"), full_width=True),
        "system": mo.ui.text_area(label=say("System message"), rows=2, full_width=True),
    }
    sampling = [put("<div>{}</div>", Markup(f"{{{name}}}")) for name in ("max_tokens", "temperature", "top_p", "seed")]
    template = put(
        '<details class="q-folded q-ask"><summary>{}</summary><div class="q-fields">{}</div>'
        '<p class="q-small">{}</p>{}</details>',
        say("How it answers"),
        joined(sampling),
        say("Temperature 0 takes the likeliest token every time; above, answers vary with the seed."),
        Markup("{system}"),
    )
    return mo.Html(str(template)).batch(**elements)


# Suggestions ----------------------------------------------------------------------------------------------------


def suggested_questions(run: Run | None) -> list[str]:
    """Return a few short questions of a run's fact sheet, else of the samples asked during training."""
    if run is None or not run.exists:
        return []
    asked = [fact["questions"][0] for fact in run.facts()] or [str(row.get("question", "")) for row in run.samples()]
    fitting = (text for text in dict.fromkeys(asked) if 0 < len(text) <= LONGEST_SUGGESTED and "\n" not in text)
    return list(itertools.islice(fitting, SUGGESTED))


def suggestions(run: Run | None) -> Any:
    """Return buttons with suggested questions; None if there are none, or on a read-only page."""
    found = [] if read_only() else suggested_questions(run)
    if not found:
        return None
    return mo.ui.dictionary({text: mo.ui.run_button(label=plain_label(text)) for text in found})


def suggested(buttons: Any) -> str:
    """Return the question whose button was just pressed; empty if none was."""
    return next((text for text, pressed in buttons.value.items() if pressed), "") if buttons is not None else ""


def suggestions_row(buttons: Any) -> mo.Html | None:
    """Return the suggested questions side by side."""
    if buttons is None:
        return None
    row = '<div class="q-suggested" role="group" aria-label="{}">{}</div>'
    return shown(put(row, say("Suggested questions"), joined(html_of(button) for button in buttons.elements.values())))


def plain_label(text: str) -> str:
    """Return a text that marimo shows as it is for a label, which is Markdown to it."""
    return "".join(letter if letter.isalnum() or letter == " " else f"&#{ord(letter)};" for letter in text)


# Messages -------------------------------------------------------------------------------------------------------


def copy_button() -> Markup:
    """Return a button that copies the text of the element of class `q-said` beside it, by the page's script."""
    html = '<button type="button" class="q-copy"><span>{}</span><span class="q-copy-done">{}</span></button>'
    return put(html, say("Copy"), say("Copied"))


def edit_buttons(questions: Sequence[str], write: Callable[[Draft], Any], *, disabled: bool) -> list[Any]:
    """Return a button for each question that puts it into the field, to be asked anew.

    Args:
        questions: of the conversation, in order.
        write: sets what the field begins with.
        disabled: while an answer is being made.
    """
    if read_only():
        return []

    def writing(draft: Draft) -> Callable[[Any], Any]:
        return lambda _: write(draft)

    return [mo.ui.button(label=say("Edit"), on_click=writing(Draft(text, turn)), disabled=disabled,
                         tooltip=say("Ask it anew; what follows is replaced"))
            for turn, text in enumerate(questions)]  # fmt: skip


def cancel_button(draft: Draft, write: Callable[[Draft], Any]) -> Any:
    """Return a button that leaves a turn as it was; None if none is edited."""
    if draft.turn is None:
        return None
    return mo.ui.button(label=say("Do not edit"), on_click=lambda _: write(NOTHING_WRITTEN))

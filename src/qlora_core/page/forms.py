"""Flags of the command line, and forms made from the settings in `config`: one element each, with its help.

Knows settings and how marimo asks for them; knows nothing of what they do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import marimo as mo
from markupsafe import Markup

from ..config import RunConfig, Setting, from_flat, settings
from ..errors import ConfigError
from ..jobs.exit_status import quiet_ctrl_c
from ..jobs.planning import training_parser
from ..reports import plain_text
from ..reports.comparison import setting_text
from ..reports.in_language import number, numeral, read_number
from ..runs.plan import resolve_config
from ..runs.presets import PRESETS, Choice
from ..runs.recipes import settings_of
from ..translations import say
from .language import add_page_arguments
from .look import fact_table, field, folded, html_of, joined, put, row_table, shown
from .look import fields as look_fields
from .problems import Problem, attempt, complain, scripted, view
from .setting_names import EMPTY, NAMES, VALUES


@dataclass(frozen=True)
class Flags:
    """The command line: the settings a page starts with, and how a script shows its result.

    `config` holds all settings, `given` those that were named.
    """

    config: RunConfig = dataclass_field(default_factory=RunConfig)
    given: Mapping[str, Any] = dataclass_field(default_factory=dict)
    preset: str = ""
    as_json: bool = False
    problem: Problem | None = None

    def show(self, title: str, rows: Callable[..., dict[str, str]], *values: Any) -> mo.Html | None:
        """Show `rows(*values)`: printed by a script, a table on the page; nothing if a value is a problem."""
        made = attempt(rows, *values)
        if scripted():
            self.tell(plain_text.block(title, made) if title else plain_text.table(made))
        return complain(made) or view(fact_table, made)

    def report(self, title: str, rows: Callable[..., dict[str, str]], *values: Any) -> mo.Html | None:
        """Print `rows(*values)` in a script; show only problems on a page, which shows more elsewhere."""
        if not scripted():
            return complain(*values)
        return self.show(title, rows, *values)

    def tell(self, text: str) -> None:
        """Print in a script only; with `--json`, on standard error."""
        if scripted():
            print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)


def read_flags(argv: Sequence[str]) -> Flags:
    """Return the flags of `qlora train`. A script ends on a wrong one; a page reports it and opens all the same."""
    parser, unknown = training_parser(), []
    if scripted():
        quiet_ctrl_c()
        arguments = parser.parse_args(argv)
    else:
        add_page_arguments(parser)
        parser.error = parser.exit = _refuse  # type: ignore[assignment,method-assign]
        known = attempt(parser.parse_known_args, argv)
        if isinstance(known, Problem):
            return Flags(problem=known)
        arguments, unknown = known
    given = attempt(settings_of, arguments)
    config = attempt(resolve_config, given, arguments.preset)
    if isinstance(config, Problem):
        return Flags(problem=given if isinstance(given, Problem) else config)
    problem = Problem(f"unknown flags, left aside: {' '.join(unknown)}") if unknown else None
    return Flags(config, given, arguments.preset, arguments.json, problem)


def _refuse(*words: Any) -> None:
    reason = next((word.strip() for word in words if isinstance(word, str)), "--help is for the command line")
    raise ConfigError(f"the flags were left aside: {reason}")


def preset_menu() -> mo.ui.dropdown:
    """Return a choice of machine and model size, at first none."""
    sizes = {"large": say("3B parameters and more"), "small": say("smaller models")}
    none = say("none: the settings as they stand")
    options = {none: None} | {
        f"{name}: {say(preset.machine)}; {which}": (name, size)
        for name, preset in PRESETS.items()
        for size, which in sizes.items()
    }
    return mo.ui.dropdown(options, value=none, label=say("Hardware preset"), allow_select_none=False, full_width=True)


def with_preset(flags: Flags, chosen: tuple[str, str] | None) -> RunConfig:
    """Return the forms' initial settings: those of the command line, and a preset's where it said nothing."""
    values = {name: choice.value for name, choice in _choices(chosen).items()}
    return from_flat({**values, **flags.given}, base=flags.config)


def preset_reasons(chosen: tuple[str, str] | None) -> mo.Html | None:
    """Return the reason for each of a preset's settings."""
    rows = [
        {say("Setting"): say(words(name)), say("Value"): value_words(name, choice.value), say("Why"): say(choice.why)}
        for name, choice in _choices(chosen).items()
    ]
    return row_table(rows) if rows else None


def _choices(chosen: tuple[str, str] | None) -> dict[str, Choice]:
    """Return a preset's choices but for the base, whose form stands above and keeps what was typed there."""
    above = {setting.name for setting in settings() if setting.group == "base"}
    choices = getattr(PRESETS[chosen[0]], chosen[1]) if chosen else {}
    return {name: choice for name, choice in choices.items() if name not in above}


def settings_form(config: RunConfig, *groups: str) -> mo.ui.dictionary:
    """Return an element for every setting, or for those of some groups, with the values of `config`."""
    chosen = [setting for setting in settings() if not groups or setting.group in groups]
    return mo.ui.dictionary({setting.name: _element(setting, config.value(setting)) for setting in chosen})


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings `{name: value}` from a form's values.

    Raises:
        ConfigError: a text is not a number.
    """
    return {s.name: _from_element(s, values[s.name]) for s in settings() if s.name in values}


def read_forms(config: RunConfig, *forms: Mapping[str, Any]) -> RunConfig:
    """Return `config` with the forms' values.

    Raises:
        ConfigError: a value is out of range or no number.
    """
    return from_flat({name: value for values in forms for name, value in read_form(values).items()}, base=config)


def sent(element: Any) -> Any:
    """Return what an element or a form has sent; None before, and where there is no element."""
    return element.value if element is not None else None


def form_layout(form: mo.ui.dictionary, read: Any, chosen: Mapping[str, str], title: str) -> mo.Html:
    """Return a form: essential settings side by side, then what is wrong with it, then the other settings, folded.

    Args:
        form: the elements of its settings.
        read: what was read from the form; a `Problem` if it cannot be used.
        chosen: what the program chooses now for settings that are left empty, by their names.
        title: title of the folded settings, in English.
    """
    known = {s.name: s for s in settings()}
    first = [_field(known[name], element, chosen) for name, element in form.elements.items() if known[name].essential]
    rest = [
        _field(known[name], element, chosen) for name, element in form.elements.items() if not known[name].essential
    ]
    parts = [
        look_fields(first) if first else None,
        complain(read),
        folded(say(title), look_fields(rest)) if rest else None,
    ]
    return shown(put('<div class="q-form">{}</div>', joined(html_of(part) for part in parts if part is not None)))


def _field(setting: Setting, element: Any, chosen: Mapping[str, str]) -> Markup:
    return field(element, say(setting.help), _limits(setting), _left_empty(setting, chosen))


def _left_empty(setting: Setting, chosen: Mapping[str, str]) -> str:
    """Return what an empty field means at present; nothing if that is not known, or the field cannot be empty."""
    if setting.name not in EMPTY or setting.name not in chosen:
        return ""
    _, choice = EMPTY[setting.name]
    return say("Empty: {choice} · {value}", choice=say(choice), value=chosen[setting.name])


def _limits(setting: Setting) -> str:
    """Return a number's limits if they say more than that it is not negative."""
    own_high = setting.le if setting.le is not None and setting.le < 2**31 - 1 else None
    if setting.type not in (int, float) or setting.ge is None:
        return ""
    return _range(setting.ge, own_high) if setting.ge or own_high is not None else ""


def _range(low: float | None, high: float | None) -> str:
    if high is None:
        return say("At least {low}.", low=number(low, "g"))
    return say("From {low} to {high}.", low=number(low, ",g"), high=number(high, ",.10g"))


def label(setting: Setting) -> str:
    """Return a setting's name in the reader's language, with its unit unless the name says it."""
    name, unit = say(words(setting.name)), say(setting.unit) if setting.unit else ""
    return f"{name} ({unit})" if unit and unit.lower() not in name.lower() else name


def words(name: str) -> str:
    """Return what people call a setting, in English."""
    return NAMES[name]


def value_words(name: str, value: Any) -> str:
    """Return a setting's value as people read it: what the program chooses as such, numbers and words as they write."""
    if name in EMPTY and value == EMPTY[name][0]:
        return say(EMPTY[name][1])
    if isinstance(value, bool):
        return say("yes") if value else say("no")
    if isinstance(value, (int, float)):
        return numeral(_digits(value))
    return say(VALUES[value]) if value in VALUES else setting_text(value)


def _element(setting: Setting, value: Any) -> Any:
    """Return an element; numbers are typed as text: marimo's number field rounds 1e-5, and its spoken name is HTML."""
    look: dict[str, Any] = {"label": label(setting), "full_width": True}
    if setting.choices:
        options = {value_words(setting.name, choice): choice for choice in setting.choices}
        return mo.ui.dropdown(options, value=value_words(setting.name, value), allow_select_none=False, **look)
    if setting.type is bool:
        return mo.ui.checkbox(value, label=label(setting))
    chosen_here, choice = EMPTY.get(setting.name, (None, ""))
    look |= {"placeholder": say(choice)} if choice else {}
    if setting.type in (int, float):
        # A plain str: marimo sends a subclass of it as an empty object, which its field then refuses
        return mo.ui.text("" if value == chosen_here else str(numeral(_digits(value))), **look)
    if setting.type is str:
        return mo.ui.text(value, **look)
    return mo.ui.text_area("\n".join(value), rows=max(1, len(value)), **look)


def _digits(value: float) -> str:
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _from_element(setting: Setting, value: Any) -> Any:
    if setting.type in (int, float):
        return _number(setting, value)
    if setting.choices or setting.type in (bool, str):
        return value
    return tuple(line for line in value.splitlines() if line.strip())


def _number(setting: Setting, text: str) -> int | float:
    if not text.strip() and setting.name in EMPTY:
        return EMPTY[setting.name][0]
    try:
        value = setting.type(read_number(text))
    except ValueError:
        wanted = say("a whole number") if setting.type is int else say("a number")
        raise ConfigError(say("{setting}: {wanted} is needed; found “{text}”.", setting=say(words(setting.name)),
                              wanted=wanted, text=text)) from None  # fmt: skip
    low, high = setting.ge, setting.le
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(say("{setting}: {value} is not allowed. {range}", setting=say(words(setting.name)),
                              value=numeral(_digits(value)), range=_range(low, high)))  # fmt: skip
    return value

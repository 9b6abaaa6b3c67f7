"""Flags of the command line, and forms made from the settings in `config`: one element each, with its help.

Knows settings and how marimo asks for them; knows nothing of what they do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import marimo as mo

from .. import cli, console
from ..config import RunConfig, Setting, from_flat, given_settings, settings
from ..errors import ConfigError
from ..presets import PRESETS, Choice
from ..runs import resolve_config
from .language import add_page_arguments
from .look import fact_table, folded, row_table, small
from .problems import Problem, attempt, complain, scripted, view


@dataclass(frozen=True)
class Flags:
    """What was given on the command line: the settings a page starts with, and how a script shows its result.

    `config` holds all settings, `given` those that were named.
    """

    config: RunConfig = field(default_factory=RunConfig)
    given: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    as_json: bool = False
    problem: Problem | None = None

    def show(self, title: str, rows: Callable[..., dict[str, str]], *values: Any) -> mo.Html | None:
        """Show `rows(*values)`: printed by a script, a table on the page; nothing where a value is a problem."""
        made = attempt(rows, *values)
        if scripted():
            self.tell(console.block(title, made) if title else console.table(made))
        return complain(made) or view(fact_table, made)

    def tell(self, text: str) -> None:
        """Print, in a script only; with `--json`, on standard error."""
        if scripted():
            print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)


def read_flags(argv: Sequence[str]) -> Flags:
    """The flags of `qlora train`. A script ends on a wrong one; a page says so and opens all the same."""
    parser, unknown = cli.training_parser(), []
    if scripted():
        arguments = parser.parse_args(argv)
    else:
        add_page_arguments(parser)
        parser.error = parser.exit = _refuse  # type: ignore[assignment,method-assign]
        known = attempt(parser.parse_known_args, argv)
        if isinstance(known, Problem):
            return Flags(problem=known)
        arguments, unknown = known
    config = attempt(lambda: resolve_config(given_settings(arguments), arguments.preset))
    if isinstance(config, Problem):
        return Flags(problem=config)
    problem = Problem(f"unknown flags, left aside: {' '.join(unknown)}") if unknown else None
    return Flags(config, given_settings(arguments), arguments.preset, arguments.json, problem)


def _refuse(*words: Any) -> None:
    reason = next((word.strip() for word in words if isinstance(word, str)), "--help is for the command line")
    raise ConfigError(f"the flags were left aside: {reason}")


def preset_menu() -> mo.ui.dropdown:
    """A machine and a size of model to choose from."""
    sizes = {"large": "3B parameters and more", "small": "smaller models"}
    options = {
        f"{name}: {preset.machine}; {words}": (name, size)
        for name, preset in PRESETS.items()
        for size, words in sizes.items()
    }
    return mo.ui.dropdown(options, label="Settings that fit a machine", full_width=True)


def with_preset(flags: Flags, chosen: tuple[str, str] | None) -> RunConfig:
    """The settings that the forms begin with: those of the command line, and where it said nothing, of a preset."""
    values = {name: choice.value for name, choice in _choices(chosen).items()}
    return from_flat({**values, **flags.given}, base=flags.config)


def preset_reasons(chosen: tuple[str, str] | None) -> mo.Html | None:
    """Why each of a preset's settings is as it is."""
    rows = [{"setting": name.replace("_", " "), "value": c.value, "why": c.why} for name, c in _choices(chosen).items()]
    return row_table(rows) if rows else None


def _choices(chosen: tuple[str, str] | None) -> dict[str, Choice]:
    """A preset's choices but for the base, whose form stands above and keeps what was typed there."""
    above = {setting.name for setting in settings() if setting.group == "base"}
    choices = getattr(PRESETS[chosen[0]], chosen[1]) if chosen else {}
    return {name: choice for name, choice in choices.items() if name not in above}


def settings_form(config: RunConfig, *groups: str) -> mo.ui.dictionary:
    """An element for every setting, or for those of some groups, with the values of `config`."""
    chosen = [setting for setting in settings() if not groups or setting.group in groups]
    return mo.ui.dictionary({setting.name: _element(setting, config.value(setting)) for setting in chosen})


def read_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings `{name: value}` from a form's values.

    Raises:
        ConfigError: a text is not a number.
    """
    return {s.name: _from_element(s, values[s.name]) for s in settings() if s.name in values}


def read_forms(config: RunConfig, *forms: Mapping[str, Any]) -> RunConfig:
    """`config` with what the forms say.

    Raises:
        ConfigError: a value is out of range or no number.
    """
    return from_flat({name: value for values in forms for name, value in read_form(values).items()}, base=config)


def form_layout(form: mo.ui.dictionary, title: str = "More settings") -> mo.Html:
    """Essential settings side by side, the others folded, each with its explanation."""
    known = {s.name: s for s in settings()}
    first = [name for name in form.elements if known[name].essential]
    rest = [name for name in form.elements if not known[name].essential]
    parts: list[Any] = []
    if first:
        fields = [mo.vstack([form.elements[name], small(known[name].help)], gap=0.25) for name in first]
        parts.append(mo.hstack(fields, widths="equal", gap=1.5, align="start"))
    if rest:
        rows = [
            mo.hstack([form.elements[name], small(known[name].help)], widths=[1, 2], gap=1.5, align="end")
            for name in rest
        ]
        parts.append(folded(title, mo.vstack(rows, gap=0.75)))
    return mo.vstack(parts, gap=0.75)


def _element(setting: Setting, value: Any) -> Any:
    """Numbers with a fraction are typed as text: a number field would round 1e-5 to its step."""
    words = setting.name.replace("_", " ").replace("lora", "LoRA")
    label = words[0].upper() + words[1:] + (f" ({setting.unit})" if setting.unit else "")
    look: dict[str, Any] = {"label": label, "full_width": True}
    if setting.choices:
        return mo.ui.dropdown(setting.choices, value=value, **look)
    if setting.type is bool:
        return mo.ui.checkbox(value, label=label)
    if setting.type is int:
        return mo.ui.number(setting.ge, setting.le, step=1, value=value, debounce=True, **look)
    if setting.type is float:
        return mo.ui.text(f"{value:g}" if float(f"{value:g}") == value else repr(value), **look)
    if setting.type is str:
        return mo.ui.text(value, **look)
    return mo.ui.text_area("\n".join(value), rows=max(1, len(value)), **look)


def _from_element(setting: Setting, value: Any) -> Any:
    if setting.type is float:
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{setting.name} must be a number; found {value!r}") from None
    if setting.type is int and value is not None and value == int(value):
        return int(value)  # a number field hands out 4.0 as well as 4
    if setting.type in (int, bool, str):
        return value
    return value if setting.choices else tuple(line for line in value.splitlines() if line.strip())

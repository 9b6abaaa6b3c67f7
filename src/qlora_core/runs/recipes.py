"""The settings of a run as somebody keeps or passes them on: a file, a command, a program.

Knows settings alone; trains nothing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

from ..config import RunConfig, from_flat, given_settings, settings
from ..errors import ConfigError, shown

CONFIG_FILE = "config_file"
"""Destination of the flag `--config` in a namespace."""


def settings_of(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, `{name: value}`: those in the file of `--config`, and flags before them.

    Raises:
        ConfigError: the file cannot be used.
    """
    path = getattr(namespace, CONFIG_FILE, "")
    return {**(read_settings(Path(path)) if path else {}), **given_settings(namespace)}


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file, `{name: value}`: TOML as `to_toml` writes it, or a run's `config.json`.

    Tables of TOML and groups of JSON may have any names.

    Raises:
        ConfigError: the file cannot be read, or a setting in it is unknown or out of range.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}. --config wants a TOML file of settings."
        ) from None
    except (ValueError, RecursionError) as error:  # also what is no UTF-8
        raise ConfigError(f"{path}: not TOML: {error}. A line is a setting, as in: max_steps = 20") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: wanted settings, as in: max_steps = 20; found {shown(found)}")
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat.update(value if isinstance(value, dict) else {name.replace("-", "_"): value})
    try:
        from_flat(flat)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flat.items()}


def chosen_settings(config: RunConfig) -> dict[str, Any]:
    """Return what somebody has to name for `config`: model and data, and settings that differ from their defaults."""
    return {
        setting.name: value
        for setting in settings()
        if (value := config.value(setting)) != setting.default or setting.name in ("model", "data")
    }


def to_command(config: RunConfig) -> str:
    """Return the command of a shell that trains with `config`."""
    words = ["uv", "run", "qlora", "train"]
    for name, value in chosen_settings(config).items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *value] if isinstance(value, tuple) else [flag, str(value)]
    return shlex.join(words)


def to_toml(config: RunConfig) -> str:
    """Return the settings as TOML, for `qlora train --config FILE`; strings of JSON are strings of TOML."""
    chosen = chosen_settings(config).items()
    return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in chosen)


def to_python(config: RunConfig) -> str:
    """Return Python that trains with `config`."""
    values = chosen_settings(config)
    sources = ", ".join(repr(source) for source in values.pop("data"))
    given = "".join(f"    {name}={list(value) if isinstance(value, tuple) else value!r},\n"
                    for name, value in values.items())  # fmt: skip
    return f"import qlora_core\n\nplan = qlora_core.plan(\n    {sources},\n{given})\nrun = qlora_core.train(plan)\n"

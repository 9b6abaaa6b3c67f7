"""Settings: one place states them, and a wrong one is refused by name, with what was found and what is wanted."""

import argparse
import dataclasses
import json

import pytest

from qlora_core.cli import build_parser
from qlora_core.config import (
    LoraConfig,
    RunConfig,
    TrainConfig,
    add_arguments,
    from_flat,
    from_json,
    given_settings,
    settings,
    to_flat,
    to_json,
)
from qlora_core.errors import ConfigError
from qlora_core.jobs.planning import training_parser

SETTINGS = list(settings())


def each(chosen):
    return pytest.mark.parametrize("setting", chosen, ids=lambda setting: setting.name)


def parsed(*arguments: str) -> dict:
    return given_settings(training_parser().parse_args(arguments))


def as_arguments(setting, value) -> list[str]:
    if setting.type is bool:
        return [setting.flag if value else setting.flag.replace("--", "--no-", 1)]
    return [setting.flag, *(value if isinstance(value, tuple) else [str(value)])]


def test_names_are_unique_over_all_groups():
    names = [setting.name for setting in SETTINGS]
    assert sorted(names) == sorted(set(names))
    assert len(names) == sum(len(dataclasses.fields(group.default_factory)) for group in dataclasses.fields(RunConfig))


def test_no_argument_means_the_defaults():
    assert parsed() == {}
    assert from_flat(parsed()) == RunConfig()
    assert to_flat(RunConfig()) == {setting.name: setting.default for setting in SETTINGS}


@each(SETTINGS)
def test_default_survives_the_command_line(setting):
    """A flag given its own default changes nothing, so the flag has the setting's type and takes its values."""
    given = parsed(*as_arguments(setting, setting.default))
    assert set(given) == {setting.name}
    assert from_flat(given) == RunConfig()


@each(SETTINGS)
def test_help_states_what_it_is_and_its_default(setting):
    assert setting.help
    assert setting.help.endswith(".")
    lines = " ".join(training_parser().format_help().split())
    assert setting.flag in lines
    if setting.type in (int, float):
        assert f"(default: {setting.default})" in lines


@pytest.mark.parametrize("parser", [training_parser(), build_parser()], ids=["train.py", "qlora train"])
def test_every_flag_is_listed(parser, capsys):
    arguments = ["--help"] if parser.prog == "train.py" else ["train", "--help"]
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(arguments)
    shown = capsys.readouterr().out
    missing = [
        setting.flag for setting in SETTINGS if f"{setting.flag} " not in shown and f"{setting.flag}," not in shown
    ]
    assert missing == []


def test_flags_are_in_the_group_of_their_setting():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    titles = {action.dest: group.title for group in parser._action_groups for action in group._group_actions}
    assert titles["learning_rate"] == "the optimisation"
    assert titles["rank"] == "the adapter"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rank": 0}, "rank must be at least 1; found 0"),
        ({"rank": 513}, "rank must be at most 512; found 513"),
        ({"max_seq_length": 8}, "max_seq_length must be at least 16 tokens; found 8"),
        ({"seed": 2**31}, "seed must be at most 2147483647; found 2147483648"),
        ({"seed": -(10**400)}, "seed must be at least 0; found -1000"),
        ({"learning_rate": 1.5}, "learning_rate must be at most 1.0; found 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number; found nan"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be a number; found inf"),
        ({"val_fraction": -0.1}, "val_fraction must be at least 0.0; found -0.1"),
        ({"epochs": 2.5}, "epochs must be a whole number; found 2.5"),
        ({"epochs": True}, "epochs must be a whole number; found True"),
        ({"dropout": "much"}, "dropout must be a number; found 'much'"),
        ({"packing": 1}, "packing must be true or false; found 1"),
        ({"run": None}, "run must be a text; found None"),
        ({"quantize": "3"}, "quantize must be one of 4, 8, none; found '3'"),
        ({"quantize": 4}, "quantize must be one of 4, 8, none; found 4"),
        ({"data": "rows.jsonl"}, "data must be one or more texts, none of them empty; found 'rows.jsonl'"),
        ({"data": []}, "data must be one or more texts, none of them empty; found ()"),
        ({"data": [""]}, "data must be one or more texts, none of them empty; found ('',)"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_was_found_and_wanted(given, message):
    with pytest.raises(ConfigError) as error:
        from_flat(given)
    assert str(error.value).startswith(message)


def test_all_wrong_values_are_told_at_once():
    with pytest.raises(ConfigError, match=r"rank must be .*; alpha must be .*; batch_size must be"):
        from_flat({"rank": 0, "alpha": -1.0, "batch_size": 0})


def test_an_unknown_setting_is_named_and_the_known_ones_are_listed():
    with pytest.raises(ConfigError, match=r"^unknown setting rnak; known: model, .*\brank\b"):
        from_flat({"rnak": 8})


@each([setting for setting in SETTINGS if setting.ge is not None])
def test_bounds_are_inclusive(setting):
    for bound in (setting.ge, setting.le):
        if bound is not None:
            from_flat({setting.name: setting.type(bound)})


def test_a_whole_number_serves_as_a_float_setting():
    config = from_flat({"alpha": 32})
    assert config.lora.alpha == 32.0
    assert isinstance(config.lora.alpha, float)


def test_names_not_given_keep_their_value():
    base = from_flat({"rank": 4, "epochs": 7})
    config = from_flat({"rank": 16}, base)
    assert (config.lora.rank, config.train.epochs, base.lora.rank) == (16, 7, 4)


def another_value(setting):
    """A value in range that is not the default."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    if setting.type in (int, float):
        step = 1 if setting.type is int else 0.25
        return setting.type(setting.ge) if setting.default != setting.ge else setting.default + step
    return ("a b", "ção") if isinstance(setting.default, tuple) else "ção"


def test_json_round_trip_with_every_setting_changed():
    changed = {setting.name: another_value(setting) for setting in SETTINGS}
    assert [s.name for s in SETTINGS if changed[s.name] == s.default] == []
    config = from_flat(changed)
    assert to_flat(config) == changed
    assert from_json(to_json(config)) == config
    assert list(json.loads(to_json(config))) == [group.name for group in dataclasses.fields(RunConfig)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "wanted groups of settings"),
        ('{"lora": 8}', "wanted groups of settings"),
        ('{"lora": {"rank": 0}}', "rank must be at least 1"),
        ('{"lora": {"size": 1}}', "unknown setting size"),
    ],
)
def test_a_damaged_configuration_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        from_json(text)


def test_scale_is_alpha_over_rank():
    assert LoraConfig(rank=8, alpha=20.0).scale == 2.5


@pytest.mark.parametrize(
    ("rows", "batch_size", "accumulation", "epochs", "max_steps", "per_epoch", "total"),
    [
        (12, 4, 1, 3, 0, 3, 9),
        (13, 4, 1, 3, 0, 4, 12),  # the last batch is smaller, no row is left out
        (13, 4, 2, 3, 0, 2, 6),  # 4 micro-batches: 2 and 2
        (20, 4, 2, 3, 0, 3, 9),  # 5 micro-batches: 2, 2 and 1
        (13, 4, 2, 3, 4, 2, 4),
        (13, 4, 2, 3, 100, 2, 6),  # max_steps only shortens
        (1, 8, 8, 1, 0, 1, 1),
    ],
)
def test_steps(rows, batch_size, accumulation, epochs, max_steps, per_epoch, total):
    train = TrainConfig(batch_size=batch_size, grad_accumulation_steps=accumulation, epochs=epochs, max_steps=max_steps)
    assert (train.steps_per_epoch(rows), train.total_steps(rows)) == (per_epoch, total)


def test_what_a_setting_decides():
    """`result` settings make the run's identity; the contract names the others."""
    assert set(to_flat(RunConfig(), "length")) == {"epochs", "max_steps", "patience"}
    assert {"eval_every", "save_every"} <= set(to_flat(RunConfig(), "pace"))
    assert {"learning_rate", "rank", "alpha", "dropout", "batch_size", "seed", "quantize", "max_seq_length"} <= set(
        to_flat(RunConfig(), "result")
    )

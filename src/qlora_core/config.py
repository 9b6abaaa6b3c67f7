"""Every setting, declared once: its default, range, unit, help text and role.

The command line, the page's form, `config.json` and docs/settings.md are derived from the dataclasses here. Knows
nothing of files, models or training.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ConfigError, shown

Role = Literal["result", "length", "pace", "place"]
"""Parts that a setting decides: the result; how long training lasts; how often to validate and save; where things are.

Two runs that differ in a `result` setting are different runs; settings of other roles may change when a run is resumed.
"""
Reasoning = Literal["train", "keep", "drop"]
"""Ways to treat the reasoning before an answer: trained with it, read but not trained, or left out."""


def declare(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    unit: str = "",
    role: Role = "result",
    essential: bool = False,
) -> Any:
    """Declare one setting; `ge` and `le` are inclusive bounds, `essential` ones come first in the page's form."""
    return field(
        default=default,
        metadata={"help": help, "ge": ge, "le": le, "unit": unit, "role": role, "essential": essential},
    )


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The base model."""

    model: str = declare(
        "smollm2-135m",
        "Built-in model, alias, local directory (Hugging Face or MLX layout) or hub id.",
        role="place",
        essential=True,
    )
    quantize: Literal["4", "8", "none"] = declare(
        "4", "Bits to quantise to while loading, when the base is not quantised already."
    )
    group_size: Literal["32", "64", "128"] = declare("64", "Weights that share a scale when quantising.")
    template: str = declare(
        "auto",
        "How a conversation is written: the model's own chat template, or plain where it has none (auto); plain "
        "(### Prompt: / ### Response:); pergunta (### Pergunta: / ### Resposta:); a text of your own with {prompt} and "
        "{response} in it; or a .jinja file.",
        role="place",
    )
    reasoning: Reasoning = declare(  # noqa: RUF009 - ruff does not see that it is one of three words
        "train",
        "What becomes of the reasoning before an answer (<think>, reasoning_content): trained with the answer, kept to "
        "be read but not trained, or dropped. Where most answers have none, the model is asked not to reason.",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, split and cut."""

    data: tuple[str, ...] = declare(
        ("data/sample/club",),
        "Files and directories to train on; hf:OWNER/NAME, or hf:OWNER/NAME:SPLIT, for a data set of the hub.",
        role="place",
        essential=True,
    )
    columns: tuple[str, ...] = declare(
        (),
        "Names of columns that are not recognised, as in prompt=Frage completion=Antwort, or of what is in one, "
        "translation.en; also text=, messages=, system=, context=, options=, history=, reasoning=, tools=, better=.",
    )
    own_split: bool = declare(
        True,
        "Keep to the split that names of files and folders, keys or a column split tell; what is for testing is left "
        "out.",
    )
    val_fraction: float = declare(
        0.05,
        "Share of the rows kept for validation, by a hash of each; every source of so many rows gives one at least.",
        ge=0.0,
        le=0.5,
    )
    val_rows: int = declare(0, "Keep about this many rows for validation instead of a share.", ge=0, unit="rows")
    val_from: Literal["all", "replies"] = declare(
        "all", "Validate on rows of every kind, or on replies alone, so that no passage of a text is held out."
    )
    keep_documents: bool = declare(
        True, "Keep the passages of a short document, or of a section, on one side of the split."
    )
    max_seq_length: int = declare(
        512, "Longest row, prompt and reply together; what is beyond is cut.", ge=16, le=131072, unit="tokens"
    )
    passage_tokens: int = declare(
        256,
        "Running text and documents are joined and cut to passages of at most this size.",
        ge=32,
        le=131072,
        unit="tokens",
    )
    question: str = declare(
        "",
        "Also ask for each document, and answer with its own words: a language (pt, en, es, fr, de) for 'Who was …?', "
        "or a question of your own with {title} in it.",
    )
    answers_of: str = declare(
        "",
        "Exported chats: the person whose messages are trained as the answers; default: the chat's owner where the "
        "file tells, else whoever wrote most.",
    )
    drop_debris: bool = declare(True, "Leave page numbers, running heads and title pages out of running text.")
    repair: bool = declare(True, "Repair wrongly decoded text, Unicode forms and control characters.")
    near_duplicates: Literal["group", "drop", "ignore"] = declare(
        "group", "Rows that say nearly the same: keep on one side of the split, keep only the first, or ignore it."
    )
    several_answers: Literal["keep", "first", "drop"] = declare(
        "keep", "Questions that have several answers: keep them all, keep the first of each, or leave them out."
    )
    asked_passages: Literal["keep", "drop"] = declare(
        "keep", "Passages that answer a question word for word: also train them as text, or as the answer alone."
    )
    tables: Literal["sentences", "rows"] = declare(
        "sentences",
        "Tables in documents: a sentence for each row, with the names of its columns, or rows as they stand.",
    )
    scans: Literal["sure", "all", "keep"] = declare(
        "sure", "Words and figures that scanning broke: mend what is sure, also what is only likely, or nothing."
    )
    decide: tuple[str, ...] = declare(
        (),
        "Answers to what the report asks: title:FILE=TEXT, subject:FILE=person, thing or none, section:FILE=end or go "
        "on, copy:FILE=keep or drop.",
    )
    language: str = declare("", "Leave out rows that are in another language than this one (pt, en, …); default: none.")
    facts: str = declare(
        "", "Fact sheet for measuring recall; default: every facts.jsonl among the data.", role="place"
    )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter: W x + scale · B A x, with W frozen (arXiv:2106.09685)."""

    adapter: Literal["lora", "dora"] = declare(
        "lora", "Kind: LoRA, or DoRA, which also learns each output's magnitude (arXiv:2402.09353) and is slower."
    )
    rank: int = declare(
        8, "Adapter rank: higher learns more and takes more memory. Usual: 8 to 32.", ge=1, le=512, essential=True
    )
    alpha: float = declare(16.0, "The update is scaled by alpha / rank.", ge=0.0, le=4096.0)
    rslora: bool = declare(False, "Scale by alpha / √rank instead, for high ranks (rsLoRA, arXiv:2312.03732).")
    dropout: float = declare(0.0, "Dropout on the adapter's input.", ge=0.0, le=0.9)
    num_layers: int = declare(0, "Transformer layers that get adapters, counted from the last; 0: all.", ge=0, le=1024)
    projections: str = declare(
        "all",
        "Linear layers that get adapters: all, attention, mlp, qv (queries and values), or names, as in q_proj,v_proj.",
    )
    init_adapter: str = declare(
        "", "Adapters to start from: a run, a directory or a .safetensors file; default: none.", role="place"
    )

    @property
    def scale(self) -> float:
        """Return the factor of the update: `alpha / rank`, or `alpha / √rank` with `rslora`."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation."""

    epochs: int = declare(5, "Passes over the training rows.", ge=1, le=10000, role="length", essential=True)
    max_steps: int = declare(
        0, "Stop after this many steps; 0: as many as the epochs need.", ge=0, role="length", unit="steps"
    )
    batch_size: int = declare(
        4, "Rows computed together. Fewer take less memory.", ge=1, le=4096, unit="rows", essential=True
    )
    grad_accumulation_steps: int = declare(1, "Micro-batches that make one step.", ge=1, le=4096)
    learning_rate: float = declare(
        0.0, "Peak learning rate; 0: automatic, as suits the model's width.", ge=0.0, le=1.0, essential=True
    )
    lora_plus: float = declare(
        1.0,
        "Learning rate of B over that of A (LoRA+, arXiv:2402.12354, where 16 is advised).",
        ge=0.01,
        le=1000.0,
    )
    schedule: Literal["cosine", "linear", "constant"] = declare("cosine", "Shape of the learning rate after warm-up.")
    warmup_steps: int = declare(5, "Steps over which the learning rate rises from 0.", ge=0, unit="steps")
    optimizer: Literal["adamw", "adam"] = declare("adamw", "Rule that updates the adapters.")
    weight_decay: float = declare(0.0, "Decoupled weight decay of AdamW.", ge=0.0, le=1.0)
    max_grad_norm: float = declare(1.0, "Gradients are scaled down to this norm; 0: never.", ge=0.0)
    packing: bool = declare(
        True, "Put the rows of a micro-batch end to end, without padding, where the model allows it."
    )
    grad_checkpoint: bool = declare(
        False, "Recompute activations in the backward pass: less memory, a third more time."
    )
    seed: int = declare(42, "Decides batch order, dropout and the adapter's start.", ge=0, le=2**31 - 1)
    patience: int = declare(
        0,
        "Stop after this many validations without a better loss; 0: never.",
        ge=0,
        role="length",
        unit="validations",
    )

    def steps_per_epoch(self, rows: int) -> int:
        """Return the optimizer updates in one pass over `rows` rows; the last one of an epoch may be smaller."""
        return math.ceil(math.ceil(rows / self.batch_size) / self.grad_accumulation_steps)

    def total_steps(self, rows: int) -> int:
        """Return the optimizer updates of the whole run, for `rows` training rows."""
        steps = self.epochs * self.steps_per_epoch(rows)
        return min(steps, self.max_steps) if self.max_steps else steps


@dataclass(frozen=True, kw_only=True)
class PaceConfig:
    """How often to look and save, and what becomes of the process that trains."""

    eval_every: int = declare(
        0, "Steps between validations; 0: at the end of each epoch.", ge=0, role="pace", unit="steps"
    )
    save_every: int = declare(
        0, "Steps between checkpoints; 0: at the end of each epoch.", ge=0, role="pace", unit="steps"
    )
    save_minutes: float = declare(
        5.0,
        "Also save when so long has been trained since the last checkpoint: no more is lost by a power cut; 0: never.",
        ge=0.0,
        role="pace",
        unit="minutes",
    )
    keep_checkpoints: int = declare(3, "Newest checkpoints kept.", ge=1, le=1000, role="pace")
    min_free_gb: float = declare(
        3.0,
        "Memory that must be free before the first step of a model of 3B parameters or more.",
        ge=0.0,
        role="pace",
        unit="GB",
    )
    pause_below_gb: float = declare(
        0.5,
        "Free memory below which training saves and pauses, before the machine runs out of it; below twice that it "
        "first clears caches and saves; 0: never.",
        ge=0.0,
        role="pace",
        unit="GB",
    )
    max_answer_tokens: int = declare(
        40, "Longest answer when the model is tested.", ge=1, le=4096, role="pace", unit="tokens"
    )
    samples: int = declare(
        4,
        "Questions answered at each validation, to watch the model learn; 0: none.",
        ge=0,
        le=64,
        role="pace",
        unit="questions",
    )
    sample_prompts: tuple[str, ...] = declare(
        (), "Prompts to answer instead, all of them; default: questions of the fact sheet or the rows.", role="pace"
    )
    restart: int = declare(
        -1,
        "Times that training goes on by itself after its process died or the GPU gave up, from what was saved last. "
        "Where memory ran out, with half as many rows at once; after two deaths at one step it stops and asks. -1: 3 "
        "times on a Mac, whose system ends work on the GPU when the display needs it, elsewhere none.",
        ge=-1,
        le=1000,
        role="pace",
    )
    queue: bool = declare(
        False, "Wait while another run is being trained on this device; without it, that is an error.", role="pace"
    )
    devices: int = declare(
        1,
        "Devices of this machine that train together: NVIDIA's GPUs, or cores of a CPU. The rows of a step are divided "
        "over them by tokens, so losses stay the same; it may change when a run is resumed.",
        ge=1,
        le=64,
        role="pace",
    )
    hosts: str = declare(
        "",
        "File that names the machines that train together, this one first, as `mlx.distributed_config` writes it. The "
        "others are reached by ssh without a password; they need the same packages and the same model.",
        role="pace",
    )
    keep_awake: bool = declare(
        True, "Hold off the machine's idle sleep while it trains, where the system lets us.", role="pace"
    )


@dataclass(frozen=True, kw_only=True)
class PlaceConfig:
    """Where a run lies."""

    run: str = declare("", "Name of the run; default: made from model, settings and data.", role="place")
    runs_dir: str = declare("checkpoints_qlora", "Directory of all runs.", role="place")
    fresh: bool = declare(False, "Start a new run beside an existing one.", role="place")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All settings of one run."""

    base: BaseConfig = field(default_factory=BaseConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    pace: PaceConfig = field(default_factory=PaceConfig)
    place: PlaceConfig = field(default_factory=PlaceConfig)

    def __post_init__(self) -> None:
        problems = [problem for setting in settings() for problem in _problems(setting, self.value(setting))]
        if problems:
            raise ConfigError("; ".join(problems))

    def value(self, setting: Setting) -> Any:
        """Return the value of one setting."""
        return getattr(getattr(self, setting.group), setting.name)


@dataclass(frozen=True)
class Setting:
    """One setting, `group.name`: its type and how it was declared."""

    group: str
    name: str
    type: Any
    default: Any
    help: str
    unit: str
    role: Role
    essential: bool
    ge: float | None
    le: float | None

    @property
    def flag(self) -> str:
        """Return its command-line flag, such as `--learning-rate`."""
        return "--" + self.name.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the allowed words of a `Literal` setting, empty for any other."""
        return typing.get_args(self.type) if typing.get_origin(self.type) is Literal else ()


def settings(role: Role | None = None) -> Iterator[Setting]:
    """Yield all settings in order of declaration, or those of one role; names are unique over all groups."""
    return (setting for setting in _declared() if role is None or setting.role == role)


@functools.cache  # every reading of a run's settings asks for them
def _declared() -> tuple[Setting, ...]:
    declared = []
    for group in dataclasses.fields(RunConfig):
        cls = group.default_factory
        hints = typing.get_type_hints(cls)
        for leaf in dataclasses.fields(cls):  # type: ignore[arg-type]
            declared.append(Setting(group.name, leaf.name, hints[leaf.name], leaf.default, **leaf.metadata))
    return tuple(declared)


def _problems(setting: Setting, value: Any) -> Iterator[str]:
    unit = f" {setting.unit}" if setting.unit else ""
    if setting.choices:
        if value not in setting.choices:
            yield f"{setting.name} must be one of {', '.join(setting.choices)}; found {shown(value)}"
        return
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(setting.type)
    if wanted is None:  # the setting is a tuple of texts
        least = 1 if setting.default else 0
        texts = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
        if not texts or len(value) < least:
            wanted = "one or more texts" if least else "texts"
            yield f"{setting.name} must be {wanted}, none of them empty; found {shown(value)}"
        return
    accepted = (int, float) if setting.type is float else setting.type
    if not isinstance(value, accepted) or (isinstance(value, bool) and setting.type is not bool):
        yield f"{setting.name} must be {wanted}; found {shown(value)}"
    elif setting.type in (int, float):
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{setting.name} must be {wanted}; found {value}"
        elif setting.ge is not None and value < setting.ge:
            yield f"{setting.name} must be at least {setting.type(setting.ge)}{unit}; found {shown(value)}"
        elif setting.le is not None and value > setting.le:
            yield f"{setting.name} must be at most {setting.type(setting.le)}{unit}; found {shown(value)}"
        elif isinstance(value, int) and value.bit_length() > 62:
            yield f"{setting.name} must be {wanted} of a sensible size; found {shown(value)}"


def from_flat(flat: dict[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Build a configuration from `{name: value}`; names not given keep the value they have in `base`.

    Raises:
        ConfigError: a name is unknown (the known ones are listed) or a value is out of range.
    """
    known = {setting.name: setting for setting in settings()}
    if unknown := sorted(set(flat) - set(known)):
        names = ", ".join(unknown[:5]) if all(map(str.isprintable, unknown[:5])) else shown(unknown[0])
        raise ConfigError(f"unknown setting {names[:200]}; known: {', '.join(known)}")
    base = base or RunConfig()
    changes: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        setting = known[name]
        if setting.type is float and type(value) is int and value.bit_length() <= 62:
            value = float(value)
        changes.setdefault(setting.group, {})[name] = tuple(value) if isinstance(value, list) else value
    groups = {group: dataclasses.replace(getattr(base, group), **values) for group, values in changes.items()}
    return dataclasses.replace(base, **groups)


def to_flat(config: RunConfig, role: Role | None = None) -> dict[str, Any]:
    """Return `{name: value}` of all settings, or of those of one role."""
    return {setting.name: config.value(setting) for setting in settings(role)}


def to_json(config: RunConfig) -> str:
    """Return the text of `config.json`: settings by group."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> RunConfig:
    """Read `config.json`.

    Raises:
        ConfigError: the text is not what `to_json` writes.
    """
    try:
        groups = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not JSON: {error}") from None
    if not isinstance(groups, dict) or not all(isinstance(group, dict) for group in groups.values()):
        raise ConfigError("not a configuration: wanted groups of settings, {group: {name: value}}")
    return from_flat({name: value for group in groups.values() for name, value in group.items()})


def add_arguments(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add a flag to `parser` for every setting, or for those named; only flags that are given reach the namespace."""
    groups: dict[str, Any] = {}
    headings = {f.name: (f.default_factory.__doc__ or "").rstrip(".").partition(":")[0].lower()
                for f in dataclasses.fields(RunConfig)}  # fmt: skip
    for setting in settings():
        if names and setting.name not in names:
            continue
        if setting.group not in groups:
            groups[setting.group] = parser.add_argument_group(headings[setting.group])
        default = " ".join(setting.default) if isinstance(setting.default, tuple) else setting.default
        unit = f" [{setting.unit}]" if setting.unit else ""
        shown = "" if default == "" else f" (default: {default})"
        options: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": f"{setting.help}{unit}{shown}".replace("%", "%%"),
        }
        if setting.type is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif setting.choices:
            options["choices"] = setting.choices
        elif isinstance(setting.type, types.GenericAlias):
            options.update(nargs="+" if setting.default else "*", metavar="PATH" if setting.role == "place" else "TEXT")
        else:
            options.update(type=setting.type, metavar={int: "N", float: "X", str: "TEXT"}[setting.type])
        groups[setting.group].add_argument(setting.flag, **options)


def given_settings(namespace: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given on the command line, `{name: value}`."""
    names = {setting.name for setting in settings()}
    return {name: value for name, value in vars(namespace).items() if name in names}

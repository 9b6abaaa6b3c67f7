"""The base model: the choice, whether it is on this machine, its facts, and whether it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import marimo as mo

from ..config import BaseConfig, RunConfig, from_flat
from ..jobs.supervisor import restarts
from ..machine.memory import available_bytes
from ..models import base_models, hub
from ..models.base_models import ModelSpec
from ..reports import console
from ..reports.in_language import about, number, size
from ..reports.time_words import time_in_words
from ..runs import memory_estimate
from ..runs.plan import TrainingPlan, TrainingTracker
from ..runs.plan_warnings import advise
from ..runs.time_estimate import estimate
from ..schedule import suited_learning_rate
from ..tokens.dataset import TokenDataset
from ..tokens.tokenizer import ChatTokenizer, open_tokenizer
from ..translations import say
from .commands import News
from .forms import read_forms, settings_form, value_words, words
from .language import read_only
from .look import fact_table, figures, folded, note, row_table, small
from .problems import Problem, attempt, failure, scripted

ARRIVAL_STEP = 20_000_000  # bytes


def menu(current: str) -> mo.ui.dropdown:
    """Return models with a short name, with sizes and licences; its value is empty for any other model.

    Args:
        current: the model to begin with.
    """
    built_in = say("{name}: built in, {licence}", name=base_models.BUILT_IN, licence="Apache-2.0")
    options = {built_in: base_models.BUILT_IN}
    for row in hub.known_models():
        parts = say("{name}: {size} GB to fetch, {licence}",
                    name=row["name"], size=number(row["download_gb"], "g"), licence=row["licence"])  # fmt: skip
        options[parts + (say(", to be accepted on the hub") if row["gated"] else "")] = row["name"]
    other = say("another one: a folder, or a name on the hub")
    chosen = next((label for label, name in options.items() if name == current), other)
    return mo.ui.dropdown({**options, other: ""}, value=chosen, label=say("Model"), allow_select_none=False,
                          full_width=True)  # fmt: skip


def name_field(chosen: str, current: str) -> mo.ui.text | None:
    """Return a field for the name of a model that is not in the menu; None if one of the menu is chosen."""
    if chosen:
        return None
    known = {base_models.BUILT_IN, *(row["name"] for row in hub.known_models())}
    return mo.ui.text("" if current in known else current, full_width=True,
                      label=say("Its folder, or its name on the hub"))  # fmt: skip


def base_form(config: RunConfig) -> mo.ui.dictionary:
    """Return the settings of the base without its name, which the menu asks for."""
    form = settings_form(config, "base")
    return mo.ui.dictionary({name: element for name, element in form.elements.items() if name != "model"})


def read_base_form(config: RunConfig, values: Mapping[str, Any], chosen: str, named: str | None) -> RunConfig | Problem:
    """Return `config` with the form's values and the model that was chosen or named.

    Raises:
        ConfigError: a value is out of range or no number.
    """
    model = chosen or (named or "").strip()
    if not model:
        words = say("No model is named yet: type its folder, or its name on the hub.")
        return Problem(words, shown=True, told_above=True)
    return from_flat({"model": model}, base=read_forms(config, values))


def find_tokenizer(config: BaseConfig) -> ChatTokenizer | Problem:
    """Return the base's tokeniser; on a page, a problem if it is not on this machine.

    Raises:
        ModelError: it cannot be read.
    """
    return _missing(config.model, weights=False) or open_tokenizer(config)


def find_base(config: BaseConfig, tokenizer: ChatTokenizer) -> ModelSpec | Problem:
    """Return the base; on a page, a problem if it is not on this machine.

    Args:
        config: the settings that name it.
        tokenizer: its own, found already: what is wrong with both was said of it.

    Raises:
        ModelError: it cannot be read.
    """
    return _missing(config.model, weights=True) or base_models.find_base(config)


def _missing(name: str, *, weights: bool) -> Problem | None:
    """Return the problem that a model of the hub was not fetched, which `fetching` tells; None if it was."""
    repository = base_models.repository_of(name)
    if not repository or scripted() or hub.is_here(repository, weights=weights):
        return None
    return Problem(say("fetch the model first, above."), shown=True, told_above=True)


@dataclass(frozen=True)
class Presence:
    """The parts of a base that are on this machine.

    Attributes:
        repository: repository of the hub; empty for a local or invalid base.
        settings: whether everything that is read before the weights is here.
        weights: whether everything is here.
        arrived: bytes in the cache, in steps that are worth showing.
    """

    repository: str = ""
    settings: bool = True
    weights: bool = True
    arrived: int = 0

    @property
    def files(self) -> tuple[bool, bool]:
        """Return the values that change when the files have to be looked at again."""
        return self.settings, self.weights


def presence(config: BaseConfig | Problem) -> Presence:
    """Look for a base in the hub's cache, without any request."""
    repository = "" if isinstance(config, Problem) else attempt(base_models.repository_of, config.model)
    if not repository or isinstance(repository, Problem):
        return Presence()
    if hub.is_here(repository):
        return Presence(repository)
    settings = hub.is_here(repository, weights=False)
    return Presence(repository, settings, False, hub.arrived_bytes(repository) // ARRIVAL_STEP * ARRIVAL_STEP)


def fetch_button(news: News) -> Any:
    """Return a button that has a base fetched."""
    return mo.ui.run_button(label=say("Fetch it"), kind="success", disabled=news.running)


def fetching(config: BaseConfig | Problem, found: Presence, news: News, button: Any) -> mo.Html | None:
    """Return what fetching a base means, or how far it is; or that none is named."""
    if isinstance(config, Problem):
        return note(config.message, "warn") if config.told_above else None
    if found.weights:
        return None
    if news.running:
        return note(_so_far(config.model, found))
    parts: list[Any] = [note(_offer(config.model, found), "warn")]
    if news.problem:
        parts.append(failure(news.problem))
    return mo.vstack([*parts, *([] if read_only() else [button])], gap=0.5)


def _offer(name: str, found: Presence) -> str:
    alias = hub.ALIASES.get(name)
    if alias is None:
        return say("{repository} is not on this machine. It comes from the Hugging Face hub; your text stays on this "
                   "computer.", repository=found.repository)  # fmt: skip
    return say("{repository} is not on this machine: about {size} GB, licence {licence}. It comes from the Hugging "
               "Face hub; your text stays on this computer.", repository=found.repository, size=alias.download_gb,
               licence=alias.licence)  # fmt: skip


def _so_far(name: str, found: Presence) -> str:
    alias, here = hub.ALIASES.get(name), size(found.arrived)
    if alias is None:
        return say("Fetching {repository}: {here} have arrived.", repository=found.repository, here=here)
    return say("Fetching {repository}: {here} of about {total} GB have arrived.",
               repository=found.repository, here=here, total=alias.download_gb)  # fmt: skip


def information(spec: ModelSpec, config: RunConfig) -> mo.Html:
    """Return what will be loaded."""
    weights = say(
        "{size}, {bits} bits per weight", size=size(spec.loaded_bytes), bits=number(spec.bits_per_weight, ".2f")
    )
    return fact_table(
        {
            say("Base"): f"{spec.name} ({spec.config['model_type']}), {console.loading(spec)}",
            say("Licence"): spec.licence or say("not known: see where it comes from"),
            say("Parameters"): say("{count} million in {layers} layers",
                                   count=number(spec.parameters / 1e6, ",.1f"), layers=spec.num_layers),
            say("Weights"): weights,
        }
    )  # fmt: skip


# What follows from the settings -----------------------------------------------------------------------------------


def chosen_now(plan: TrainingPlan | Problem) -> dict[str, str]:
    """Return what the program chooses for settings that are left empty, by their names; nothing without a plan."""
    if isinstance(plan, Problem):
        return {}
    config, per_epoch = plan.config, plan.config.train.steps_per_epoch(plan.train_rows)
    whole = dataclasses.replace(config.train, max_steps=0).total_steps(plan.train_rows)
    each_epoch = say("every {count} steps", count=number(per_epoch))
    return {
        "learning_rate": number(suited_learning_rate(plan.model.config["hidden_size"]), "g"),
        "max_steps": say("{count} steps", count=number(whole)),
        "num_layers": number(plan.model.num_layers),
        "eval_every": each_epoch,
        "save_every": each_epoch,
        "restart": number(restarts(from_flat({"restart": -1}, base=config))),
        **({} if config.place.run else {"run": plan.run.name}),
    }


def consequences(plan: TrainingPlan, train_dataset: TokenDataset, tracker: TrainingTracker) -> mo.Html:
    """Return the consequences of the settings, and settings that are worth another look.

    Args:
        plan: of the run.
        train_dataset: its rows to train.
        tracker: of all runs; the plan knows by itself where they lie.
    """
    train, spec = plan.config.train, plan.model
    estimate, trainable = _estimate(spec, plan.config, train_dataset), spec.trainable(plan.config.lora)
    share = say("{share}% of the model", share=number(100 * trainable / spec.parameters, ".2f"))
    rows = say("{size} per micro-batch × {times}", size=train.batch_size, times=train.grad_accumulation_steps)
    per_epoch = number(train.steps_per_epoch(plan.train_rows))
    cards = {
        say("Steps"): (
            number(plan.total_steps),
            say("{steps} per epoch", steps=per_epoch),
        ),
        say("Rows per step"): (number(train.batch_size * train.grad_accumulation_steps), rows),
        say("Trained parameters"): (number(trainable / 1e6, ",.2f") + " M", share),
        say("Peak memory, predicted"): (size(estimate.total), say("of the whole process")),
        say("Learning rate"): (number(train.learning_rate, "g"), _rate_words(plan)),
        say("Time"): _time(plan),
    }
    advice = [note(f"{say(words(a.setting))}: {a.message[:1].lower()}{a.message[1:]}", "warn") for a in advise(plan)]
    return mo.vstack([figures(cards), *advice], gap=0.75)


def _rate_words(plan: TrainingPlan) -> str:
    """Return the schedule, and whether the peak is the one that the program chooses."""
    train, schedule = plan.config.train, value_words("schedule", plan.config.train.schedule)
    suited = train.learning_rate == suited_learning_rate(plan.model.config["hidden_size"])
    return say("automatic, {schedule}", schedule=schedule) if suited else schedule


def _time(plan: TrainingPlan) -> tuple[str, str]:
    """Return how long training will take, its checks included, and what tells so."""
    estimated = estimate(plan)
    if plan.done:
        return "–", say("complete: no step is left")
    if not estimated.known:
        return "–", say("known after the first steps")
    checks = about(estimated.checks)
    return time_in_words(estimated), say("{checks} of it for checks; at the speed of {run}", checks=checks,
                                         run=estimated.measured_by)  # fmt: skip


def quantisations(spec: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """Compare LoRA and QLoRA by arithmetic: the same adapters on this base at each number of bits."""
    if spec.quantize_bits is None and spec.quantization:
        choices = {say("{bits} bits (QLoRA), as it is stored", bits=spec.bits): spec}
        remark = say(
            "This base is stored quantised. LoRA, for comparison, takes an unquantised one, and no quantisation."
        )
    else:
        remark = say("To train the other kind, choose another quantisation (none, 4 or 8): it is a run of its own.")
        names = {"4": say("4 bits (QLoRA)"), "8": say("8 bits (QLoRA)"), "none": say("unquantised (LoRA)")}
        choices = {
            name: base_models.describe(spec.path, from_flat({"quantize": bits}, config).base, spec.licence)
            for bits, name in names.items()
        }
    columns = [say("Base"), say("Weights"), say("Bits per weight"), say("Adapters"), say("Peak memory, predicted")]
    rows = [
        dict(zip(columns, (name, *_sizes(kind, config, train_dataset)), strict=True)) for name, kind in choices.items()
    ]
    return mo.vstack([row_table(rows, numbers=columns[1:]), small(remark)])


def _sizes(spec: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> Sequence[str]:
    peak = _estimate(spec, config, train_dataset).total
    adapters = number(spec.trainable(config.lora) / 1e6, ",.2f") + " M"
    return size(spec.loaded_bytes), number(spec.bits_per_weight, ".2f"), adapters, size(peak)


def memory_check(spec: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> mo.Html:
    """Return the predicted peak and the memory that is free; the trainer checks the same before it loads anything."""
    estimate, available = _estimate(spec, config, train_dataset), available_bytes()
    rows = {
        say("Base"): size(estimate.weights),
        say("Dequantised"): size(estimate.dense) if estimate.dense else "",
        say("Activations"): size(estimate.activations + estimate.attention),
        say("Logits"): size(estimate.logits),
        say("Adapters"): say("{size}, with gradients and the optimizer's moments", size=size(estimate.adapters)),
        say("Peak memory, predicted"): say("{size}, the program included", size=size(estimate.total)),
        say("Memory free"): size(available),
    }
    verdict = attempt(memory_estimate.check_before_loading, estimate, available, config)
    fits = say("Fits in memory: needs about {peak}, {free} are free.", peak=size(estimate.total), free=size(available))
    verdict = failure(verdict.message) if isinstance(verdict, Problem) else small(fits)
    return mo.vstack([verdict, folded(say("Memory before training"), fact_table(rows))], gap=0.25)


def _estimate(spec: ModelSpec, config: RunConfig, train_dataset: TokenDataset) -> memory_estimate.MemoryEstimate:
    return memory_estimate.predict(spec, config, train_dataset.rows, available_bytes())

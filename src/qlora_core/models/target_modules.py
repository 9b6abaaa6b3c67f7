"""The choice of the linear layers that get adapters, by their names alone. Knows nothing of files or computing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from ..errors import ModelError

GROUPS = ("all", "attention", "mlp", "qv")

_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d{1,6})\.(.+)$")
_ATTENTION = re.compile(r"att(n|ention)\b.*\.")
_ROUTERS = {"gate", "router", "shared_expert_gate"}
_NORM = re.compile(r"norms?$")  # norms with a weight for each head have a matrix, like a linear layer
_QUERY_VALUE = {"q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn"}


def place(path: str) -> tuple[int, str] | None:
    """Return the transformer layer of a module or tensor and its name there, `(3, "self_attn.q_proj")`, or None."""
    match = _LAYER.search(path)
    return (int(match[1]), match[2]) if match else None


def within_model(path: str) -> str:
    """Return a module's or tensor's name from `layers.` on: inside a larger model it has a prefix."""
    match = _LAYER.search(path)
    return path[match.start() :].lstrip(".") if match else path


def is_projection(name: str, projections: str) -> bool:
    """Return whether a linear layer, named as within its transformer layer, is one of the chosen projections.

    The experts of a mixture are stacked when they are loaded, and routers decide for all experts: neither gets
    adapters.

    Args:
        name: for example `self_attn.q_proj`.
        projections: one of `GROUPS`, or last parts of names, separated by commas.
    """
    *_, leaf = parts = name.split(".")
    if not _ROUTERS.isdisjoint(parts) or "experts" in parts or _NORM.search(leaf):
        return False
    named = {
        "all": True,
        "attention": _ATTENTION.search(name) is not None,
        "mlp": _ATTENTION.search(name) is None,
        "qv": leaf in _QUERY_VALUE,
    }
    return named.get(projections, leaf in _names(projections))


def choose_projections(paths: Iterable[str], layers: Collection[int], projections: str) -> list[str]:
    """Return the linear layers at `paths` that are in one of `layers` and among the chosen projections.

    Raises:
        ModelError: there are none, or none with one of the names.
    """
    paths = list(paths)
    found = [path for path in paths if (at := place(path)) and at[0] in layers and is_projection(at[1], projections)]
    leaves = {path.rpartition(".")[2] for path in found}
    named = () if found and projections in GROUPS else _names(projections)
    if missing := [name for name in named if name not in leaves]:
        known = ", ".join([*GROUPS, *sorted({path.rpartition(".")[2] for path in paths} - _ROUTERS)])
        raise ModelError(f"has no projections {', '.join(missing)}. Known: {known}.")
    return found


def _names(projections: str) -> list[str]:
    return projections.replace(",", " ").split()

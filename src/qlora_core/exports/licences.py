"""Licences of base models: their names on the hub, where they stand, and what they ask for.

In plain words and short; the licence itself decides. Identifiers are those of
https://huggingface.co/docs/hub/repositories-licenses. Knows no files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..models.hub import ALIASES

UNKNOWN = "unknown"
"""The hub's word for a licence that nobody stated."""


@dataclass(frozen=True)
class Licence:
    """A licence of base models.

    Attributes:
        identifier: its name on the hub.
        url: where its text stands.
        asks: what it asks of somebody who passes on the model, or what was made of it.
        notice: the sentence that it wants in a file `NOTICE`; empty if it wants none.
    """

    identifier: str
    url: str
    asks: str
    notice: str = ""


def _llama(version: str) -> Licence:
    major, minor = version.split(".")
    return Licence(
        f"llama{version}",
        f"https://www.llama.com/llama{major}_{minor}/license/",
        "pass on a copy of the licence and the notice in `NOTICE`, show “Built with Llama”, begin the model's name "
        "with “Llama”, keep to Meta's acceptable use policy, and ask Meta first if you have more than 700 million "
        "users a month",
        f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
    )


LICENCES = {
    "Apache-2.0": Licence(
        "apache-2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        "pass on a copy of the licence, keep the notices of the base, and say that its files were changed",
    ),
    "MIT": Licence(
        "mit",
        "https://opensource.org/license/mit",
        "pass on the base's copyright line and the text of the licence",
    ),
    "Llama 3.1 Community": _llama("3.1"),
    "Llama 3.2 Community": _llama("3.2"),
    "Gemma": Licence(
        "gemma",
        "https://ai.google.dev/gemma/terms",
        "pass on a copy of the terms and the notice in `NOTICE`, say that files were changed, and bind whoever gets it "
        "to Google's restrictions on use",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}
"""By the names that `models.hub.ALIASES` uses."""


def licence_of(stated: str, repository: str) -> str:
    """Return the name of a base's licence: the stated one, else that of a known repository of the hub, else empty."""
    return stated or next((alias.licence for alias in ALIASES.values() if alias.repository == repository), "")


def for_hub(licence: str, repository: str) -> dict[str, str]:
    """Return the licence as a model card's metadata have it.

    Args:
        licence: name of it; empty if it is not known.
        repository: OWNER/NAME of the base; empty if it has none.

    Returns:
        `license`: the hub's identifier. For a licence that has none it is `other`, and `license_name` names it;
        `license_link` then leads to the base's page.
    """
    if not licence:
        return {"license": UNKNOWN}
    if licence in LICENCES:
        return {"license": LICENCES[licence].identifier}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-.") or UNKNOWN
    link = {"license_link": f"https://huggingface.co/{repository}"} if repository else {}
    return {"license": "other", "license_name": name, **link}


def notice(base: str, repository: str, licence: str) -> str:
    """Return the text of a file `NOTICE`: the base, where it comes from, and its licence, as that may want it."""
    known = LICENCES.get(licence)
    origin = f"https://huggingface.co/{repository}" if repository else "a copy that has no address on the hub"
    lines = [f"Made from the base model {base}.", f"It comes from {origin}", f"Its licence: {licence}"]
    if known:
        lines += [f"Text of the licence: {known.url}", *([known.notice] if known.notice else [])]
    return "\n".join(lines) + "\n"

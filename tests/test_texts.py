"""Every text of the page is in the catalogue of every language, and nothing else is.

`uv run python tests/test_texts.py` takes new texts into the catalogues, untranslated, and old ones out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from conftest import ROOT

from qlora_core import texts
from qlora_core.config import settings
from qlora_core.page.forms import words
from qlora_core.page.language import choose
from qlora_core.presets import PRESETS

SECTIONS = ("page.section", "page.title")
SOURCES = [*(ROOT / "src" / "qlora_core").rglob("*.py"), *(ROOT / "apps").glob("*.py")]
OTHERS = [language for language in texts.LANGUAGES if language != "en"]


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Where something is said: file and line, by which function, the call."""
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if not re.search(r"texts import .*\bsay\b|import .*\bpage\b", source):
            continue  # a function of that name is another one
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("say", *SECTIONS):
                    yield f"{path.name}:{node.lineno}", name, node


def spoken() -> set[str]:
    """Texts in the calls of `say`, headings, and those that are said of settings and presets."""
    found = set()
    for _, name, call in calls():
        arguments = call.args[:1] if name == "say" else call.args
        found |= {argument.value for argument in arguments if isinstance(argument, ast.Constant)}
    for setting in settings():
        found |= {words(setting.name), setting.help, setting.unit}
    for preset in PRESETS.values():
        found |= {preset.machine, *(c.why for part in (preset.large, preset.small) for c in part.values())}
    return found - {""}


def path_of(language: str) -> Path:
    return texts.CATALOGUES / f"{language}.po"


def saved(language: str) -> dict[str, str]:
    with path_of(language).open("rb") as file:
        return {message.id: message.string for message in read_po(file) if message.id}


@pytest.mark.parametrize("language", OTHERS)
def test_nothing_is_missing_and_nothing_is_left_over(language):
    known = saved(language)
    assert sorted(spoken() - known.keys()) == []
    assert sorted(known.keys() - spoken()) == []
    assert [text for text, other in known.items() if not other.strip()] == []


@pytest.mark.parametrize("language", OTHERS)
def test_values_keep_their_names(language):
    names = re.compile(r"{\w*}")
    differing = {
        text: other for text, other in saved(language).items() if set(names.findall(text)) != set(names.findall(other))
    }
    assert differing == {}


def test_every_text_is_a_literal():
    """`say(f"…")` would be in no catalogue; what else is said by another value is added in `spoken`."""
    allowed = {"setting.help", "setting.unit", "words(setting.name)", "words(name)", "words(a.setting)",
               "title", "text", "name", "preset.machine", "choice.why"}  # fmt: skip
    odd = {
        place: ast.unparse(argument)
        for place, name, call in calls()
        for argument in (call.args[:1] if name == "say" else call.args)
        if not isinstance(argument, ast.Constant) and ast.unparse(argument) not in allowed
    }
    assert odd == {}


def test_say_speaks_the_readers_language(monkeypatch):
    monkeypatch.setattr(texts, "find_language", lambda: "pt")
    assert texts.say("Training") == "Treino"
    assert (
        texts.say("A text that no catalogue has, with {value}.", value="<b>")
        == "A text that no catalogue has, with <b>."
    )


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("pt-PT,pt;q=0.9,en;q=0.8", "pt"),
        ("en-GB,pt;q=0.5", "en"),
        ("de,fr;q=0.9", ""),
        ("de, pt-BR;q=0.3, en;q=0.2", "pt"),
        ("en;q=0, pt;q=0.1", "pt"),
        ("pt;q=x", ""),
        ("", ""),
    ],
)
def test_language_of_a_browser(accepted, language):
    assert choose(accepted) == language


def update(language: str) -> None:
    """Write the catalogue anew: what is said, with the translations that are known."""
    path = path_of(language)
    known = saved(language) if path.is_file() else {}
    catalogue = Catalog(locale=language)
    for text in sorted(spoken()):
        catalogue.add(text, known.get(text, ""))
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        write_po(file, catalogue, width=120, omit_header=True)


if __name__ == "__main__":
    for language in OTHERS:
        update(language)

"""Every text of the page is in the catalogue of every language, and nothing else is.

`uv run python tests/repository/test_texts.py` takes new texts into the catalogues, untranslated, and old ones out.
"""

import ast
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

from qlora_core import translations as texts
from qlora_core.activity import STAGES
from qlora_core.config import settings
from qlora_core.evaluation import contest, findings
from qlora_core.exports.formats import FORMATS
from qlora_core.page.forms import words
from qlora_core.page.language import choose
from qlora_core.page.reasons import REASONS
from qlora_core.page.setting_names import EMPTY, VALUES
from qlora_core.page.steps import STEPS
from qlora_core.reports import console
from qlora_core.reports.comparison import MEASURES, OTHER_DATA, OTHER_QUESTIONS, OTHER_TOKENS
from qlora_core.runs.presets import PRESETS
from qlora_core.runs.schema import State
from qlora_core.runs.time_spent import PARTS

ROOT = Path(__file__).parents[2]

SAID = {"say": 0, "Sentence": 0, "page.section": 0, "page.title": 0, "page.remark": 0,
        "page.steps.fold": 0, "page.forms.form_layout": 3}  # fmt: skip
"""Functions whose arguments are said, from which one on; of `say` that one alone."""
SOURCES = [*(ROOT / "src" / "qlora_core").rglob("*.py"), *(ROOT / "apps").glob("*.py")]
OTHERS = [language for language in texts.LANGUAGES if language != "en"]


def arguments() -> Iterator[tuple[str, ast.expr]]:
    """What is said: file and line, the argument."""
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if not re.search(r"translations import .*\b(say|Sentence)\b|import .*\bpage\b", source):
            continue  # a function of that name is another one
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and (first := SAID.get(name := ast.unparse(node.func))) is not None:
                for argument in node.args[first : first + 1 if name in ("say", "Sentence") else None]:
                    yield f"{path.name}:{node.lineno}", argument


class Anything(dict):
    """Facts of any name."""

    def __missing__(self, key):
        return {} if key == "versions" else 0


def spoken() -> set[str]:
    """Texts in calls, and those that settings, presets, states, comparisons and the diagnosis bring."""
    found = {argument.value for _, argument in arguments() if isinstance(argument, ast.Constant)}
    for setting in settings():
        found |= {words(setting.name), setting.help, setting.unit}
    found |= {chosen for _, chosen in EMPTY.values()} | set(VALUES.values()) | set(REASONS)
    for preset in PRESETS.values():
        found |= {preset.machine, *(c.why for part in (preset.large, preset.small) for c in part.values())}
    found |= {*typing.get_args(State), "new"}
    found |= {measure.label for measure in MEASURES} | {OTHER_DATA, OTHER_TOKENS, OTHER_QUESTIONS}
    found |= console.diagnosis(Anything()).keys()
    found |= {*contest.NAMES.values(), *contest.CONTENDERS.values(), *findings.PARTS.values()}
    found |= {*STAGES.values(), *PARTS.values(), *STEPS.values()}
    found |= {text for form in FORMATS.values() for text in (form.title, form.purpose)}
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
               "words(setting)", "STEPS[name]", "heading",
               "preset.machine", "choice.why", "run.state", "self.state", "found['state']", "row['state']",
               "row.label", "form.title", "form.purpose", "words", "title", "text", "name", "STAGES[stage]",
               "PARTS[part]", "run['state']", "VALUES[value]", "EMPTY[name][1]", "choice", "NAMES[name]", "part",
               "reason"}  # fmt: skip
    odd = {
        place: ast.unparse(argument)
        for place, argument in arguments()
        if not isinstance(argument, ast.Constant) and ast.unparse(argument) not in allowed
    }
    assert odd == {}


def test_a_number_with_digits_behind_the_point_is_a_figure():
    """`say("…", loss=f"{loss:.3f}")` would keep English's point in every language: `Figure(loss, ".3f")` does not."""
    odd = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("say", "Sentence"):
                inner = [part for keyword in node.keywords for part in ast.walk(keyword.value)]
                odd += [f"{path.name}:{node.lineno}" for part in inner
                        if isinstance(part, ast.FormattedValue) and "." in ast.unparse(part.format_spec or part.value)
                        and part.format_spec is not None]  # fmt: skip
    assert odd == []


def test_say_speaks_the_readers_language(monkeypatch):
    monkeypatch.setattr(texts, "find_language", lambda: "pt")
    assert texts.say("Result") == "Resultado"
    assert (
        texts.say("A text that no catalogue has, with {value}.", value="<b>")
        == "A text that no catalogue has, with <b>."
    )


def test_a_sentence_is_english_until_somebody_reads_it():
    inner = texts.Sentence("{bits} bits", bits=4)
    note = texts.Sentence("{count} tokens have no row in the embedding and are left out.", count=3)
    assert json.loads(json.dumps(note)) == note == "3 tokens have no row in the embedding and are left out."
    assert note.within("pt") == "3 tokens não têm linha na matriz de embeddings e ficam de fora."
    assert texts.Sentence("{choice} is safer.", choice=inner).within("pt") == "4 bits é mais seguro."
    assert texts.told("not a sentence", "pt") == "not a sentence"


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

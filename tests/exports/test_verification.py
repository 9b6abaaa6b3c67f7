"""What a verification says, in both languages, and what was recorded before."""

import pytest

from qlora_core import translations
from qlora_core.exports.export import _safer
from qlora_core.exports.formats import ExportChoices
from qlora_core.exports.verification import verdict

FOUND = {
    "not_verified": "", "why": "", "reader": "program", "library": "mlx-lm", "version": "1.2",
    "opened_with": "mlx-lm 1.2", "rows": 7, "tokens": 90, "tuned_loss": 0.5, "fused_loss": 0.509, "lost": 0.009,
    "interval": [-0.001, 0.0201], "kl": 0.001, "same_choice": 0.99, "within": True, "sure": False, "safer": "--bits 8",
    "questions": 4, "same_answers": 4, "same_ids": 4,
}  # fmt: skip
SHORT = {"why": "memory", "needed": 8_000_000_000, "free": 1_000_000_000}


@pytest.fixture(params=["en", "pt"])
def language(request, monkeypatch) -> str:
    monkeypatch.setattr(translations, "find_language", lambda: request.param)
    return request.param


def test_an_interval_beyond_the_limit_is_told_with_what_is_safer(language):
    ends = {
        "en": "Judged on 7 rows alone, it could be up to +0.0201. --bits 8 is safer.",
        "pt": "Avaliada só em 7 exemplos, a perda a mais pode chegar a +0,0201. --bits 8 é mais seguro.",
    }
    assert verdict(FOUND).endswith(ends[language])
    assert verdict(FOUND | {"safer": ""}).endswith({"en": "+0.0201.", "pt": "+0,0201."}[language])
    few = {"en": "3 rows are too few to say how sure that is.", "pt": "3 exemplos são poucos para dizer"}
    assert few[language] in verdict(FOUND | {"rows": 3, "interval": None})
    for sure in ({"sure": True}, {"within": False, "lost": 0.2}):
        assert "+0.0201" not in verdict(FOUND | sure)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (SHORT, {"en": "8.00 GB of memory wanted, 1.00 GB", "pt": "são precisos 8,00 GB de memória, há 1,00 GB"}),
        ({"why": "rows"}, {"en": "no rows to compare", "pt": "não tem exemplos com que"}),
    ],
)
def test_why_nothing_was_measured_is_told(language, changed, told):
    assert told[language] in verdict({"not_verified": "for a reason", "within": None} | changed)


@pytest.mark.parametrize(
    ("reader", "library", "told"),
    [
        ("own", "", {"en": "this program's own reader, not llama.cpp itself", "pt": "o leitor deste programa, não o"}),
        ("peft", "transformers", {"en": "PEFT's files, and transformers 1.2", "pt": "da PEFT, e transformers 1.2"}),
        ("llama.cpp", "xllamacpp", dict.fromkeys(("en", "pt"), "llama.cpp (xllamacpp 1.2)")),
        ("program", "mlx-lm", dict.fromkeys(("en", "pt"), "mlx-lm 1.2")),
    ],
)
def test_readers_have_names(language, reader, library, told):
    assert told[language] in verdict(FOUND | {"reader": reader, "library": library})


def test_records_of_earlier_versions_keep_their_words(language):
    old = {name: value for name, value in FOUND.items() if name not in ("why", "reader", "library", "version", "sure")}
    assert "mlx-lm 1.2" in verdict(old)
    assert "for a reason" in verdict(old | {"not_verified": "for a reason"})


@pytest.mark.parametrize(
    ("written", "choices", "flag"),
    [
        (None, {}, ""),
        ({"form": "mixed"}, {}, "--bits 8"),
        ({"form": "8"}, {}, "--bits 16"),
        ({"form": "16"}, {}, ""),
        ({"adapters": ""}, {"type": "q4_0"}, "--type q8_0"),
        ({"adapters": ""}, {}, "--type f16"),
        ({"adapters": "adapter.gguf"}, {}, ""),
        ({"adapters": ""}, {"type": "f16"}, ""),
    ],
)
def test_what_is_safer_depends_on_what_was_written(written, choices, flag):
    assert _safer(written, ExportChoices(**choices)) == flag

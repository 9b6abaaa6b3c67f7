"""The model card of an export: the hub reads what is so, and no name gets out of its place."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from qlora_core.data import DataReport
from qlora_core.exports import export
from qlora_core.exports.card import CARD, NOTICE, data_facts
from qlora_core.exports.licences import LICENCES, for_hub, licence_of, notice
from qlora_core.files.untrusted_json import read_object
from qlora_core.models.hub import ALIASES
from qlora_core.runs.run import Run

HOSTILE = "a|b`c](javascript:x)<img src=x onerror=alert(1)>\n---\nlicense: mit\u202e"


@pytest.fixture
def run(undrawn: Run, tmp_path: Path) -> Run:
    """A copy of the trained run."""
    return Run(shutil.copytree(undrawn.path, tmp_path / "runs" / "trained"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(read_object(path) | values), encoding="utf-8")


def change_base(run: Run, name: str, licence: str = "") -> None:
    """Let the run say that its base was named so when it was trained."""
    settings = read_object(run.path / "config.json")
    settings["base"] = settings["base"] | {"model": name}
    change(run.path / "config.json", **settings)
    change(run.path / "environment.json", model=run.environment()["model"] | {"licence": licence})


def change_report(run: Run, **values: Any) -> None:
    change(run.path / "data" / "data_report.json", **values)


def card_of(run: Run, to: str = "adapter", verified: bool = False) -> tuple[Path, ModelCard]:
    out = run.path / "export" / to
    export.export_run(run, out, to=to, verified=verified, force=True)  # type: ignore[arg-type]
    return out, ModelCard.load(out / CARD)


# What the hub reads -----------------------------------------------------------------------------------------------


def test_the_hub_reads_base_licence_and_library(run):
    change_base(run, "smollm2-360m", "Apache-2.0")
    out, card = card_of(run)
    assert card.data.to_dict() == {
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "base_model_relation": "adapter",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "qlora", "lora", "4-bit"],
    }
    assert "mlx_lm.generate --model HuggingFaceTB/SmolLM2-360M-Instruct --adapter-path . " in card.text
    assert (out / NOTICE).read_text(encoding="utf-8").splitlines()[1:3] == [
        "It comes from https://huggingface.co/HuggingFaceTB/SmolLM2-360M-Instruct",
        "Its licence: Apache-2.0",
    ]


def test_a_base_of_this_machine_has_no_address_and_no_licence(run):
    out, card = card_of(run)
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert "base_model_relation" not in card.data.to_dict()
    assert not (out / NOTICE).exists()
    assert "mlx_lm.generate --model BASE --adapter-path ." in card.text
    assert "is not known here" in card.text


@pytest.mark.parametrize(
    ("to", "library", "relation", "use"),
    [
        ("peft", "peft", "adapter", "model = AutoPeftModelForCausalLM.from_pretrained('.')"),
        ("fused-float16", "mlx", "finetune", "mlx_lm.generate --model . --prompt"),
        ("gguf", "gguf", "quantized", "llama-server --jinja -m trained-Q8_0.gguf"),
        ("gguf-lora", "gguf", "adapter", "llama-server --jinja -m BASE.gguf --lora adapter.gguf"),
        ("ollama", "gguf", "adapter", "ollama create trained -f Modelfile"),
    ],
)
def test_each_format_says_what_reads_it(run, to, library, relation, use):
    change_base(run, "owner/base@v1")
    out, card = card_of(run, to)
    assert (card.data.library_name, card.data.base_model) == (library, "owner/base")
    assert card.data.to_dict()["base_model_relation"] == relation
    assert use in card.text
    assert str(run.path) not in (out / CARD).read_text(encoding="utf-8")


def test_the_language_is_that_which_was_asked_for(run):
    settings = read_object(run.path / "config.json")
    settings["data"] = settings["data"] | {"language": "pt"}
    change(run.path / "config.json", **settings)
    assert card_of(run)[1].data.language == "pt"


# Licences ---------------------------------------------------------------------------------------------------------


def test_every_licence_of_a_short_name_is_known():
    assert {alias.licence for alias in ALIASES.values()} <= LICENCES.keys()


def test_a_licence_the_hub_has_no_word_for_is_named():
    assert for_hub("Sea Licence 2 (draft)", "owner/base") == {
        "license": "other",
        "license_name": "sea-licence-2-draft",
        "license_link": "https://huggingface.co/owner/base",
    }
    assert for_hub("*", "") == {"license": "other", "license_name": "unknown"}


def test_a_known_repository_has_its_licence_even_when_it_is_named_in_full():
    assert licence_of("", "google/gemma-2-2b-it") == "Gemma"
    assert licence_of("", "owner/unknown") == ""


def test_a_notice_says_what_the_licence_wants_said():
    assert notice("llama-3.2-1b", "meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2 Community").splitlines()[-1] == (
        "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All Rights "
        "Reserved."
    )


# The data ---------------------------------------------------------------------------------------------------------


def test_data_are_names_and_counts(run):
    report = DataReport(sources=["/home/somebody/private", "hf:owner/rows:train"], train=4, validation=4, duplicates=2)
    report.by_source = {"/home/somebody/private/club.txt": [5, 1], "/mnt/other/club.txt": [2, 1], "b.md": [1, 0]}
    report.personal_data.add("/home/somebody/private/club.txt:3", "e-mail address, telephone number", "rosa@club.pt")
    report.personal_data.add("b.md:1", "e-mail address", "ze@club.pt")
    report.rejected.add("b.md:2", "holds no text", "secret")
    report.write(run.path / "data" / "data_report.json")
    assert data_facts(run) == {
        "sources": {"club.txt": 7, "b.md": 1},
        "other_sources": 0,
        "datasets": ["owner/rows:train"],
        "train": 4,
        "validation": 4,
        "left_out": 3,
        "personal_data": {"e-mail address": 2, "telephone number": 1},
        "personal_rows": 2,
    }
    out, card = card_of(run)
    assert "| Sources | `club.txt` (7 rows), `b.md` (1 rows) |" in card.text
    assert "| Left out | 3 rows: " in card.text
    assert "2 rows seem to hold some: `e-mail address` in 2, `telephone number` in 1." in card.text
    for text in ("somebody", "rosa@", "secret"):
        assert text not in card.content
        assert text not in (out / "metrics.json").read_text(encoding="utf-8")
    assert read_object(out / "metrics.json")["data"] == data_facts(run)


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"by_source": 3}', b'{"personal_data": {"count": "x"}}'])
def test_without_a_report_the_card_says_so(run, content):
    path = run.path / "data" / "data_report.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert data_facts(run) is None
    assert "The run has no report on its data." in card_of(run)[1].text


def test_no_row_and_no_answer_is_quoted(run):
    rows = [message["content"] for row in (*run.train_rows(), *run.validation_rows()) for message in row["messages"]]
    assert len(rows) == 16
    text = card_of(run)[1].text
    assert [quoted for quoted in rows if re.search(rf"(?<!\w){re.escape(quoted)}(?!\w)", text)] == []


# Results and limits -----------------------------------------------------------------------------------------------


def test_results_are_those_of_the_run(run, trained):
    shutil.copyfile(trained.metrics_file, run.metrics_file)
    text = card_of(run)[1].text
    best = run.summary()
    assert f"| Validation loss, at its best | {best['best_val_loss']:.4f} (step {best['best_step']}) |" in text
    last = [event for event in run.metrics() if event["type"] == "step"][-1]
    assert f"| Training loss, last step | {last['train_loss']:.4f} |" in text
    recall = run.evaluation()["recall"]["trained"]
    right = f"{recall['tuned']} of {recall['questions']} ({100 * recall['tuned'] // recall['questions']}%)"
    assert f"| Right answers, phrasings that were trained | {right}; the base model {recall['base']} |" in text
    assert "![Loss, learning rate, speed and memory](curves.png)" in text
    assert "- Not verified" in text


def test_the_verdict_of_the_verification_stands_in_it(run):
    out, card = card_of(run, verified=True)
    verdict = read_object(out / "verification.json")["verdict"]
    assert verdict.startswith("Opened again with mlx-lm")
    assert verdict in card.text
    assert "Not verified" not in card.text


def test_a_run_that_was_never_evaluated(run):
    for name in ("summary.json", "evaluation.json"):
        (run.path / name).unlink()
    text = card_of(run)[1].text
    assert "None: the run has not been evaluated." in text
    assert "was not measured" in text


# Hostile names ----------------------------------------------------------------------------------------------------


def test_names_from_elsewhere_stay_in_their_place(run):
    """A name with markup, a line that ends the front matter, and a sign that turns the direction of writing."""
    change_report(run, by_source={HOSTILE: [3, 0]}, sources=[f"hf:{HOSTILE}"])
    change_base(run, "smollm2-360m", HOSTILE)
    out, card = card_of(run)
    assert card.data.to_dict()["license"] == "other"
    assert card.data.to_dict()["license_name"] == "a-b-c-javascript-x-img-src-x-onerror-alert-1-license-mit"
    first, front, rest = card.content.split("---\n", 2)
    assert first == ""
    assert yaml.safe_load(front)["base_model"] == "HuggingFaceTB/SmolLM2-360M-Instruct"
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").parse(rest)
    inline = [child for token in shown for child in token.children or ()]
    assert [token for token in (*shown, *inline) if token.type.startswith("html")] == []
    assert {token.attrGet("href") for token in inline if token.type == "link_open"} == set()
    assert any("onerror" in token.content for token in inline if token.type == "code_inline")
    assert "\u202e" not in card.content
    assert len((out / NOTICE).read_text(encoding="utf-8").splitlines()) == 3

"""The files beside a model's weights: tokeniser, chat template, ends of answers, licence. Knows no weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ..files.storage import MANIFEST, left_by_file_manager, write_json
from .tokenizer import ChatTokenizer

TEMPLATE_FILE = "chat_template.jinja"
_COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
_OF_THE_WEIGHTS = ("config.json", "model.safetensors.index.json", MANIFEST)


def copy_companions(source: Path, directory: Path) -> None:
    """Copy the files beside a model's weights that do not describe them: tokeniser, template, licence."""
    for path in {path for pattern in _COMPANIONS for path in source.glob(pattern)}:
        if path.is_file() and path.name not in _OF_THE_WEIGHTS and not left_by_file_manager(path.name):
            shutil.copyfile(path, directory / path.name)


def write_tokenizer(tokenizer: ChatTokenizer, directory: Path) -> None:
    """Write a tokeniser's files, so that other programs ask and stop as it does.

    `chat_template.jinja` is the template that it asks with, which other programs prefer to the one among the model's
    own files; `generation_config.json` lists every token that ends a trained answer.
    """
    copy_companions(tokenizer.directory, directory)
    write_template(tokenizer, directory)
    if tokenizer.ends_unlisted:
        generation = directory / "generation_config.json"
        listed = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        write_json(generation, listed | {"eos_token_id": list(tokenizer.eos_ids)})


def write_template(tokenizer: ChatTokenizer, directory: Path) -> None:
    """Write the template that a tokeniser asks with."""
    (directory / TEMPLATE_FILE).write_text(tokenizer.asking_template, encoding="utf-8", newline="\n")

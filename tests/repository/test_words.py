"""Docstrings of functions are sentences that begin with a verb: "Return the loss …", not "Of a batch, …"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qlora_core

SOURCE = Path(qlora_core.__file__).parent
NO_VERBS = frozenset(
    re.findall(
        r"\w+",
        """
    A About After All Also An And Another Answers Any As At Because Before Beside Besides Between Both But By Each
    Either Every Everything Few For From Half Has Here How If In Inside Is It Its Itself Less Like Many More Most Much
    Neither
    None Nothing Of On Once One Only Or Others Our Out Outside Over Same
    Several Since So Some Something Such Than That
    The Their Them Then There These They This Those Three To True Two Under Until What Whatever When Where Which While
    Who Whoever Whose Why With Within Without
    Bytes Cells Columns Directory Error Factor False Function Hash Id Ids Index Indices Kind Length Logits Loss
    Memory Message Model Number Path Place Places Rate Row Seconds Size Summed Text Token Value
    Real Right Short Shared Whether
    """,
    )
)
"""First words that are no verbs, or usually are meant as nouns. A few may be verbs; there is always another one."""
VERBS_IN_ED_OR_S = (
    "Embed",
    "Feed",
    "Need",
    "Shed",
    "Spread",
    "Pass",
    "Press",
    "Process",
    "Compress",
    "Guess",
    "Focus",
    "Suppress",
)


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        name = f"{prefix}.{child.name}" if hasattr(child, "name") and isinstance(child.name, str) else prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name.lstrip("."), child
        yield from functions(child, name)


def begins_with_a_verb(docstring: str) -> bool:
    """Whether the first word looks like a verb in the imperative."""
    found = re.match(r"([A-Z][a-z]+)[ ,]", docstring)
    if found is None:
        return False
    word = found[1]
    if word in ("List", "Sum"):  # verbs where an object follows, nouns before "of"
        return not docstring.startswith((f"{word} of ", f"{word},"))
    return word not in NO_VERBS and (word in VERBS_IN_ED_OR_S or not word.endswith(("ing", "ed", "s", "tion")))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_docstrings_begin_with_a_verb(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ((name, ast.get_docstring(function)) for name, function in functions(tree))
    wrong = [f"{name}: {text.splitlines()[0]}" for name, text in documented if text and not begins_with_a_verb(text)]
    assert wrong == []


@pytest.mark.parametrize(
    ("docstring", "verb"),
    [
        ("Return the loss of a batch.", True),
        ("List the runs.", True),
        ("Pass it on.", True),
        ("Of batches through the model.", False),
        ("Whether a process holds the lock.", False),
        ("List of the runs.", False),
        ("Tokens of each row.", False),
        ("Keeping the machine awake.", False),
        ("`x`, and its gradient.", False),
        ("int64, `(rows,)`: tokens of each row.", False),
    ],
)
def test_a_verb_is_told_from_other_words(docstring, verb):
    assert begins_with_a_verb(docstring) is verb

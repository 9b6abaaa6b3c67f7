"""docs/architecture.md shows the packages and their imports as they are."""

import importlib.util

import pytest
from test_imports import ORDER, VALUES
from test_readme import ROOT


def script():
    spec = importlib.util.spec_from_file_location("draw_imports", ROOT / "scripts" / "draw_imports.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draw = script()


@pytest.mark.parametrize("language", draw.DOCUMENTS)
def test_the_drawing_is_current(language):
    """If not: uv run python scripts/draw_imports.py."""
    assert draw.split(draw.DOCUMENTS[language].read_text(encoding="utf-8"), draw.PART)[1] == draw.made(language)


def test_no_arrow_goes_up():
    found = draw.imports()
    below: set[str] = set()
    for row in draw.rows(found):
        for name in row:
            assert found[name] <= below, name
            if name in VALUES:  # they stand in one row, and import one another in its order
                below.add(name)
        below |= set(row)
    assert below == set(ORDER)


def test_every_package_is_described_in_both_languages():
    assert list(draw.PURPOSES) == list(ORDER)
    assert all(len(both) == 2 and all(both) for both in draw.PURPOSES.values())


@pytest.mark.parametrize("language", draw.DOCUMENTS)
def test_each_package_is_in_the_drawing_once(language):
    drawn = draw.drawing(draw.imports(), language).split("(")[0].split()
    assert sorted(word for word in drawn if word in ORDER) == sorted(ORDER)

"""Dependencies are pinned at what is installed here, which the tests ran with; and the script that pins them."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import pin_dependencies as pinning  # noqa: E402
import try_newest_dependencies as newest  # noqa: E402

TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PINS = [Requirement(pin) for pin in pinning.pins(TEXT)]
OURS = "qlora-notebook"
OF_THE_ENVIRONMENT = {"pip", "setuptools", "uv", "wheel"}  # what makes environments leaves in them


def installed() -> dict[str, str]:
    found = {canonicalize_name(each.name): each.version for each in importlib.metadata.distributions()}
    return {name: version for name, version in found.items() if name not in {OURS, *OF_THE_ENVIRONMENT}}


def needed(name: str, extras: tuple[str, ...] = ("",)) -> set[str]:
    """Names of all that a distribution asks for on this machine, itself among them."""
    seen: set[tuple[str, str]] = set()
    left = [(canonicalize_name(name), extra) for extra in extras]
    while left:
        each, extra = left.pop()
        if (each, extra) in seen:
            continue
        seen.add((each, extra))
        for text in importlib.metadata.requires(each) or []:
            wanted = Requirement(text)
            if not wanted.marker or wanted.marker.evaluate({"extra": extra}):
                left += [(canonicalize_name(wanted.name), more) for more in ("", *wanted.extras)]
    return {each for each, _ in seen}


def test_each_installed_distribution_is_pinned_at_its_version():
    here = {pin.name: str(pin.specifier) for pin in PINS if not pin.marker or pin.marker.evaluate()}
    assert {name: f"=={version}" for name, version in installed().items()}.items() <= here.items()


def test_nothing_is_pinned_that_nobody_asks_for_here():
    """What is pinned and not installed is for other machines: none of what is installed asks for it on this one."""
    elsewhere = {pin.name for pin in PINS} - installed().keys()
    assert not elsewhere & needed(OURS, ("", "formats"))
    assert {"mlx-cuda-12", "mlx-metal", "mlx-cpu"} <= {pin.name for pin in PINS}


@pytest.mark.parametrize("python", ["3.11.0", "3.11.9", "3.12.3", "3.13.0", "3.14.1"])
@pytest.mark.parametrize(("system", "machine"), [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")])
def test_on_every_machine_each_package_has_one_version(python, system, machine):
    around = {
        "python_full_version": python, "python_version": python.rpartition(".")[0],
        "sys_platform": system, "platform_machine": machine,
    }  # fmt: skip
    chosen = [pin.name for pin in PINS if not pin.marker or pin.marker.evaluate(around)]
    assert sorted(chosen) == sorted({pin.name for pin in PINS})


def test_pins_name_versions_and_no_places():
    tool = tomllib.loads(TEXT)["tool"]["uv"]
    for pin in [*tool["constraint-dependencies"], *tool["build-constraint-dependencies"]]:
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+( ; python_full_version (<|>=) '[0-9.]+')?", pin)
    assert not {"index", "index-url", "extra-index-url", "find-links", "sources"} & tool.keys()


def test_pins_are_written_between_their_marks_and_nowhere_else():
    tool = tomllib.loads(TEXT)["tool"]["uv"]
    run, build = tool["constraint-dependencies"], tool["build-constraint-dependencies"]
    assert pinning.with_pins(TEXT, reversed(run), reversed(build)) == TEXT  # sorted, and so the same when written again
    without = pinning.without_pins(TEXT)
    assert pinning.pins(without) == []
    assert pinning.with_pins(without, run, build) == TEXT
    freed = pinning.pins(pinning.without_pins(TEXT, ["numpy"]))
    assert set(run) - set(freed) == {pin for pin in run if pin.startswith("numpy==")}


def test_a_marker_stays_where_it_decides_between_versions():
    older, newer = "python_full_version < '3.12'", "python_full_version >= '3.12'"
    lines = {"a==1 ; sys_platform == 'linux'", f"b==1 ; {older}{pinning._ANYWHERE}", f"b==2 ; {newer}"}
    assert pinning._with_needed_markers(lines) == ["a==1", f"b==1 ; {older}", f"b==2 ; {newer}"]


def test_what_differs_from_the_newest_is_told_by_package():
    pinned = ["a==1", "b==1 ; python_full_version < '3.12'", "b==2 ; python_full_version >= '3.12'", "gone==1"]
    found = ["a==1", "b==3", "new==0.1"]
    assert list(newest.differences(pinned, found)) == [
        "b: 1 ; python_full_version < '3.12', 2 ; python_full_version >= '3.12' → 3",
        "gone: 1 → not there",
        "new: not there → 0.1",
    ]

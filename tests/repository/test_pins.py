"""Dependencies are pinned at what is installed here, which the tests ran with; and the script that pins them."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import pin_dependencies as pinning  # noqa: E402
import try_newest_dependencies as newest  # noqa: E402

TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PINS = [Requirement(pin) for pin in pinning.pins(TEXT)]
GROUPS = [
    Requirement(text) for group in tomllib.loads(TEXT)["dependency-groups"].values() for text in group
]  # the package itself with its extra for formats among them
WITHOUT_ITS_OWN = {each["name"] for each in tomllib.loads(TEXT)["tool"]["uv"]["dependency-metadata"]}


def needed() -> set[str]:
    """Names of all that the project and its groups ask for on this machine."""
    seen: set[tuple[str, str]] = set()
    left = [(canonicalize_name(each.name), extra) for each in GROUPS for extra in ("", *each.extras) if _here(each, "")]
    while left:
        if (each := left.pop()) in seen:
            continue
        seen.add(each)
        name, extra = each
        asked = map(Requirement, [] if name in WITHOUT_ITS_OWN else importlib.metadata.requires(name) or [])
        left += [
            (canonicalize_name(each.name), more) for each in asked if _here(each, extra) for more in ("", *each.extras)
        ]
    return {name for name, _ in seen} - {"qlora-notebook"}


def _here(requirement: Requirement, extra: str) -> bool:
    return not requirement.marker or requirement.marker.evaluate({"extra": extra})


def test_all_that_is_asked_for_here_is_pinned_as_it_is_installed():
    pinned = {pin.name: str(pin.specifier) for pin in PINS if not pin.marker or pin.marker.evaluate()}
    wanted = {name: f"=={importlib.metadata.version(name)}" for name in needed()}
    assert len(wanted) > 80
    assert {name: pinned.get(name) for name in wanted} == wanted


def test_what_other_machines_want_is_pinned_too():
    assert {"mlx-cuda-12", "mlx-metal", "mlx-cpu", "scipy-openblas32"} <= {pin.name for pin in PINS}


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

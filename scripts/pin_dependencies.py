"""Pin every dependency at the version that is tested, in pyproject.toml: no lock file is kept, as one names hosts.

    uv run python scripts/pin_dependencies.py                  after a dependency was added: the others stay
    uv run python scripts/pin_dependencies.py --upgrade        all at their newest
    uv run python scripts/pin_dependencies.py --upgrade NAME…  these at their newest

What is written are names, versions and, where a package has several versions, for which Python each is. It holds for
every platform and Python that pyproject.toml allows, and nothing changes when it is written again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
BEGIN, END = "# <pinned by scripts/pin_dependencies.py>", "# </pinned>"
SIDES = (
    ("--all-groups", "--extra", "formats", "--extra", "cpu"),
    ("--no-default-groups", "--extra", "formats", "--extra", "cuda"),
)
"""Everything that can be installed, in two parts that exclude each other."""

_BLOCK = re.compile(f"(?<={re.escape(BEGIN)}\n).*?(?={re.escape(END)})", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ANYWHERE = " and ((platform_machine == 'arm64' and sys_platform == 'darwin') or sys_platform == 'linux')"
"""What `environments` in pyproject.toml adds to each marker."""


def main() -> None:
    """Read the command line, resolve and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="free these, or all, of their pins first")
    names = parser.parse_args().upgrade
    text = PROJECT.read_text(encoding="utf-8")
    freed = text if names is None else without_pins(text, names)
    try:
        pinned = with_pins(text, *resolve(freed))
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.stderr.strip()}\nThe pins stay as they are; --upgrade NAME… frees those in the way.")
    PROJECT.write_text(pinned, encoding="utf-8", newline="\n")
    print(f"{len(pins(pinned))} pins in {PROJECT.name}{', as before' if pinned == text else ''}")


def pins(text: str) -> list[str]:
    """Return the requirements that a pyproject.toml pins: `name==version`, perhaps with a marker."""
    return tomllib.loads(text)["tool"]["uv"].get("constraint-dependencies", [])


def without_pins(text: str, names: Collection[str] = ()) -> str:
    """Return the text of a pyproject.toml without these pins, or without any."""
    tool = tomllib.loads(text)["tool"]["uv"]
    kept = [
        [pin for pin in tool.get(kind, []) if names and _name(pin) not in names]
        for kind in ("constraint-dependencies", "build-constraint-dependencies")
    ]
    return with_pins(text, *kept)


def with_pins(text: str, run: Iterable[str], build: Iterable[str]) -> str:
    """Return the text of a pyproject.toml with its pins replaced by these."""
    lines = []
    for kind, found in (("constraint-dependencies", run), ("build-constraint-dependencies", build)):
        lines += [f"{kind} = [\n", *(f'    "{pin}",\n' for pin in sorted(found)), "]\n"]
    return _BLOCK.sub(lambda _: "".join(lines), text)


def resolve(text: str) -> tuple[list[str], list[str]]:
    """Return pins of all dependencies and build requirements of a pyproject.toml, for all platforms and Pythons.

    Raises:
        subprocess.CalledProcessError: with uv's reason.
    """
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "pyproject.toml").write_text(text, encoding="utf-8")
        run, build = _resolve_run(place, text), _resolve_build(place, text)
    return _with_needed_markers(run), _with_needed_markers(build)


def _resolve_run(place: Path, text: str) -> set[str]:
    _uv(place, "lock")
    options = ("export", "--frozen", "--no-emit-project", "--no-hashes", "--no-header", "--no-annotate")
    found = {line for side in SIDES for line in _uv(place, *options, *side)}
    locked = tomllib.loads((place / "uv.lock").read_text(encoding="utf-8"))["package"]
    own = tomllib.loads(text)["project"]["name"]
    if missing := {package["name"] for package in locked} - {_name(line) for line in found} - {own}:
        sys.exit(f"{', '.join(sorted(missing))}: asked for by an extra or a group that SIDES does not name")
    return found


def _resolve_build(place: Path, text: str) -> set[str]:
    """Return pins of the build requirements; `editables` is what hatchling needs for an editable build."""
    project = tomllib.loads(text)
    wanted = [*project["build-system"]["requires"], "editables"]
    pinned = project["tool"]["uv"].get("build-constraint-dependencies", [])
    for name, requirements in (("build.in", wanted), ("build.pinned", pinned)):
        (place / name).write_text("\n".join(requirements), encoding="utf-8")
    oldest = project["project"]["requires-python"].removeprefix(">=")
    options = ("pip", "compile", "--universal", "--python-version", oldest, "--no-header", "--no-annotate")
    return set(_uv(place, *options, "--constraints", "build.pinned", "build.in"))


def _uv(place: Path, *arguments: str) -> list[str]:
    """Return the lines that uv prints."""
    done = subprocess.run(["uv", *arguments], cwd=place, check=True, capture_output=True, encoding="utf-8")
    return [line for line in done.stdout.splitlines() if _NAME.match(line)]


def _with_needed_markers(lines: Iterable[str]) -> list[str]:
    """Return pins of exported requirements, keeping a marker only where it selects between versions."""
    markers: dict[str, set[str]] = {}
    for line in lines:
        pin, _, marker = line.partition(" ; ")
        markers.setdefault(pin, set()).add(marker.removesuffix(_ANYWHERE))
    versions = Counter(_name(pin) for pin in markers)
    found = []
    for pin, wanted in markers.items():
        marker = " or ".join(sorted(wanted)) if versions[_name(pin)] > 1 else ""
        found.append(f"{pin} ; {marker}" if marker else pin)
    return sorted(found)


def _name(requirement: str) -> str:
    return _NAME.match(requirement)[0]  # type: ignore[index]


if __name__ == "__main__":
    main()

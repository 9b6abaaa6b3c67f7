"""Try the newest versions of all dependencies: which differ from those that are pinned, and whether the tests pass.

    uv run python scripts/try_newest_dependencies.py                       the whole suite
    uv run python scripts/try_newest_dependencies.py tests/cli/test_cli.py these tests; what follows is pytest's

It works on a copy, in an environment of its own, both of which are deleted; pyproject.toml stays as it is. Where the
tests pass, `scripts/pin_dependencies.py --upgrade` pins what was tried. The exit status is that of the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pin_dependencies import PROJECT, pins, resolve, with_pins, without_pins


def main() -> int:
    """Resolve, print the differences, and run the tests."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    text = PROJECT.read_text(encoding="utf-8")
    try:
        newest = resolve(without_pins(text))
    except subprocess.CalledProcessError as error:
        sys.exit(error.stderr.strip())
    changes = list(differences(pins(text), newest[0]))
    print("\n".join(changes or ["all that is pinned is the newest that fits"]), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / PROJECT.parent.name
        _copy(PROJECT.parent, copy)
        (copy / PROJECT.name).write_text(with_pins(text, *newest), encoding="utf-8", newline="\n")
        # both would lead uv to the environment that this runs in
        around = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
        done = subprocess.run(["uv", "run", "pytest", *sys.argv[1:]], cwd=copy, env=around, check=False)
    result = "pass" if done.returncode == 0 else f"do not pass (exit status {done.returncode})"
    print(f"{len(changes)} versions differ; with the newest the tests {result}")
    return done.returncode


def differences(pinned: Iterable[str], newest: Iterable[str]) -> Iterator[str]:
    """Yield one line for each package whose version would change."""
    old, new = _versions(pinned), _versions(newest)
    for name in sorted(old | new):
        if old.get(name) != new.get(name):
            yield f"{name}: {old.get(name, 'not there')} → {new.get(name, 'not there')}"


def _versions(requirements: Iterable[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for requirement in sorted(requirements):
        name, _, version = requirement.partition("==")
        found.setdefault(name, []).append(version)
    return {name: ", ".join(versions) for name, versions in found.items()}


def _copy(project: Path, copy: Path) -> None:
    """Copy the files that git tracks or would add."""
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(listed, cwd=project, check=True, capture_output=True, encoding="utf-8").stdout
    for name in filter(None, names.split("\0")):
        if (project / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(project / name, copy / name)


if __name__ == "__main__":
    sys.exit(main())

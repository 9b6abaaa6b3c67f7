"""The power goes at any moment, and takes what was not made durable: the run goes on from what it acknowledged.

The operations of a real run are recorded. Of every beginning of that record many disks are made up: what was not synced
is there, or not, or one write of it is lost or cut; and so are names of files and directories that were not synced.
What the system promises is taken by the letter: syncing a file says nothing about its name.
"""

import dataclasses
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from harness import create_run, hashes, train, write_pair
from watched_disk import Operation, watched

from qlora_core.errors import QLoraError
from qlora_core.files import storage
from qlora_core.files.checksums import refuse_damage
from qlora_core.runs.checkpoints import latest_checkpoint
from qlora_core.runs.plan import TrainingTracker
from qlora_core.runs.run import Run

SEED = 4
SETTINGS = {"epochs": 1, "save_every": 1, "eval_every": 2, "keep_checkpoints": 2}  # 4 steps
ROOT = Path("/disk")  # of a disk that is made up
FILES = ("adapters.safetensors", "optimizer.safetensors")


# A model of a disk --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Node:
    """A file or a directory, whatever it is called."""

    directory: bool


@dataclasses.dataclass(eq=False)
class Data:
    """Something done to a file's content: written at a place, or emptied."""

    node: Node
    offset: int = 0
    content: bytes | None = None
    synced: bool = False


@dataclasses.dataclass(eq=False)
class Naming:
    """Something done to names: each of `changes` gives a name in a directory a node, or takes it away (None)."""

    changes: tuple[tuple[Node, str, Node | None], ...]
    synced: bool = False


class Disk:
    """What was done, in order, and what of it is durable."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Node(True)
        self.names: dict[Node, dict[str, Node]] = {self.top: {}}
        self.data: list[Data] = []
        self.namings: list[Naming] = []

    def find(self, path: Path) -> Node:
        node = self.top
        for part in path.relative_to(self.root).parts:
            node = self.names[node][part]
        return node

    def do(self, operation: Operation) -> None:
        """Take an operation into account."""
        path, kind = operation.path, operation.kind
        parent = self.find(path.parent) if path != self.root else self.top
        if kind in ("create", "mkdir"):
            node = Node(kind == "mkdir")
            self.names.setdefault(node, {})
            self._name((parent, path.name, node))
        elif kind == "truncate":
            self.data.append(Data(self.find(path)))
        elif kind == "write":
            self.data.append(Data(self.find(path), operation.offset, operation.data))
        elif kind == "rename":
            target = operation.target
            self._name((parent, path.name, None), (self.find(target.parent), target.name, self.find(path)))
        elif kind in ("unlink", "rmdir"):
            self._name((parent, path.name, None))
        elif kind == "fsync":
            node = self.find(path)
            for done in self.data:
                done.synced |= done.node is node
            for naming in self.namings:
                # a rename within a directory is one change; what crosses directories would need both to be synced
                naming.synced |= all(place is node for place, _, _ in naming.changes)

    def _name(self, *changes: tuple[Node, str, Node | None]) -> None:
        self.namings.append(Naming(changes))
        for place, name, node in changes:
            if node is None:
                del self.names[place][name]
            else:
                self.names[place][name] = node

    def losses(self) -> Iterator[tuple[frozenset[object], Data | None]]:
        """What may be lost at this moment, and which write may be cut in half."""
        data = [done for done in self.data if not done.synced]
        namings = [done for done in self.namings if not done.synced]
        yield frozenset(), None
        yield frozenset((*data, *namings)), None
        yield frozenset(data), None
        yield frozenset(namings), None
        for done in data:
            yield frozenset((done,)), None
            if done.content:
                yield frozenset(), done
        for i, done in enumerate(namings):
            yield frozenset((done,)), None
            yield frozenset(namings[i:]), None

    def contents(self, lost: frozenset[object], cut: Data | None) -> dict[str, bytes | None]:
        """Path to content of everything on a disk where something was lost; None is a directory."""
        names: dict[Node, dict[str, Node]] = {}
        for naming in self.namings:
            if naming not in lost:
                for place, name, node in naming.changes:
                    names.setdefault(place, {})[name] = node
        files: dict[Node, bytearray] = {}
        for done in self.data:
            if done in lost:
                continue
            file = files.setdefault(done.node, bytearray())
            if done.content is None:
                file.clear()
                continue
            content = done.content[: len(done.content) // 2] if done is cut else done.content
            file.extend(bytes(max(0, done.offset - len(file))))
            file[done.offset : done.offset + len(content)] = content
        found: dict[str, bytes | None] = {}

        def walk(node: Node, path: str) -> None:
            for name, child in names.get(node, {}).items():
                if child is not None:
                    found[path + name] = None if child.directory else bytes(files.get(child, b""))
                    if child.directory:
                        walk(child, f"{path}{name}/")

        walk(self.top, "")
        return found


def write(contents: dict[str, bytes | None], root: Path) -> None:
    for name, content in contents.items():  # a directory stands before what is in it
        if content is None:
            (root / name).mkdir(parents=True)
        else:
            (root / name).write_bytes(content)


# The test -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Recording:
    """A run that was watched.

    Attributes:
        operations: what was done, on a disk at `ROOT`; in between, what the run acknowledged: the step of a
            checkpoint, 0 when it was made.
        saved: hashes of each checkpoint as it was acknowledged.
        final: hashes of the end.
    """

    operations: list[Operation | int]
    saved: dict[int, dict[str, str]]
    final: dict[str, str]


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Recording:
    """A run of 4 steps from its creation to its end, saving at each, the older ones deleted as usual."""
    base = tmp_path_factory.mktemp("recorded").resolve()
    disk, made = base / "disk", Recording([], {}, {})
    disk.mkdir()
    data = write_pair(base / "data", 16)

    def record(operation: Operation) -> None:
        if operation.kind not in ("read", "append"):
            places = {name: ROOT / value.relative_to(disk) for name in ("path", "target")
                      if (value := getattr(operation, name))}  # fmt: skip
            made.operations.append(dataclasses.replace(operation, **places))

    def listen(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            made.operations.append(event["step"])
            made.saved[event["step"]] = hashes(run.path / "checkpoints" / f"{event['step']:06d}", FILES)

    with watched(disk, record):
        run = create_run(disk / "some" / "runs", tiny_model, data, run="run", **SETTINGS)
        made.operations.append(0)
        assert train(run, listen).state == "completed"
    made.final = hashes(run.final, FILES[:1])
    assert list(made.saved) == [1, 2, 3, 4]
    return made


@dataclasses.dataclass(frozen=True)
class State:
    """What a disk may hold when the power went.

    Attributes:
        acknowledged: the last step that was, 0 for a run that was made, None before that.
        contents: as `Disk.contents` has it.
        where: when it went, and what is lost.
    """

    acknowledged: int | None
    contents: dict[str, bytes | None]
    where: str


def moments(operations: Iterable[Operation | int]) -> Iterator[tuple[int, int | None, Disk, tuple]]:
    """Each beginning of the record with each loss that is possible then."""
    disk, acknowledged = Disk(ROOT), None
    for number, operation in enumerate(operations):
        if isinstance(operation, int):
            acknowledged = operation
            continue
        disk.do(operation)
        for loss in disk.losses():
            yield number, acknowledged, disk, loss


def states(operations: Sequence[Operation | int], count: int) -> Iterator[State]:
    """As many states as asked for, 0: all; those that are equal come once."""
    total, seen = sum(1 for _ in moments(operations)), set()
    chosen = range(total) if not 0 < count < total else set(random.Random(SEED).sample(range(total), count))
    for place, (number, acknowledged, disk, (lost, cut)) in enumerate(moments(operations)):
        if place not in chosen:
            continue
        contents = disk.contents(lost, cut)
        key = hash((acknowledged, frozenset(contents.items())))
        if key not in seen:
            seen.add(key)
            how = f"{len(lost)} lost, {'one cut' if cut else 'none cut'}"
            yield State(acknowledged, contents, f"seed {SEED}, power off after {number} ({operations[number]}), {how}")


def check(root: Path, state: State, recording: Recording) -> Run | None:
    """Start as a trainer does; what was acknowledged must be there."""
    run = Run(root / "some" / "runs" / "run")
    if state.acknowledged is None and not run.exists:
        return None  # to be made again
    run.config(), run.environment()
    run.refuse_damage()
    with TrainingTracker(run.path.parent).record(run):
        pass
    path, problems = latest_checkpoint(run.path / "checkpoints")
    step = int(path.name) if path else 0
    assert step >= (state.acknowledged or 0), f"{state.where}: {problems}"
    assert not path or hashes(path, FILES) == recording.saved[step], state.where
    for place in (run.best, run.final):
        if (place / FILES[0]).exists():
            refuse_damage(place / FILES[0])
    return run


def test_whatever_is_lost_the_acknowledged_checkpoint_is_there(request, recording, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage.os, "fsync", lambda _: None)  # of what is tried here
    root, tried, resumed = tmp_path / "disk", 0, 0
    for state in states(recording.operations, request.config.getoption("--power-cuts")):
        root.mkdir()
        write(state.contents, root)
        run, tried = check(root, state, recording), tried + 1
        if run and tried % 50 == 0:  # and it can be trained from there
            assert train(run).state == "completed", state.where
            assert hashes(run.final, FILES[:1]) == recording.final, state.where
            assert leftovers(run) == [], state.where
            resumed += 1
        shutil.rmtree(root)
    print(f"{tried} states after {len(recording.operations)} operations; {resumed} trained on")


def leftovers(run: Run) -> list[Path]:
    return [path for path in run.path.rglob(".*") if ".tmp" in path.name or ".old" in path.name]


def test_the_model_of_a_disk_finds_what_is_not_synced(tmp_path: Path) -> None:
    """Written and renamed without syncing, a file may be empty, half or nameless; synced in between, none of it."""

    def outcomes(*steps: str) -> set[bytes | None]:
        disk = Disk(tmp_path)
        found = {
            "create": Operation("create", tmp_path / ".new"),
            "write": Operation("write", tmp_path / ".new", data=b"content"),
            "sync": Operation("fsync", tmp_path / ".new"),
            "rename": Operation("rename", tmp_path / ".new", tmp_path / "file"),
            "sync names": Operation("fsync", tmp_path),
        }
        for step in steps:
            disk.do(found[step])
        return {disk.contents(*loss).get("file") for loss in disk.losses()}

    assert outcomes("create", "write", "rename") == {b"content", b"con", b"", None}
    assert outcomes("create", "write", "sync", "rename") == {b"content", None}
    assert outcomes("create", "write", "rename", "sync names") == {b"content", b"con", b""}
    assert outcomes("create", "write", "sync", "rename", "sync names") == {b"content"}


def test_a_program_that_does_not_sync_would_be_found_out(recording, tmp_path, monkeypatch) -> None:
    """The test above is not blind: without any of the syncs it fails."""
    monkeypatch.setattr(storage.os, "fsync", lambda _: None)
    kept = [done for done in recording.operations if isinstance(done, int) or done.kind != "fsync"]
    root, failed = tmp_path / "disk", 0
    for state in states(kept, 50):
        root.mkdir()
        write(state.contents, root)
        try:
            check(root, state, recording)
        except (AssertionError, QLoraError):
            failed += 1
        shutil.rmtree(root)
    assert failed > 10

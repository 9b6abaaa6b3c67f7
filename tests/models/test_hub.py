"""Fetching models, from a hub on this machine that breaks off, refuses and is gone when told to."""

import contextlib
import errno
import hashlib
import json
import logging.handlers
import os
import pty
import random
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_hub import REPOSITORY, FakeHub
from huggingface_hub import close_session, constants, file_download
from huggingface_hub.errors import HTTPError
from processes import communicate

from qlora_core.errors import ModelError
from qlora_core.models import hub
from qlora_core.models.hub import ALIASES, fetch, known_models

TOKEN = "hf_neverinamessage"
WEIGHTS = random.Random(0).randbytes(1_500_000)
SHARDS = {f"model-0000{i}-of-00002.safetensors": random.Random(i).randbytes(600_000) for i in (1, 2)}
INDEX = json.dumps({"weight_map": {f"layer{i}": name for i, name in enumerate(SHARDS)}}).encode()
SETTINGS = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}" * 10, "chat_template.jinja": b"{{ x }}"}
OTHERS = {
    "README.md": b"# A model",
    "modeling.py": b"raise SystemExit",
    "consolidated.safetensors": b"0" * 9_000,
    "onnx/config.json": b"{}",
}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A hub with one model, and huggingface_hub that knows no other."""
    server = FakeHub({**SETTINGS, **OTHERS, "model.safetensors": WEIGHTS})
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # of a piece that broke off nothing is kept
    for module in (file_download, sys.modules["huggingface_hub.utils._http"]):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()  # it may be one that knows a proxy
    yield server
    server.close()
    close_session()


def refused(repository: str = REPOSITORY, **settings) -> str:
    """The message with which fetching ends: one line that names the repository, and no token in it."""
    with pytest.raises(ModelError) as caught:
        fetch(repository, **settings)
    message = str(caught.value)
    assert message.startswith(f"{repository.partition('@')[0]}: ")
    assert "\n" not in message
    assert TOKEN not in message
    assert caught.value.__cause__ is None
    return message


def weights_asked(fake: FakeHub) -> list[dict[str, str]]:
    """Headers of the requests for large files, but for the tokeniser."""
    tokeniser = hashlib.sha256(SETTINGS["tokenizer.json"]).hexdigest()
    return [headers for _, path, headers in fake.requests if "elsewhere" in path and tokeniser not in path]


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


# What is fetched --------------------------------------------------------------------------------------------------


def test_settings_and_weights_come_and_nothing_else(fake):
    assert contents(fetch(REPOSITORY)) == {**SETTINGS, "model.safetensors": WEIGHTS}


def test_without_weights_only_settings_come(fake):
    path = fetch(REPOSITORY, weights=False)
    assert contents(path) == SETTINGS
    assert weights_asked(fake) == []
    assert fetch(REPOSITORY) == path  # the weights then come beside them
    assert contents(path) == {**SETTINGS, "model.safetensors": WEIGHTS}


def test_what_is_there_is_not_fetched_again(fake):
    path = fetch(REPOSITORY)
    before = len(fake.asked("resolve"))
    assert fetch(REPOSITORY) == path
    assert len(fake.asked("resolve")) == before


def test_a_revision_may_be_named(fake):
    assert fetch(f"{REPOSITORY}@v1") == fetch(f"{REPOSITORY}@{fake.commit}") == fetch(REPOSITORY)
    assert refused(repository=f"{REPOSITORY}@v2") == (
        f"{REPOSITORY}: the hub has the model, but not that revision. Leave out what follows the @, or correct it."
    )


def test_shards_come_together(fake):
    fake.files = {**SETTINGS, hub.INDEX: INDEX, **SHARDS}
    assert contents(fetch(REPOSITORY)) == fake.files


def test_small_weights_that_are_kept_with_the_text_come_too(fake, monkeypatch):
    monkeypatch.setattr("fake_hub.is_large", lambda _: False)
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS


def test_the_login_goes_to_the_hub_and_no_further(fake):
    fetch(REPOSITORY)
    assert {headers.get("authorization") for headers in fake.asked("/resolve/")} == {f"Bearer {TOKEN}"}
    assert [headers.get("authorization") for headers in weights_asked(fake)] == [None]


# Progress ---------------------------------------------------------------------------------------------------------


def test_one_line_stands_for_the_bars(fake):
    lines = []
    fetch(REPOSITORY, say=lines.append)
    fetch(REPOSITORY, say=lines.append)  # all is there: nothing to say
    assert lines == [f"Fetching {REPOSITORY} (1.5 MB) …"]


SCRIPT = f"from qlora_core.models.hub import fetch; print(fetch({REPOSITORY!r}))"


def outside(fake: FakeHub, tmp_path: Path, **settings) -> subprocess.Popen[str]:
    """Fetch in a process of its own, told by the environment alone where hub and cache are."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TQDM_"))},
        "HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN,
        "HF_HUB_DOWNLOAD_TIMEOUT": "60",
    }  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, text=True, **settings)


def test_standard_output_is_left_alone(fake, tmp_path):
    with outside(fake, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert communicate(process) == (
            f"{tmp_path}/hf/hub/models--owner--name/snapshots/{fake.commit}\n",
            f"Fetching {REPOSITORY} (1.5 MB) …\n",
        )


def test_a_terminal_gets_bars(fake, tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 120))
    shown = b""
    with outside(fake, tmp_path, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # which is how Linux says that the other end is closed
            while piece := os.read(ours, 65536):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"model.safetensors: 100%" in shown
    assert f"Fetching {REPOSITORY}".encode() not in shown


def test_warnings_of_the_library_are_kept_back(fake):
    """It tells of each retry with the address, which is signed."""
    told = logging.handlers.BufferingHandler(1_000)
    logger = logging.getLogger("huggingface_hub")
    logger.addHandler(told)
    try:
        fake.cut_at = 1_000_000
        refused()
        assert told.buffer == []
        logger.warning("as before")
        assert len(told.buffer) == 1
    finally:
        logger.removeHandler(told)


# Breaking off -----------------------------------------------------------------------------------------------------


def test_what_broke_off_goes_on_where_it_was(fake):
    fake.cut_at = 1_000_000
    assert refused() == (
        f"{REPOSITORY}: model.safetensors did not arrive whole; the connection broke (RemoteProtocolError). "
        "What has arrived is kept: run the same command again and it goes on from there."
    )
    fake.cut_at, before, lines = None, len(weights_asked(fake)), []
    path = fetch(REPOSITORY, say=lines.append)
    assert [headers.get("range") for headers in weights_asked(fake)[before:]] == ["bytes=1000000-"]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert lines == [f"Fetching {REPOSITORY} (0.5 MB) …"]  # what was still to come
    assert list(path.parents[1].glob("blobs/*.incomplete")) == []


def test_shards_that_are_whole_are_kept(fake):
    fake.files = {**SETTINGS, hub.INDEX: INDEX, **SHARDS}
    fake.refusal = {"model-00002": (503, "")}
    assert refused() == (
        f"{REPOSITORY}: model-00002-of-00002.safetensors did not arrive whole; the hub answers 503. "
        "What has arrived is kept: run the same command again and it goes on from there."
    )
    fake.refusal, before = {}, len(weights_asked(fake))
    assert contents(fetch(REPOSITORY)) == fake.files
    assert len(weights_asked(fake)) == before + 1


def test_what_cannot_be_asked_for_in_part_comes_from_the_start(fake):
    fake.cut_at = 1_000_000
    refused()
    fake.cut_at, fake.ranges = None, False
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS


def breaking(monkeypatch, error: BaseException, at: int) -> None:
    """Let each request for the weights end with `error` after `at` bytes, unless they are all by then."""
    real = file_download.http_get

    def http_get(url, stream, *, expected_size, resume_size=0, **settings):
        if expected_size != len(WEIGHTS):
            return real(url, stream, expected_size=expected_size, resume_size=resume_size, **settings)
        stream.write(WEIGHTS[resume_size : resume_size + at])
        if resume_size + at < len(WEIGHTS):
            raise error

    monkeypatch.setattr(file_download, "http_get", http_get)


def test_a_bad_line_is_borne_as_long_as_something_comes(fake, monkeypatch):
    """The library gives up at once when a connection is reset, as it is when the wireless goes."""
    breaking(monkeypatch, HTTPError("reset"), 400_000)
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS


def test_what_was_interrupted_goes_on_where_it_was(fake, monkeypatch):
    with monkeypatch.context() as patch:
        breaking(patch, KeyboardInterrupt(), 500_000)
        with pytest.raises(KeyboardInterrupt):
            fetch(REPOSITORY)
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS
    assert [headers.get("range") for headers in weights_asked(fake)] == ["bytes=500000-"]


def test_two_at_once_fetch_it_once(fake, tmp_path):
    fake.hold = 2
    processes = [outside(fake, tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert {communicate(process)[0] for process in processes} == {
        f"{tmp_path}/hf/hub/models--owner--name/snapshots/{fake.commit}\n"
    }
    assert len(weights_asked(fake)) == 1


def test_what_arrives_damaged_is_thrown_away(fake):
    fetch(REPOSITORY, weights=False)
    fake.damage = b"wrong"
    wanted = f"{REPOSITORY}: model.safetensors arrived damaged and was thrown away. Run the same command again."
    assert refused() == wanted
    fake.damage = b""
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS


def test_a_hash_that_is_none_names_no_file(fake, tmp_path):
    tree = fake.tree()
    for entry in tree:
        if "lfs" in entry:
            del entry["xetHash"]
            entry["lfs"]["oid"] = "../../../escaped"
    fake.tree = lambda: tree
    assert contents(fetch(REPOSITORY)) == {**SETTINGS, "model.safetensors": WEIGHTS}
    assert list(tmp_path.glob("escaped*")) == []


# Room -------------------------------------------------------------------------------------------------------------


def no_room(tmp_path: Path, wanted: str, free: str) -> str:
    return (
        f"{REPOSITORY}: {wanted} more are wanted in {tmp_path}/hub/models--owner--name/blobs, where {free} are free. "
        "Free some, or set HF_HOME to a directory on another disk; a smaller or a 4-bit model needs less "
        "(`qlora models`). What has arrived is kept: run the same command again and it goes on from there."
    )


def test_too_little_room_is_told_before_anything_is_fetched(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_100_000_000))
    fake.tree = lambda: [
        {**entry, "size": 14_500_000_000} if "model" in entry["path"] else entry for entry in FakeHub.tree(fake)
    ]
    assert refused() == no_room(tmp_path, "14.5 GB", "2.1 GB")
    assert weights_asked(fake) == []
    assert contents(fetch(REPOSITORY, weights=False)) == SETTINGS


def test_what_is_there_already_needs_no_room(fake, monkeypatch):
    fake.cut_at = 1_000_000
    refused()
    fake.cut_at = None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS


def test_a_disk_that_fills_up_in_the_middle(fake, tmp_path, monkeypatch):
    fetch(REPOSITORY, weights=False)
    free = [2_000_000, 200_000]  # before and after
    with monkeypatch.context() as patch:
        breaking(patch, OSError(errno.ENOSPC, "No space left on device"), 500_000)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free.pop(0)))
        assert refused() == no_room(tmp_path, "1.0 MB", "0.2 MB")
    assert contents(fetch(REPOSITORY))["model.safetensors"] == WEIGHTS
    assert [headers.get("range") for headers in weights_asked(fake)] == ["bytes=500000-"]


def test_a_cache_that_cannot_be_written(fake, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert refused() == (
        f"{REPOSITORY}: cannot be kept in {tmp_path}/file/hub (Not a directory). "
        "Make that possible, or set HF_HOME to another directory."
    )


# Without a network ------------------------------------------------------------------------------------------------

GO_ONLINE = (
    "Go online once and run the same command again; without a network, give a directory or take the built-in model."
)


@pytest.fixture(params=["no network", "HF_HUB_OFFLINE"])
def unplug(request, fake, monkeypatch):
    """Cut the network, or forbid it; the reason that is then told."""

    def unplugged() -> str:
        if request.param == "no network":
            fake.close()
            return "the hub cannot be reached (ConnectError)"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        return "HF_HUB_OFFLINE is set and forbids asking the hub"

    return unplugged


@pytest.mark.parametrize("weights", [True, False])
def test_offline_with_nothing(unplug, weights):
    reason = unplug()
    assert refused(weights=weights) == f"{REPOSITORY}: not on this machine yet; {reason}. {GO_ONLINE}"


@pytest.mark.parametrize("by_an_older_one", [False, True])
def test_offline_with_everything(fake, unplug, by_an_older_one):
    path = fetch(REPOSITORY)
    if by_an_older_one:  # which keeps no list of what a repository holds
        shutil.rmtree(path.parents[1] / "trees")
        file_download.read_tree_cache.__globals__["_IN_MEMORY_TREE_CACHE"].clear()
    unplug()
    assert fetch(REPOSITORY) == path
    assert fetch(REPOSITORY, weights=False) == path


@pytest.mark.parametrize("by_an_older_one", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_offline_with_the_tokeniser_only(fake, unplug, sharded, by_an_older_one):
    if sharded:
        fake.files = {**SETTINGS, hub.INDEX: INDEX, **SHARDS}
    path = fetch(REPOSITORY, weights=False)
    if by_an_older_one:
        shutil.rmtree(path.parents[1] / "trees")
        file_download.read_tree_cache.__globals__["_IN_MEMORY_TREE_CACHE"].clear()
    reason = unplug()
    missing = "model-00001-of-00002.safetensors" if sharded else "model.safetensors"
    assert refused() == (
        f"{REPOSITORY}: its weights are not all on this machine yet ({missing} is missing); {reason}. {GO_ONLINE}"
    )
    assert fetch(REPOSITORY, weights=False) == path


# What the hub refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["/resolve/", "/tree/", ""])
@pytest.mark.parametrize("status", [401, 403])
def test_a_licence_to_accept(fake, status, part):
    fake.refusal = {part: (status, "GatedRepo")}
    assert refused() == (
        f"{REPOSITORY}: its owner wants a licence to be accepted first. "
        "Accept it on the model's page, then `hf auth login`."
    )


@pytest.mark.parametrize("status", [401, 404])
def test_no_such_model(fake, status):
    fake.refusal = {"": (status, "RepoNotFound")}
    assert refused() == (
        f"{REPOSITORY}: the hub has no such model. Misspelt, or private (`hf auth login`)? "
        "`qlora models` lists known ones."
    )


def test_a_name_that_cannot_be_one(fake):
    assert refused(repository="own er/name") == (
        "own er/name: not a model on the hub: wanted OWNER/NAME, in letters, digits, - _ and dots."
    )
    assert fake.requests == []


@pytest.mark.parametrize(("status", "reason"), [(401, "Invalid credentials in Authorization header"), (403, "")])
def test_a_login_that_is_refused(fake, status, reason):
    fake.refusal = {"": (status, reason)}
    assert refused() == f"{REPOSITORY}: the hub refuses your login ({status}). `hf auth login` anew, or unset HF_TOKEN."


@pytest.mark.parametrize("part", ["", "/tree/", "/resolve/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails(fake, status, part):
    fake.refusal = {part: (status, "")}
    assert refused() == f"{REPOSITORY}: not on this machine yet; the hub answers {status}. {GO_ONLINE}"


def test_a_hub_that_fails_does_not_matter_when_all_is_here(fake):
    path = fetch(REPOSITORY)
    fake.refusal = {"": (503, "")}
    assert fetch(REPOSITORY) == path


def test_a_hub_that_never_answers(fake, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    fake.silent = True
    assert refused() == (
        f"{REPOSITORY}: not on this machine yet; the hub does not answer in time (ReadTimeout). {GO_ONLINE}"
    )


def test_a_page_in_place_of_the_hub(fake):
    """As the network of a train or a hotel answers before its terms are accepted."""
    fake.refusal = {"": (200, "")}
    assert refused() == (
        f"{REPOSITORY}: not on this machine yet; what answers is not the hub "
        f"(must a page be accepted to be online here?). {GO_ONLINE}"
    )


# What a repository may lack ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"pytorch_model.bin": b"\x80\x04"},
            "no model*.safetensors, only pickled weights, which can run code and are not opened. "
            "Take another repository.",
        ),
        (
            {"name-Q4_K_M.gguf": b"GGUF"},
            "no model*.safetensors, only GGUF. Take the repository that it was made from; its page on the hub names "
            "it.",
        ),
        (
            {"adapter_model.safetensors": b"0"},
            "no model*.safetensors: this repository holds no model that can be trained. "
            "`qlora models` lists some that can.",
        ),
    ],
)
@pytest.mark.parametrize("settings", [SETTINGS, {}], ids=["settings", "no settings"])
def test_without_safetensors(fake, settings, files, message):
    fake.files = {**settings, **files}
    assert refused() == f"{REPOSITORY}: {message}"
    assert weights_asked(fake) == []


def test_an_index_that_names_what_is_not_there(fake):
    first, second = SHARDS
    fake.files = {**SETTINGS, hub.INDEX: INDEX, first: SHARDS[first]}
    assert refused() == (
        f"{REPOSITORY}: its model.safetensors.index.json names {second}, which it does not hold. "
        "The repository is not whole: take another, or tell its owner."
    )


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"weight_map": []}'])
def test_an_index_that_is_none(fake, content):
    fake.files = {**SETTINGS, hub.INDEX: content, **SHARDS}
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json: not an index of weights \(.*take another"):
        fetch(REPOSITORY)


# Aliases ----------------------------------------------------------------------------------------------------------


def test_every_alias_is_a_row_of_the_table():
    rows = known_models()
    assert [row["name"] for row in rows] == list(ALIASES)
    assert {tuple(row) for row in rows} == {("name", "repository", "licence", "download_gb", "gated")}
    assert all(row["repository"].count("/") == 1 and row["licence"] and row["download_gb"] > 0 for row in rows)
    assert {row["name"] for row in rows if row["gated"]} == {
        name
        for name, alias in ALIASES.items()
        if alias.repository.split("/")[0] in ("google", "meta-llama", "mistralai")
    }

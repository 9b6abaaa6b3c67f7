"""Exports go to a hub on this machine whole and in one commit, name no place of this machine, or do not go at all."""

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_hub import REPOSITORY, FakeHub
from huggingface_hub import ModelCard, close_session, constants
from processes import communicate

from qlora_core.cli import main
from qlora_core.errors import QLoraError
from qlora_core.exports import export
from qlora_core.exports.formats import ExportChoices
from qlora_core.exports.push import find_export, push
from qlora_core.files.storage import describe_file, manifest_problem
from qlora_core.files.untrusted_json import read_object
from qlora_core.runs.run import Run

# huggingface_hub itself hands the files over in a way that its HTTP library wants written otherwise
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN = "hf_neverinamessage"
SENT = {"README.md", "adapter_config.json", "adapters.safetensors", "chat_template.jinja", "inference.py",
        "manifest.json", "metrics.json"}  # fmt: skip
KEPT = ["INTEGRACAO.pt.md", "INTEGRATION.md", "summary.md"]


@pytest.fixture
def fake(monkeypatch):
    """A hub without a repository, and huggingface_hub that knows no other and uploads as it does without Xet."""
    server = FakeHub({})
    server.exists = False
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(sys.modules["huggingface_hub.utils._http"], "time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()
    yield server
    server.close()
    close_session()


@pytest.fixture
def no_network(monkeypatch):
    """No login, and a hub that nobody can reach."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()
    yield
    close_session()


@pytest.fixture(scope="module")
def prepared(undrawn: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trained run with an export of its adapters; only for reading."""
    run = Run(shutil.copytree(undrawn.path, tmp_path_factory.mktemp("push") / "runs" / "trained"))
    export.export_run(run, run.result, to="adapter", verified=False, force=True)
    return run


@pytest.fixture
def run(prepared: Run, tmp_path: Path) -> Run:
    """A copy of it."""
    return Run(shutil.copytree(prepared.path, tmp_path / "runs" / "trained"))


def send(run: Run, **settings: Any) -> dict[str, Any]:
    runs_dir = run.path.parent
    return push(find_export(run.name, str(runs_dir), None), REPOSITORY, runs_dir=runs_dir, **settings)


def refused(run: Run, **settings: Any) -> str:
    """The message with which it ends: one line, and no token in it."""
    with pytest.raises(QLoraError) as caught:
        send(run, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert TOKEN not in message
    assert caught.value.__cause__ is None
    return message


def rewrite(run: Run, name: str, content: str) -> None:
    """Let a file of the export have been written so."""
    (run.result / name).write_text(content, encoding="utf-8")
    manifest = read_object(run.result / "manifest.json")
    manifest["files"][name] = describe_file(run.result / name)
    (run.result / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def give_personal_data(run: Run) -> None:
    path = run.path / "data" / "data_report.json"
    listed = [
        {"where": "a.txt:1", "reason": "e-mail address, telephone number", "sample": "rosa@club.pt"},
        {"where": "a.txt:2", "reason": "e-mail address", "sample": "ze@club.pt"},
    ]
    path.write_text(json.dumps(read_object(path) | {"personal_data": {"count": 2, "listed": listed}}), encoding="utf-8")
    export.export_run(run, run.result, to="adapter", verified=False)


# What arrives -----------------------------------------------------------------------------------------------------


def test_an_export_arrives_whole_and_private(fake, run, tmp_path):
    told = send(run)
    assert (fake.private, len(fake.commits)) == (True, 1)
    assert fake.files.keys() == {*SENT, ".gitattributes"}
    assert told["files"] == {name: len(content) for name, content in fake.files.items() if name in SENT}
    assert told["left_here"] == KEPT
    assert (told["url"], told["commit"], told["created"]) == (f"{fake.url}/{REPOSITORY}", fake.commit, True)
    for name in SENT - {"adapter_config.json", "manifest.json"}:
        assert fake.files[name] == (run.result / name).read_bytes()
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name in SENT:
        (arrived / name).write_bytes(fake.files[name])
    assert manifest_problem(arrived) is None
    assert ModelCard.load(arrived / "README.md").data.library_name == "mlx"


def test_nothing_of_it_names_a_place_of_this_machine(fake, run):
    base = run.environment()["model"]["path"]
    assert base in (run.result / "adapter_config.json").read_text(encoding="utf-8")
    send(run)
    for name, content in fake.files.items():
        assert str(run.path.parent).encode() not in content, name
        assert base.encode() not in content, name
    settings = json.loads(fake.files["adapter_config.json"])
    assert settings == read_object(run.result / "adapter_config.json") | {"model": "./base"}


def test_a_base_on_the_hub_is_named_by_its_address(fake, run):
    settings = read_object(run.path / "config.json")
    settings["base"]["model"] = "owner/base"
    (run.path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    export.export_run(run, run.path / "export" / "peft", to="peft", verified=False)
    export.export_run(run, run.result, to="adapter", verified=False)
    push(run.path / "export" / "peft", REPOSITORY, runs_dir=run.path.parent)
    assert json.loads(fake.files["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    send(run, force=True)
    assert json.loads(fake.files["adapter_config.json"])["model"] == "owner/base"


def test_what_is_missing_or_older_than_the_adapters_is_exported_first(run):
    def when() -> float:
        return (find_export("trained", str(run.path.parent), "gguf-lora") / "metrics.json").stat().st_mtime

    made = when()
    assert when() == made
    adapters = run.best / "adapters.safetensors"
    os.utime(adapters, (made + 10, made + 10))
    assert when() > made


def test_a_directory_goes_as_it_is(fake, run, tmp_path):
    copy = shutil.copytree(run.result, tmp_path / "copy")
    told = push(find_export(str(copy), "nowhere", None), REPOSITORY, runs_dir=Path("nowhere"), public=True)
    assert (fake.private, told["private"], fake.files.keys() - {".gitattributes"}) == (False, False, SENT)
    with pytest.raises(QLoraError, match=r"was exported as adapter\. Leave out --to peft, or name the run"):
        find_export(str(copy), "nowhere", "peft")


def test_a_changed_or_foreign_directory_does_not_go(run, tmp_path):
    (run.result / "inference.py").write_text("import os", encoding="utf-8")
    for given in ("trained", str(run.result)):
        with pytest.raises(QLoraError, match=r"was changed since it was exported .inference.py differs .* not sent"):
            find_export(given, str(run.path.parent), None)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "diary.txt").write_text("secret", encoding="utf-8")
    with pytest.raises(QLoraError, match="holds files that are not an export, so it is not sent"):
        find_export(str(tmp_path / "foreign"), str(run.path.parent), None)
    with pytest.raises(QLoraError, match="no such run"):
        find_export("nobody", str(run.path.parent), None)


def test_pushed_again_it_replaces_what_it_wrote_and_nothing_is_sent_twice(fake, run):
    send(run)
    before = len(fake.requests)
    export.export_run(run, run.result, to="adapter", verified=False)
    send(run)
    assert [commit["summary"] for commit in fake.commits] == ["trained, exported as adapter"] * 2
    assert [path for method, path, _ in fake.requests[before:] if method == "PUT"] == []


# What forbids it --------------------------------------------------------------------------------------------------


def test_personal_data_do_not_go_unless_told(fake, run):
    give_personal_data(run)
    assert refused(run) == (
        f"{run.result}: 2 of the rows that it was trained on seem to hold personal data (e-mail address in 2, "
        "telephone number in 1), which it may repeat. Clean the rows and train again (data_report.json in the run says "
        "which), or --with-personal-data if it may become known."
    )
    assert fake.requests == []
    send(run, with_personal_data=True)
    assert b"rosa@" not in b"".join(fake.files.values())


def test_a_run_without_a_report_does_not_go_unless_told(fake, run):
    (run.path / "data" / "data_report.json").unlink()
    export.export_run(run, run.result, to="adapter", verified=False)
    assert "nobody knows whether the rows hold personal data" in refused(run)
    send(run, with_personal_data=True)


@pytest.mark.parametrize("place", ["home", "runs", "user"])
def test_a_file_that_names_a_place_of_this_machine_does_not_go(fake, run, monkeypatch, place):
    monkeypatch.setenv("HOME", "/somewhere/at-home")
    monkeypatch.setattr(getpass, "getuser", lambda: "rosa")
    text = {"home": "/somewhere/at-home", "runs": f"{run.path}/x", "user": "/Volumes/rosa/base"}[place]
    rewrite(run, "chat_template.jinja", f"{{# one\ntwo {text} #}}\n")
    found = {"home": text, "runs": str(run.path.parent), "user": "/Volumes/rosa"}[place]
    assert refused(run).startswith(
        f"{run.result}/chat_template.jinja:2: names a place of this machine ({found}), which the hub would show."
    )
    assert fake.requests == []


def test_addresses_and_words_are_no_places(fake, run, monkeypatch):
    """The page of a repository whose owner has the user's name, and a word of the base's list of words."""
    monkeypatch.setattr(getpass, "getuser", lambda: "owner")
    monkeypatch.setenv("HOME", "/root")
    rewrite(run, "README.md", "https://huggingface.co/owner/x ../owner/x a/owner")
    rewrite(run, "tokenizer.json", '{"/root": 1, "/owner": 2}')
    send(run)
    assert "tokenizer.json" in fake.files


def test_another_repository_is_left_alone_unless_forced(fake, run):
    fake.exists, fake.private = True, True
    fake.files = {".gitattributes": b"", "README.md": b"mine", "model.bin": b"weights", "notes.md": b"x"}
    before = dict(fake.files)
    assert refused(run) == (
        f"{REPOSITORY}: holds files that are not of this export ('model.bin', 'notes.md'), so it is left as it is. "
        "--force replaces all of it; or give another name."
    )
    assert fake.files == before
    assert send(run, force=True)["created"] is False
    assert fake.files.keys() == {*SENT, ".gitattributes"}
    assert len(fake.commits) == 1


@pytest.mark.parametrize(("private", "public", "words"), [(False, False, "is public"), (True, True, "is private")])
def test_who_may_see_it_is_never_changed_by_the_way(fake, run, private, public, words):
    fake.exists, fake.private = True, private
    assert words in refused(run, public=public)
    assert fake.commits == []


# What goes wrong --------------------------------------------------------------------------------------------------


def test_a_cut_upload_leaves_the_old_state_and_goes_on(fake, run):
    fake.exists, fake.private = True, True
    fake.files = {"README.md": b"old", ".gitattributes": b""}
    before = dict(fake.files)
    fake.upload_cut_at = 1000
    assert refused(run).startswith(
        f"{REPOSITORY}: adapters.safetensors did not arrive, and nothing changed there; the connection broke ("
    )
    assert (fake.files, fake.commits) == (before, [])
    fake.upload_cut_at = None
    send(run)
    assert fake.files["README.md"] != b"old"


def test_a_commit_that_is_refused_changes_nothing(fake, run):
    fake.refusal["/commit/"] = (412, "Conflict")
    assert "was changed meanwhile (412)" in refused(run)
    assert fake.files == {".gitattributes": b""}
    fake.refusal.clear()
    before = len(fake.requests)
    send(run)
    assert [path for method, path, _ in fake.requests[before:] if method == "PUT"] == []


@pytest.mark.parametrize(
    ("part", "status", "code", "words"),
    [
        ("create", 401, "Invalid username or password.", "the hub refuses your login (401). `hf auth login` anew"),
        ("create", 403, "Forbidden for you", "your token may not write there (403). Make one with the role “write”"),
        ("/preupload/", 403, "Private repository storage limit reached", "the hub has no room left for it"),
        ("/lfs/", 413, "Too large", "the hub has no room left for it on this account (413)"),
        ("create", 409, "Conflict here", "it exists already where you cannot see it"),
        ("create", 429, "Slow down please", "the hub asks for patience (429"),
        ("create", 500, "Broken hub here", "nothing was sent; the hub answers 500. Run the same command again"),
    ],
)
def test_the_hub_says_no(fake, run, part, status, code, words):
    fake.refusal[part] = (status, code)
    message = refused(run)
    assert message.startswith(f"{REPOSITORY}: {words}")
    assert code not in message
    assert fake.commits == []


def test_nobody_is_logged_in(fake, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nobody is logged in to the hub here. `hf auth login`" in refused(run)
    assert fake.requests == []


def test_there_is_no_network(fake, run):
    fake.close()
    assert refused(run) == (
        f"{REPOSITORY}: nothing was sent; the hub cannot be reached (ConnectError). Run the same command again: what "
        "the hub has got already is not sent twice."
    )


@pytest.mark.parametrize("name", ["alone", "a/b/c", "own er/name", "owner/-name", "owner/" + "n" * 97, "../x"])
def test_a_name_that_is_none(run, name):
    with pytest.raises(QLoraError, match="not a name on the hub: wanted OWNER/NAME") as caught:
        push(run.result, name, runs_dir=run.path.parent)
    assert str(caught.value).startswith(f"{name}: ")


# The command ------------------------------------------------------------------------------------------------------


def command(run: Run, *more: str) -> list[str]:
    return ["push", "trained", REPOSITORY, "--runs-dir", str(run.path.parent), *more]


def test_a_file_of_another_type_goes_as_it_is_and_is_named_by_it(no_network, run, capsys):
    """What was exported with `--type` is not written anew; card and dry run tell the type that it has."""
    choices = ExportChoices(type="q4_1")
    export.export_run(run, run.path / "export" / "gguf", to="gguf", choices=choices, verified=False)
    before = (run.path / "export" / "gguf" / "trained-Q4_1.gguf").read_bytes()
    assert main(["push", run.name, REPOSITORY, "--runs-dir", str(run.path.parent), "--to", "gguf", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^Format +gguf: Q4_1, the adapters merged into it$", told, re.MULTILINE)
    assert "trained-Q4_1.gguf" in told
    assert "- 4-bit" in told
    card = (run.path / "export" / "gguf" / "README.md").read_text(encoding="utf-8")
    assert "kept as one model (Q4_1, the adapters merged into it)" in card
    assert "llama-server --jinja -m trained-Q4_1.gguf" in card
    assert (run.path / "export" / "gguf" / "trained-Q4_1.gguf").read_bytes() == before


def test_a_dry_run_needs_no_login_and_no_network(no_network, run, capsys):
    assert main(command(run, "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert f"Repository    {REPOSITORY}, private\n" in shown
    assert all(name in shown for name in SENT)
    assert "library_name: mlx" in shown
    assert "Nothing was sent." in shown
    assert main(command(run, "--dry-run", "--public", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["private"], told["dry_run"], told["url"]) == (False, True, None)
    assert told["files"].keys() == SENT
    assert told["bytes"] == sum(told["files"].values())
    assert main(command(run)) == 1
    assert "nobody is logged in" in capsys.readouterr().err


def test_the_command_sends_and_says_where_it_is(fake, run, capsys):
    assert main(command(run)) == 0
    assert f"✓ {fake.url}/{REPOSITORY}\n" in capsys.readouterr().out
    assert main(command(run, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["commit"] == fake.commit


def test_ctrl_c_stops_it_and_changes_nothing(fake, run, tmp_path):
    fake.held_upload = threading.Event()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
        "TMPDIR": str(tmp_path),
    }  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-m", "qlora_core", *command(run)], env=environment, text=True, stderr=subprocess.PIPE
    )
    assert fake.held_upload.wait(60)
    started.send_signal(signal.SIGINT)
    _, told = communicate(started)
    assert (started.returncode, told.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in told
    assert fake.commits == []
    assert list(tmp_path.glob("qlora-push-*")) == []

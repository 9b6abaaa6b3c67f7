"""A hub on this machine: one repository, a model or a data set; fails as told, and speaks as huggingface_hub asks."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "owner/name"


class FakeHub:
    """Serve `files` as the repository `owner/name`; large ones as the hub does, from elsewhere.

    Attributes:
        files: contents by name; sizes and hashes told follow from it.
        requests: (method, path, headers) of what was asked.
        refusal: (status, error code or message) to answer instead, by a part of the path: "" for all.
        cut_at: bytes of a large file after which the connection is closed, whatever was asked; None for never.
        damage: what to send in place of a large file, filled up to its length; nothing for the file.
        ranges: whether a part of a large file can be asked for.
        hold: how many must have asked for sizes before a large file is sent.
        silent: never answer.
        exists: whether the repository does; it is made when somebody asks for that.
        private: whether it is.
        stored: large files that arrived, by their SHA-256, and may be committed.
        upload_cut_at: bytes of a large file after which the connection is closed; None for never.
        held_upload: set while a large file is arriving, which then never ends.
        commits: headers of the commits.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.exists = True
        self.private = False
        self.stored: dict[str, bytes] = {}
        self.upload_cut_at: int | None = None
        self.held_upload: threading.Event | None = None
        self.commits: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.refusal: dict[str, tuple[int, str]] = {}
        self.cut_at: int | None = None
        self.damage = b""
        self.ranges = True
        self.hold = 0
        self.silent = False
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.elsewhere = f"http://localhost:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    def asked(self, part: str) -> list[dict[str, str]]:
        """Headers of the GET requests whose path holds `part`."""
        return [headers for method, path, headers in self.requests if method == "GET" and part in path]

    def tree(self) -> list[dict[str, Any]]:
        return [_entry(name, content) for name, content in self.files.items()]

    def close(self) -> None:
        if not self.closing.is_set():
            self.closing.set()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if is_large(name):
        digest = hashlib.sha256(content).hexdigest()
        # a storage that huggingface_hub would turn to by itself, and that cannot go on where something broke off
        entry |= {"lfs": {"oid": digest, "size": len(content), "pointerSize": 100}, "xetHash": digest}
    return entry


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf", "tokenizer.json", ".parquet"))


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub  # HTTP/1.0: no connection outlives its answer, so that a hub that is gone is gone

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = "" if self.command == "PUT" else self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        hub.requests.append((self.command, path, {key.lower(): value for key, value in self.headers.items()}))
        if hub.silent:
            hub.closing.wait()
            return
        for part, (status, code) in hub.refusal.items():
            if part in path:
                return self.answer(status, b"", {"X-Error-Message" if " " in code else "X-Error-Code": code})
        if path.startswith("/elsewhere/"):
            return self.send_large(path.rsplit("/", 1)[-1])
        path = path.replace("/api/datasets/", "/api/models/").replace(f"/datasets/{REPOSITORY}/", f"/{REPOSITORY}/")
        if self.command in ("POST", "PUT") and self.receive(path, body):
            return None
        if not hub.exists or not path.startswith((f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/")):
            return self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        if (revision := re.search(r"/revision/(.+)", path)) and revision[1] not in ("main", "v1", hub.commit):
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        if "/tree/" in path:
            return self.answer_json(hub.tree())
        if "/paths-info/" in path:
            wanted = parse_qs(body)["paths"]
            return self.answer_json([entry for entry in hub.tree() if entry["path"] in wanted])
        if "/resolve/" in path:
            return self.resolve(path.split("/resolve/")[1].split("/", 1)[1])
        siblings = [{"rfilename": name} for name in hub.files]
        return self.answer_json({"id": REPOSITORY, "sha": hub.commit, "private": hub.private, "siblings": siblings})

    do_HEAD = do_POST = do_PUT = do_GET

    def receive(self, path: str, body: str) -> bool:
        """Take a step of an upload; return whether this is one."""
        hub = self.hub
        if path.startswith("/upload/"):
            self.store(path.rsplit("/", 1)[-1])
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            assert f"{wanted['organization']}/{wanted['name']}" == REPOSITORY
            if hub.exists:
                self.answer(409, b"{}", {})
                return True
            hub.exists, hub.private, hub.files = True, wanted["visibility"] == "private", {".gitattributes": b""}
            self.answer_json({"url": f"{hub.url}/{REPOSITORY}"})
        elif path == f"/api/models/{REPOSITORY}/preupload/main":
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[is_large(f["path"])], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self.answer_json({"files": files})
        elif path == f"/{REPOSITORY}.git/info/lfs/objects/batch":
            objects = [self.offer(each) for each in json.loads(body)["objects"]]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif path == f"/api/models/{REPOSITORY}/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
        else:
            return False
        return True

    def offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where a large file is to be sent; nowhere if it is here already."""
        if wanted["oid"] in self.hub.stored:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.elsewhere}/upload/{wanted['oid']}"}}}

    def store(self, digest: str) -> None:
        hub, length = self.hub, int(self.headers["Content-Length"])
        if hub.held_upload:
            hub.held_upload.set()
            hub.closing.wait()
            return
        if hub.upload_cut_at is not None:
            self.rfile.read(min(hub.upload_cut_at, length))
            self.connection.close()
            return
        content = self.rfile.read(length)
        assert hashlib.sha256(content).hexdigest() == digest
        hub.stored[digest] = content
        self.answer(200, b"", {})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """Make all changes of a commit, or none."""
        hub, files = self.hub, dict(self.hub.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, hub.commit):
                    return self.answer(412, b"{}", {})
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.stored[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        hub.files = files
        hub.commits.append(header)
        return self.answer_json({"commitUrl": f"{hub.url}/{REPOSITORY}/commit/{hub.commit}", "commitOid": hub.commit})

    def resolve(self, name: str) -> None:
        content, headers = self.hub.files[name], {"X-Repo-Commit": self.hub.commit}
        if not is_large(name):
            return self.answer(200, content, {**headers, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return self.answer(302, b"", {**headers, "Location": f"{self.hub.elsewhere}/elsewhere/{digest}"})

    def send_large(self, digest: str) -> None:
        """Part of a file, or all of it; with `cut_at`, no further than there."""
        sized = "/paths-info/"
        while not self.hub.closing.is_set() and sum(sized in path for _, path, _ in self.hub.requests) < self.hub.hold:
            self.hub.closing.wait(0.01)
        self.hub.closing.wait(0.3 if self.hub.hold else 0)  # so that they could ask for the file as well
        content = next(c for c in self.hub.files.values() if hashlib.sha256(c).hexdigest() == digest)
        total, sent = len(content), self.hub.damage.ljust(len(content)) if self.hub.damage else content
        asked = self.hub.ranges and re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        self.wfile.write(sent[begin : self.hub.cut_at])

    def answer_json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

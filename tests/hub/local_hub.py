"""A hub in memory on 127.0.0.1: as much of the protocol as huggingface_hub needs to push and load repositories.

Point the client at it with `LocalHub.client_environment`, in a process that has not imported huggingface_hub yet.
Reading a private repository and every write need the token `TOKEN`, whose user is `USER`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
TOKEN = "hf_localtesttoken"
LFS_SUFFIXES = (".safetensors", ".bin", ".model", ".parquet")
EMPTY_COMMIT = "0" * 40


class HubError(Exception):
    """A response other than success; the client tells the reasons apart by the header X-Error-Code."""

    def __init__(self, status: int, message: str, code: str = "", **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = {"error": message, **fields}


@dataclass
class Repository:
    """Every commit is the whole content of the repository at that time, by path."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {EMPTY_COMMIT: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": EMPTY_COMMIT})

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.resolve(revision)]

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit


class LocalHub:
    """What the server holds; tests may look at it directly."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large_objects: dict[str, bytes] = {}
        self.lock = Lock()
        self.url = ""

    def client_environment(self, home: Path) -> dict[str, str]:
        """Environment variables of a client that talks to this hub and caches below `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def create(self, request: "Request") -> dict[str, Any]:
        fields = request.json()
        name = f"{fields.get('organization') or USER}/{fields['name']}"
        key = f"{fields.get('type') or 'model'}s/{name}"
        answer = {"url": f"{self.url}/{key.removeprefix('models/')}", "id": name}
        if key in self.repositories:
            raise HubError(409, "You already created this model repo", **answer)
        self.repositories[key] = Repository(private=fields.get("visibility") == "private")
        return answer

    def find(self, request: "Request") -> Repository:
        repository = self.repositories.get(f"{request['kind'] or 'models'}/{request['name']}")
        if repository is None or (repository.private and not request.is_signed_in):
            raise HubError(404, f"Repository not found: {request['name']}", "RepoNotFound")
        return repository

    def describe(self, request: "Request") -> dict[str, Any]:
        repository = self.find(request)
        commit = repository.resolve(request["revision"] or "main")
        return {
            "id": request["name"],
            "sha": commit,
            "private": repository.private,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": path} for path in repository.commits[commit]],
        }

    def tree(self, request: "Request") -> list[dict[str, Any]]:
        files = self.find(request).files(request["revision"])
        folder = f"{request['path']}/" if request["path"] else ""
        below = {path: content for path, content in files.items() if path.startswith(folder)}
        if folder and not below:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        entries = {}
        for path, content in below.items():
            parents = [str(parent) for parent in PurePosixPath(path.removeprefix(folder)).parents][:-1]
            for parent in parents:
                entries[parent] = {"type": "directory", "path": folder + parent, "oid": "", "size": 0}
            if not parents or request.wants_everything_below:
                entries[path] = {"type": "file", "path": path, "size": len(content), "oid": object_id(path, content)}
        return list(entries.values())

    def create_branch(self, request: "Request") -> dict[str, Any]:
        repository = self.find(request)
        if request["revision"] in repository.branches:
            raise HubError(409, "Reference already exists")
        repository.branches[request["revision"]] = repository.resolve(request.json().get("startingPoint", "main"))
        return {}

    def plan_upload(self, request: "Request") -> dict[str, Any]:
        paths = [file["path"] for file in request.json()["files"]]
        modes = ["lfs" if path.endswith(LFS_SUFFIXES) else "regular" for path in paths]
        plans = [
            {"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in zip(paths, modes, strict=True)
        ]
        return {"files": plans}

    def plan_large_objects(self, request: "Request") -> dict[str, Any]:
        objects = [
            item | {"actions": {"upload": {"href": f"{self.url}/large/{item['oid']}"}}}
            for item in request.json()["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def store_large_object(self, request: "Request") -> dict[str, Any]:
        if hashlib.sha256(request.body).hexdigest() != request["path"]:
            raise HubError(400, "The content has another hash than announced")
        self.large_objects[request["path"]] = request.body
        return {}

    def commit(self, request: "Request") -> dict[str, Any]:
        repository = self.find(request)
        branch = request["revision"]
        if branch not in repository.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        files = dict(repository.files(branch))
        for line in request.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.large_objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
            elif operation["key"] != "header":
                raise HubError(501, f"This hub does not know the operation {operation['key']}")
        commit = repository.commit(branch, files)
        return {"commitUrl": f"{self.url}/{request['name']}/commit/{commit}", "commitOid": commit, "success": True}

    def whoami(self, request: "Request") -> dict[str, Any]:
        return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}


def object_id(path: str, content: bytes) -> str:
    """The id under which the client caches a file: of an LFS object its sha256, otherwise that of a git blob."""
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPOSITORY = r"(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
ROUTES = [
    ("POST", r"/api/repos/create", LocalHub.create),
    ("GET", r"/api/whoami-v2", LocalHub.whoami),
    ("POST", r"/api/validate-yaml", lambda hub, request: {"warnings": [], "errors": []}),
    ("POST", rf"/api/{REPOSITORY}/preupload/(?P<revision>.+)", LocalHub.plan_upload),
    ("POST", r"/(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch", LocalHub.plan_large_objects),
    ("PUT", r"/large/(?P<path>\w+)", LocalHub.store_large_object),
    ("POST", rf"/api/{REPOSITORY}/commit/(?P<revision>.+)", LocalHub.commit),
    ("POST", rf"/api/{REPOSITORY}/branch/(?P<revision>.+)", LocalHub.create_branch),
    ("GET", rf"/api/{REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", LocalHub.tree),
    ("GET", rf"/api/{REPOSITORY}(?:/revision/(?P<revision>.+))?", LocalHub.describe),
]
FILE_ROUTE = r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"


class Request(BaseHTTPRequestHandler):
    """One request; `request["name"]` is a part of its path."""

    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def __getitem__(self, part: str) -> str | None:
        value = self.parts.get(part)
        return None if value is None else unquote(value)

    @property
    def is_signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    @property
    def wants_everything_below(self) -> bool:
        return parse_qs(urlsplit(self.path).query).get("recursive", ["False"])[0].lower() == "true"

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        try:
            with self.hub.lock:
                if found := re.fullmatch(FILE_ROUTE, path):
                    self.parts = found.groupdict()
                    return self.send_file()
                for method, pattern, act in ROUTES:
                    if method == self.command and (found := re.fullmatch(pattern, path)):
                        self.parts = found.groupdict()
                        # Large objects go to a presigned address on the real hub, too.
                        if method == "POST" and not self.is_signed_in:
                            raise HubError(401, "Invalid username or password.")
                        return self.send(200, json.dumps(act(self.hub, self)).encode())
                raise HubError(501, f"This hub does not know {self.command} {path}")
        except HubError as error:
            self.send(
                error.status,
                json.dumps(error.body).encode(),
                {"X-Error-Code": error.code, "X-Error-Message": str(error)},
            )

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def send_file(self) -> None:
        repository = self.hub.find(self)
        commit = repository.resolve(self["revision"])
        path = self["path"]
        if path not in repository.commits[commit]:
            raise HubError(404, f"{path} does not exist", "EntryNotFound")
        content = repository.commits[commit][path]
        headers = {"ETag": f'"{object_id(path, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(200, content, headers)
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.send(206, content[start : end + 1], headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the client's exceptions say enough."""


@contextmanager
def serve() -> Iterator[LocalHub]:
    """Runs a hub on a free port while the context lasts."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubRequest", (Request,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

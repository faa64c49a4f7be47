"""
A small Hub on the loopback interface, for tests that drive the genuine `huggingface_hub` client over HTTP.

It keeps repositories with commits, branches, pull requests and LFS objects in memory; it knows users by token, private
and gated repositories; and it fails on demand ([`HubServer.fail`]). What the client sends is in `HubServer.requests`.
Only models, one page per listing, no Xet.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import RLock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


LFS_SUFFIXES = (".safetensors", ".bin", ".gz")
REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"


class Refusal(Exception):
    """An HTTP status other than 2xx, with the headers by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass(frozen=True)
class File:
    content: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """The object name that git gives the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, File]


@dataclass
class Repo:
    owner: str
    is_private: bool
    is_gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branches and refs/pr/N -> commit

    def commit(self, ref: str, title: str, files: dict[str, File]) -> Commit:
        seed = f"{len(self.commits)} {ref} {title} {time.time_ns()}"
        made = Commit(hashlib.sha1(seed.encode()).hexdigest(), title, files)
        self.commits[made.oid] = made
        self.refs[ref] = made.oid
        return made

    def at(self, revision: str) -> Commit:
        oid = self.refs.get(revision, revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]


@dataclass
class Fault:
    method: str
    pattern: str
    what: int | str
    remaining: int


class HubServer:
    """
    The server; use it as a context manager.

    Args:
        tokens (`dict[str, str]`): user names by token. `{"hf_alice": "alice"}` by default.
    """

    def __init__(self, tokens: dict[str, str] | None = None):
        self.tokens = {"hf_alice": "alice", "hf_bob": "bob"} if tokens is None else tokens
        self.repos: dict[str, Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[str] = []  # "METHOD /path"
        self.faults: list[Fault] = []
        self.errors: list[Exception] = []  # of the server itself: there must be none
        self.lock = RLock()
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.storage_url = f"http://localhost:{port}"  # LFS objects are on another host, as the Hub's are

    def __enter__(self) -> "HubServer":
        Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def fail(self, method: str, pattern: str, what: int | str, times: int = 1) -> None:
        """
        Makes the next requests fail.

        Args:
            method (`str`): "GET", "POST", ...
            pattern (`str`): regular expression searched in the path.
            what (`int` or `str`): a status; "drop" to hang up without an answer; "truncate" to hang up in the middle
                of the body.
            times (`int`): how many requests.
        """
        self.faults.append(Fault(method, pattern, what, times))

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds."""
        return {path: file.content for path, file in self.repos[repo_id].at(revision).files.items()}

    def add_repo(self, repo_id: str, files: dict[str, bytes], private: bool = False, gated: bool = False) -> Repo:
        """A repository that is there before the test begins."""
        repo = Repo(repo_id.split("/")[0], private, gated)
        repo.commit("main", "start", {path: File(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()})
        self.repos[repo_id] = repo
        return repo


class Handler(BaseHTTPRequestHandler):
    """Answers one request; `hub` is bound by the server."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def handle_one_method(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            fault = self._fault(path)
            try:
                if isinstance(fault, int):
                    raise Refusal(fault, "made to fail")
                if fault == "drop":
                    self.close_connection = True
                    return
                self._route(path, query, body, truncate=fault == "truncate")
            except Refusal as refusal:
                self._refuse(refusal)
            except Exception as error:
                self.hub.errors.append(error)
                self._refuse(Refusal(500, repr(error)))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_one_method

    def _fault(self, path: str) -> int | str | None:
        for fault in self.hub.faults:
            if fault.remaining and fault.method == self.command and re.search(fault.pattern, path):
                fault.remaining -= 1
                return fault.what
        return None

    def _route(self, path: str, query: dict[str, list[str]], body: bytes, truncate: bool) -> None:
        self.query, self.body, self.truncate = query, body, truncate
        for method, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                answer(self, **match.groupdict())
                return
        raise Refusal(404, f"Sorry, we can't find the page {self.command} {path}")

    # ------------------------------------------------------------------ answers

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if getattr(self, "truncate", False) else body)
        if getattr(self, "truncate", False):
            self.close_connection = True

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, refusal: Refusal) -> None:
        headers = {"X-Error-Message": str(refusal), "Content-Type": "application/json"}
        headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
        headers |= {"X-Repo-Commit": refusal.commit} if refusal.commit else {}
        self.truncate = False
        self._send(refusal.status, json.dumps({"error": str(refusal)}).encode(), headers)

    def log_message(self, *args: Any) -> None:
        pass

    # ------------------------------------------------------------------ who asks, and what they may

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def _repo(self, repo_id: str, to: str = "see") -> Repo:
        """The repository, if the user may "see" it, "read" its files or "write"."""
        user, repo = self._user(), self.hub.repos.get(repo_id)
        if repo is None or (repo.is_private and user != repo.owner):
            raise Refusal(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if to == "read" and repo.is_gated and user != repo.owner:
            raise Refusal(401 if user is None else 403, f"Access to model {repo_id} is restricted", "GatedRepo")
        if to == "write" and user != repo.owner:
            raise Refusal(403, f"You don't have the rights to write to {repo_id}")
        return repo

    def whoami(self) -> None:
        user = self._user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        self._json({"type": "user", "name": user, "orgs": []})

    # ------------------------------------------------------------------ repositories

    def create(self) -> None:
        user, asked = self._user(), json.loads(self.body)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        owner = asked.get("organization") or user
        if owner != user:
            raise Refusal(403, f"You don't have the rights to create a model under {owner}")
        repo_id = f"{owner}/{asked['name']}"
        is_new = repo_id not in self.hub.repos
        if is_new:
            is_private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.repos[repo_id] = Repo(owner, is_private)
            self.hub.repos[repo_id].commit("main", "initial commit", {".gitattributes": File(b"*.bin lfs\n", False)})
        self._json({"url": f"{self.hub.url}/{repo_id}", "name": repo_id}, 200 if is_new else 409)

    def info(self, repo_id: str, revision: str = "main") -> None:
        repo = self._repo(repo_id)
        commit = repo.at(revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        gated = "manual" if repo.is_gated else False
        self._json(
            {"id": repo_id, "sha": commit.oid, "private": repo.is_private, "gated": gated, "siblings": siblings}
        )

    def tree(self, repo_id: str, revision: str, folder: str) -> None:
        commit = self._repo(repo_id).at(revision)
        folder = folder.strip("/")
        if folder and not any(path.startswith(f"{folder}/") for path in commit.files):
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit.oid)
        found = {path: file for path, file in commit.files.items() if path.startswith(f"{folder}/" if folder else "")}
        self._json([_described(path, file) for path, file in sorted(found.items())])

    def paths_info(self, repo_id: str, revision: str) -> None:
        files = self._repo(repo_id).at(revision).files
        content = json.loads(self.body) if self.body.startswith(b"{") else parse_qs(self.body.decode())
        self._json([_described(path, files[path]) for path in content["paths"] if path in files])

    def references(self, repo_id: str) -> None:
        repo = self._repo(repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        self._json({"branches": branches, "tags": [], "converts": []})

    def branch(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, to="write")
        if revision in repo.refs:
            raise Refusal(409, f"Reference already exists: {revision}")
        repo.refs[revision] = repo.refs["main"]
        self._json({}, 201)

    # ------------------------------------------------------------------ up

    def validate_yaml(self) -> None:
        self._json({"warnings": [], "errors": []})

    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, to="see" if "create_pr" in self.query else "write")
        known = repo.at(revision).files
        self._user()
        self._json(
            {
                "files": [
                    {
                        "path": asked["path"],
                        "uploadMode": "lfs" if asked["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                        "oid": known[asked["path"]].etag if asked["path"] in known else None,
                    }
                    for asked in json.loads(self.body)["files"]
                ]
            }
        )

    def lfs_batch(self, repo_id: str) -> None:
        self._repo(repo_id)
        answers = []
        for asked in json.loads(self.body)["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.lfs_objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/lfs/{asked['oid']}"}}
            answers.append(answer)
        self._json({"transfer": "basic", "objects": answers})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "The content has another hash")
        self.hub.lfs_objects[oid] = self.body
        self._send(200)

    def commit(self, repo_id: str, revision: str) -> None:
        """All of the commit or nothing of it."""
        is_pull_request = "create_pr" in self.query
        repo = self._repo(repo_id, to="see" if is_pull_request else "write")
        if self._user() is None:
            raise Refusal(401, "Invalid username or password.")
        files, title = dict(repo.at(revision).files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            kind, value = operation["key"], operation["value"]
            if kind == "header":
                title = value["summary"]
            elif kind == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.lfs_objects:
                    raise Refusal(404, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(self.hub.lfs_objects[value["oid"]], is_lfs=True)
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"unknown operation {kind}")
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        made = repo.commit(f"refs/pr/{number}" if is_pull_request else revision, title, files)
        answer = {"commitUrl": f"{self.hub.url}/{repo_id}/commit/{made.oid}", "commitOid": made.oid}
        if is_pull_request:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{number}"
        self._json(answer)

    # ------------------------------------------------------------------ down

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit = self._repo(repo_id, to="see" if path == "README.md" else "read").at(revision)
        file = commit.files.get(path)
        if file is None:
            raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound", commit.oid)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"'}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
            headers["Location"] = f"{self.hub.storage_url}/lfs/{file.sha256}"
            self._send(302, headers=headers)
        elif self.command == "HEAD":
            self._send(200, headers=headers | {"Content-Length": str(len(file.content))})
        else:
            self._send(200, file.content, headers)

    def lfs_get(self, oid: str) -> None:
        content = self.hub.lfs_objects.get(oid) or next(
            file.content
            for repo in self.hub.repos.values()
            for commit in repo.commits.values()
            for file in commit.files.values()
            if file.sha256 == oid
        )
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start is None:
            self._send(200, content)
            return
        first = int(start.group(1))
        content_range = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(206, content[first:], {"Content-Range": content_range})


def _described(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob_id}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
    return entry


# A revision is a name without slashes, or the ref of a pull request.
REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"/api/models/{REPO}", Handler.info),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", f"/api/models/{REPO}/refs", Handler.references),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?P<folder>/.*|)", Handler.tree),
    ("POST", f"/api/models/{REPO}/paths-info/{REVISION}", Handler.paths_info),
    ("POST", f"/api/models/{REPO}/branch/{REVISION}", Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_get),
    ("GET|HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]

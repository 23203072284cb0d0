"""A Hugging Face Hub on this machine that takes uploads: repositories, branches, storage for large files, and commits.

It is the hub of ``hub_server``, which records requests and makes faults, with the protocol by which huggingface_hub
uploads without its package hf_xet: Git LFS, in one piece or in several.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest
from hub_server import REPOSITORY, Answer, Hub, Request, error, part, point_huggingface_hub_at, tag

IDENTITY = "what.the.job.is"  # the token of a CI job, which the hub takes for its identity
_LARGE = 10_000  # bytes from which on a file goes to the storage
_PIECE = 150_000  # bytes of a piece of an upload, where a file is larger than that


class UploadHub(Hub):
    """The two servers, with one repository that may not be there yet.

    Attributes:
        branches: Commit of each branch; none as long as there is no repository.
        commits: Files of each commit by path.
        objects: What is in the storage, by SHA-256.
        private: Whether the repository was made private; None as long as it was not made here.
        ignored: Paths that the repository's .gitignore leaves out.
    """

    def __init__(self) -> None:
        self.branches: dict[str, str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.private: bool | None = None
        self.ignored: set[str] = set()
        self._pieces: dict[str, dict[int, bytes]] = {}
        super().__init__({})

    def head(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits[self.branches[branch]]

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit of these files; return its name."""
        name = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        for content in files.values():
            if len(content) > _LARGE:
                self.objects[tag(content)] = content
        return name

    def uploaded(self) -> int:
        """Bytes that were put into the storage."""
        return sum(len(request.body) for request in self.asked("storage", method="PUT"))

    def _from_hub(self, request: Request) -> Answer:
        if request.name == "/oauth/token":
            return self._token(json.loads(request.body))
        signed = request.name.startswith("/complete/") and request.signature is not None
        if self.token and not (request.authorized or signed):
            return error(401, message="Invalid username or password.")
        routes: dict[str, Callable[..., Answer]] = {
            r"POST /api/repos/create": self._create,
            r"POST /api/validate-yaml": lambda _: _json({"errors": [], "warnings": []}),
            rf"POST /api/models/{REPOSITORY}/branch/([^/]+)": self._branch,
            rf"POST /api/models/{REPOSITORY}/preupload/([^/]+)": self._preupload,
            rf"POST /{REPOSITORY}.git/info/lfs/objects/batch": self._batch,
            r"POST /(verify|complete)/(\w+)": self._finish,
            rf"POST /api/models/{REPOSITORY}/commit/([^/]+)": self._commit,
            rf"GET /api/models/{REPOSITORY}/revision/([^/]+)": self._info,
            rf"(?:GET|HEAD) /{REPOSITORY}/resolve/(\w+)/(.+)": self._file,
        }
        for route, answer in routes.items():
            if found := re.fullmatch(route, f"{request.method} {request.name}"):
                if not self.branches and answer != self._create:
                    break
                return answer(request, *map(unquote, found.groups()))
        return error(404, "RepoNotFound", "Repository not found")

    def _from_storage(self, request: Request) -> Answer:
        content = self.objects.get(request.name.rpartition("/")[2])
        if request.signature is None or (request.method != "PUT" and content is None):
            return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        if request.method != "PUT":
            assert content is not None
            return part(request, content, {"ETag": f'"{tag(content)}"'})
        _, _, oid, *number = request.name.split("/")
        if number:
            self._pieces.setdefault(oid, {})[int(number[0])] = request.body
        elif tag(request.body) == oid:
            self.objects[oid] = request.body
        return Answer(200, {"ETag": f'"{tag(request.body)}"'})

    def _token(self, asked: dict[str, str]) -> Answer:
        if (asked["subject_token"], asked["resource"]) != (IDENTITY, REPOSITORY):
            return Answer(400, {}, b'{"error": "invalid_grant", "error_description": "no trusted publisher"}')
        return _json({"access_token": self.token, "token_type": "bearer", "expires_in": 3600})

    def _create(self, request: Request) -> Answer:
        asked = json.loads(request.body)
        name, url = f"{asked['organization']}/{asked['name']}", {"url": f"{self.endpoint}/{REPOSITORY}"}
        assert (name, asked.get("type", "model")) == (REPOSITORY, "model")
        if self.branches:
            return Answer(409, {}, json.dumps({"error": "You already created this model repo", **url}).encode())
        self.private = asked.get("visibility") == "private"
        self.commit({".gitattributes": b"*.onnx filter=lfs\n"})
        return _json(url)

    def _branch(self, _: Request, name: str) -> Answer:
        if name in self.branches:
            return error(409, message="Reference already exists")
        self.branches[name] = self.branches["main"]
        return _json({})

    def _preupload(self, request: Request, branch: str) -> Answer:
        if branch not in self.branches:
            return error(404, "RevisionNotFound", "Invalid rev id")
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > _LARGE else "regular",
                "shouldIgnore": file["path"] in self.ignored,
            }
            for file in json.loads(request.body)["files"]
        ]
        return _json({"files": modes})

    def _batch(self, request: Request) -> Answer:
        found = []
        for asked in json.loads(request.body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            if oid not in self.objects:
                self.signature += 1
                place, signed = f"{self.storage}/upload/{oid}", f"?signature={self.signature}"
                verify = {"href": f"{self.endpoint}/verify/{oid}"}
                upload: dict[str, Any] = {"href": place + signed}
                if size > _PIECE:
                    pieces = {str(n): f"{place}/{n}{signed}" for n in range(1, math.ceil(size / _PIECE) + 1)}
                    upload = {
                        "href": f"{self.endpoint}/complete/{oid}{signed}",
                        "header": {"chunk_size": str(_PIECE), **pieces},
                    }
                asked["actions"] = {"upload": upload, "verify": verify}
            found.append(asked)
        return _json({"transfer": "basic", "objects": found})

    def _finish(self, request: Request, what: str, oid: str) -> Answer:
        if what == "complete":
            pieces = self._pieces.pop(oid)
            whole = b"".join(pieces[entry["partNumber"]] for entry in json.loads(request.body)["parts"])
            if tag(whole) == oid:
                self.objects[oid] = whole
        return _json({}) if oid in self.objects else error(404, message="No such object")

    def _commit(self, request: Request, branch: str) -> Answer:
        header, *operations = (json.loads(line) for line in request.body.splitlines())
        if header["value"].get("parentCommit") != self.branches[branch]:
            return error(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(self.head(branch))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "deletedFile":
                del files[value["path"]]
            else:
                large = operation["key"] == "lfsFile"
                files[value["path"]] = self.objects[value["oid"]] if large else base64.b64decode(value["content"])
        name = self.commit(files, branch)
        return _json({"commitUrl": f"{self.endpoint}/{REPOSITORY}/commit/{name}", "commitOid": name})

    def _info(self, _: Request, revision: str) -> Answer:
        name = self.branches.get(revision, revision)
        if name not in self.commits:
            return error(404, "RevisionNotFound", "Invalid rev id")
        listed = []
        for path, content in self.commits[name].items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            large = {"lfs": {"sha256": tag(content), "size": len(content), "pointerSize": 130}}
            listed.append(
                {"rfilename": path, "size": len(content), "blobId": blob, **(large if len(content) > _LARGE else {})}
            )
        return _json({"id": REPOSITORY, "sha": name, "siblings": listed})

    def _file(self, request: Request, name: str, path: str) -> Answer:
        content = self.commits.get(name, {}).get(path)
        if content is None:
            return error(404, "EntryNotFound", "Entry not found")
        named = {"X-Repo-Commit": name}
        if len(content) <= _LARGE:
            return part(request, content, {**named, "ETag": f'"{tag(content)}"'})
        self.signature += 1
        location = f"{self.storage}/{path}/{tag(content)}?signature={self.signature}"
        linked = {"X-Linked-Etag": f'"{tag(content)}"', "X-Linked-Size": str(len(content)), "Location": location}
        return Answer(302, {**named, **linked}, b"Found. Redirecting")


def hang_up() -> Answer:
    """What a client gets where the connection is cut: nothing."""
    return Answer(0)


@contextlib.contextmanager
def upload_hub(monkeypatch: pytest.MonkeyPatch, *, xet: bool = False) -> Iterator[UploadHub]:
    """A hub that huggingface_hub talks to, without waiting, and that is gone afterwards."""
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("publish.targets.hub.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", not xet)
    monkeypatch.setattr("huggingface_hub.utils._auth._OIDC_TOKEN_CACHE", None)
    hub = UploadHub()
    try:
        point_huggingface_hub_at(monkeypatch, hub.endpoint)
        yield hub
    finally:
        hub.close()


def _json(value: Any) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

"""A repository of the Hugging Face Hub as the target of a release, or one of a server with its protocol.

Large files go to the hub's storage first, by huggingface_hub: in chunks where its package hf_xet is installed, else
whole. What is there already is not sent again. Then one commit makes all of them, and whatever goes, the release.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils.sha import git_hash

from publish.targets import File
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.hub_errors import Advice, NoRepository, NoRevision, may_pass, told
from qwen_omni_onnx.common.hub_name import HubName
from qwen_omni_onnx.common.hub_repository import HubFile, HubRepository

__all__ = ["Hub"]

_ADVICE = Advice(
    absent="run again",
    revision="give a branch after the @",
    elsewhere="give a folder",
    download="set HF_ENDPOINT to the hub itself",
)
_SMALL = 16 * 2**20  # bytes of a file that is read whole: a signature
_WAITS = (1, 2, 4)  # seconds, where huggingface_hub itself does not try again
_CHANGED = (409, 412)  # statuses of a commit whose parent is no longer the newest one

Result = TypeVar("Result")


class Hub:
    """A branch of a repository, as it was when this was made; see :class:`publish.targets.Target`.

    A commit that somebody else makes meanwhile is not undone: what was to be put is then refused.
    """

    def __init__(self, name: HubName) -> None:
        self._name = name
        self._api = HfApi()
        self._absent: NoRepository | NoRevision | None = None
        self._open(name.revision)

    def read(self, path: str) -> bytes | None:
        """Return a small file that is there; None if there is none."""
        there = self._there.get(path)
        if self._repository is None or there is None or there.nbytes > _SMALL:
            return None
        return self._repository.content(path, there.nbytes)

    def missing(self, files: Mapping[str, File]) -> list[str]:
        """Return the paths of those files that are not there, or are others."""
        return [path for path, file in files.items() if not _is(self._there.get(path), file)]

    def put(self, files: Mapping[str, File], components: Sequence[str]) -> str:
        """Send what is missing, and make one commit of it; see :meth:`publish.targets.Target.put`."""
        self._create()
        additions = [_addition(path, files[path]) for path in self.missing(files)]
        deletions = [CommitOperationDelete(path, is_folder=False) for path in self._gone(files, components)]
        if additions or deletions:
            with contextlib.nullcontext() if sys.stderr.isatty() else disable_progress_bars():
                if additions:
                    with self._told("sending files"):
                        self._api.preupload_lfs_files(
                            self._name.repository, additions, revision=self._name.revision, free_memory=False
                        )
                self._commit([*additions, *deletions], files, components)
            if absent := self.missing(files):
                raise UserError(
                    f"{self._name.repository}: {one_line(absent[0])} is not in what was committed; see whether the "
                    "repository's .gitignore leaves it out, and run again"
                )
        assert self._repository is not None
        return f"hf://{self._name.repository}@{self._repository.commit}"

    def _open(self, revision: str) -> None:
        """Look at what a revision holds now."""
        self._repository: HubRepository | None = None
        self._there: dict[str, HubFile] = {}
        try:
            self._repository = HubRepository(self._name.repository, revision, _ADVICE)
        except (NoRepository, NoRevision) as error:
            self._absent = error
        else:
            self._there = self._repository.files()

    def _create(self) -> None:
        """Make the repository, for its owner's eyes, and the branch, where there is none."""
        if self._repository is not None:
            return
        repository, branch = self._name.repository, self._name.revision
        if isinstance(self._absent, NoRepository):
            with self._told("making the repository"):
                _patiently(lambda: self._api.create_repo(repository, private=True, exist_ok=True))
            print(f"{repository}: made, and private: its settings on the hub make it public")
        if isinstance(self._absent, NoRevision) or branch != "main":
            with self._told(f"making the branch {branch}"):
                _patiently(lambda: self._api.create_branch(repository, branch=branch, exist_ok=True))
        self._open(branch)
        if self._repository is None:
            raise UserError(f"{repository}: not there after it was made; run again")

    def _gone(self, files: Mapping[str, File], components: Sequence[str]) -> list[str]:
        own = tuple(f"{component}/" for component in components)
        return [path for path in self._there if path.startswith(own) and path not in files]

    def _commit(
        self,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        files: Mapping[str, File],
        components: Sequence[str],
    ) -> None:
        """Make one commit; leave what it holds as what is there."""
        assert self._repository is not None
        repository, branch, parent = self._name.repository, self._name.revision, self._repository.commit
        try:
            with self._told("the commit"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the hub would like to read in a model card
                made = _patiently(
                    lambda: self._api.create_commit(
                        repository,
                        operations,
                        commit_message=f"Release {', '.join(components)}",
                        revision=branch,
                        parent_commit=parent,
                    )
                )
        except _Changed:
            self._open(branch)
            if self.missing(files) or self._gone(files, components):
                raise UserError(f"{repository}: changed meanwhile; nothing was committed; run again") from None
        else:  # an answer that got lost on its way makes the next attempt look like somebody else's commit
            self._open(made.oid)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn errors of an upload into errors of one line."""
        repository = self._name.repository
        with told(repository, what, _ADVICE):
            try:
                yield
            except HfHubHTTPError as error:
                if error.response.status_code in _CHANGED:
                    raise _Changed(f"{repository}: {what}: changed meanwhile; run again") from None
                raise
            except (httpx2.HTTPError, httpx2.InvalidURL):
                raise
            except (RuntimeError, OSError) as error:
                # Of hf_xet, which has no errors of its own; or of a thread, whose error is the cause of this one.
                if isinstance(error.__cause__, (HfHubHTTPError, httpx2.HTTPError)):
                    raise error.__cause__ from None
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of this machine
                said = one_line(" ".join(str(error.__cause__ or error).split())).rstrip(". ")
                other = "" if error.__cause__ else ", or set HF_HUB_DISABLE_XET=1 for the older protocol"
                raise UserError(f"{repository}: {what}: {said}; run again to go on{other}") from None
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                said = one_line(" ".join(str(error).split())).rstrip(". ")
                raise UserError(f"{repository}: {what}: no answer that can be used ({said}); run again") from None


class _Changed(UserError):
    """A commit is refused: somebody else has made one meanwhile."""


def _patiently(call: Callable[[], Result]) -> Result:
    """Return what a call returns that may be made again where it fails and that may pass."""
    for seconds in _WAITS:
        try:
            return call()
        except (HfHubHTTPError, httpx2.HTTPError, json.JSONDecodeError) as error:  # no JSON: a gateway's own page
            if not (may_pass(error) or isinstance(error, json.JSONDecodeError)):
                raise
            time.sleep(seconds)
    return call()


def _addition(path: str, file: File) -> CommitOperationAdd:
    addition = CommitOperationAdd(path, file.content)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # gigabytes are not read once more for it
    return addition


def _is(there: HubFile | None, file: File) -> bool:
    """Return whether a file that is listed is this one."""
    if there is None or there.nbytes != file.nbytes:
        return False
    if there.sha256 is not None:
        return there.sha256 == file.sha256
    content = file.content.read_bytes() if isinstance(file.content, Path) else file.content
    return there.blob == git_hash(content)

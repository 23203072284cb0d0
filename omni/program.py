"""Which program this is: the commit of this project, for whoever wants to build the same again."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path

from typing_extensions import TypedDict  # pydantic's JSON Schema needs this one on Python 3.11

__all__ = ["COPY", "Program", "program"]

COPY = Path(".dvc/qwen-omni-profile")  # a file in a copy that `python -m profiles` made: the profile, and its program
_REWRITTEN = ("reports", "dvc.lock")  # rewritten by every run, and so no modification of the program


class Program(TypedDict):
    """Commit of this project, and whether it was modified; None if Git gives no answer."""

    commit: str | None
    modified: bool | None


def program() -> Program:
    """Return the commit of this repository, and whether the working tree differs from it; None if Git gives no answer.

    Git may be missing, the folder may be an archive without a repository, or the repository may be another user's,
    which Git refuses to read. A repository that contains this folder is not this program's, unless this is the copy
    that ``python -m profiles`` has made of it, which notes what it is a copy of.
    """
    if COPY.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            noted = json.loads(COPY.read_text(encoding="utf-8"))["program"]
            return {"commit": noted["commit"], "modified": noted["modified"]}

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
        except OSError:
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("rev-parse", "HEAD") if git("rev-parse", "--show-prefix", "--is-inside-work-tree") == "true" else ""
    changed = git("status", "--porcelain", "--", ".", *(f":(exclude){path}" for path in _REWRITTEN))
    return {"commit": commit or None, "modified": bool(changed) if commit else None}

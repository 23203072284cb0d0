"""Stages in processes of their own, forked from a server that has imported what they need."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import ROOT

MODULES = {
    "pull": ("pull.__main__", "pull"),
    "export": ("export.__main__", "export"),
    "inputs": ("inputs.__main__", "main"),
    "reference": ("reference.__main__", "reference"),
    "calibrate": ("calibrate.__main__", "calibrate"),
    "compensate": ("quantize.compensate", "main"),
    "quantize": ("quantize.__main__", "main"),
    "compose": ("compose.__main__", "compose"),
    "contract": ("validate.__main__", "run_contract"),
    "parity": ("validate.__main__", "run_parity"),
    "gate": ("validate.__main__", "run_gate"),
    "report": ("validate.__main__", "run_report"),
    "publish": ("publish.__main__", "publish"),
}
_OF_SEVERAL = ("inputs", "contract", "parity", "gate", "publish")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["stages", "validate.report.page", "torch", *(module for module, _ in MODULES.values())]
)


@dataclass
class Started:
    """A stage that runs."""

    process: BaseProcess
    said: Connection

    def end(self) -> tuple[int, str]:
        """Wait for it; return its exit code and what it said on stderr."""
        said = self.said.recv() if self.said.poll(120) else "nothing"
        self.process.join(30)
        return int(self.process.exitcode or 0), said


def start(stage: str, name: str, *, limit: int | None = None, until: str | None = None) -> Started:
    """Start a stage in the current folder.

    Args:
        stage: Key of ``MODULES``.
        name: Component.
        limit: Bytes that a file may have: what a full disk is to a program that writes.
        until: File that is waited for when an artifact is written and not sealed yet; ``until``.waiting tells that.
    """
    _start_server()
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_run, args=(stage, name, os.getcwd(), limit, until, theirs))
    process.start()
    theirs.close()
    return Started(process, ours)


@functools.cache
def _start_server() -> None:
    """Start the server where it finds this repository's modules, whatever the current folder is.

    It looks for what it imports ahead in the current folder and in site-packages alone, where configobj, which DVC
    brings, has a module ``validate`` of its own.
    """
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}):
        forkserver.ensure_running()


def run(stage: str, name: str, limit: int | None = None) -> tuple[int, str]:
    """Run a stage to its end; see :func:`start`."""
    return start(stage, name, limit=limit).end()


def wait_for(there: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def _run(stage: str, name: str, folder: str, limit: int | None, until: str | None, report: Connection) -> None:
    import importlib

    from qwen_omni_onnx.common import artifact
    from qwen_omni_onnx.common.errors import run_command

    os.chdir(folder)
    module, function = MODULES[stage]
    command = getattr(importlib.import_module(module), function)
    if until:
        seal = artifact._seal

        def wait_and_seal(folder: Path, facts: Mapping[str, Any]) -> None:
            Path(f"{until}.waiting").touch()
            wait_for(Path(until).exists)
            seal(folder, facts)

        artifact._seal = wait_and_seal
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    reading, writing = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(writing, 2)  # which a command writes to by its number
    os.close(writing)
    code = 0
    try:
        run_command(lambda: command() if stage == "report" else command([name] if stage in _OF_SEVERAL else name))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        code = 70
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.stderr.flush()
    os.dup2(nowhere, 2)
    with os.fdopen(reading, encoding="utf-8") as said:
        report.send(said.read())
    sys.exit(code)

"""Memory is measured of the right process, and a child that dies says how."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from omni.resources import INSTRUCTIONS, machine, measure_module, peak_bytes, progress

MIB = 2**20
FAT = 300 * MIB  # more than a child that does nothing takes
SLACK = 8 * MIB  # the kernel counts pages in batches, one for each core
ALLOCATE = """
import sys
block = bytearray(int(sys.argv[1]))
block[::4096] = b"x" * len(block[::4096])  # touched, so resident
"""

Module = Callable[[str], str]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Module:
    """Write a module that a child process can run by name; return its name."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))

    def write(source: str) -> str:
        (tmp_path / "measured_module.py").write_text(source)
        return "measured_module"

    return write


def test_a_module_that_allocates_is_seen_to(module: Module) -> None:
    allocate = module(ALLOCATE)

    nothing = measure_module(allocate, "0")
    something = measure_module(allocate, str(200 * MIB))

    assert something > 200 * MIB
    assert abs(something - nothing - 200 * MIB) < SLACK


def test_a_peak_is_seen_after_it_has_passed(module: Module) -> None:
    allocate_and_free = module(ALLOCATE + "del block")

    assert measure_module(allocate_and_free, str(200 * MIB)) > 200 * MIB


def test_memory_of_a_fat_parent_is_not_counted(module: Module) -> None:
    fat = np.ones(FAT, np.uint8)

    child = measure_module(module("pass"))

    assert peak_bytes() >= fat.nbytes
    assert child < 100 * MIB


def test_the_peak_grows_with_this_process(module: Module) -> None:
    """In a process of its own: here an earlier test may have set the peak already."""
    grow = module(
        "from omni.resources import peak_bytes\n"
        "before = peak_bytes()\n"
        f"{ALLOCATE}\n"
        "grown = peak_bytes() - before\n"
        f"assert abs(grown - 64 * {MIB}) < {SLACK}, grown\n"
    )

    measure_module(grow, str(64 * MIB))


@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("raise ValueError('no such file')", "exit code 1: ValueError: no such file"),
        ("import sys; print('a'); print('disk full', file=sys.stderr); sys.exit(3)", "exit code 3: disk full"),
        ("import sys; sys.exit('out of luck')", "exit code 1: out of luck"),
        ("import sys; sys.exit(2)", "exit code 2: no message"),
        ("import sys; print('first\\n\\nlast \\n\\n', file=sys.stderr); sys.exit(True)", "exit code 1: last"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL: no message"),
        (
            "import os, sys\nprint('at tensor 3', file=sys.stderr, flush=True)\nos.kill(os.getpid(), 9)",
            "killed by SIGKILL: at tensor 3",
        ),
        ("import os; os.abort()", "killed by SIGABRT: no message"),
    ],
    ids=["exception", "code", "message", "silent", "last line", "SIGKILL", "SIGKILL after a word", "SIGABRT"],
)
def test_a_child_that_fails_says_how(module: Module, message: Callable[..., str], source: str, ending: str) -> None:
    name = module(source)

    assert message(measure_module, name, "projection", "--out") == f"python -m {name} projection --out: {ending}"


def test_a_module_that_is_not_there_is_named(module: Module, message: Callable[..., str]) -> None:
    module("pass")

    assert "No module named nowhere" in message(measure_module, "nowhere")


@pytest.mark.parametrize("ending", ["pass", "import sys; sys.exit()", "import sys; sys.exit(0)"])
def test_a_module_that_ends_well_is_measured(module: Module, ending: str) -> None:
    assert MIB < measure_module(module(ending)) < 100 * MIB


def test_a_module_runs_as_main_with_its_own_arguments(module: Module) -> None:
    name = module("import sys; assert (__name__, sys.argv[1:]) == ('__main__', ['one', '--two'])")

    measure_module(name, "one", "--two")


def test_a_machine_says_what_figures_depend_on() -> None:
    found = machine()

    assert set(found) == {
        "processor", "instructions", "cores", "memory_gib", "system", "python", "onnxruntime", "numpy",
    }  # fmt: skip
    assert found["processor"]
    assert set(str(found["instructions"]).split()) <= set(INSTRUCTIONS)
    assert int(found["cores"]) >= 1
    assert found["numpy"] == np.__version__
    assert machine() == found


def test_a_machine_without_proc_is_described_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.resources._processor_field", lambda name: "")

    found = machine()

    assert found["instructions"] == ""
    assert found["processor"]


def test_progress_is_silent_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)

    with progress("export", 2) as advance:
        advance(1)
        advance(1)

    assert shown.getvalue() == ""


def test_importing_it_costs_next_to_nothing() -> None:
    """It runs inside every measured process, so what it imports would count as theirs."""
    listed = subprocess.run(
        [sys.executable, "-c", "import omni.resources, sys; print(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip

    assert {"numpy", "torch", "onnxruntime", "rich", "psutil"}.isdisjoint(listed.stdout.split())

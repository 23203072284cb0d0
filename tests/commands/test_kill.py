"""``kill -9`` at any moment of export, quantize or publish: the old artifact or the new one is there, whole.

A process imports the stages' libraries once, traces the model once (which touches no file), and forks a child for
every run. A child kills itself at a chosen touch of the file system, with half of a block or file written, or around
the exchange of folders; or it is killed from outside after a chosen time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import operator
import os
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest
from conftest import NAME, build_here, tiny_params, write_params

from qwen_omni_onnx.common import artifact, swap
from qwen_omni_onnx.common.errors import UserError

FOLDERS = {
    "export": Path("models/onnx") / NAME,
    "quantize": Path("models/quantized") / NAME,
    "publish": Path("models/published") / NAME / f"qwen2.5-omni-7b-{NAME}-onnx-synthetic",
}
FILE_EVENTS = {  # sys.audit's names
    "open", "os.chmod", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.scandir",
    "os.symlink", "os.truncate", "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkdtemp",
}  # fmt: skip
EVENTS_KILLED = 16  # spread evenly, besides every rename
TIMES = 3
Moment = tuple[str, float]  # (what, its count), or ("seconds", how many)


@dataclass(frozen=True)
class Run:
    """What became of a child: its exit code, and what it came to, if it lived to tell."""

    exit_code: int
    seconds: float
    counts: dict[str, int] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    error: str = ""


Runner = Callable[..., Run]


@pytest.fixture(scope="module")
def house(built_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder, gated green, and under old/ an older artifact of every stage. Not to be changed."""
    from components import component
    from export.__main__ import export
    from publish.__main__ import publish
    from pull.synthetic import write
    from quantize.__main__ import main as quantize
    from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity

    folder = tmp_path_factory.mktemp("gated") / "house"
    shutil.copytree(built_once, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("omni.resources.measure_module", build_here)
        write(component(NAME), 1, "full", Path("old/source"), Path("configs"))
        export(NAME, source=Path("old/source"), out=Path("old/export"))
        with other_params("quantize", "*_audio", scheme="int8-tensor"):
            quantize(NAME, out=Path("old/quantize"))
        for measure in (run_contract, run_parity, run_latency, run_memory):
            measure([NAME])
        with other_params("gates", quantized_share=0.9):
            run_gate([NAME])
            publish([NAME])
        FOLDERS["publish"].rename("old/publish")
        run_gate([NAME])
    return folder


@contextlib.contextmanager
def other_params(*keys: str, **values: object) -> Iterator[None]:
    params = tiny_params()
    functools.reduce(operator.getitem, keys, params[NAME]).update(values)
    write_params(Path(), params)
    yield
    write_params(Path(), tiny_params())


@pytest.fixture(scope="module")
def run(built_once: Path) -> Iterator[Runner]:
    """Run a stage in a child of its own, to its end or to a moment; see :func:`_stage` for the arguments."""
    context = multiprocessing.get_context("spawn")  # nothing of this process, whose libraries have started threads
    ours, theirs = context.Pipe()
    process = context.Process(target=_fork_runs, args=(theirs, built_once), daemon=True)
    process.start()
    theirs.close()

    def order(stage: str, moment: Moment | None = None, *, atomic: bool = True) -> Run:
        ours.send((stage, Path.cwd(), moment, atomic))
        return ours.recv()

    yield order
    ours.close()
    process.join(10)
    process.kill()


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        pytest.param(stage, before, marks=[] if index == number else pytest.mark.slow)
        for index, stage in enumerate(FOLDERS)
        for number, before in enumerate(("nothing there", "an older one, renamed twice", "an older one"))
    ],
)
def test_a_killed_stage_leaves_the_old_artifact_or_the_new_one_and_runs_again(
    run: Runner, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, before: str
) -> None:
    folder, older, atomic = FOLDERS[stage], Path("old") / stage, "renamed" not in before
    shutil.copytree(house, tmp_path / "house")
    monkeypatch.chdir(tmp_path / "house")

    def start_over() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        if before != "nothing there":
            shutil.copytree(older, folder)

    start_over()
    whole = run(stage, atomic=atomic)
    assert (whole.exit_code, whole.error) == (0, "")
    new, old = state(folder), state(older) if before != "nothing there" else None
    assert new not in (None, old)
    moments = chosen_moments(whole)
    assert len(moments) >= 20

    outcomes = set()
    for moment in moments:
        start_over()
        killed = run(stage, moment, atomic=atomic)
        assert killed.exit_code == -signal.SIGKILL or (moment[0] == "seconds" and killed.exit_code == 0), moment
        found = state(folder)
        outcomes.add(found)
        assert found in ({old, new} if atomic else {old, new, None}), moment
        assert accepted_by_the_next(stage) == (found in expected_by_the_next(stage, old, new)), moment

        again = run(stage, atomic=atomic)
        assert (again.exit_code, again.error) == (0, ""), moment
        assert state(folder) == new, moment
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], moment
    assert outcomes == ({old, new} if atomic else {old, new, None})


def test_the_older_artifacts_and_the_traced_graph_are_what_they_are_taken_for(
    run: Runner, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above might compare an artifact with itself, or something else than the command's own result."""
    shutil.copytree(house, tmp_path / "house")
    monkeypatch.chdir(tmp_path / "house")

    for stage in ("export", "quantize"):
        made_by_the_command = state(FOLDERS[stage])
        assert run(stage).exit_code == 0
        assert state(FOLDERS[stage]) == made_by_the_command
        assert state(Path("old") / stage) not in (None, made_by_the_command)


def chosen_moments(whole: Run) -> list[Moment]:
    """Moments to die at, all through a run that came to this."""
    last = len(whole.events)
    spread = {round(1 + index * (last - 1) / (EVENTS_KILLED - 1)) for index in range(EVENTS_KILLED)}
    renames = {index for index, event in enumerate(whole.events, 1) if event == "os.rename"}
    after = {index + 1 for index in renames if index < last}
    events: list[Moment] = [("event", index) for index in sorted(spread | renames | after)]
    others: list[Moment] = [
        (what, count + 1) for what in ("half", "before exchange", "after exchange")
        for count in range(whole.counts.get(what, 0))
    ]  # fmt: skip
    return [*events, *others, *(("seconds", whole.seconds * (index + 0.5) / TIMES) for index in range(TIMES))]


def state(folder: Path) -> str | None:
    """Fingerprint of the artifact, None if there is none. A broken one is a UserError that no test expects."""
    if not folder.exists():
        return None
    artifact.check(folder)
    return artifact.fingerprint(folder)


def accepted_by_the_next(stage: str) -> bool:
    """Whether the stage after this one takes what is there."""
    from omni.params import load
    from publish.evidence import gather
    from quantize.__main__ import main as quantize
    from validate.measured import from_published

    following = {
        "export": lambda: quantize(NAME, out=Path("next")),
        "quantize": lambda: gather(NAME, load()),
        "publish": lambda: from_published(FOLDERS["publish"]),
    }
    try:
        following[stage]()
    except UserError:
        return False
    return True


def expected_by_the_next(stage: str, old: str | None, new: str | None) -> set[str | None]:
    """Calibration and reports in the house belong to the new artifacts; to a user, any published one is good."""
    return {new} if stage != "publish" else {old, new} - {None}


# What follows runs in the process that forks, and in its children.


def _fork_runs(orders: Connection, built: Path) -> None:
    """Fork a child for every order till the other end is closed."""
    os.chdir(built)
    _trace_once()
    with contextlib.suppress(EOFError):
        while True:
            stage, folder, moment, atomic = orders.recv()
            reader, writer = os.pipe()
            started = time.monotonic()
            child = os.fork()
            if not child:
                _stage(stage, folder, moment, atomic, writer)
            os.close(writer)
            if moment and moment[0] == "seconds":
                time.sleep(moment[1])
                os.kill(child, signal.SIGKILL)
            with open(reader) as report:
                told = json.loads(report.read() or "{}")
            exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            orders.send(Run(exit_code, time.monotonic() - started, **told))


def _trace_once() -> None:
    """Let every child find the traced graph, in memory of its own, instead of tracing for a second."""
    import export.trace as tracing
    from components import component
    from export.projection import EXPORTER
    from omni.checkpoint import read_config

    _commands()
    config: Any = read_config(Path("models/source") / NAME)
    stem, contract = component(NAME).graph(config)
    traced = tracing.trace(lambda: EXPORTER.graph(stem).build(config, None), contract)
    tracing.trace = lambda build, contract: traced


def _commands() -> dict[str, Callable[[], None]]:
    from export.__main__ import export
    from publish.__main__ import publish
    from quantize.__main__ import main as quantize

    return {"export": lambda: export(NAME), "quantize": lambda: quantize(NAME), "publish": lambda: publish([NAME])}


def _stage(stage: str, folder: Path, moment: Moment | None, atomic: bool, report: int) -> NoReturn:
    """Run a stage in this process, which ends with it.

    Args:
        stage: export, quantize or publish.
        folder: to run in.
        moment: when to die, if at all.
        atomic: whether the system can exchange two folders.
        report: where to write what was come to.
    """
    commands = _commands()
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    watch = _Watch(str(folder), moment)
    watch.set_up(atomic)
    error = ""
    try:
        commands[stage]()
    except BaseException:
        error = traceback.format_exc()
    told = {"counts": watch.counts, "events": watch.events, "error": error}
    os.write(report, json.dumps(told).encode())
    os._exit(bool(error))


class _Watch:
    """Counts what a stage does to files below a folder, and kills this process at a given moment of it."""

    def __init__(self, folder: str, moment: Moment | None) -> None:
        self.counts: Counter[str] = Counter()
        self.events: list[str] = []
        self._folder = folder
        self._moment = moment

    def set_up(self, atomic: bool) -> None:
        sys.addaudithook(self._event)
        exchange = swap.exchange

        def watched(one: Path, other: Path) -> bool:
            self._die_if_now("before exchange")
            done = atomic and exchange(one, other)
            self._die_if_now("after exchange")
            return done

        swap.exchange = watched
        self._cut_in_half()

    def _cut_in_half(self) -> None:
        """Let each way in which stages write a file stop halfway, if it is the moment."""
        from omni.streamed import StreamedTensor

        write_bytes = Path.write_bytes

        def half(owner: Any, name: str, write_half: Callable[..., object]) -> None:
            write = getattr(owner, name)

            def watched(*args: Any, **kwargs: Any) -> Any:
                if self._is_now("half"):
                    write_half(*args, **kwargs)
                    _die()
                return write(*args, **kwargs)

            setattr(owner, name, watched)

        def half_tensor(tensor: StreamedTensor, file: Any) -> None:
            file.write(tensor.tobytes()[: tensor.nbytes // 2])
            file.flush()

        half(StreamedTensor, "tofile", half_tensor)
        half(Path, "write_bytes", lambda path, data: write_bytes(path, data[: len(data) // 2]))
        half(Path, "write_text", lambda path, text, **_: write_bytes(path, text[: len(text) // 2].encode()))
        half(shutil, "copyfile", lambda one, other: write_bytes(other, one.read_bytes()[: one.stat().st_size // 2]))

    def _event(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in FILE_EVENTS or not args or not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(args[0])
        if os.path.isabs(path) and not path.startswith(self._folder):
            return
        self.events.append(event)
        self._die_if_now("event")

    def _is_now(self, what: str) -> bool:
        self.counts[what] += 1
        return (what, self.counts[what]) == self._moment

    def _die_if_now(self, what: str) -> None:
        if self._is_now(what):
            _die()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)

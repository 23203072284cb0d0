"""What sharing work costs: ``python -m benchmarks.cluster``.

Pieces of a known length are done by plain processes (``concurrent.futures``) and by Ray's, in turns, and what Ray adds
to a piece is measured. From that, and from times of real pieces, a simulation says what a thousand workers would give:
the longest pieces, and what every node has to be sent first, end what more workers can do.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from pydantic import TypeAdapter, ValidationError

from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from omni.pieces.work import Place, Pool, open_pool
from omni.questions import read_questions
from omni.replies import ReplyLimits, codes_within
from omni.resources import machine, progress, workers
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from validate.ear.chain import Chain, Replying

__all__ = ["Job", "Measured", "Waiting", "main", "overhead", "reply_times", "simulate"]

_WORKERS = (1, 10, 30, 100, 300, 1000)
_ROUNDS = 3
_LEAST = 0.01  # seconds that a piece is long
_REPLY = ReplyLimits(seed=0, max_new_tokens=64, max_new_codes=codes_within(4.0))
_REPEATS = 5  # simulated runs for each number of workers
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Waiting:
    """Work whose pieces wait for some seconds: no core is fought for, so that what is left is the overhead."""

    needs: tuple[Path, ...] = ()

    def open(self, place: Place) -> Callable[[float], float]:
        """Return a function that waits."""
        return waited


def waited(seconds: float) -> float:
    """Wait, and return for how long."""
    began = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Job:
    """What is simulated.

    Attributes:
        seconds: Times of real pieces, of which each piece takes one at random.
        pieces: Number of pieces.
        dispatch: Seconds that the command takes to hand out a piece and to take its result, one after another.
        opening: Seconds that a process takes to open the models.
        gigabytes: What each node is sent first.
        gigabits: Rate at which a node receives it; nodes that have it pass it on, so that their number doubles.
        processes: Processes on each node.
        lost: Share of the pieces whose process is lost, halfway on average; they are done again.
    """

    seconds: Sequence[float]
    pieces: int = 10_000
    dispatch: float = 0.005
    opening: float = 20.0
    gigabytes: float = 9.0
    gigabits: float = 10.0
    processes: int = 4
    lost: float = 0.005


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        machine: The machine.
        seconds: Length of a piece of known length.
        pieces: Number of them in a round.
        at_once: Number of them at once.
        rounds: Seconds that plain processes and Ray's took, for each round.
        replies: Seconds that replies took; the first one opened the models. Empty where there are none.
        gigabytes: What a node would be sent.
    """

    machine: dict[str, str | int]
    seconds: float
    pieces: int
    at_once: int
    rounds: list[tuple[float, float]]
    replies: list[float]
    gigabytes: float

    @property
    def job(self) -> Job:
        """What is simulated. All that Ray adds to a piece counts as time in which nothing else is handed out."""
        first, *others = self.replies
        added = float(np.median([ray - plain for plain, ray in self.rounds])) * self.at_once / self.pieces
        opening = max(0.0, first - float(np.median(others)))
        return Job(others, dispatch=max(added, 1e-3), opening=opening, gigabytes=self.gigabytes)


def simulate(job: Job, number: int, seed: int = 0) -> float:
    """Return the seconds until all pieces are done by so many workers.

    Args:
        job: What is done.
        number: Number of workers.
        seed: Seed of pieces' times and losses.
    """
    random = np.random.default_rng(seed)
    nodes = -(-number // job.processes)
    sending = job.gigabytes * 8 / job.gigabits
    ready = []
    for node in range(nodes):
        arrived = sending * (node + 1).bit_length()  # one sender at first, twice as many after each turn
        ready += [arrived + job.opening] * min(job.processes, number - node * job.processes)
    heapq.heapify(ready)
    left, handed_out, ended = job.pieces, 0.0, 0.0
    while left:
        began = max(heapq.heappop(ready), handed_out)
        handed_out = began + job.dispatch
        took = float(random.choice(job.seconds))
        if random.random() < job.lost:
            finished = began + took * random.random() + job.opening  # another process opens the models
        else:
            finished = began + took
            left -= 1
            ended = max(ended, finished)
        heapq.heappush(ready, finished)
    return ended


def overhead(seconds: float, pieces: int, at_once: int, pool: Pool) -> list[tuple[float, float]]:
    """Return, for each round, the seconds that plain processes and a pool's took for equal pieces, in turns.

    Args:
        seconds: Length of a piece.
        pieces: Number of pieces.
        at_once: Pieces at once, in both.
        pool: The pool, as large.
    """
    found = []
    with ProcessPoolExecutor(at_once, get_context("spawn")) as plain:
        list(plain.map(waited, [0.0] * 4 * at_once))  # begins the processes
        pool.run(Waiting(), {str(one): 0.0 for one in range(4 * at_once)}, "begin", _ignore)
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            list(plain.map(waited, [seconds] * pieces))
            between = time.perf_counter()
            pool.run(Waiting(), {str(one): seconds for one in range(pieces)}, "pieces", _ignore)
            found.append((between - began, time.perf_counter() - between))
    return found


def _ignore(name: str, result: float) -> None:
    pass


def reply_times(models: Path) -> list[float]:
    """Return the seconds that published models take to reply to each of the questions; the first one opens them.

    Args:
        models: Folder with published components.
    """
    chain, questions, took = Chain(models), read_questions(), list[float]()
    sounds = tuple(Path(question.sound) for question in questions if question.sound)
    reply = Replying(chain.folders, chain.float32, sounds, _REPLY).open(lambda path: path)
    with progress("replies", len(questions)) as advance:
        for question in questions:
            began = time.perf_counter()
            reply((question, ""))
            took.append(time.perf_counter() - began)
            advance(1)
    return took


def _plot(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Draw hours over workers, beside what they would be if nothing were lost."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "cluster"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    count = [row["workers"] for row in rows]
    axes.loglog(count, [row["seconds"] / 3600 for row in rows], "o-", label="simulated")
    axes.loglog(count, [rows[0]["seconds"] / 3600 / one for one in count], ":", label="one worker's time, divided")
    axes.set(xlabel="workers", ylabel="hours", xticks=count, xticklabels=[f"{one:,}" for one in count])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    with output.writing(path) as beside:
        figure.savefig(beside, format="svg", metadata={"Date": None})
    pyplot.close(figure)


@app.command()
def main(
    seconds: Annotated[float, typer.Option(help="Length of a piece in s.", min=_LEAST, max=60)] = 1.0,
    pieces: Annotated[int, typer.Option(help="Number of pieces in a round.", min=1, max=10_000)] = 20,
    at_once: Annotated[
        int | None, typer.Option(help="Pieces at once; as many as cores if not given.", min=2, max=999)
    ] = None,
    models: Annotated[
        Path | None, typer.Option(help="Folder with published components; simulates the judging of their speech.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="With --models: picture to write, SVG.")] = None,
    again: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What an earlier run measured, its --json; measures nothing.")
    ] = None,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure what Ray adds to a piece; with --models, simulate a thousand workers that judge speech."""
    json = json_file(json, overwrite=overwrite)
    if not seconds >= _LEAST:  # not a number, for one
        raise UserError(f"--seconds: {seconds:g}; give {_LEAST:g} to 60")
    if again is not None and models is not None:
        raise UserError("--again, --models: give one of them")
    if plot is not None and models is None and again is None:
        raise UserError("--plot: needs --models or --again, whose replies are simulated")
    if plot is not None:
        output.require_writable(plot, overwrite=overwrite)
    measured = _measure(seconds, pieces, at_once or max(2, workers()), models) if again is None else _read(again)
    rows = [[f"{measured.pieces} of {measured.seconds:g} s", number(a, 2), number(b, 2), number(b / a, 3)]
            for a, b in measured.rounds]  # fmt: skip
    print_table([["pieces", "plain s", "Ray s", "ratio"], *rows])
    simulated = [_simulated(measured.job, count) for count in _WORKERS] if measured.replies else []
    if simulated:
        print_table([["workers", "hours", "times as fast", "of the ideal"], *map(_cells, simulated)])
    if plot is not None:
        _plot(plot, simulated)
    if json:
        artifact.write_json(json, asdict(measured))


def _measure(seconds: float, pieces: int, at_once: int, models: Path | None) -> Measured:
    with open_pool(str(at_once)) as pool:
        rounds = overhead(seconds, pieces, at_once, pool)
    replies, gigabytes = [], 0.0
    if models is not None:
        folders = Chain(models).folders.values()
        gigabytes = sum(file.stat().st_size for one in folders for file in one.rglob("*") if file.is_file()) / 1e9
        replies = reply_times(models)
    return Measured(machine(), seconds, pieces, at_once, rounds, replies, gigabytes)


def _read(path: Path) -> Measured:
    """Return what an earlier run measured.

    Raises:
        UserError: The file holds something else, or no replies.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no file; give one that --json has written")
    try:
        found = TypeAdapter(Measured).validate_python(artifact.read_json(path))
    except ValidationError:
        raise UserError(f"{path}: not what --json of this command writes") from None
    if len(found.replies) < 2:
        raise UserError(f"{path}: measured without --models; nothing to simulate")
    return found


def _cells(row: dict[str, Any]) -> list[str]:
    hours = number(row["seconds"] / 3600, 2)
    return [f"{row['workers']:,}", hours, number(row["speed"], 1), f"{row['share']:.0%}"]


def _simulated(job: Job, count: int) -> dict[str, Any]:
    took = float(np.median([simulate(job, count, seed) for seed in range(_REPEATS)]))
    alone = float(np.mean(job.seconds)) * job.pieces
    return {"workers": count, "seconds": took, "speed": alone / took, "share": alone / took / count}


if __name__ == "__main__":
    run_app(app)

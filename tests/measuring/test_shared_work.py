"""Work that is shared: in one process, what is sent to others, and their cores. Ray itself: tests/cluster."""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pieces_of_work import Failing, Reading

from benchmarks.cluster import Job, simulate
from calibrate import __main__ as calibrate
from calibrate.activations import Sample
from calibrate.histogram import Histogram, SignedHistogram
from inputs import __main__ as inputs
from omni.pieces import shipment as shipments
from omni.pieces.node import share_of_cores
from omni.pieces.shipment import Absent, Shipment, locate, shipment
from omni.pieces.work import WORKERS, OneProcess, in_order, open_pool
from qwen_omni_onnx.common import artifact, cores, session
from qwen_omni_onnx.common.errors import UserError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "read/sub").mkdir(parents=True)
    (tmp_path / "read/sub/text").write_text("hello")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(shipments.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path / "read"


def sent(found: Shipment) -> Shipment:
    """As if it had been put into an object store: a reference is the bytes themselves."""
    return Shipment(
        found.path,
        Path("/elsewhere"),
        found.files,
        {name: [(found.seen_at / name).read_bytes()] for name in found.files},
    )


def test_one_process_does_pieces_in_turn(folder: Path) -> None:
    taken: dict[str, tuple[str, int]] = {}
    with open_pool("1") as pool:
        pool.run(Reading(folder), {"a": "1", "b": "2"}, "", taken.__setitem__)

    assert taken == {"a": ("hello 1", os.getpid()), "b": ("hello 2", os.getpid())}


def test_nothing_is_opened_where_there_is_no_piece(tmp_path: Path) -> None:
    OneProcess().run(Reading(tmp_path / "missing"), {}, "", lambda *_: None)


@pytest.mark.parametrize(
    "workers", ["0", "-1", "two", "", "1000", "ray://", "ray://host", "http://host:1", "ray://a:1/x"]
)
def test_what_is_no_pool_is_told(workers: str, message: Callable[..., str]) -> None:
    assert "give a number of processes" in message(lambda: open_pool(workers).__enter__())


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]) -> None:
    imported = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name == "omni.pieces.cluster":
            raise ModuleNotFoundError("No module named 'ray'")
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)

    assert "install the extra cluster" in message(lambda: open_pool("2").__enter__())


def test_a_stage_takes_its_workers_from_the_environment(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setenv(WORKERS, "many")

    for stage in (calibrate.app, inputs.app):
        assert "--workers 'many'" in message(stage, ["projection"], standalone_mode=False)


def test_results_come_in_order_whoever_is_done_first() -> None:
    taken: dict[str, int] = {}
    take = in_order(["a", "b", "c", "d"], taken.__setitem__)

    for name, result in (("c", 3), ("a", 1), ("d", 4), ("b", 2)):
        take(name, result)

    assert list(taken.items()) == [("a", 1), ("b", 2), ("c", 3), ("d", 4)]


# What is sent


def test_a_node_that_sees_the_same_files_reads_them_there(folder: Path) -> None:
    assert locate(shipment(folder), lambda _: b"", "node") == folder


def test_a_node_that_sees_other_files_there_is_sent_them(folder: Path) -> None:
    found = sent(shipment(folder))
    (folder / "sub/text").write_text("other")
    seen = Shipment(found.path, folder, found.files, found.sent)

    place = locate(seen, bytes, "node")

    assert place != folder
    assert (place / "sub/text").read_text() == "hello"


def test_a_node_fetches_what_it_is_sent_once(folder: Path, tmp_path: Path) -> None:
    found, fetched = sent(shipment(folder)), []

    def fetch(chunk: bytes) -> bytes:
        fetched.append(chunk)
        return chunk

    threads = [threading.Thread(target=locate, args=(found, fetch, "node")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert fetched == [b"hello"]
    assert locate(found, fetch, "another") != locate(found, fetch, "node")
    assert len(fetched) == 2


def test_a_single_file_keeps_its_name(folder: Path) -> None:
    place = locate(sent(shipment(folder / "sub/text")), bytes, "node")

    assert (place.name, place.read_text()) == ("text", "hello")


def test_a_node_that_neither_sees_nor_is_sent_it_says_so(folder: Path) -> None:
    found = shipment(folder)

    with pytest.raises(Absent):
        locate(Shipment(found.path, Path("/elsewhere"), found.files), bytes, "node")


def test_what_arrives_with_other_bytes_is_refused_and_not_kept(folder: Path, message: Callable[..., str]) -> None:
    found = sent(shipment(folder))

    assert "arrived with other bytes" in message(locate, found, lambda _: b"jello", "node")
    assert (locate(found, bytes, "node") / "sub/text").read_text() == "hello"


def test_an_artifacts_files_are_known_by_its_manifest(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with artifact.writing(tmp_path / "made", kind="test") as made:
        (made / "weights").write_bytes(b"x" * 1000)
    read: list[str] = []
    real = artifact.sha256

    def note(path: Path) -> str:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(artifact, "sha256", note)

    found = shipment(tmp_path / "made")

    assert read == ["manifest.json"]
    assert found.files["weights"] == (real(tmp_path / "made/weights"), 1000)
    assert locate(sent(found), bytes, "node").is_dir()


def test_nothing_that_is_missing_is_shared(tmp_path: Path, message: Callable[..., str]) -> None:
    assert "missing; nothing to share" in message(shipment, tmp_path / "missing")


# Cores


@pytest.mark.parametrize("shares", [1, 2, 3, 4])
def test_shares_of_cores_are_disjoint_and_whole(shares: int) -> None:
    groups = [[0, 4], [1, 5], [2, 6], [3, 7]]
    found = [share_of_cores(number, shares, groups) for number in range(shares)]

    assert sorted(core for share in found for core in share) == list(range(8))
    assert all((core + 4) % 8 in share for share in found for core in share), "siblings stay together"


def test_more_shares_than_cores_take_one_each() -> None:
    assert [share_of_cores(number, 5, [[0], [1]]) for number in range(5)] == [{0}, {1}, {0}, {1}, {0}]


def test_a_session_takes_the_cores_that_its_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 1000)
    session.sums_saturate()  # it opens one of its own, once
    graph = session._PRODUCT
    asked: list[int] = []
    real = session.ort.InferenceSession

    def note(opened: bytes, options: Any, **others: Any) -> Any:
        asked.append(options.intra_op_num_threads)
        return real(opened, options, **others)

    monkeypatch.setattr(session.ort, "InferenceSession", note)
    session.open_session(graph)
    session.open_session(graph, threads=3)

    assert asked[-2:] == [cores.usable_cores(), 3]


# Statistics that are merged


@pytest.mark.parametrize("kind", [Histogram, SignedHistogram])
def test_a_histogram_of_many_clips_is_that_of_each_merged(kind: Any) -> None:
    random = np.random.default_rng(0)
    clips = [random.standard_normal((50, 8)).astype(np.float32) * scale for scale in (1, 0, 300, 0.001, 7)]
    weights = np.arange(1.0, 9)
    whole, merged = kind(), kind()
    for clip in clips:
        whole.add(clip, weights)
        alone = kind()
        alone.add(clip, weights)
        merged.merge(alone)

    np.testing.assert_allclose(merged.weights, whole.weights)
    assert merged.limit == whole.limit == 2.0 ** np.ceil(np.log2(np.abs(clips[2]).max()))
    assert merged.best_range() == pytest.approx(whole.best_range())


def test_a_sample_does_not_depend_on_the_order_of_the_clips() -> None:
    random = np.random.default_rng(0)
    clips = {name: random.standard_normal((200, 4)).astype(np.float32) for name in "abc"}
    samples = {name: Sample.of(name, values) for name, values in clips.items()}

    forwards = samples["a"].merged(samples["b"]).merged(samples["c"])
    backwards = samples["c"].merged(samples["b"].merged(samples["a"]))

    assert len(forwards.values) == 300
    np.testing.assert_array_equal(forwards.values, backwards.values)


# The simulation


def test_ideal_workers_share_evenly() -> None:
    ideal = Job([2.0], pieces=100, dispatch=0, opening=0, gigabytes=0, lost=0)

    assert simulate(ideal, 1) == 200
    assert simulate(ideal, 100) == 2
    assert simulate(ideal, 1000) == 2, "no piece is divided"


def test_what_costs_time_is_simulated() -> None:
    ideal = Job([2.0], pieces=1000, dispatch=0, opening=0, gigabytes=0, lost=0, processes=1)
    sent = replace(ideal, gigabytes=1, gigabits=8)

    assert simulate(replace(ideal, dispatch=0.1), 1000) == pytest.approx(999 * 0.1 + 2)
    assert simulate(replace(ideal, opening=5), 10) == pytest.approx(205)
    assert simulate(sent, 1) == pytest.approx(2001)
    assert simulate(sent, 1000) < 2 + 11, "nodes pass on what they have"
    assert simulate(replace(ideal, lost=0.2), 10) > 1.05 * simulate(ideal, 10)


def test_a_piece_that_cannot_be_done_is_told() -> None:
    with pytest.raises(UserError, match="not possible"):
        OneProcess().run(Failing(), {"a": "refused"}, "", lambda *_: None)

"""Pieces of work on Ray: three nodes on this machine, processes and nodes that are lost, results that stay the same."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pieces_of_work
import pytest
from pieces_of_work import Failing, Reading

from omni.pieces.work import OneProcess, Pool, open_pool

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.cluster
_STORE = 80 * 2**20  # bytes, the least that Ray takes


class Nodes:
    """A Ray cluster of three nodes with one CPU each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"num_cpus": 1, "object_store_memory": _STORE}
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={**common, "ray_client_server_port": port, "include_dashboard": False},
        )
        self.others = [self.cluster.add_node(**common) for _ in range(2)]
        self.address = f"ray://127.0.0.1:{port}"

    def add(self) -> Any:
        """Add a node, and return it."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=_STORE)

    def remove(self, node: Any) -> None:
        """Let a node leave at once."""
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    ray.cloudpickle.register_pickle_by_value(pieces_of_work)
    found = Nodes()
    yield found
    found.cluster.shutdown()
    shutil.rmtree(Path(tempfile.gettempdir()) / f"qwen-omni-onnx-{os.getuid()}", ignore_errors=True)


@pytest.fixture(scope="module")
def pool(nodes: Nodes) -> Iterator[Pool]:
    with open_pool(nodes.address) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "read/sub").mkdir(parents=True)
    (tmp_path / "read/sub/text").write_text("hello")
    return tmp_path / "read"


def done(pool: Pool, work: Any, *pieces: str) -> dict[str, Any]:
    """Do pieces, each of its own name."""
    taken: dict[str, Any] = {}
    pool.run(work, {piece: piece for piece in pieces}, "test", taken.__setitem__)
    return taken


def test_all_nodes_work_and_each_piece_is_done_once(pool: Pool, folder: Path) -> None:
    taken = done(pool, Reading(folder), *"abcdefghijkl")

    assert {piece: text for piece, (text, _) in taken.items()} == {piece: f"hello {piece}" for piece in "abcdefghijkl"}
    assert len({process for _, process in taken.values()}) == pool.size == 3


def test_nodes_that_do_not_see_the_files_are_sent_them(
    pool: Pool, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from omni.pieces import cluster

    real, put = cluster.shipment, []
    elsewhere = tmp_path / "elsewhere"

    def unseen(path: Path) -> Any:
        return replace(real(path), seen_at=elsewhere)

    def sent(one: Any) -> Any:
        put.append(one.path)
        return replace(real_sent(replace(one, seen_at=folder)), seen_at=elsewhere)

    real_sent = cluster._sent
    monkeypatch.setattr(cluster, "shipment", unseen)
    monkeypatch.setattr(cluster, "_sent", sent)

    taken = done(pool, Reading(folder), *"abcdef")

    assert {text for text, _ in taken.values()} == {f"hello {piece}" for piece in "abcdef"}
    assert put == [folder], "once, for all nodes"
    arrived = list((Path(tempfile.gettempdir()) / f"qwen-omni-onnx-{os.getuid()}").glob("*/*/sub/text"))
    assert 1 <= len(arrived) <= 3, "once a node"


def test_what_a_user_can_mend_is_told_in_one_line(pool: Pool, message: Callable[..., str]) -> None:
    assert message(done, pool, Failing(), "fine", "refused") == "that is not possible; do something else"


def test_a_defect_keeps_its_traceback(pool: Pool) -> None:
    with pytest.raises(ZeroDivisionError, match="a defect"):
        done(pool, Failing(), "broken")


def test_a_piece_whose_process_dies_is_done_again(pool: Pool, tmp_path: Path) -> None:
    assert set(done(pool, Failing(), f"killed {tmp_path / 'once'}", "fine").values()) == {"killed", "fine"}


def test_a_piece_whose_process_dies_each_time_is_named(pool: Pool, message: Callable[..., str]) -> None:
    assert "test: killed was lost (WorkerCrashedError) 3 times" in message(done, pool, Failing(), "killed", "fine")


def test_a_piece_that_runs_out_of_memory_is_named(message: Callable[..., str]) -> None:
    from omni.pieces import cluster

    lost = ray.exceptions.OutOfMemoryError("the node had 15 of 16 GB")
    cluster._require_may_repeat("speech", "a", lost, 2)

    assert "speech: a ran out of memory 3 times; last: the node had" in message(
        cluster._require_may_repeat, "speech", "a", lost, 3
    )


def test_pieces_of_a_node_that_leaves_are_done_elsewhere(nodes: Nodes, pool: Pool) -> None:
    leaving = nodes.add()
    taken: dict[str, str] = {}

    def take(name: str, result: str) -> None:
        if not taken:
            threading.Thread(target=nodes.remove, args=[leaving]).start()
        taken[name] = result

    pool.run(Failing(), {str(number): "second" for number in range(12)}, "test", take)

    assert len(taken) == 12


def test_what_is_stopped_leaves_no_work_behind(pool: Pool) -> None:
    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StopError

    pieces = {"fine": "fine", **{str(number): "slow" for number in range(6)}}
    with pytest.raises(StopError):
        pool.run(Failing(), pieces, "test", stop)

    began = time.monotonic()
    assert done(pool, Failing(), "fine") == {"fine": "fine"}
    assert time.monotonic() - began < 40, "the slow ones, a minute each, hold no CPU any more"


def test_calibration_is_the_same_on_any_number_of_nodes(pool: Pool, chain: Path) -> None:
    from calibrate.activations import observe
    from components import component
    from omni.inputs import CALIBRATION, read
    from omni.params import CalibrateParams
    from qwen_omni_onnx.common.configuration import read_config

    stem, contract = component("encoder").graph(read_config(Path("models/onnx/encoder")))
    params = CalibrateParams(smoothing="search", headroom=1.1, nodes={})
    given = (Path(f"models/onnx/encoder/{stem}.onnx"), contract, params, read("encoder", CALIBRATION))

    alone, shared = observe(*given, OneProcess()), observe(*given, pool)

    assert alone.keys() == shared.keys()
    for name, one in alone.items():
        other = shared[name]
        for of_one, of_other in (
            (one.low, other.low), (one.high, other.high), (one.total, other.total), (one.squares, other.squares),
            (one.factors, other.factors), (one.histogram.weights, other.histogram.weights),
        ):  # fmt: skip
            np.testing.assert_array_equal(of_one, of_other, err_msg=name)
        assert one.widened == other.widened


def test_inputs_are_the_same_on_any_number_of_nodes(pool: Pool, chain: Path) -> None:
    from inputs.__main__ import record
    from omni.params import load

    params = load()
    for name in ("projection", "talker", "token2wav"):  # an output; hidden states and what is spoken; logits
        alone, shared = record(name, params), record(name, params, pool)
        for split in ("calibration", "held_out"):
            pairs = list(zip(alone[split], shared[split], strict=True))
            assert pairs, name
            for one, other in pairs:
                assert (one.name, one.reply) == (other.name, other.reply)
                np.testing.assert_array_equal(one.array, other.array, err_msg=f"{name}: {one.name}")


def test_sensitivity_is_the_same_on_any_number_of_nodes(pool: Pool, chain: Path) -> None:
    from components import component
    from omni.inputs import CALIBRATION, read
    from omni.params import load
    from quantize.sensitivity.bench import Bench, recordings
    from quantize.sources import bound_calibration
    from qwen_omni_onnx.common.configuration import read_config

    stem, contract = component("encoder").graph(read_config(Path("models/onnx/encoder")))
    params = load().component("encoder").graph(stem).quantize
    assert params is not None
    bench = Bench(
        graph_file=Path(f"models/onnx/encoder/{stem}.onnx"),
        output=contract.outputs[0].name,
        params=params,
        calibration=bound_calibration("encoder", stem),
        fed=recordings(contract, read("encoder", CALIBRATION), 400),
        fed_long={},
    )
    candidates = [(node, "int8-token") for group in bench.groups().values() for node in group]

    assert bench.alone(candidates, pool) == bench.alone(candidates, OneProcess())


def test_replies_are_the_same_on_any_number_of_nodes(pool: Pool, gated_chain: Path) -> None:
    from omni.questions import Question
    from omni.replies import ReplyLimits, read_reply
    from validate.ear.chain import Chain

    clip = sorted(Path("data/speech/held_out").glob("*.flac"))[0]
    questions = [
        Question(name="text", language="en", text="What is this?"),
        Question(name="sound", language="en", sound=str(clip), said="this"),
    ]
    limits = ReplyLimits(0, 4, 30)
    for folder, by in (("alone", OneProcess()), ("shared", pool)):
        Chain(Path("models/published")).record(questions, Path(folder), limits, by)

    for question in questions:
        (alone, waveform), (shared, other) = (read_reply(Path(where), question.name) for where in ("alone", "shared"))
        assert alone == shared
        np.testing.assert_array_equal(waveform, other)


def test_a_cluster_that_does_not_answer_is_told_in_one_line() -> None:
    # In a process of its own: this one has a connection.
    import subprocess
    import sys

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"ray://127.0.0.1:{free.getsockname()[1]}"
    code = f"from omni.pieces.work import open_pool\nwith open_pool({address!r}): pass"
    environment = {**os.environ, "RAY_CLIENT_MAX_CONNECTION_RETRIES": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300, check=False
    )

    assert found.returncode == 1
    assert f"UserError: --workers {address}: Ray: " in found.stderr


def test_processes_of_this_machine_work_too(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "shares.py").write_text(
        "from benchmarks.cluster import Waiting\n"
        "from omni.pieces.work import open_pool\n"
        "with open_pool('2') as pool:\n"
        "    pool.run(Waiting(), {str(one): 0.1 for one in range(6)}, '', lambda name, _: print(name))\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    found = subprocess.run(
        [sys.executable, "shares.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
        check=True,
    )

    assert sorted(found.stdout.split()) == list("012345")
    assert found.stderr == ""

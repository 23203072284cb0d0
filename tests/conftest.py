"""A tiny projection, built once a worker by the pipeline's own commands; tests take copies of it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import omni  # noqa: F401 - before any test imports ONNX Runtime, whose telemetry it switches off

ROOT = Path(__file__).resolve().parents[1]
EMBEDDING, HIDDEN, VOCABULARY = 96, 72, 160
NAME = "projection"


def tiny_config() -> dict:
    """The 7B's configuration with narrow widths."""
    config = json.loads((ROOT / "pull" / "qwen2_5_omni_7b.json").read_text())
    config["talker_config"] |= {"embedding_size": EMBEDDING, "hidden_size": HIDDEN, "vocab_size": VOCABULARY}
    return config


def tiny_params() -> dict:
    """``params.yaml`` of the repository, with fewer tokens and limits that tiny widths can meet."""
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    block = params[NAME]
    block["inputs"] |= {"outlier_channels": 2, "calibration_batches": 4, "calibration_tokens": 32}
    block["cases"] = {"batch": [1, 2], "seq": [1, 9]}
    block["latency"] = {"seq": [1, 4], "rounds": 20, "seconds": 0.01}
    block["gates"] |= {"quantized_sqnr_db": 25, "quantized_top1": 0.6, "speedup": {"other": {4: 0.0001}}}
    return params


def write_params(folder: Path, params: dict) -> None:
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)


def build(folder: Path, seed: int = 0) -> None:
    """Run every stage up to the gate's reports, in ``folder``, in this process."""
    from export.__main__ import export
    from export.reference import reference
    from omni.component import component
    from pull.synthetic import write
    from quantize.__main__ import main as quantize
    from quantize.calibrate import calibrate

    (folder / "config.json").write_text(json.dumps(tiny_config()))
    write_params(folder, tiny_params())
    with contextlib.chdir(folder):
        write(component(NAME), seed, Path("models/source") / NAME, Path("config.json"))
        reference(NAME)
        export(NAME)
        calibrate(NAME)
        quantize(NAME)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and models/ of a tiny projection. Not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder


@pytest.fixture
def workplace(built_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built folder to work in and to break; the current directory of the test."""
    return _work_in_copy(built_once, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def gated_once(built_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder with every report, all green, and published."""
    folder = tmp_path_factory.mktemp("gated") / "workplace"
    shutil.copytree(built_once, folder)
    from publish.__main__ import publish
    from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))  # measured processes start in this folder, not in the repository
        for measure in (run_contract, run_parity, run_latency, run_memory, run_gate):
            measure([NAME])
        publish([NAME])
    return folder


@pytest.fixture
def gated(gated_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the gated folder to break; the current directory of the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return _work_in_copy(gated_once, tmp_path, monkeypatch)


def _work_in_copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workplace"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def message() -> Callable[..., str]:
    """Call a function that must fail with a :class:`Problem`; return its message, which must be one line."""
    from omni.errors import Problem

    def call(function: Callable[..., object], *args: object, **kwargs: object) -> str:
        with pytest.raises(Problem) as raised:
            function(*args, **kwargs)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return call

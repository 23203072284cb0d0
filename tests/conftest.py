"""Tiny components, built once a worker by the pipeline's own commands; tests take copies of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

import omni  # noqa: F401 - before any test imports ONNX Runtime, whose telemetry it switches off

ROOT = Path(__file__).resolve().parents[1]
EMBEDDING, HIDDEN, VOCABULARY = 96, 72, 160
MELS, WIDTH, BLOCK = 16, 64, 16  # of the front end; of the encoder: channels, and frames of a block
NAME = "projection"
CHAIN = ("frontend", "encoder", "projection", "thinker", "talker", "token2wav")
TOKENS = 330  # of the Thinker: bytes, marks, and a few words
COMPOSED = ("audio_core",)
CODES, BLOCK_CODES, VOICE_WIDTH = 40, 3, 10  # of token2wav: different codes, codes of a block, a speaker's embedding
CLIPS = {"calibration": ("low", "high", "noise"), "held_out": ("sweep", "hum")}
TEXTS = {"calibration": ("note",), "held_out": ("remark",)}
DIALOGUES = {"calibration": ("question",), "held_out": ("request",)}


def tiny_config() -> dict:
    """The 7B's configuration with narrow widths."""
    return json.loads((ROOT / "pull/tiny/config.json").read_text())


def tiny_preprocessor() -> dict:
    """The 7B's, with few mel bins; the processor pads what it is given to two seconds, and cuts what is longer."""
    return json.loads((ROOT / "pull/tiny/preprocessor_config.json").read_text())


def write_configs(folder: Path) -> Path:
    """Write the tiny checkpoint's configuration files; return their folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny_preprocessor()))
    return folder


def tiny_params() -> dict:
    """``params.yaml`` as the profile ``small`` changes it, with made-up hidden states for the projection."""
    from profiles.__main__ import with_profile

    params = with_profile(YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text()), "small")
    params[NAME]["inputs"]["source"] = "synthetic"
    return params


def chained_params() -> dict:
    """The tiny parameters of all components, each fed by the one before but for token2wav, which has made-up codes."""
    params = tiny_params()
    params[NAME]["inputs"]["source"] = "encoder"
    return params


def write_params(folder: Path, params: dict) -> None:
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)


def write_clips(folder: Path) -> None:
    """Write a second of made-up sound for each name in ``CLIPS``, at two rates, and a reply to it."""
    import soundfile

    for number, (split, name) in enumerate((split, name) for split, names in CLIPS.items() for name in names):
        rate = 16_000 if number % 2 else 24_000
        random = np.random.default_rng(number)
        seconds = np.arange(rate * (3 + number) // 4) / rate
        tone = np.sin(2 * np.pi * seconds * (200 + 500 * number + 300 * seconds))
        loudness = 0.1 + 0.2 * np.abs(np.sin(2 * np.pi * 3 * seconds))
        place = folder / split / f"{name}.flac"
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, loudness * tone + 0.01 * random.standard_normal(len(seconds)), rate)
        place.with_suffix(".txt").write_text(f"A {name} sound, I think.\n")


def write_texts(folder: Path) -> None:
    """Write a text for each name in ``TEXTS``, and a dialogue for each in ``DIALOGUES``."""
    for split, names in TEXTS.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / split / f"{name}.txt").write_text(f"A {name}: the boat is späť, 迟到.\n", encoding="utf-8")
    for split, names in DIALOGUES.items():
        for name in names:
            messages = [{"role": "user", "content": f"A {name}?"}, {"role": "assistant", "content": f"Yes, a {name}."}]
            (folder / split / f"{name}.json").write_text(json.dumps(messages))


def recorded_names(split: str, *, texts: bool = True) -> set[str]:
    """Return the names of what the Thinker is fed; without texts, of what it passes on."""
    written = (*TEXTS[split], *DIALOGUES[split]) if texts else DIALOGUES[split]
    return {*CLIPS[split], *(f"text/{name}" for name in written)}


def build(
    folder: Path,
    seed: int = 0,
    names: Iterable[str] = (NAME,),
    params: dict | None = None,
    composed: Iterable[str] = (),
) -> None:
    """Run every stage up to the gate's reports, in ``folder``, in this process."""
    from calibrate.__main__ import calibrate
    from components import component
    from compose.__main__ import compose
    from export.__main__ import export
    from inputs.__main__ import main as inputs
    from pull.synthetic import write
    from quantize.__main__ import main as quantize
    from quantize.compensate import main as compensate
    from reference.__main__ import reference

    configs = write_configs(folder.absolute() / "configs")
    write_params(folder, params or tiny_params())
    with contextlib.chdir(folder):
        for name in names:
            write(component(name), seed, "full", Path("models/source") / name, configs)
            export(name)
        inputs(list(names))
        for name in names:
            for stage in (reference, calibrate, compensate, quantize):
                stage(name)
        for name in composed:
            compose(name)


STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what asks a command to stop


def heed_signals(ignored: signal.Signals | None = None) -> None:
    """Let a process that is about to begin heed signals as in a terminal, also where the tests run under ``nohup``."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)


@pytest.hookimpl(trylast=True)  # pytest itself puts tests of one fixture beside each other
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker build the chain while the others have tests that do without it.

    Tests are handed out in their order: one that needs everything first, then those that do without the chain, and the
    rest. In the order of files, all workers would soon come to one that needs it, and wait.
    """
    first = next((item for item in items if "gated_chain" in _fixtures(item)), None)
    items.sort(key=lambda item: (item is not first, "chain_once" in _fixtures(item)))


def _fixtures(item: pytest.Item) -> list[str]:
    return getattr(item, "fixturenames", [])


@pytest.fixture(autouse=True)
def signals_are_heeded_as_before() -> Iterator[None]:
    """Give back what a command that a test ran in this process does with signals: it ends by ignoring them.

    Else, what later tests start would ignore them too, and could not be asked to stop.
    """
    heeded = [signal.getsignal(number) for number in STOPPING]
    yield
    for number, handler in zip(STOPPING, heeded, strict=True):
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and models/ of a tiny projection. Not to be changed."""
    return _once(tmp_path_factory, "built", build)


@pytest.fixture
def workplace(built_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the built folder to work in and to break; the current directory of the test."""
    return _work_in_copy(built_once, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def gated_once(built_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder with every report, all green, and published."""
    return _once(tmp_path_factory, "gated", lambda folder: _gate_copy(built_once, folder, [NAME]))


@pytest.fixture
def gated(gated_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the gated folder to break; the current directory of the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return _work_in_copy(gated_once, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def chain_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, clips, and models/ of all components, tiny. Not to be changed."""

    def make(folder: Path) -> None:
        write_clips(folder / "data/speech")
        write_texts(folder / "data/text")
        build(folder, names=CHAIN, params=chained_params(), composed=COMPOSED)

    return _once(tmp_path_factory, "chain", make)


@pytest.fixture
def chain(chain_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the chain to work in and to break; the current directory of the test."""
    return _work_in_copy(chain_once, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def gated_chain_once(chain_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain with every report, all green, and published."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("omni.resources.measure_module", build_here)
            _gate_copy(chain_once, folder, (*CHAIN, *COMPOSED))

    return _once(tmp_path_factory, "gated-chain", make)


@pytest.fixture
def gated_chain(gated_chain_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the gated chain to break; the current directory of the test."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return _work_in_copy(gated_chain_once, tmp_path, monkeypatch)


def build_here(module: str, *arguments: str) -> int:
    """Instead of ``omni.resources.measure_module``: run a stage in this process, which has its libraries already."""
    from compose.__main__ import compose
    from export.__main__ import export
    from quantize.__main__ import main as quantize
    from quantize.compensate import main as compensate

    stages: dict[str, Callable[..., None]] = {
        "compose": compose, "export": export, "quantize": quantize, "quantize.compensate": compensate,
    }  # fmt: skip
    if module in stages:
        name, _, out = arguments
        stages[module](name, out=Path(out))
    return 100 * 2**20


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` has filled; the workers of one run share it, and the first one makes it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name / "workplace", base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder.parent, ignore_errors=True)  # of a worker that failed
            folder.mkdir(parents=True)
            make(folder)
            done.touch()
    return folder


def _gate_copy(built: Path, folder: Path, names: Iterable[str]) -> None:
    shutil.copytree(built, folder, dirs_exist_ok=True)
    from publish.__main__ import publish
    from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))  # measured processes start in this folder, not in the repository
        for step in (run_contract, run_parity, run_latency, run_memory, run_gate, publish):
            step(list(names))


def _work_in_copy(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workplace"
    shutil.copytree(original, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def message() -> Callable[..., str]:
    """Call a function that must fail with a :class:`UserError`; return its message, which must be one line."""
    from qwen_omni_onnx.common.errors import UserError

    def call(function: Callable[..., object], *args: object, **kwargs: object) -> str:
        with pytest.raises(UserError) as raised:
            function(*args, **kwargs)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return call

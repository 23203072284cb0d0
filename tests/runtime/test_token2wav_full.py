"""token2wav at its real width: at full depth, and for half a minute of speech."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from calibrate.__main__ import calibrate
from components import component
from export.__main__ import export
from inputs.__main__ import main as record_inputs
from omni.resources import measure_module
from pull import synthetic
from quantize.__main__ import main as quantize
from qwen_omni_onnx.common.agreement import QUANTIZED
from reference.__main__ import reference
from validate import gate, parity
from validate.measured import MeasuredComponent, built_components

pytestmark = pytest.mark.slow
NAME = "token2wav"


def _build(folder: Path, layers: int | str, cases: list[list[int]], *, quantized: bool) -> MeasuredComponent:
    """Build token2wav by the stages, as ``params.yaml`` has it but for its cases and clips of a second."""
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params[NAME]["cases"] = cases
    params[NAME]["inputs"] = {"source": "synthetic", "synthetic": {"seed": 2, "clips": 4, "codes": 50}}
    if not quantized:
        params[NAME] |= {"calibrate": {}, "quantize": {}}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    with contextlib.chdir(folder):
        synthetic.write(component(NAME), 0, layers, Path("models/source") / NAME)
        export(NAME)
        record_inputs([NAME])
        for stage in (reference, calibrate, quantize):
            stage(NAME)
        ((measured, _),) = built_components([NAME])
    return measured


@pytest.fixture(scope="module")
def half_a_minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two layers in float32, and what transformers says for 30 s of speech. Not to be changed."""
    folder = tmp_path_factory.mktemp("half-a-minute")
    _build(folder, 2, [[1500]], quantized=False)
    return folder


def test_all_22_layers_pass_every_limit_on_accuracy_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are those of ``params.yaml``; float32 and INT8, each step of the way."""
    _build(tmp_path, "full", [[13], [25, 12]], quantized=True)
    monkeypatch.chdir(tmp_path)
    ((measured, params),) = built_components([NAME])

    verdicts = [*gate.parity_verdicts(parity.measure(measured, 0), params.gates), *gate.sizes(measured, params.gates)]

    assert len(verdicts) >= 10
    assert not [str(verdict) for verdict in verdicts if not verdict.ok]
    assert {verdict.kind for verdict in verdicts} >= {QUANTIZED}


def test_thirty_seconds_of_speech_agree_with_transformers(half_a_minute: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(half_a_minute)
    ((measured, params),) = built_components([NAME])

    verdicts = list(gate.parity_verdicts(parity.measure(measured, 0), params.gates))

    assert len(verdicts) == 4
    assert not [str(verdict) for verdict in verdicts if not verdict.ok]


def test_a_minute_of_speech_takes_less_than_3_gb_above_the_weights(
    half_a_minute: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "speak.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from qwen_omni_onnx.token2wav.golden import open_graphs\n"
        "from qwen_omni_onnx.voices import read_voices\n"
        "folder, count = Path(sys.argv[1]), int(sys.argv[2])\n"
        "graphs = {path.stem: path for path in folder.glob('*.onnx')}\n"
        "model, voice = open_graphs(graphs, folder, 0), read_voices(folder / 'speakers.safetensors')['Ethan']\n"
        "codes = np.random.default_rng(0).integers(8193, size=count)\n"
        "waveform = model.speak(codes, voice.cond, voice.ref_mel, variant='abm2-8')\n"
        "assert waveform.shape == (count * 480,)\n"
    )
    folder = str(half_a_minute / "models/onnx" / NAME)
    weights = sum(path.stat().st_size for path in Path(folder).glob("*.data"))

    minute = measure_module("speak", folder, "3000")

    assert minute - weights < 3e9

"""token2wav at its real width: at full depth, and for half a minute of speech."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from export.__main__ import export
from export.inputs import main as record_inputs
from export.reference import reference
from omni.component import component
from omni.params import load
from omni.resources import measure_module
from pull import synthetic
from quantize.__main__ import main as quantize
from quantize.calibrate import calibrate
from validate import gate, parity
from validate.subject import QUANTIZED, Subject, subjects

pytestmark = pytest.mark.slow
NAME = "token2wav"


def _build(folder: Path, layers: int | str, cases: list[list[int]], codes: int) -> Subject:
    """Build token2wav by the stages, as ``params.yaml`` has it but for its cases and the length of its clips."""
    params = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    params[NAME]["cases"] = cases
    params[NAME]["inputs"] = {"source": "synthetic", "synthetic": {"seed": 2, "clips": 4, "codes": codes}}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(params, file)
    with contextlib.chdir(folder):
        synthetic.write(component(NAME), 0, layers, Path("models/source") / NAME)
        for stage in (export, record_inputs, reference, calibrate, quantize):
            stage(NAME)
        ((subject, _),) = subjects([NAME])
    return subject


def test_all_22_layers_pass_every_limit_on_accuracy_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are those of ``params.yaml``; float32 and INT8, each step of the way."""
    _build(tmp_path, "full", [[13], [25, 12]], 50)
    monkeypatch.chdir(tmp_path)
    ((subject, params),) = subjects([NAME])

    verdicts = [*gate.parity_verdicts(parity.measure(subject, 0), params.gates), *gate.sizes(subject, params.gates)]

    assert len(verdicts) >= 10
    assert not [str(verdict) for verdict in verdicts if not verdict.ok]
    assert {verdict.graph for verdict in verdicts} >= {QUANTIZED}


def test_thirty_seconds_of_speech_agree_with_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _build(tmp_path, 2, [[1500]], 50)
    monkeypatch.chdir(tmp_path)
    ((subject, params),) = subjects([NAME])

    verdicts = list(gate.parity_verdicts(parity.measure(subject, 0), params.gates))

    assert not [str(verdict) for verdict in verdicts if not verdict.ok]


def test_a_minute_of_speech_takes_less_than_3_gb_above_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = _build(tmp_path, 2, [[3]], 20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "speak.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from speech.token2wav.golden import open_graphs\n"
        "from speech.voices import read_voices\n"
        "folder, count = Path(sys.argv[1]), int(sys.argv[2])\n"
        "graphs = {path.stem: path for path in folder.glob('*.onnx')}\n"
        "model, voice = open_graphs(graphs, folder, 0), read_voices(folder / 'speakers.safetensors')['Ethan']\n"
        "codes = np.random.default_rng(0).integers(8193, size=count)\n"
        "waveform = model.speak(codes, voice.cond, voice.ref_mel, variant='euler-10')\n"
        "assert waveform.shape == (count * 480,)\n"
    )
    folder = str(subject.folders["onnx"].resolve())
    weights = sum(path.stat().st_size for path in Path(folder).glob("*.data"))

    minute = measure_module("speak", folder, "3000")

    assert minute - weights < 3e9

"""Every component is found by its name wherever something is needed of it, and nothing else is imported for it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CHAIN, COMPOSED, ROOT

from components import component, names, require_own
from compose.__main__ import COMPOSERS
from omni.component import COMPOSED_OF
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.identity import CHECKPOINT_NAME
from qwen_omni_onnx.runtimes import DECODERS, RUNTIMES, SEVERAL_GRAPHS


def _loaded_by(code: str) -> set[str]:
    """Return the modules of this repository, and PyTorch, that some code has loaded."""
    told = (
        "print(*(name for name in sys.modules if name.split('.')[0] in ('components', 'export', 'reference', 'torch')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{told}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_there_is_a_description_of_every_name_and_no_other() -> None:
    files = {path.stem for path in (ROOT / "components").glob("*.py")} - {"__init__"}

    assert set(names()) == files == {*CHAIN, *COMPOSED}
    for name in names():
        assert component(name).name == name
        assert component(name).composed_of == COMPOSED_OF.get(name, ())


def test_a_name_of_no_component_is_told(message: Callable[..., str]) -> None:
    assert message(component, "song").startswith("no component 'song'; there are: audio_core, encoder, ")
    assert message(require_own, "song").startswith("no component 'song'")
    assert "run python -m compose audio_core" in message(require_own, "audio_core")


def test_every_component_is_exported_and_compared_or_composed() -> None:
    from export.exporters import exporter
    from reference.originals import original

    for name in CHAIN:
        assert exporter(name).graphs
        assert (original(name).run is None) != (original(name).record is None)
    assert set(COMPOSERS) == set(COMPOSED_OF) == set(COMPOSED)
    for name in ("song", *COMPOSED):
        for look_up in (exporter, original):
            with pytest.raises(KeyError):
                look_up(name)


def test_every_component_whose_graphs_do_not_run_by_themselves_has_a_run_time(chain: Path) -> None:
    for name in names():
        described = component(name)
        assert (name in RUNTIMES) == (described.runtime is not None), name
        if described.runtime:
            assert importlib.util.find_spec(f"{described.runtime}.golden")
            kinds = (RUNTIMES[name].LOGITS, RUNTIMES[name].WAVEFORMS, RUNTIMES[name].SEQUENCES)
            assert {check for checks in kinds for check in checks} <= set(RUNTIMES[name].CHECKS)
    for name in CHAIN:
        described = component(name)
        config = {CHECKPOINT_NAME: "Qwen2.5-Omni-7B", **read_config(Path("models/onnx") / name)}
        assert (name in SEVERAL_GRAPHS) == (len(described.contracts(config)) > 1), name
        assert (name in DECODERS) == (described.whole is not None and name not in SEVERAL_GRAPHS), name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("projection", "token2wav") else pytest.mark.slow) for name in CHAIN],
)
def test_of_one_component_no_other_one_s_files_are_imported(name: str) -> None:
    others = set(CHAIN) - {name}

    imports = "from components import component\nfrom export.exporters import exporter"
    loaded = _loaded_by(f"{imports}\ncomponent({name!r}), exporter({name!r})")

    assert {f"components.{name}", f"export.{name}"} <= loaded
    of_another = {f"{folder}.{other}" for folder in ("components", "export") for other in others}
    assert not loaded & of_another
    assert ("torch" in loaded) != component(name).constructed  # what is constructed does without


@pytest.mark.parametrize("code", ["import compose.__main__", "import inputs.__main__", "import quantize.__main__"])
def test_composing_recording_and_quantizing_need_no_pytorch(code: str) -> None:
    assert not {module for module in _loaded_by(code) if module.split(".")[0] in ("torch", "export", "reference")}

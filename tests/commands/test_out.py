"""Where commands are told to write: over nothing that they read, and over nothing unasked that they did not write."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import NAME, ROOT

from benchmarks import encoder, long_sound, one_pass, projection, recipes, sinks
from benchmarks.decoder import __main__ as decoder
from benchmarks.token2wav import __main__ as token2wav
from compose.__main__ import compose
from compose.loop import main as loop
from export.__main__ import export
from profiles.__main__ import main as copy_profile
from profiles.siblings.__main__ import lay_out
from quantize.__main__ import main as quantize
from quantize.compensate import main as compensate
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.sampler import REFERENCE
from validate.__main__ import run_report

Message = Callable[..., str]
BENCHMARKS = [encoder, long_sound, one_pass, projection, recipes, sinks, decoder, token2wav]


def state(*folders: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in Path(folder).rglob("*") if path.is_file()}


# Artifacts


@pytest.fixture
def untouched(chain: Path) -> Iterator[None]:
    """Let no stage get as far as reading its inputs."""
    before = state("models")
    yield
    assert state("models") == before


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("command", "name", "out", "said"),
    [
        (export, NAME, f"models/source/{NAME}", f"in the way: it holds another artifact ('source' of '{NAME}')"),
        (export, NAME, "models/onnx/encoder", "in the way: it holds another artifact ('onnx' of 'encoder')"),
        (export, NAME, f"models/source/{NAME}/onnx", "lies in an artifact"),
        (export, NAME, "models/source", "in the way, and no artifact"),
        (export, NAME, ".", "in the way, and no artifact"),
        (export, NAME, "params.yaml", "in the way, and no artifact"),
        (quantize, NAME, f"models/onnx/{NAME}", f"in the way: it holds another artifact ('onnx' of '{NAME}')"),
        (compensate, NAME, f"models/onnx/{NAME}", f"in the way: it holds another artifact ('onnx' of '{NAME}')"),
        (quantize, NAME, f"models/calibration/{NAME}", "in the way: it holds another artifact ('calibration' of"),
    ],
)
def test_a_stage_destroys_neither_what_it_reads_nor_another_s_artifact(
    command: Callable[..., None], name: str, out: str, said: str, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    def read(folder: Path) -> None:
        raise AssertionError(f"{folder} is read before --out is looked at")

    monkeypatch.setattr(artifact, "check", read)

    assert message(command, name, out=Path(out)).startswith(f"{out}: {said}")


@pytest.mark.usefixtures("untouched")
def test_what_is_composed_elsewhere_takes_no_place(message: Message) -> None:
    assert message(compose, "audio_core", out=Path("models/onnx")).startswith("models/onnx: in the way")
    said = message(compose, "audio_core", out=Path("models/onnx/encoder/new"))
    assert said.startswith("models/onnx/encoder/new/onnx/audio_core: lies in an artifact")


@pytest.mark.usefixtures("untouched")
def test_what_is_quantized_on_the_way_does_not_take_the_float32_graph_s_place(message: Message) -> None:
    said = message(export, "talker", out=Path("models/../models/onnx/talker"), quantized=True)

    assert said == "--quantized: needs --out, another folder than models/onnx/talker, where the float32 graph belongs"


@pytest.mark.usefixtures("untouched")
def test_the_whole_ode_does_not_take_its_step_s_place(message: Message) -> None:
    step = Path("models/onnx/token2wav/dit_step.onnx")

    assert "it holds another artifact ('onnx' of 'token2wav')" in message(loop, step, step.parent, REFERENCE)
    assert "lies in an artifact" in message(loop, step, step.parent / "ode", REFERENCE)


def test_a_stage_writes_over_what_it_wrote_elsewhere(workplace: Path) -> None:
    for _ in range(2):
        export(NAME, out=Path("elsewhere/onnx"))

    assert artifact.fingerprint(Path("elsewhere/onnx")) == artifact.fingerprint(Path("models/onnx") / NAME)


def test_siblings_are_laid_out_over_nothing_else(tmp_path: Path, message: Message) -> None:
    (tmp_path / "embeddings").mkdir()
    (tmp_path / "embeddings/notes.txt").write_text("mine")

    assert message(lay_out, tmp_path / "checkpoint").startswith(f"{tmp_path}/embeddings: in the way, and no artifact")
    assert message(lay_out, tmp_path / "embeddings").startswith(f"{tmp_path}/embeddings: in the way, and no artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings"]


# Files


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda module: module.__name__)
def test_a_benchmark_measures_nothing_before_it_knows_where_to_write(
    benchmark: types.ModuleType, workplace: Path, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("something was measured")

    for name in ("built", "temporary_folder", "built_components", "measure_module", "synthesize"):
        monkeypatch.setattr(benchmark, name, measure, raising=False)
    Path("found.json").write_text("mine")
    read = Path(f"models/onnx/{NAME}/manifest.json")

    for overwrite in (False, True):
        said = message(benchmark.main, json=read, overwrite=overwrite)
        assert said == f"{read}: lies in models, which is read; give another place for what is to be written"
        assert "is what is read" in message(benchmark.main, json=Path("params.yaml"), overwrite=overwrite)
    assert message(benchmark.main, json=Path("found.json")) == (
        "found.json: is there already; give another name, or --overwrite"
    )
    assert message(benchmark.main, json=Path("nowhere/found.json")) == "nowhere: no such folder; make it first"
    assert Path("found.json").read_text() == "mine"


def test_a_benchmark_may_be_told_to_replace_a_file(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("found.json").write_text("mine")
    monkeypatch.setattr(recipes, "built_components", lambda names: [])

    recipes.main(json=Path("found.json"), overwrite=True)

    assert artifact.read_json(Path("found.json"))["components"] == {}


def test_the_page_replaces_its_own_place_alone_unasked(gated: Path, message: Message) -> None:
    run_report()
    run_report()
    shutil.copy("reports/report.html", "page.html")
    Path("page.html").write_text("mine")

    assert message(run_report, Path("page.html")) == "page.html: is there already; give another name, or --overwrite"
    assert Path("page.html").read_text() == "mine"
    run_report(Path("page.html"), overwrite=True)
    assert Path("page.html").read_bytes() == Path("reports/report.html").read_bytes()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (f"reports/{NAME}/gate.json", "is what is read"),
        ("params.yaml", "is what is read"),
        (f"models/onnx/{NAME}/page.html", "lies in models, which is read"),
    ],
)
def test_the_page_replaces_nothing_that_it_tells_of(gated: Path, out: str, said: str, message: Message) -> None:
    before = state("models", "reports")

    assert message(run_report, Path(out), overwrite=True).startswith(f"{out}: {said}")
    assert state("models", "reports") == before


# Copies of the repository


def test_a_profile_is_copied_over_nothing_that_is_no_copy(tmp_path: Path, message: Message) -> None:
    mine = tmp_path / "project"
    mine.mkdir()
    (mine / "dvc.yaml").write_text("mine")

    said = message(copy_profile, "small", mine)

    assert said == f"{mine}: in the way, and no copy that this command made; give another folder, or --overwrite"
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]
    copy_profile("small", mine, overwrite=True)
    copy_profile("small", mine)
    assert (mine / "dvc.yaml").read_bytes() == (ROOT / "dvc.yaml").read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("folder", [".", "..", "build/..", "/"])
def test_a_profile_is_not_copied_over_the_repository(
    folder: str, overwrite: bool, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    monkeypatch.chdir(ROOT)
    before = Path("params.yaml").read_bytes()

    said = message(copy_profile, "small", Path(folder), overwrite=overwrite)

    assert said == f"{Path(folder)}: is or holds the repository that is copied; give another folder"
    assert Path("params.yaml").read_bytes() == before


def test_a_repository_of_the_user_s_is_no_copy(tmp_path: Path, message: Message) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)

    assert "no copy that this command made" in message(copy_profile, "small", tmp_path)


# Clips


def test_clips_are_made_over_a_user_s_files_only_where_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message, capsys: pytest.CaptureFixture[str]
) -> None:
    make = runpy.run_path(str(ROOT / "data/speech/make.py"))
    clips = make["CLIPS"][:1]
    main = make["main"]
    main.__globals__.update(CLIPS=clips, speak=lambda clip: np.sin(np.arange(1001)))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    path = tmp_path / clips[0].split / f"{clips[0].name}.flac"
    main(tmp_path)
    made = path.read_bytes()
    path.write_text("mine")

    assert message(main, tmp_path) == f"{path}: is there already; give another name, or --overwrite"
    assert path.read_text() == "mine"
    main(tmp_path, overwrite=True)
    assert path.read_bytes() == made
    assert [file.name for file in path.parent.iterdir()] == [path.name]

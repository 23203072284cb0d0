"""A checkpoint that the project did not write, through every stage: transformers made, saved and named all of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import snapshots
import torch
from conftest import CHAIN, COMPOSED
from ruamel.yaml import YAML

from profiles.__main__ import main as copy_profile
from qwen_omni_onnx.common import artifact

pytestmark = pytest.mark.slow


def test_a_snapshot_saved_by_transformers_5_in_half_precision_is_built_gated_and_published(tmp_path: Path) -> None:
    tensors, config = snapshots.saved(tmp_path / "transformers")
    joined = {"feature_extractor": json.loads(snapshots.companions()["preprocessor_config.json"])}
    snapshots.lay_out(
        tmp_path / "my-tune", {name: tensor.to(torch.float16) for name, tensor in tensors.items()}, config,
        spk_dict=False, preprocessor_config__json=None, processor_config__json=json.dumps(joined).encode(),
        chat_template__json=None, chat_template__jinja=snapshots.TEMPLATE.encode(),
        generation_config__json=b'{"do_sample": true, "eos_token_id": [301, 307]}',
    )  # fmt: skip
    snapshots.lay_out(tmp_path / "base", None, None)
    pinned = hashlib.sha256((tmp_path / "base/spk_dict.pt").read_bytes()).hexdigest()

    build = built(tmp_path, {"speakers": "../base/spk_dict.pt", "speakers_sha256": pinned}, (*CHAIN, *COMPOSED))

    assert (build / "models/published/projection/my-tune-projection-onnx/onnx/my_tune_audio.onnx").is_file()
    said = run(build, sys.executable, "-m", "qwen_omni_onnx", "speak", "answer.wav", "--text", "w8 w9",
               "--max-tokens", "4", "--max-seconds", "1")  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert (build / "answer.wav").stat().st_size > 1000


def test_a_thinker_saved_alone_is_built_with_what_is_before_it(tmp_path: Path) -> None:
    tensors = snapshots.only_thinker(snapshots.hub_tensors(tmp_path / "transformers"))
    snapshots.lay_out(
        tmp_path / "my-tune", snapshots.renamed(tensors, ("thinker.", "")), snapshots.thinker_config(), spk_dict=False
    )

    built(tmp_path, {}, ("frontend", "encoder", "thinker"))


def built(folder: Path, model: dict[str, Any], names: tuple[str, ...]) -> Path:
    """Run `dvc repro` in a small copy of the repository that is fed by the checkpoint ``my-tune``; return the copy."""
    build, yaml = folder / "build", YAML(typ="safe", pure=True)
    copy_profile("small", build)
    params = yaml.load((build / "params.yaml").read_text())
    params["model"] |= {"source": "../my-tune", **model}
    params["components"] = [name for name in names if name in CHAIN]
    params["composed"] = [name for name in names if name in COMPOSED]
    for name in {*CHAIN, *COMPOSED} - {*names}:
        (build / "reports" / name).mkdir(parents=True)
    with (build / "params.yaml").open("w") as file:
        yaml.dump(params, file)

    done = run(build, "dvc", "repro")

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in names:
        (published,) = (build / "models/published" / name).iterdir()
        assert published.name == f"my-tune-{name}-onnx"
        assert artifact.check(published)["synthetic_weights"] is False
        assert "Qwen2.5-Omni-7B" not in (published / "README.md").read_text().partition("## Made from")[0]
    assert {path.name for path in (build / "models/published").iterdir()} == {*names}
    return build


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{folder}/src"  # the copy's own program
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

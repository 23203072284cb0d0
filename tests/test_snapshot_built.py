"""A checkpoint that the project did not write, through every stage: transformers made, saved and named all of it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import snapshots
import torch
from conftest import CHAIN, COMPOSED, ROOT
from ruamel.yaml import YAML

from omni import artifact
from profiles.__main__ import main as copy_profile

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
    build = tmp_path / "build"
    copy_profile("small", build)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((build / "params.yaml").read_text())
    pinned = hashlib.sha256((tmp_path / "base/spk_dict.pt").read_bytes()).hexdigest()
    params["model"] |= {"source": "../my-tune", "speakers": "../base/spk_dict.pt", "speakers_sha256": pinned}
    with (build / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)

    done = subprocess.run(["dvc", "repro"], cwd=build, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in (*CHAIN, *COMPOSED):
        (folder,) = (build / "models/published" / name).iterdir()
        assert folder.name == f"my-tune-{name.replace('_', '-')}-onnx" or folder.name == f"my-tune-{name}-onnx"
        assert artifact.check(folder)["synthetic_weights"] is False
        assert "Qwen2.5-Omni-7B" not in (folder / "README.md").read_text().partition("## Made from")[0]
    assert (build / "models/published/projection/my-tune-projection-onnx/onnx/my_tune_audio.onnx").is_file()
    said = subprocess.run(
        [sys.executable, "-m", "speech", "answer.wav", "--text", "w8 w9", "--max-tokens", "4", "--max-seconds", "1"],
        cwd=build, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert (build / "answer.wav").stat().st_size > 1000

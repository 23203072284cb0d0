"""``qwen-omni-onnx listen FRONTEND ENCODER IN OUT.npy``: sound to the embeddings that the Thinker reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from qwen_omni_onnx.commands.shared import Overwrite
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.published import require_published
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio

__all__ = ["listen"]


def listen(
    frontend: Annotated[Path, typer.Argument(metavar="FRONTEND", help="Published folder of the frontend.")],
    encoder: Annotated[Path, typer.Argument(metavar="ENCODER", help="Published folder of the encoder.")],
    sound: Annotated[
        Path, typer.Argument(metavar="IN", help="Any file that libsndfile reads; it is made mono and 16 kHz.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT.npy", help="File to write: [tokens, the Thinker's width] float32.")
    ],
    float32: Annotated[
        bool, typer.Option("--float32", help="Run the encoder's float32 graph instead of the INT8 one.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn sound into audio embeddings, 25 a second."""
    output.require_writable(out, inputs=[sound], overwrite=overwrite)
    audio = read_audio(sound)
    for folder, component in ((frontend, "frontend"), (encoder, "encoder")):
        require_published(folder, component)  # both, before gigabytes of one are hashed
    listener = Listener(frontend, encoder, quantized=not float32)
    embeddings = listener.embed(listener.features(audio, INPUT_SAMPLE_RATE))
    with output.writing(out) as beside, beside.open("w+b") as file:
        np.save(file, embeddings)
    print(f"{one_line(str(out))}: {len(embeddings)} embeddings of {len(audio) / INPUT_SAMPLE_RATE:.2f} s")

"""Qwen2.5-Omni's speech path in ONNX Runtime: sound and text in, text and speech out, as a stream.

    import qwen_omni_onnx as omni

    bundle = omni.load("models/published")  # a folder of published components, every byte checked
    for event in bundle.reply("Translate.", audio="question.wav", voice="Chelsie"):
        match event:
            case omni.TextToken(text=text):
                print(text, end="", flush=True)
            case omni.AudioChunk(waveform=waveform):  # float32, 24 kHz
                ...

:meth:`Bundle.reply` takes text, sound (paths, or samples with their rate), or both; a whole conversation; and every
field of :class:`ReplyOptions` by its name. What it returns has ``text``, ``codes`` and ``cut_off`` beside the events.
:meth:`Bundle.listen` and :meth:`Bundle.vocode` are its first and its last step, and :func:`verify` checks a download.
What a user can mend raises a :class:`UserError` of one line.

Nothing but NumPy, ONNX Runtime, soundfile, soxr, tokenizers, Jinja2, safetensors and typer is needed. What is exported
here is public, and described in ``docs/api.md``; every other name may change in any version.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime's Linux builds report usage unless this is set before their first import: whatever imports onnxruntime
# imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from qwen_omni_onnx.public import (
        CHAIN,
        OUTPUT_SAMPLE_RATE,
        SHORTCUT,
        AudioChunk,
        Bundle,
        Code,
        Drift,
        InputWarning,
        LiveQuestion,
        Reply,
        ReplyOptions,
        Sampling,
        TextToken,
        Trust,
        UserError,
        Verdict,
        Verified,
        Voice,
        Window,
        load,
        verify,
    )

__version__ = "0.1.0"
__all__ = [
    "CHAIN",
    "OUTPUT_SAMPLE_RATE",
    "SHORTCUT",
    "AudioChunk",
    "Bundle",
    "Code",
    "Drift",
    "InputWarning",
    "LiveQuestion",
    "Reply",
    "ReplyOptions",
    "Sampling",
    "TextToken",
    "Trust",
    "UserError",
    "Verdict",
    "Verified",
    "Voice",
    "Window",
    "__version__",
    "load",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the public names when one is first used: parts of the run-time need less than all of it does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwen_omni_onnx import public

    return getattr(public, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

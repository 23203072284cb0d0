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

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime's Linux builds report usage unless this is set before their first import: whatever imports onnxruntime
# imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from qwen_omni_onnx.bundle import CHAIN, SHORTCUT, Bundle, load
    from qwen_omni_onnx.common.errors import UserError
    from qwen_omni_onnx.common.input_warning import InputWarning
    from qwen_omni_onnx.reply import AudioChunk, Code, Reply, ReplyOptions, TextToken
    from qwen_omni_onnx.sampling import Sampling
    from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
    from qwen_omni_onnx.token2wav.stream import Window
    from qwen_omni_onnx.verification import Drift, Verified, verify
    from qwen_omni_onnx.voices import Voice

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
    "Reply",
    "ReplyOptions",
    "Sampling",
    "TextToken",
    "UserError",
    "Verified",
    "Voice",
    "Window",
    "__version__",
    "load",
    "verify",
]

_MODULES = {
    "bundle": ("CHAIN", "SHORTCUT", "Bundle", "load"),
    "common.errors": ("UserError",),
    "common.input_warning": ("InputWarning",),
    "reply": ("AudioChunk", "Code", "Reply", "ReplyOptions", "TextToken"),
    "sampling": ("Sampling",),
    "token2wav.runtime": ("OUTPUT_SAMPLE_RATE",),
    "token2wav.stream": ("Window",),
    "verification": ("Drift", "Verified", "verify"),
    "voices": ("Voice",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: parts of the run-time need less than all of it does."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

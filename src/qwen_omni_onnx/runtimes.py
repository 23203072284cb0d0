"""The run-time of each component whose graphs do not run by themselves, by the component's name.

A published manifest names its component; what runs it is looked up here, so that no manifest names a module to import.
"""

from __future__ import annotations

import qwen_omni_onnx.audio_core.golden as audio_core
import qwen_omni_onnx.talker.golden as talker
import qwen_omni_onnx.thinker.golden as thinker
import qwen_omni_onnx.token2wav.golden as token2wav
from qwen_omni_onnx.common.runtime import GoldenRuntime, SeveralGraphsRuntime

__all__ = ["DECODERS", "RUNTIMES", "SEVERAL_GRAPHS"]

DECODERS: dict[str, GoldenRuntime] = {"thinker": thinker, "talker": talker}
SEVERAL_GRAPHS: dict[str, SeveralGraphsRuntime] = {"token2wav": token2wav}
RUNTIMES: dict[str, GoldenRuntime] = {**DECODERS, **SEVERAL_GRAPHS, "audio_core": audio_core}

"""The public names of the package, which exports each when it is first used."""

from __future__ import annotations

from qwen_omni_onnx.bundle import CHAIN, SHORTCUT, Bundle, load
from qwen_omni_onnx.common.agreement import Verdict
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.input_warning import InputWarning
from qwen_omni_onnx.live import LiveQuestion
from qwen_omni_onnx.reply import AudioChunk, Code, Reply, ReplyOptions, TextToken
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from qwen_omni_onnx.token2wav.stream import Window
from qwen_omni_onnx.trust import Trust
from qwen_omni_onnx.verification import Drift, Verified, verify
from qwen_omni_onnx.voices import Voice

"""One session: what is refused before it runs, and the noise that it wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.common.speakers import Widths, require_voice
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sound.audio import SHORTEST, embeddings, require_audio
from qwen_omni_onnx.token2wav.runtime import voice_noise
from qwen_omni_onnx.token2wav.settings import count_of
from qwen_omni_onnx.voices import Voice

__all__ = ["GRAPH", "SETTINGS", "AudioCore", "open_audio_core", "settings_of"]

GRAPH = "agi_audio_core"
SETTINGS = "audio_core.json"
_OF_SAMPLER = ("block", "codes", "longest", "mels", "repeats", "samples_per_frame", "voice_width")


class AudioCore:
    """Sound to sound.

    Args:
        graph: File of the graph, float32 or INT8.
        settings: Content of ``audio_core.json``.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.

    Raises:
        UserError: The graph does not load, or the settings are not what this version writes.
    """

    def __init__(self, graph: Path, settings: Mapping[str, Any], threads: int = 0) -> None:
        self.quantized = graph.stem != GRAPH
        self._session = open_session(graph, threads=threads, low_memory=True)
        try:
            self.block, self.repeats, self.mels = (count_of(settings, name) for name in ("block", "repeats", "mels"))
            self.codes, self.longest = count_of(settings, "codes"), count_of(settings, "longest")
            self.hop = count_of(settings, "samples_per_frame")
            self._widths = Widths(count_of(settings, "voice_width"), self.mels)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{SETTINGS}: not what this version of the project writes ({error}); export again"
            ) from None

    def speak(self, audio: np.ndarray, rate: int, voice: Voice, *, seed: int = 0) -> np.ndarray:
        """Return the waveform [samples] float32, 24 kHz, half as long as ``audio``.

        Args:
            audio: Samples, [samples] floating point in -1 to 1.
            rate: Rate of the samples in Hz; only 16,000 will do: ``qwen_omni_onnx.sound.audio.read_audio`` resamples
                files.
            voice: Voice that speaks.
            seed: Seed for the initial noise; the separate graphs draw the same from it.

        Raises:
            UserError: The same as :meth:`run`.
        """
        audio = require_audio(audio, rate, "audio")
        frames = self.repeats * embeddings(len(audio))
        noise = voice_noise(seed).standard_normal((1, frames, self.mels), np.float32)
        return self.run(audio, rate, voice.cond, voice.ref_mel, noise)[1]

    def run(
        self, audio: np.ndarray, rate: int, cond: np.ndarray, ref_mel: np.ndarray, noise: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes [codes] int64 and the waveform [480 * codes] float32.

        Args:
            audio: Samples, as :meth:`speak` takes them.
            rate: Rate, as that method takes it.
            cond: Speaker's embedding, [1, 192] float32.
            ref_mel: Speaker's reference, [1, frames, 80] float32.
            noise: Normal noise, [1, 2 * codes, 80] float32: the state that the ODE starts from.

        Raises:
            UserError: The audio is not mono, not at that rate, too short, too long, or holds NaN or infinity; a speaker
                or noise of another shape; or the graph gave NaN or infinity.
        """
        audio = require_audio(audio, rate, "audio")
        frames = self.repeats * embeddings(len(audio))
        if not frames:
            raise UserError(f"audio: {len(audio)} samples give no code; at least {SHORTEST} are needed")
        if frames > self.longest:
            raise UserError(f"audio: {len(audio)} samples are {frames} mel frames; the model goes to {self.longest}")
        require_voice("speaker", cond, ref_mel, self._widths)
        shape = (1, frames, self.mels)
        if noise.shape != shape or noise.dtype != np.float32:
            raise UserError(f"noise: {noise.dtype} {list(noise.shape)}; float32 {list(shape)} is needed for this audio")
        given = run(self._session, {"audio": audio[None], "cond": cond, "ref_mel": ref_mel, "noise": noise})
        waveform = given["waveform"][0]
        if not np.isfinite(waveform).all():
            raise UserError("the waveform holds NaN or infinity; look at the weights, the speaker and the noise")
        return given["codes"][0], waveform


def open_audio_core(folder: Path, *, quantized: bool = True, threads: int = 0) -> AudioCore:
    """Open a published folder of audio_core.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    graph = published_graphs(folder, "audio_core", [GRAPH], quantized=quantized)[GRAPH]
    return AudioCore(graph, artifact.read_json(folder / SETTINGS), threads)


def settings_of(sampler: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """Return the content of ``audio_core.json``: what the run-time has to know of the graph beside the graph.

    Args:
        sampler: Content of token2wav's ``sampler.json``.
        variant: Name of the way to solve the ODE that the graph has in it.
    """
    return {name: sampler[name] for name in _OF_SAMPLER} | {"variant": variant}

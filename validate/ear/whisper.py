"""Transcribes by faster-whisper, Whisper in CTranslate2."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.cores import usable_cores
from qwen_omni_onnx.common.errors import UserError

__all__ = ["FasterWhisper"]

_FILES = ("model.bin", "config.json", "tokenizer.json")


class FasterWhisper:
    """Whisper in a folder; nothing is downloaded.

    Decoding is greedy and sees nothing of what was said before, so that a transcript depends on its sound alone.

    Args:
        model: Folder with ``model.bin``, ``config.json``, ``tokenizer.json`` and a vocabulary, as CTranslate2 has them.

    Raises:
        UserError: No folder was named, or it lacks a file.
        ImportError: faster-whisper is not installed.
    """

    rate = 16_000

    def __init__(self, model: Path | None) -> None:
        from faster_whisper import WhisperModel

        logging.getLogger("faster_whisper").setLevel(logging.WARNING)  # it tells the length of every clip
        if model is None:
            raise UserError("faster-whisper: needs a folder with Whisper; python -m profiles.siblings.ear makes one")
        missing = [name for name in _FILES if not (model / name).is_file()]
        if missing:
            raise UserError(
                f"{model}: no {missing[0]} in it; faster-whisper needs a folder with Whisper for CTranslate2"
            )
        try:
            self._model = WhisperModel(str(model), "cpu", compute_type="int8", cpu_threads=usable_cores())
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{model}: faster-whisper cannot use it: {error}") from None

    def transcribe(self, samples: np.ndarray, language: str) -> str:
        """Return what is said: see :class:`validate.ear.scorers.Transcriber`."""
        segments, _ = self._model.transcribe(
            samples,
            language=language.split("-")[0],
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

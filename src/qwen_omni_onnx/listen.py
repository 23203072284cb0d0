"""Sound to the embeddings that the Thinker reads: the log-mel front end and the audio encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sound.audio import HOP, embeddings, require_audio

__all__ = ["Listener"]

_BLOCKS_PER_RUN = 5  # of 2 s, computed together: 94 MB at the 7B's widths; 20 take 452, and are 3 % slower


class Listener:
    """The log-mel front end and the audio encoder of two published folders.

    Args:
        frontend: Published folder of the component ``frontend``.
        encoder: Published folder of the component ``encoder``.
        quantized: Whether to run the encoder's INT8 graph, else the float32 one.

    Raises:
        UserError: A folder is not what it should be, or a file in it is not as published.
    """

    def __init__(self, frontend: Path, encoder: Path, quantized: bool = True) -> None:
        log_mel = _graph(frontend, "frontend", "log_mel", quantized=False)
        audio_encoder = _graph(encoder, "encoder", "audio_encoder", quantized=quantized)
        config = read_config(encoder)
        self._open(log_mel, audio_encoder, 2 * config["thinker_config"]["audio_config"]["n_window"])

    @classmethod
    def of_graphs(cls, frontend: Path, encoder: Path, block: int) -> Listener:
        """Return the listener of two graph files; ``block`` is what the encoder sees at once, in frames."""
        listener = cls.__new__(cls)
        listener._open(frontend, encoder, block)
        return listener

    def _open(self, frontend: Path, encoder: Path, block: int) -> None:
        # The front end takes a clip in as a whole, because it measures all of it by the loudest bin, and holds five
        # times the clip's bytes on the way, which a lean session gives back. The encoder's groups are of one size.
        self._frontend, self._encoder = open_session(frontend, low_memory=True), open_session(encoder)
        self._width = int(self._encoder.get_outputs()[0].shape[-1])
        self.block = block

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return log-mel features [128, frames], 100 frames a second.

        Args:
            audio: Samples, [samples] floating point in -1 to 1.
            rate: Rate of the samples in Hz; only 16,000 will do: ``qwen_omni_onnx.sound.audio.read_audio`` resamples
                files.

        Raises:
            UserError: The audio is not mono, not at that rate, empty, shorter than a frame, or holds NaN or infinity.
        """
        audio = require_audio(audio, rate, "audio")
        fed = {"audio": audio[None], "audio_lens": np.array([len(audio)], np.int64)}
        return run(self._frontend, fed)["input_features"][0]

    def embed(self, features: np.ndarray) -> np.ndarray:
        """Return embeddings [tokens, width], 25 a second, of features [mels, frames].

        Memory does not grow with the length, but for the result: blocks are independent, and run some at a time.
        """
        result = np.empty((embeddings(HOP * features.shape[1]), self._width), np.float32)
        end = 0
        for some in self.stream([features]):
            start, end = end, end + len(some)
            result[start:end] = some
        return result

    def stream(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield embeddings [tokens, width] as features [mels, frames] come in, in chunks of any length.

        A block of 200 frames (2 s) is embedded once it is whole, what is left at the end when the chunks end: together
        the same as ``embed`` of all of them.
        """
        waiting = np.zeros((0, 0), np.float32)
        for chunk in chunks:
            waiting = np.concatenate([waiting, chunk], 1) if waiting.size else chunk
            whole = waiting.shape[1] // self.block * self.block
            yield from self._in_groups(waiting[:, :whole])
            waiting = waiting[:, whole:]
        yield from self._in_groups(waiting)

    def _in_groups(self, features: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, features.shape[1], _BLOCKS_PER_RUN * self.block):
            group = features[:, start : start + _BLOCKS_PER_RUN * self.block]
            fed = {"input_features": group[None], "feature_lens": np.array([group.shape[1]], np.int64)}
            yield run(self._encoder, fed)["audio_features"][0]


def _graph(folder: Path, component: str, stem: str, *, quantized: bool) -> Path:
    return published_graphs(folder, component, [stem], quantized=quantized)[stem]

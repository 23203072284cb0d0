"""Sound to sound by the shortcut: the encoder's embeddings, the projection's best codes, token2wav.

Nothing thinks and no Talker speaks, so the codes are not a Talker's: for latency work, and as a path from sound to
sound whose parts can be replaced. A language model of one's own may stand ``between`` encoder and projection.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sound.audio import SHORTEST
from qwen_omni_onnx.token2wav.chunks import chunks
from qwen_omni_onnx.token2wav.runtime import Token2Wav, open_token2wav

__all__ = ["Between", "Direct", "open_direct", "open_projection"]

Between = Callable[[np.ndarray], np.ndarray]
_CHUNK_SIZE = 1000  # embeddings whose logits are held at a time: 34 MB


class Direct:
    """Sound to codes to sound.

    Args:
        listener: What turns sound into embeddings.
        projection: Session of the projection's graph.
        token2wav: What turns codes into sound.
        between: Function that takes the encoder's embeddings, [tokens, width] float32, and returns what the projection
            reads: hidden states [any number, width], 3584 wide for the 7B. None lets the projection read the
            embeddings.
    """

    def __init__(
        self, listener: Listener, projection: ort.InferenceSession, token2wav: Token2Wav, between: Between | None = None
    ) -> None:
        self.listener, self.token2wav, self.between = listener, token2wav, between
        self._projection = projection
        self._width = int(projection.get_inputs()[0].shape[-1])

    def codes(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return the best code for each hidden state, [codes] int64; without anything between, 25 a second.

        Args:
            audio: Samples, [samples] floating point in -1 to 1.
            rate: Rate of the samples in Hz; only 16,000 will do.

        Raises:
            UserError: See :meth:`qwen_omni_onnx.listen.Listener.features`; the sound is too short for a code; or what
                stands between gives no hidden states.
        """
        states = self.listener.embed(self.listener.features(audio, rate))
        if not len(states):
            raise UserError(f"audio: {len(audio)} samples give no code; at least {SHORTEST} are needed")
        if self.between is not None:
            states = self._required(self.between(states))
        best = []
        for start, end in chunks(len(states), _CHUNK_SIZE):
            logits = run(self._projection, {"hidden_states": states[None, start:end]})["audio_logits"][0]
            best.append(logits[:, : self.token2wav.codes].argmax(-1))  # the others, of end and pad, are no sound
        return np.concatenate(best)

    def speak(
        self,
        audio: np.ndarray,
        rate: int,
        cond: np.ndarray,
        ref_mel: np.ndarray,
        *,
        seed: int = 0,
        variant: str | None = None,
    ) -> np.ndarray:
        """Return the waveform [480 * codes] float32, 24 kHz.

        Args:
            audio: Samples, as :meth:`codes` takes them.
            rate: Rate, as that method takes it.
            cond: Speaker's embedding, [1, 192] float32.
            ref_mel: Speaker's reference, [1, frames, 80] float32.
            seed: Seed for the initial noise.
            variant: Name of the way to solve the ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.

        Raises:
            UserError: The same as :meth:`codes` and :meth:`qwen_omni_onnx.token2wav.Token2Wav.speak`.
        """
        return self.token2wav.speak(self.codes(audio, rate), cond, ref_mel, seed=seed, variant=variant)

    def _required(self, states: np.ndarray) -> np.ndarray:
        """Refuse what somebody's code gives that is no hidden states, before a graph says so less clearly."""
        given = np.asarray(states)
        if given.ndim != 2 or not len(given) or given.shape[1] != self._width or given.dtype.kind != "f":
            wanted = f"floats [hidden states, {self._width}], at least one"
            raise UserError(f"between: gave {given.dtype} {list(given.shape)}; {wanted}, are needed")
        with np.errstate(over="ignore"):  # what is too large becomes infinity, and is refused
            given = given.astype(np.float32)
        if not np.isfinite(given).all():
            raise UserError("between: gave NaN or infinity")
        return given


def open_projection(folder: Path, quantized: bool, threads: int = 0) -> ort.InferenceSession:
    """Open the projection's graph in its published folder.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    (path,) = published_graphs(folder, "projection", quantized=quantized).values()
    return open_session(path, threads=threads, stop_spinning=True)


def open_direct(
    frontend: Path,
    encoder: Path,
    projection: Path,
    token2wav: Path,
    *,
    quantized: bool = True,
    threads: int = 0,
    between: Between | None = None,
) -> Direct:
    """Open published folders of the four components.

    Raises:
        UserError: A folder is not what it should be, or a file in it is not as published.
    """
    return Direct(
        Listener(frontend, encoder, quantized),
        open_projection(projection, quantized, threads),
        open_token2wav(token2wav, quantized=quantized, threads=threads),
        between,
    )

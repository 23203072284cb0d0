"""The three graphs and the sampler between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.parallel import ParallelGraph
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.common.speakers import Widths, require_voice
from qwen_omni_onnx.published import published_graphs
from qwen_omni_onnx.sampler import pick_variant, solve, variants
from qwen_omni_onnx.token2wav.chunks import chunks
from qwen_omni_onnx.token2wav.settings import SETTINGS, CodeLimits, count_of, read_limits, read_variants, settings
from qwen_omni_onnx.token2wav.velocity import BRANCHES, DiTVelocity

__all__ = [
    "GRAPHS",
    "OUTPUT_SAMPLE_RATE",
    "SETTINGS",
    "Token2Wav",
    "open_token2wav",
    "read_limits",
    "read_variants",
    "settings",
    "voice_noise",
]

GRAPHS = ("dit_condition", "dit_step", "bigvgan")
OUTPUT_SAMPLE_RATE = 24_000
_CONTEXT = 16  # mel frames on each side of a chunk that the vocoder hears: beyond, nothing changes (RECIPES: 117 dB)
_CHUNK_SIZE = 256  # mel frames that the vocoder turns into sound at once, in all pieces that are run side by side
_LEAST = 24  # mel frames of a piece: with fewer, most of what is computed is what surrounds it


class Token2Wav:
    """Codes to sound.

    Args:
        graphs: File of each of ``GRAPHS``, float32 or INT8 each.
        settings: Content of ``sampler.json``.
        threads: Intra-op threads of each session; 0 lets ONNX Runtime choose.

    Raises:
        UserError: A graph does not load, or the settings are not what this version writes.
    """

    def __init__(self, graphs: Mapping[str, Path], settings: Mapping[str, Any], threads: int = 0) -> None:
        condition, step, vocoder = (graphs[name] for name in GRAPHS)
        # They take turns: threads that spin after one graph would slow down the next.
        self._condition = open_session(condition, threads=threads, stop_spinning=True, low_memory=True)
        self._step, self._vocoder = ParallelGraph(step, threads, len(BRANCHES)), ParallelGraph(vocoder, threads)
        if "past" not in self._step.inputs:
            raise UserError(
                f"{graphs['dit_step']}: made by an earlier version of the project; export and publish it again"
            )
        try:
            self.variants = variants(settings["variants"])
            self.times = np.array(settings["times"], np.float32)
            self.block, self.repeats = count_of(settings, "block"), count_of(settings, "repeats")
            self.mels, self.codes = count_of(settings, "mels"), count_of(settings, "codes")
            self._guidance_scale = float(settings["guidance_scale"])
            self.longest, self.hop = count_of(settings, "longest"), count_of(settings, "samples_per_frame")
            self._limits = CodeLimits.of(settings)
            self.back, self._ahead = count_of(settings, "back", 0), count_of(settings, "ahead", 0)
            self._widths = Widths(count_of(settings, "voice_width"), self.mels)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{SETTINGS}: not what this version of the project writes ({error}); export again"
            ) from None

    @property
    def codes_per_block(self) -> int:
        """Codes in a block of mel frames, the unit in which the DiT sees."""
        return self.block // self.repeats

    def condition(
        self, codes: np.ndarray, code_lens: np.ndarray, cond: np.ndarray, ref_mel: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return what ``dit_condition`` makes of an utterance: ``condition`` and ``key_bias``.

        Args:
            codes: Codes, [batch, codes] int64.
            code_lens: Length of each row, [batch] int64.
            cond: Speaker's embedding of each row, [batch, 192] float32.
            ref_mel: Speaker's reference of each row, [batch, frames, 80] float32.

        Raises:
            UserError: There are no codes, too many, one out of range; a speaker of another shape, or with NaN.
        """
        self._require_codes(codes, code_lens)
        self._require_voices(cond, ref_mel, len(codes))
        return run(self._condition, {"codes": codes, "code_lens": code_lens, "cond": cond, "ref_mel": ref_mel})

    def mel(
        self,
        codes: np.ndarray,
        code_lens: np.ndarray,
        cond: np.ndarray,
        ref_mel: np.ndarray,
        noise: np.ndarray,
        variant: str | None = None,
    ) -> np.ndarray:
        """Return log-mel frames [batch, 2 * codes, 80], zero beyond a row's length.

        Args:
            codes: Codes, as :meth:`condition` takes them.
            code_lens: Lengths, as :meth:`condition` takes them.
            cond: Speakers, as :meth:`condition` takes them.
            ref_mel: References, as :meth:`condition` takes them.
            noise: Normal noise, [batch, 2 * codes, 80] float32: the state that the ODE starts from.
            variant: Name of the way to solve the ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.

        Raises:
            UserError: The same as :meth:`condition`; noise of the wrong length; no such variant; an evaluation gave
                NaN.
        """
        return self.mel_part(codes, code_lens, cond, ref_mel, noise, variant)[0]

    def mel_part(
        self,
        codes: np.ndarray,
        code_lens: np.ndarray,
        cond: np.ndarray,
        ref_mel: np.ndarray,
        noise: np.ndarray,
        variant: str | None = None,
        *,
        past: Sequence[np.ndarray] = (),
        own: int | None = None,
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return log-mel frames as :meth:`mel` does, of a part of an utterance, and what the next part looks back on.

        Args:
            codes: Codes of the part, and of the blocks behind it that it shall hear.
            code_lens: See :meth:`mel`.
            cond: See :meth:`mel`.
            ref_mel: See :meth:`mel`.
            noise: See :meth:`mel`.
            variant: See :meth:`mel`.
            past: What was returned with the part before this one; empty: this is the first.
            own: Blocks that are the part's own: the next one begins behind them. None: all.

        Raises:
            UserError: See :meth:`mel`.
        """
        chosen = pick_variant(self.variants, variant)
        conditioned = self.condition(codes, code_lens, cond, ref_mel)
        shape = (len(codes), self.repeats * codes.shape[-1], self.mels)
        if noise.shape != shape or noise.dtype != np.float32:
            raise UserError(
                f"noise: {noise.dtype} {list(noise.shape)}; float32 {list(shape)} is needed for these codes"
            )
        velocity = self.velocity(conditioned, past, own)
        state = solve(velocity, self.blocked(noise), chosen, self.times)
        mel = state.reshape(len(codes), -1, self.mels)[:, : shape[1]]
        inside = np.arange(shape[1]) < self.repeats * code_lens[:, None]
        return np.where(inside[..., None], mel, np.float32(0)), velocity.present

    def velocity(
        self, conditioned: Mapping[str, np.ndarray], past: Sequence[np.ndarray] = (), own: int | None = None
    ) -> DiTVelocity:
        """Return the function that :func:`qwen_omni_onnx.sampler.solve` takes, for an utterance or a part of one.

        Args:
            conditioned: What :meth:`condition` gave.
            past: See :meth:`mel_part`.
            own: See :meth:`mel_part`.
        """
        return DiTVelocity(self._step, self._guidance_scale, conditioned, self.back, self._ahead, past, own)

    def blocked(self, frames: np.ndarray) -> np.ndarray:
        """Return [batch, frames, 80] as [batch, blocks, 24, 80], filled up with zeros."""
        filled = np.pad(frames, ((0, 0), (0, -frames.shape[1] % self.block), (0, 0)))
        return filled.reshape(len(frames), -1, self.block, self.mels)

    def vocode(self, mel: np.ndarray) -> np.ndarray:
        """Return the waveform [240 * frames] float32 of one row's mel frames [frames, 80]."""
        return self.vocode_chunk(mel, 0, len(mel))

    def vocode_chunk(self, mel: np.ndarray, start: int, end: int) -> np.ndarray:
        """Return the waveform [240 * (end - start)] of frames ``start`` to ``end``, heard with those around them.

        It is computed in pieces, as many at once as there are cores, each heard with the frames around it.
        """
        at_once = self._vocoder.at_once
        size = max(_LEAST, min(_CHUNK_SIZE // at_once, -(-(end - start) // at_once)))
        pieces = [(start + first, start + last) for first, last in chunks(end - start, size)]
        surrounded = [(max(0, first - _CONTEXT), min(len(mel), last + _CONTEXT)) for first, last in pieces]
        found = self._vocoder.run({"mel": np.ascontiguousarray(mel[a:b].T[None])} for a, b in surrounded)
        return np.concatenate(
            [
                result["waveform"][0][(first - before) * self.hop : (last - before) * self.hop]
                for result, (first, last), (before, _) in zip(found, pieces, surrounded, strict=True)
            ]
        )

    @property
    def context(self) -> int:
        """Mel frames that the vocoder has to hear after a chunk before it can be spoken."""
        return _CONTEXT

    def speak(
        self,
        codes: np.ndarray,
        cond: np.ndarray,
        ref_mel: np.ndarray,
        *,
        seed: int = 0,
        variant: str | None = None,
    ) -> np.ndarray:
        """Return the waveform [480 * codes] float32, 24 kHz, of one utterance.

        Args:
            codes: Codes, [codes] int64.
            cond: Speaker's embedding, [1, 192] float32.
            ref_mel: Speaker's reference, [1, frames, 80] float32.
            seed: Seed for the initial noise.
            variant: Name of the way to solve the ODE; None: see :func:`qwen_omni_onnx.sampler.pick_variant`.

        Raises:
            UserError: The same as :meth:`mel`.
        """
        noise = voice_noise(seed).standard_normal((1, self.repeats * codes.size, self.mels), np.float32)
        row = np.asarray(codes)[None]
        return self.vocode(self.mel(row, np.array([row.shape[1]]), cond, ref_mel, noise, variant)[0])

    def _require_codes(self, codes: np.ndarray, code_lens: np.ndarray) -> None:
        if codes.ndim != 2 or codes.dtype != np.int64 or code_lens.shape != codes.shape[:1]:
            raise UserError(
                f"codes: {codes.dtype} {list(codes.shape)}; int64 [batch, codes] and their lengths are needed"
            )
        if codes.size and code_lens.min() < 1:
            raise UserError("codes: none; there is nothing to say")
        self._limits.require(codes)
        if code_lens.max() > codes.shape[1]:
            raise UserError(f"code_lens: {code_lens.max()} of a row of {codes.shape[1]} codes")
        self._limits.require_number(codes.shape[1])

    def _require_voices(self, cond: np.ndarray, ref_mel: np.ndarray, batch: int) -> None:
        if len(cond) != batch or len(ref_mel) != batch:
            raise UserError(
                f"cond, ref_mel: of {len(cond)} and {len(ref_mel)} rows; {batch} are needed, one a row of codes"
            )
        for row in range(batch):
            require_voice("speaker", cond[row : row + 1], ref_mel[row : row + 1], self._widths)


def open_token2wav(folder: Path, *, quantized: bool = True, threads: int = 0) -> Token2Wav:
    """Open a published folder of token2wav.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    graphs = published_graphs(folder, "token2wav", GRAPHS, quantized=quantized)
    return Token2Wav(graphs, artifact.read_json(folder / SETTINGS), threads)


def voice_noise(seed: int) -> np.random.Generator:
    """Return what the noise of an utterance is drawn from, frame by frame: in chunks or at once, the same values."""
    return np.random.Generator(np.random.PCG64(seed))

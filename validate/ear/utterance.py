"""Prepares a recording for scorers, once for all of them: channels, silence around it, loudness, sampling rate."""

from __future__ import annotations

import numpy as np
import soxr

__all__ = ["LOUDNESS_DB", "SILENT_PEAK", "Utterance", "prepare"]

LOUDNESS_DB = -26.0  # of full scale, of what is not silence: the level that ITU-T P.56 and DNSMOS's training have
SILENT_PEAK = 1e-3  # -60 dB of full scale: nobody hears a reply that never gets louder
_FRAME_SECONDS = 0.01
_SILENCE_DB = 50.0  # below the loudest frame
_MARGIN_FRAMES = 10  # of silence that stays on either side: recognizers miss a first word without it


class Utterance:
    """A recording, prepared.

    Args:
        samples: Waveform [samples] float32, mono, trimmed and levelled.
        rate: Sampling rate in Hz.

    Attributes:
        seconds: Duration without silence at the ends.
    """

    def __init__(self, samples: np.ndarray, rate: int) -> None:
        self._samples, self._rate = samples, rate
        self._resampled = {rate: samples}
        self.seconds = len(samples) / rate

    @property
    def silent(self) -> bool:
        """Whether there is nothing to be heard."""
        return len(self._samples) == 0

    def at(self, rate: int) -> np.ndarray:
        """Return the waveform [samples] float32 at a sampling rate; peaks stay within full scale."""
        if rate not in self._resampled:
            resampled = soxr.resample(self._samples, self._rate, rate).astype(np.float32)
            self._resampled[rate] = np.clip(resampled, -1, 1)  # the filter overshoots
        return self._resampled[rate]


def prepare(samples: np.ndarray, rate: int) -> Utterance:
    """Return a recording as scorers are to hear it.

    Channels are averaged, silence at the ends is cut off but for 0.1 s, and the loudness of what is left is brought to
    :data:`LOUDNESS_DB`, or to where its peak meets full scale. A recording in which nothing is louder than
    :data:`SILENT_PEAK`, or which holds a value that is no number, comes out empty.

    Args:
        samples: Waveform [samples] or [samples, channels].
        rate: Sampling rate in Hz.
    """
    mono = np.asarray(samples, np.float64)
    mono = mono if mono.ndim == 1 else mono.mean(axis=1)
    if not mono.size or not np.isfinite(mono).all() or np.abs(mono).max() < SILENT_PEAK:
        return Utterance(np.empty(0, np.float32), rate)
    hop = max(1, round(rate * _FRAME_SECONDS))
    padded = np.pad(mono, (0, -len(mono) % hop)).reshape(-1, hop)
    power = np.mean(padded**2, axis=1)
    active = np.flatnonzero(power > power.max() * 10 ** (-_SILENCE_DB / 10))
    begin, end = max(0, active[0] - _MARGIN_FRAMES), active[-1] + 1 + _MARGIN_FRAMES
    trimmed = mono[begin * hop : end * hop]
    level = np.sqrt(power[active].mean())
    gain = min(10 ** (LOUDNESS_DB / 20) / level, 1 / np.abs(trimmed).max())
    return Utterance((trimmed * gain).astype(np.float32), rate)

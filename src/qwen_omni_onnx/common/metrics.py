"""Distances between what a graph gives and what it should give. NumPy only: users of the artifacts run these too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = [
    "EXACT_DB",
    "Agreement",
    "compare",
    "cosine",
    "kl_divergence",
    "sqnr_db",
    "stft_distance",
    "token_db",
    "token_kl",
    "top1",
]

EXACT_DB = 300.0  # the SQNR of two arrays that are equal: JSON has no infinity
_STFT = ((512, 50, 240), (1024, 120, 600), (2048, 240, 1200))  # points, hop and window of each resolution
_QUIET = 1e-7  # of a magnitude, before its logarithm
_BLOCK_FRAMES = 1024  # of a spectrogram, transformed at a time
_BLOCK_ROWS = 256  # rows compared at a time: float64 copies of a whole output would double its memory


@dataclass(frozen=True)
class Agreement:
    """How close ``actual`` is to ``expected``, over all rows of the last axis.

    Attributes:
        sqnr_db: Signal to quantization-noise ratio in dB; ``EXACT_DB`` where nothing differs.
        cosine: Cosine of the angle between the two, flattened.
        max_abs: Largest absolute difference.
        worst: Index of the largest absolute difference.
        worst_row_sqnr_db: SQNR of the row (token) that came out worst.
        top1: Share of rows whose largest entry is the same.
        top1_near_tie: The same, where a row also counts if the expected values of the two candidates lie closer than
            the near-tie margin.
    """

    sqnr_db: float
    cosine: float
    max_abs: float
    worst: tuple[int, ...]
    worst_row_sqnr_db: float
    top1: float
    top1_near_tie: float


def sqnr_db(expected: np.ndarray, actual: np.ndarray) -> float:
    """10 log10(sum expected^2 / sum (expected - actual)^2), in dB."""
    expected, actual = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
    return float(_ratio_db(np.sum(expected**2), np.sum((expected - actual) ** 2)))


def token_db(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """SQNR of each token (row of the last axis), 10 log10(|expected|^2 / |expected - actual|^2), in dB: [tokens].

    One token that flips makes half of the noise of a whole batch, so a batch's SQNR is a toss-up between tokens where
    their median is stable. A row of zeros is padding and no token, unless ``actual`` is something else there: such a
    token counts with ``-EXACT_DB``.

    Args:
        expected: Expected values, [..., channels].
        actual: Actual values, of the same shape.
    """
    found = []
    wanted, given = _rows(expected), _rows(actual)
    for start in range(0, len(wanted), _BLOCK_ROWS):
        w, g = (rows[start : start + _BLOCK_ROWS].astype(np.float64) for rows in (wanted, given))
        signal, noise = np.sum(w**2, -1), np.sum((w - g) ** 2, -1)
        tokens = (signal > 0) | (noise > 0)
        found.append(np.maximum(_ratio_db(signal[tokens], noise[tokens]), -EXACT_DB))
    return np.concatenate(found) if found else np.empty(0)


def cosine(expected: np.ndarray, actual: np.ndarray) -> float:
    """Cosine similarity of two arrays, flattened."""
    expected, actual = np.asarray(expected, np.float64).ravel(), np.asarray(actual, np.float64).ravel()
    norms = np.linalg.norm(expected) * np.linalg.norm(actual)
    return float(expected @ actual / norms) if norms else float(np.array_equal(expected, actual))


def top1(expected: np.ndarray, actual: np.ndarray, near_tie: float = 0.0) -> float:
    """Share of rows with the same argmax.

    Args:
        expected: Expected values, [..., classes].
        actual: Actual values, [..., classes].
        near_tie: A row also agrees if, in ``expected``, the class that ``actual`` chose lies less than this share of
            the row's standard deviation below the best one. Argmax between two equals is a coin toss that says nothing
            about the graph.
    """
    expected, actual = _rows(expected), _rows(actual)
    chosen = np.take_along_axis(expected, actual.argmax(-1)[:, None], -1)[:, 0]
    behind = expected.max(-1) - chosen
    return float(np.mean(behind <= near_tie * expected.std(-1)))


def kl_divergence(expected: np.ndarray, actual: np.ndarray) -> float:
    """Mean of :func:`token_kl` over all rows, in nats; 0 where there is none."""
    found = token_kl(expected, actual)
    return float(found.mean()) if len(found) else 0.0


def token_kl(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of the distributions that two arrays of logits stand for, in nats: [rows].

    What the other distribution costs who believes it: it weighs what could be sampled, where top-1 sees the best only.

    Args:
        expected: Expected values, [..., classes].
        actual: Actual values, [..., classes].
    """
    wanted, given = _rows(expected), _rows(actual)
    found = np.zeros(len(wanted))
    for start in range(0, len(wanted), _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        p, q = (_log_softmax(rows[here].astype(np.float64)) for rows in (wanted, given))
        found[here] = np.sum(np.exp(p) * (p - q), -1)
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def stft_distance(expected: np.ndarray, actual: np.ndarray) -> float:
    """Multi-resolution STFT distance of two waveforms [..., samples]: 0 where they are equal.

    The mean over three resolutions of spectral convergence plus the mean difference of log magnitudes (Yamamoto et al.
    2020, Parallel WaveGAN, arXiv 1910.11480). It hears what an SQNR does not: whether an error lies under the speech or
    beside it; a phase that differs costs nothing.

    Raises:
        ValueError: The shapes differ.
    """
    if expected.shape != actual.shape:
        raise ValueError(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    distances = []
    for points, hop, window in _STFT:
        difference = energy = logs = 0.0
        count = 0
        for wanted, given in zip(_rows(expected), _rows(actual), strict=True):
            for a, b in zip(
                _magnitudes(wanted, points, hop, window), _magnitudes(given, points, hop, window), strict=True
            ):
                difference, energy = difference + np.sum((a - b) ** 2), energy + np.sum(a**2)
                logs, count = logs + np.sum(np.abs(np.log(a + _QUIET) - np.log(b + _QUIET))), count + a.size
        convergence = np.sqrt(difference / energy) if energy else float(difference > 0)
        distances.append(convergence + logs / max(1, count))
    return float(np.mean(distances))


def _magnitudes(waveform: np.ndarray, points: int, hop: int, window: int) -> Iterator[np.ndarray]:
    """Yield blocks [frames, points / 2 + 1] of a spectrogram; the ends are padded with half a window of zeros."""
    shape = np.hanning(window)
    padded = np.pad(waveform.astype(np.float64), (window // 2, window - window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    for start in range(0, len(frames), _BLOCK_FRAMES):
        yield np.abs(np.fft.rfft(frames[start : start + _BLOCK_FRAMES] * shape, points))


def compare(expected: np.ndarray, actual: np.ndarray, near_tie: float) -> Agreement:
    """Measure ``actual`` against ``expected``, both [..., classes] float32.

    Raises:
        ValueError: The shapes differ, or a value is not finite. A NaN never passes as a number.

    Two arrays without a value, of the same shape, agree.
    """
    if expected.shape != actual.shape:
        raise ValueError(f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    if not expected.size:
        return Agreement(EXACT_DB, 1.0, 0.0, (), EXACT_DB, 1.0, 1.0)
    wanted, given = _rows(expected), _rows(actual)
    if not np.isfinite(given).all():
        index = np.argwhere(~np.isfinite(actual))[0]
        raise ValueError(f"not finite at {index.tolist()}")
    signal = noise = dot = given_energy = 0.0
    worst_row, max_abs, worst = EXACT_DB, -1.0, 0
    strict = near = 0.0
    for start in range(0, len(wanted), _BLOCK_ROWS):
        w, g = (a[start : start + _BLOCK_ROWS].astype(np.float64) for a in (wanted, given))
        difference = np.abs(w - g)
        row_signal, row_noise = np.sum(w**2, -1), np.sum(difference**2, -1)
        signal, noise = signal + row_signal.sum(), noise + row_noise.sum()
        dot, given_energy = dot + float(np.sum(w * g)), given_energy + float(np.sum(g**2))
        worst_row = min(worst_row, float(np.min(_ratio_db(row_signal, row_noise))))
        if difference.max() > max_abs:
            max_abs, worst = float(difference.max()), start * w.shape[-1] + int(difference.argmax())
        strict, near = strict + top1(w, g) * len(w), near + top1(w, g, near_tie) * len(w)
    norms = np.sqrt(signal * given_energy)
    return Agreement(
        sqnr_db=float(_ratio_db(signal, noise)),
        cosine=dot / norms if norms else float(noise == 0),
        max_abs=max_abs,
        worst=tuple(int(i) for i in np.unravel_index(worst, expected.shape)),
        worst_row_sqnr_db=worst_row,
        top1=strict / len(wanted),
        top1_near_tie=near / len(wanted),
    )


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _ratio_db(signal: np.ndarray | float, noise: np.ndarray | float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = 10 * np.log10(np.asarray(signal) / np.asarray(noise))
    return np.minimum(np.where(np.asarray(noise) == 0, EXACT_DB, ratio), EXACT_DB)

"""Sounds that are no speech, and rooms: seeded synthesis with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE

__all__ = ["SOUNDS", "level", "reverberate"]

_SCALE = (0, 2, 4, 7, 9)  # pentatonic, in semitones
_CHORDS = ((0, 4, 7), (-3, 0, 4), (-7, -3, 0), (-5, -1, 2))  # I, vi, IV, V
_BEAT_S = 0.5


def reverberate(speech: np.ndarray, seconds: float, random: np.random.Generator) -> np.ndarray:
    """Return speech [samples] in a room whose echo, decaying noise, has fallen by 60 dB after so many seconds."""
    time = _time(int(seconds * INPUT_SAMPLE_RATE))
    echo = 0.03 * random.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    echo[0] = 1  # the direct sound
    length = len(speech) + len(echo) - 1
    return np.fft.irfft(np.fft.rfft(speech, length) * np.fft.rfft(echo, length), length)


def level(sound: np.ndarray) -> np.ndarray:
    """Return a sound [samples] with a mean square of 1; silence stays silence."""
    return sound / (np.sqrt(np.mean(sound**2)) or 1)


def _noise(samples: int, random: np.random.Generator, *, pink: bool) -> np.ndarray:
    """Return noise of equal power at all frequencies, or pink noise, whose power falls as 1 / frequency."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    if pink:
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    return np.fft.irfft(spectrum, samples)


def _hum(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return the hum of mains: 50 Hz and its harmonics."""
    time, phases = _time(samples), random.uniform(0, 2 * np.pi, 12)
    return _mixed(np.sin(2 * np.pi * 50 * order * time + phase) / order for order, phase in enumerate(phases, 1))


def _rain(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return drops, 40 a second, over a soft rushing."""
    drops = np.zeros(samples)
    count = 40 * samples // INPUT_SAMPLE_RATE
    drops[random.integers(samples, size=count)] = random.exponential(1, count)
    drop = np.exp(-_time(320) / 0.002) * random.standard_normal(320)
    return np.convolve(drops, drop)[:samples] + 0.2 * level(_noise(samples, random, pink=True))


def _sweep(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return a tone that rises from 60 Hz to 7 kHz and falls again, over a noise floor at -37 dB."""
    frequency = 60 * (7000 / 60) ** (1 - np.abs(np.linspace(-1, 1, samples)))
    return np.sin(2 * np.pi * np.cumsum(frequency) / INPUT_SAMPLE_RATE) + 0.01 * random.standard_normal(samples)


def _chords(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return four chords in turn, two beats each, of soft and slightly detuned tones."""
    return _played(
        samples, 2 * _BEAT_S, lambda number: _mixed(_note(110, step, random, 2.5, 0.1) for step in _CHORDS[number % 4])
    )


def _melody(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return plucked notes that wander up and down a pentatonic scale, one each half beat; some are left out."""
    place = 5

    def note(number: int) -> np.ndarray:
        nonlocal place
        place = int(np.clip(place + random.integers(-2, 3), 0, 9))
        loudness = random.choice([0, 0.6, 1], p=[0.15, 0.4, 0.45])
        return loudness * _note(220, 12 * (place // 5) + _SCALE[place % 5], random, 0.8, 0.005)

    return _played(samples, _BEAT_S / 2, note)


def _drums(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return a bar again and again: a bass drum, a snare drum between, and a hi-hat each quarter beat."""

    def hit(number: int) -> np.ndarray:
        time, noise = _time(4000), random.standard_normal(4000)
        sound = 0.15 * np.diff(noise, append=0) * np.exp(-time / 0.02)
        if number % 8 == 0:
            sound += np.sin(2 * np.pi * (50 * time + 4 * (1 - np.exp(-time / 0.03)))) * np.exp(-time / 0.08)
        if number % 8 == 4:
            sound += 0.4 * noise * np.exp(-time / 0.05)
        return sound

    return _played(samples, _BEAT_S / 4, hit)


def _band(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return chords, a melody and drums together."""
    return _mixed(
        weight * level(play(samples, random)) for weight, play in ((0.7, _chords), (1, _melody), (0.8, _drums))
    )


def _silence(samples: int, random: np.random.Generator) -> np.ndarray:
    """Return digital silence."""
    return np.zeros(samples)


def _played(samples: int, seconds: float, strike: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return what sounds when, every so many seconds, ``strike`` gives a sound for the number of its turn."""
    every, audio = int(seconds * INPUT_SAMPLE_RATE), np.zeros(samples)
    for number, begin in enumerate(range(0, samples, every)):
        sound = strike(number)[: samples - begin]
        audio[begin : begin + len(sound)] += sound
    return audio


def _note(frequency: float, semitones: int, random: np.random.Generator, seconds: float, attack_s: float) -> np.ndarray:
    """Return a tone with harmonics, so many semitones above a frequency, that fades within so many seconds."""
    time = _time(int(seconds * INPUT_SAMPLE_RATE))
    pitch = frequency * 2 ** (semitones / 12) * (1 + 0.002 * random.standard_normal())
    tones = _mixed(np.sin(2 * np.pi * order * pitch * time) / order**1.5 for order in range(1, 8))
    return tones * np.minimum(time / attack_s, 1) * np.exp(-4 * time / seconds)


def _mixed(sounds: Iterable[np.ndarray]) -> np.ndarray:
    return np.asarray(np.sum(list(sounds), axis=0))


def _time(samples: int) -> np.ndarray:
    return np.arange(samples) / INPUT_SAMPLE_RATE


SOUNDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "white": partial(_noise, pink=False),
    "pink": partial(_noise, pink=True),
    "faint": partial(_noise, pink=False),
    "hum": _hum,
    "rain": _rain,
    "sweep": _sweep,
    "chords": _chords,
    "melody": _melody,
    "drums": _drums,
    "band": _band,
    "silence": _silence,
}

"""How well a quantized graph does on calibration's recordings and on held-out ones, as typed records."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MOST_DB", "MOST_KL", "Overfitting", "SplitAgreement"]

# How much worse held-out recordings may come out. Where nothing fits, one of a hundred random deals of recordings into
# two splits differs by 2.5 dB, or by a factor of 1.25 (docs/gates.md).
MOST_DB = 2.5
MOST_KL = 1.3


@dataclass(frozen=True)
class SplitAgreement:
    """How close a quantized graph is to the float32 one on the recordings of one split.

    Attributes:
        outputs: Number of outputs that were compared: one of each recording, or of each evaluation of the ODE.
        sqnr_db: SQNR of the median output.
        token_median_db: SQNR that half of all tokens reach; None of a waveform.
        token_p95_db: SQNR that 95 % of all tokens reach; None of a waveform.
        kl: Kullback-Leibler divergence in nats, mean over all tokens; None unless these are logits.
        top1: Share of tokens whose largest entry is the same; None unless these are logits.
    """

    outputs: int
    sqnr_db: float
    token_median_db: float | None = None
    token_p95_db: float | None = None
    kl: float | None = None
    top1: float | None = None

    @property
    def db(self) -> float:
        """SQNR of the median token; of a waveform, which has no tokens, that of the median output."""
        return self.sqnr_db if self.token_median_db is None else self.token_median_db

    def __str__(self) -> str:
        return f"{self.db:.1f} dB" if self.kl is None else f"{self.db:.1f} dB, KL {self.kl:.2g}"


@dataclass(frozen=True)
class Overfitting:
    """One check, or one graph of several, on the recordings that calibrated and on held-out ones.

    Attributes:
        calibrated: Whether the graph was calibrated; without, the two differ by chance alone.
        calibration: On calibration's recordings.
        held_out: On held-out recordings.
    """

    calibrated: bool
    calibration: SplitAgreement
    held_out: SplitAgreement

    @property
    def warns(self) -> bool:
        """Whether held-out recordings come out worse than chance explains: by the KL divergence, or else by the SQNR.

        The SQNR of logits depends on the text: 4 dB between two splits of three texts are common.
        """
        if not self.calibrated:
            return False
        if self.calibration.kl is None or self.held_out.kl is None:
            return self.calibration.db - self.held_out.db > MOST_DB
        return self.held_out.kl > MOST_KL * self.calibration.kl

    def __str__(self) -> str:
        return f"calibration {self.calibration}; held out {self.held_out}"

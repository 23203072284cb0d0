"""What ``qwen-omni-onnx speak`` is asked: which of its two modes uses which option, and what options may be.

Nothing is opened here: a mistake is told at once.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qwen_omni_onnx.bundle import CHAIN, SHORTCUT
from qwen_omni_onnx.commands.shared import require_seed
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import require_rate
from qwen_omni_onnx.talker.runtime import CODES_A_SECOND

__all__ = ["SpeakRequest", "seconds"]

_PIPED = Path("/dev/stdin")
_DECODERS = ("thinker", "talker")
_WARMTH = ("temperature", "top_k", "top_p")  # what the best token is taken without
_SAMPLING = (*_WARMTH, "repetition_penalty")
# What --direct uses, too; a reply uses every other option. An option that is not named here is refused with --direct.
_OF_DIRECT = (
    "files", "overwrite", "direct", "models", "float32", "float32_parts", "voice", "variant", "max_seconds", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class SpeakRequest:
    """The arguments of ``speak``, checked. An option that is not given is None, or False where it takes no value.

    Attributes are named as the options of :func:`qwen_omni_onnx.commands.speak.speak`, where each has its help.

    Raises:
        UserError: A value is impossible, or does nothing beside another one.
    """

    files: list[Path]
    text: str | None
    system: str | None
    direct: bool
    live: float | None
    models: Path
    voice: str | None
    variant: str | None
    float32: bool
    float32_parts: str | None
    max_tokens: int | None
    max_seconds: float | None
    seed: int
    greedy: bool
    thinker_temperature: float | None
    thinker_top_k: int | None
    thinker_top_p: float | None
    thinker_repetition_penalty: float | None
    talker_temperature: float | None
    talker_top_k: int | None
    talker_top_p: float | None
    talker_repetition_penalty: float | None
    overwrite: bool

    def __post_init__(self) -> None:
        if len(self.files) > 2:
            raise UserError(
                f"{len(self.files)} files; give the sound to reply to, if there is one, and the file to write"
            )
        if self.direct:
            self._require_use()
        for name in ("text", "system"):
            object.__setattr__(self, name, _text(f"--{name}", getattr(self, name)))
        if self.live is not None:
            require_rate(self.live, "--live")
        if not self.sounds and self.text is None:
            raise UserError("nothing to reply to: give a sound, a text, or both")
        self._require_numbers()
        self._require_parts()
        self._require_sampling()

    @property
    def sounds(self) -> list[Path]:
        """The sound to reply to, or none; a live one is piped in where no other place is given."""
        return self.files[:-1] or [_PIPED] * (self.live is not None)

    @property
    def out(self) -> Path:
        """The file to write."""
        return self.files[-1]

    @property
    def float32_components(self) -> list[str]:
        """The components that are to run with their float32 graph."""
        if self.float32_parts is not None:
            return self.float32_parts.split(",")
        return list(self._components) if self.float32 else []

    def max_new_codes(self, default: int) -> int:
        """Return the codes after which speech is cut off."""
        return default if self.max_seconds is None else int(self.max_seconds * CODES_A_SECOND)

    def sampling(self, decoder: str, default: Sampling) -> Sampling:
        """Return how ``thinker`` or ``talker`` chooses: as it does by default, but for what was asked."""
        given: dict[str, Any] = {name: getattr(self, f"{decoder}_{name}") for name in _SAMPLING}
        changes = {name: value for name, value in given.items() if value is not None}
        greedy = self.greedy or (default.greedy and not changes)
        return replace(default, **changes, greedy=greedy)

    @property
    def _components(self) -> tuple[str, ...]:
        return SHORTCUT if self.direct else CHAIN

    def _require_use(self) -> None:
        """Refuse what --direct would ignore."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in _OF_DIRECT and value is not None and value is not False:
                raise UserError(
                    f"{_flag(field.name)}: does nothing with --direct, where there is no language model and no Talker; "
                    "leave one of them out"
                )
        if len(self.files) < 2:
            raise UserError("--direct: takes a sound; give one, and the file to write")

    def _require_numbers(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"--max-tokens: {self.max_tokens}; give 1 or more")
        if self.max_seconds is not None and not 1 <= self.max_seconds * CODES_A_SECOND < math.inf:
            raise UserError(f"--max-seconds: {self.max_seconds:g}; give {1 / CODES_A_SECOND} or more")
        require_seed(self.seed)

    def _require_parts(self) -> None:
        if self.float32 and self.float32_parts is not None:
            raise UserError("--float32: means all parts; leave it out, or --float32-parts")
        unknown = [name for name in self.float32_components if name not in self._components]
        if unknown:
            mode = "with --direct" if self.direct else "without --direct"
            known = ", ".join(self._components)
            raise UserError(f"--float32-parts: no part {unknown[0]!r} {mode}; there are: {known}")

    def _require_sampling(self) -> None:
        for decoder in _DECODERS:
            self.sampling(decoder, Sampling())
            for name in (f"{decoder}_{knob}" for knob in _WARMTH):
                if self.greedy and getattr(self, name) is not None:
                    raise UserError(f"{_flag(name)}: does nothing with --greedy; leave one of them out")


def seconds(codes: int) -> float:
    """Return how long so many codes are, as ``--max-seconds`` counts."""
    return codes / CODES_A_SECOND


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _text(flag: str, given: str | None) -> str | None:
    """Return a text; refuse an empty one, as a shell makes of a variable that is not set, and bytes that are none."""
    if given is None:
        return None
    if not given.strip():
        raise UserError(f"{flag}: holds no text; give one, or leave {flag} out")
    if not any("\ud800" <= letter <= "\udfff" for letter in given):
        return given
    try:  # Python keeps bytes that are none of the locale's characters as such: they may be UTF-8 all the same
        return os.fsencode(given).decode("utf-8")
    except UnicodeError:
        raise UserError(f"{flag}: holds bytes that are no UTF-8; convert the text to it") from None

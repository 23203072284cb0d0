"""The options of ``python -m qwen_omni_onnx``: names, which of the two modes uses them, and what they may be.

Nothing is opened here: a mistake is told at once.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_omni_onnx import __version__
from qwen_omni_onnx.arguments import Parser, require_seed
from qwen_omni_onnx.bundle import CHAIN, SHORTCUT
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.sampling import Sampling

__all__ = ["float32_parts", "max_new_codes", "parse", "sampling", "seconds"]

_CODES_A_SECOND = 50
_DECODERS = ("thinker", "talker")
_WARMTH = ("temperature", "top_k", "top_p")  # that the best token is taken without
_CHOOSING = (*_WARMTH, "repetition_penalty")
# What --direct uses, too; a reply uses every other option. An option that is not named here is refused with --direct.
_OF_DIRECT = (
    "files", "overwrite", "direct", "models", "float32", "float32_parts", "voice", "variant", "max_seconds", "seed",
)  # fmt: skip


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return what the arguments say, ``asking`` (the sound to reply to, or none) and ``out`` among it.

    Raises:
        UserError: one is impossible, or is not used together with another.
    """
    given = _parser().parse_args(arguments)
    if len(given.files) > 2:
        raise UserError(f"{len(given.files)} files; give the sound to reply to, if there is one, and the file to write")
    if given.direct:
        _require_use(given)
    *given.asking, given.out = given.files
    given.text, given.system = _text("--text", given.text), _text("--system", given.system)
    if not given.asking and given.text is None:
        raise UserError("nothing to reply to: give a sound, a text, or both")
    _require_numbers(given)
    _require_parts(given)
    _require_choosing(given)
    return given


def _parser() -> Parser:
    """Return what takes the arguments apart. An option that is not given is None, or False where it takes no value."""
    found = Parser(
        prog="qwen-omni-onnx",
        description="Reply to a sound, a text, or both, with speech. To check a download: qwen-omni-onnx verify.",
    )
    add = found.add_argument
    add("--version", action="version", version=f"qwen-omni-onnx {__version__}")
    add("files", nargs="+", type=Path, metavar="[IN.wav] OUT.wav", help="sound to reply to; reply")
    add("--overwrite", action="store_true", help="OUT may replace a file that is there already")
    add("--text", help="what is asked, instead of a sound or beside it")
    add("--direct", action="store_true",
        help="a shortcut: encoder, projection, token2wav; no language model and no Talker")  # fmt: skip
    add("--models", type=Path, default=Path("models/published"), help="folder with published components")
    add("--float32", action="store_true", help="float32 graphs instead of the quantized ones")
    add("--float32-parts", metavar="PART,...", help=f"the same, of these parts alone: {', '.join(_parts(False))}")
    add("--voice", help="who speaks: one of the model's voices; with --direct, a folder with cond.npy and ref_mel.npy, "
        "too")  # fmt: skip
    add("--variant", default=REFERENCE, help=f"way to solve the ODE; {REFERENCE} if not given")
    add("--system", help="the system prompt; if not given, the one that speech was trained with")
    add("--max-tokens", type=int, help="of the text, after which it is cut off")
    add("--max-seconds", type=float, help="of speech, after which it is cut off; about 82")
    add("--seed", type=int, default=0, help="of all choices and of the noise")
    add("--greedy", action="store_true", help="always the best token and the best code")
    for part in _DECODERS:
        for name in _CHOOSING:
            add(_flag(part, name), type=int if name == "top_k" else float, help=argparse.SUPPRESS)
    found.epilog = (
        "How tokens and codes are chosen: --thinker-temperature, --thinker-top-k, --thinker-top-p, "
        "--thinker-repetition-penalty, and the same with --talker-."
    )
    return found


def float32_parts(given: argparse.Namespace) -> list[str]:
    """Return the components that are to run with their float32 graph."""
    if given.float32_parts is not None:
        return list(given.float32_parts.split(","))
    return list(_parts(given.direct)) if given.float32 else []


def max_new_codes(given: argparse.Namespace, default: int) -> int:
    """Return the codes after which speech is cut off."""
    return default if given.max_seconds is None else int(given.max_seconds * _CODES_A_SECOND)


def seconds(codes: int) -> float:
    """Return how long so many codes are, as ``--max-seconds`` counts."""
    return codes / _CODES_A_SECOND


def sampling(given: argparse.Namespace, part: str, default: Sampling) -> Sampling:
    """Return how a part chooses: as it does by default, but for what is asked for."""
    asked_for: dict[str, Any] = {name: getattr(given, f"{part}_{name}") for name in _CHOOSING}
    changes = {name: value for name, value in asked_for.items() if value is not None}
    greedy = given.greedy or (default.greedy and not changes)
    return replace(default, **changes, greedy=greedy)


def _parts(direct: bool) -> tuple[str, ...]:
    return SHORTCUT if direct else CHAIN


def _flag(part: str, name: str) -> str:
    return f"--{part}-{name.replace('_', '-')}"


def _require_use(given: argparse.Namespace) -> None:
    """Refuse what --direct would ignore."""
    for name, value in vars(given).items():
        if name not in _OF_DIRECT and value is not None and value is not False:
            raise UserError(
                f"--{name.replace('_', '-')}: does nothing with --direct, where there is no language model and no "
                "Talker; leave one of them out"
            )
    if len(given.files) < 2:
        raise UserError("--direct: takes a sound; give one, and the file to write")


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


def _require_numbers(given: argparse.Namespace) -> None:
    if given.max_tokens is not None and given.max_tokens < 1:
        raise UserError(f"--max-tokens: {given.max_tokens}; give 1 or more")
    if given.max_seconds is not None and not 1 <= given.max_seconds * _CODES_A_SECOND < math.inf:
        raise UserError(f"--max-seconds: {given.max_seconds:g}; give {1 / _CODES_A_SECOND} or more")
    require_seed(given.seed)


def _require_parts(given: argparse.Namespace) -> None:
    if given.float32 and given.float32_parts is not None:
        raise UserError("--float32: means all parts; leave it out, or --float32-parts")
    parts = _parts(given.direct)
    unknown = [part for part in float32_parts(given) if part not in parts]
    if unknown:
        where = "with --direct" if given.direct else "without --direct"
        raise UserError(f"--float32-parts: no part {unknown[0]!r} {where}; there are: {', '.join(parts)}")


def _require_choosing(given: argparse.Namespace) -> None:
    for part in _DECODERS:
        sampling(given, part, Sampling())
        for name in _WARMTH:
            if given.greedy and getattr(given, f"{part}_{name}") is not None:
                raise UserError(f"{_flag(part, name)}: does nothing with --greedy; leave one of them out")

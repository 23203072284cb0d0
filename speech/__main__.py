"""Speech in, speech out: ``python -m speech IN.wav OUT.wav``; ``python -m speech verify FOLDER``."""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from omni.audio import SAMPLE_RATE as HEARD_RATE
from omni.audio import read_audio
from omni.errors import Problem, run_command
from omni.voices import VOICES
from speech import sound_file
from speech.bundle import CHAIN, SHORTCUT, Bundle, find, load
from speech.chat import SYSTEM, conversation
from speech.clock import Clock
from speech.reply import Reply, Sound, Style, Word, asked
from speech.sampler import REFERENCE, pick_variant
from speech.sampling import Sampling
from speech.talker import SAMPLING
from speech.token2wav.runtime import SAMPLE_RATE, read_variants
from speech.verify import verify
from speech.voices import pick, read_voices

_CODES_A_SECOND = 50
_PARTS = tuple(dict.fromkeys((*CHAIN, *SHORTCUT)))
_DECODERS = ("thinker", "talker")
_CHOOSING = ("temperature", "top_k", "top_p", "repetition_penalty")


def main() -> None:
    """Run what the first argument asks for."""
    if sys.argv[1:2] == ["verify"]:
        check(sys.argv[2:])
    else:
        speak(sys.argv[1:])


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m speech",
        description="Reply to a sound, a text, or both, with speech. To check a download: python -m speech verify.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="[IN.wav] OUT.wav", help="sound to reply to; reply")
    parser.add_argument("--overwrite", action="store_true", help="OUT may replace a file that is there already")
    parser.add_argument("--text", help="what is asked, instead of a sound or beside it")
    parser.add_argument("--direct", action="store_true",
                        help="a shortcut: encoder, projection, token2wav; no language model and no Talker")  # fmt: skip
    parser.add_argument(
        "--models", type=Path, default=Path("models/published"), help="folder with published components"
    )
    parser.add_argument("--float32", nargs="?", const=",".join(_PARTS), default="", metavar="PART,...",
                        help="float32 graphs instead of the quantized ones: of these parts, or of all")  # fmt: skip
    parser.add_argument("--voice", help="who speaks: one of the model's voices; with --direct, a folder with cond.npy "
                        "and ref_mel.npy, too")  # fmt: skip
    parser.add_argument("--variant", default=REFERENCE, help=f"way to solve the ODE; {REFERENCE} if not given")
    parser.add_argument("--system", default=SYSTEM, help="the system prompt; the one that speech was trained with")
    parser.add_argument("--max-tokens", type=int, help="of the text, after which it is cut off")
    parser.add_argument("--max-seconds", type=float, help="of speech, after which it is cut off; about 82")
    parser.add_argument("--seed", type=int, default=0, help="of all choices and of the noise")
    parser.add_argument("--greedy", action="store_true", help="always the best token and the best code")
    for part in _DECODERS:
        for name in _CHOOSING:
            kind = int if name == "top_k" else float
            parser.add_argument(f"--{part}-{name.replace('_', '-')}", type=kind, help=argparse.SUPPRESS)
    parser.epilog = (
        "How tokens and codes are chosen: --thinker-temperature, --thinker-top-k, --thinker-top-p, "
        "--thinker-repetition-penalty, and the same with --talker-."
    )
    return parser


def speak(arguments: list[str]) -> None:
    """Reply to what the arguments ask."""
    given = _arguments().parse_args(arguments)
    *asking, out = given.files
    if len(asking) > 1:
        raise Problem(f"{len(given.files)} files; give the sound to reply to, if there is one, and the file to write")
    _require_arguments(given)
    sound_file.require_sound_file(out, inputs=asking, overwrite=given.overwrite)
    sounds = [read_audio(path) for path in asking]
    if given.direct:
        _speak_directly(given, sounds, out)
        return
    messages = conversation(given.text, len(sounds), given.system)
    clock = Clock()
    with clock.running("loading"):
        bundle = _loaded(given, CHAIN, own_voice=False)
        style = _style(given, bundle)
        bundle.thinker, bundle.talker, bundle.token2wav  # noqa: B018 - opened here, so that their time is counted here
        listener = bundle.listener if sounds else None
    clock.restart()
    with clock.running("listening"):  # the prompt holds what was heard, and nothing else does: it may be long
        heard = (listener.embed(listener.features(sound, HEARD_RATE)) for sound in sounds) if listener else ()
        prompt = asked(bundle, messages, heard)
    reply = Reply(bundle, prompt, style, clock)
    samples = _written(reply, out)
    if not samples:
        why = f"it was cut off: {reply.cut_off}" if reply.cut_off else "another --seed, or another question, may"
        raise Problem(f"{out}: not written: the reply holds no speech; {why}")
    seconds = samples / SAMPLE_RATE
    said = f"{out}: {seconds:.2f} s of {style.voice.name}, the first after {reply.first_sound:.2f} s"
    amounts = {"thinker": f" ({len(reply.tokens)} tokens)", "talker": f" ({len(reply.codes)} codes)"}
    _report(said, clock, seconds, amounts)
    if reply.cut_off:
        print(f"cut off: {reply.cut_off}")


def _speak_directly(given: argparse.Namespace, sounds: list[np.ndarray], out: Path) -> None:
    """Speak the codes that the projection finds in a sound."""
    if not sounds or given.text:
        raise Problem("--direct: takes a sound and no text: nothing reads there")
    clock = Clock()
    with clock.running("loading"):
        bundle = _loaded(given, SHORTCUT, own_voice=True)
        direct, voice = bundle.direct(), bundle.voice(given.voice)
    clock.restart()
    with clock.running("listening, projection"):
        codes = direct.codes(sounds[0], HEARD_RATE)
    with clock.running("token2wav"), sound_file.writing(out) as write:
        waveform = direct.token2wav.speak(codes, voice.cond, voice.ref_mel, seed=given.seed, variant=given.variant)
        write(waveform)
    amounts = {"listening, projection": f" ({len(codes)} codes)"}
    _report(f"{out}: {len(waveform) / SAMPLE_RATE:.2f} s of {voice.name}", clock, len(waveform) / SAMPLE_RATE, amounts)
    print("  a shortcut: these are not a Talker's codes, and what one hears is not speech")


def _require_arguments(given: argparse.Namespace) -> None:
    """Refuse values that nothing has to be opened for to know that they are none."""
    if given.max_tokens is not None and given.max_tokens < 1:
        raise Problem(f"--max-tokens: {given.max_tokens}; give 1 or more")
    if given.max_seconds is not None and not 1 <= given.max_seconds * _CODES_A_SECOND < math.inf:
        raise Problem(f"--max-seconds: {given.max_seconds:g}; give {1 / _CODES_A_SECOND} or more")
    if given.seed < 0:
        raise Problem(f"--seed: {given.seed}; give 0 or more")
    unknown = [part for part in _float32(given) if part not in _PARTS]
    if unknown:
        raise Problem(f"--float32: no part {unknown[0]!r}; there are: {', '.join(_PARTS)}")
    for part in _DECODERS:
        _sampling(given, part, Sampling())


def _float32(given: argparse.Namespace) -> list[str]:
    return [part for part in given.float32.split(",") if part]


def _loaded(given: argparse.Namespace, needed: tuple[str, ...], *, own_voice: bool) -> Bundle:
    """Load what is needed; a voice or a variant that there is not is told before gigabytes are hashed."""
    token2wav = find(given.models, needed)["token2wav"]
    if given.voice is not None:
        pick(read_voices(token2wav / VOICES), given.voice, own=own_voice)
    pick_variant(read_variants(token2wav), given.variant)
    return load(given.models, needed=needed, float32=_float32(given))


def _style(given: argparse.Namespace, bundle: Bundle) -> Style:
    style = Style(
        voice=bundle.voice(given.voice),
        thinker=_sampling(given, "thinker", bundle.chat.sampling),
        talker=_sampling(given, "talker", SAMPLING),
        most_tokens=given.max_tokens or bundle.chat.most_tokens,
        seed=given.seed,
        variant=given.variant,
    )
    if given.max_seconds is None:
        return style
    return replace(style, most_codes=int(given.max_seconds * _CODES_A_SECOND))


def _sampling(given: argparse.Namespace, part: str, default: Sampling) -> Sampling:
    """Return how a part chooses: as it does by default, but for what is asked for."""
    asked_for: dict[str, Any] = {name: getattr(given, f"{part}_{name}") for name in _CHOOSING}
    changes = {name: value for name, value in asked_for.items() if value is not None}
    greedy = given.greedy or (default.greedy and not changes)
    return replace(default, **changes, greedy=greedy)


def _written(reply: Reply, out: Path) -> int:
    """Write the speech and print the text, as both come; return the samples written."""
    samples, ended, shown = 0, False, sys.stderr.isatty()
    with sound_file.writing(out) as write:
        for event in reply:
            if isinstance(event, Word):
                print(event.text, end="", flush=True)
            elif isinstance(event, Sound):
                write(event.waveform)
                samples += len(event.waveform)
                if shown and reply.thought:  # until then, the text shows that something happens
                    print(f"\r\033[K{samples / SAMPLE_RATE:.1f} s of speech", end="", file=sys.stderr, flush=True)
            if reply.thought and not ended:
                print(flush=True)
                ended = True
    return samples


def _report(said: str, clock: Clock, seconds: float, amounts: dict[str, str]) -> None:
    """Print what was written, and how long it and each part took."""
    took = clock.elapsed
    print(f"{said}; {took:.2f} s in all (real-time factor {took / seconds:.2f})")
    parts = [f"{part} {taken:.2f} s{amounts.get(part, '')}" for part, taken in clock.seconds.items()]
    print(f"  {', '.join(parts)}")


def check(arguments: list[str]) -> None:
    """Verify what the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m speech verify", description="Hashes, interfaces and golden cases, on this machine."
    )
    parser.add_argument("folder", type=Path, help="a published folder, or one that holds several")
    missed = []
    for found in verify(parser.parse_args(arguments).folder):
        print(f"{found.folder}: {found.files} files, {found.nbytes / 1e6:,.1f} MB, each byte as published")
        print(f"  {', '.join(found.graphs)}: interface as published")
        for drift in found.drifts:
            here = f"{drift.here:.4g} {drift.unit}".rstrip()
            print(
                f"  {'ok    ' if drift.ok else 'MISSED'} {drift.graph}: {drift.metric}: {here} here, "
                f"{drift.published:.4g} where it was published (limit {drift.sense} {drift.limit:g})"
            )
        missed += [f"{found.folder}: {drift.graph}: {drift.metric}" for drift in found.drifts if not drift.ok]
    if missed:
        raise Problem(f"{missed[0]} misses its limit on this machine")


if __name__ == "__main__":
    run_command(main)

"""Speech in, speech out: ``qwen-omni-onnx IN.wav OUT.wav``; ``qwen-omni-onnx verify FOLDER``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from qwen_omni_onnx import options, talker, thinker
from qwen_omni_onnx.arguments import Parser
from qwen_omni_onnx.bundle import CHAIN, SHORTCUT, Bundle, find
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError, run_command
from qwen_omni_onnx.reply import AudioChunk, Reply, ReplyOptions, TextToken, build_prompt
from qwen_omni_onnx.room import require_room
from qwen_omni_onnx.sampler import pick_variant
from qwen_omni_onnx.sound import file as sound_file
from qwen_omni_onnx.sound.audio import SAMPLE_RATE as HEARD_RATE
from qwen_omni_onnx.sound.audio import SHORTEST, embeddings, read_audio
from qwen_omni_onnx.talker import MAX_NEW_CODES, SAMPLING
from qwen_omni_onnx.text.chat import SYSTEM, Message, conversation
from qwen_omni_onnx.token2wav.runtime import SAMPLE_RATE, read_limits, read_variants
from qwen_omni_onnx.verify import verify
from qwen_omni_onnx.voices import pick


def main() -> None:
    """Run what the first argument asks for."""
    if sys.argv[1:2] == ["verify"]:
        check(sys.argv[2:])
    else:
        speak(sys.argv[1:])


def speak(arguments: list[str]) -> None:
    """Reply to what the arguments ask."""
    given = options.parse(arguments)
    sound_file.require_sound_file(given.out, inputs=given.asking, overwrite=given.overwrite)
    sounds = [_heard(path) for path in given.asking]
    if given.direct:
        _speak_directly(given, sounds[0])
    else:
        _reply(given, sounds)


def _heard(path: Path) -> np.ndarray:
    sound = read_audio(path)
    if not embeddings(len(sound)):
        raise UserError(f"{path}: {len(sound)} samples at {HEARD_RATE} Hz; at least {SHORTEST} are needed")
    return sound


def _reply(given: argparse.Namespace, sounds: list[np.ndarray]) -> None:
    """Speak what the models reply."""
    messages, out = conversation(given.text, len(sounds), given.system or SYSTEM), given.out
    clock = Clock()
    with clock.running("loading"):
        bundle = _found(given, CHAIN)
        _require_room(bundle, messages, sounds)
        bundle.check(CHAIN)
        style = _style(given, bundle)
        bundle.thinker, bundle.talker, bundle.token2wav  # noqa: B018 - opened here, so that their time is counted here
        listener = bundle.listener if sounds else None
    clock.restart()
    with clock.running("listening"):  # the prompt holds what was heard, and nothing else does: it may be long
        heard = (listener.embed(listener.features(sound, HEARD_RATE)) for sound in sounds) if listener else ()
        prompt = build_prompt(bundle, messages, heard)
    reply = Reply(bundle, prompt, style, clock)
    samples = _written(reply, out)
    if not samples:
        why = f"it was cut off: {reply.cut_off}" if reply.cut_off else "another --seed, or another question, may"
        raise UserError(f"{out}: not written: the reply holds no speech; {why}")
    seconds = samples / SAMPLE_RATE
    said = f"{out}: {seconds:.2f} s of {style.voice.name}, the first after {reply.first_sound:.2f} s"
    amounts = {"thinker": f" ({len(reply.tokens)} tokens)", "talker": f" ({len(reply.codes)} codes)"}
    _report(said, clock, seconds, amounts)
    if reply.cut_off:
        print(f"cut off: {reply.cut_off}")


def _speak_directly(given: argparse.Namespace, sound: np.ndarray) -> None:
    """Speak the codes that the projection finds in a sound."""
    clock = Clock()
    with clock.running("loading"):
        bundle = _found(given, SHORTCUT)
        there = embeddings(len(sound))
        most = options.max_new_codes(given, there)
        limits = read_limits(bundle.folders["token2wav"])
        if min(there, most) > limits.at_once:
            raise UserError(
                f"--direct: {there} codes of this sound; {limits.at_once} is the most: give a shorter one, or "
                f"--max-seconds {options.seconds(limits.at_once):g}"
            )
        bundle.check(SHORTCUT)
        direct, voice = bundle.direct(), bundle.voice(given.voice)
    clock.restart()
    with clock.running("listening, projection"):
        codes = direct.codes(sound, HEARD_RATE)[:most]
    with clock.running("token2wav"), sound_file.writing(given.out) as write:
        waveform = direct.token2wav.speak(codes, voice.cond, voice.ref_mel, seed=given.seed, variant=given.variant)
        write(waveform)
    seconds = len(waveform) / SAMPLE_RATE
    amounts = {"listening, projection": f" ({len(codes)} codes)"}
    _report(f"{given.out}: {seconds:.2f} s of {voice.name}", clock, seconds, amounts)
    print("  a shortcut: these are not a Talker's codes, and what one hears is not speech")
    if most < there:
        print(f"cut off: the speech after {most} codes, the most allowed")


def _found(given: argparse.Namespace, needed: tuple[str, ...]) -> Bundle:
    """Find what is needed; a voice or a variant that there is not is told before gigabytes are hashed."""
    bundle = Bundle(find(given.models, needed), options.float32_parts(given), threads=0)
    if given.voice is not None:
        pick(bundle.voices, given.voice, own=given.direct)
    pick_variant(read_variants(bundle.folders["token2wav"]), given.variant)
    return bundle


def _require_room(bundle: Bundle, messages: list[Message], sounds: list[np.ndarray]) -> None:
    """Refuse a prompt that is too long; what the models would see of the sounds need not be computed for that."""
    heard = [embeddings(len(sound)) for sound in sounds]
    thinker_config, talker_config = (read_config(bundle.folders[name]) for name in ("thinker", "talker"))
    tokens = len(bundle.chat.ids(messages, heard))
    require_room(tokens, sum(heard), thinker.positions(thinker_config), talker.positions(talker_config))


def _style(given: argparse.Namespace, bundle: Bundle) -> ReplyOptions:
    return ReplyOptions(
        voice=bundle.voice(given.voice),
        thinker=options.sampling(given, "thinker", bundle.chat.sampling),
        talker=options.sampling(given, "talker", SAMPLING),
        max_new_tokens=given.max_tokens or bundle.chat.max_new_tokens,
        max_new_codes=options.max_new_codes(given, MAX_NEW_CODES),
        seed=given.seed,
        variant=given.variant,
    )


def _written(reply: Reply, out: Path) -> int:
    """Write the speech and print the text, as both come; return the samples written."""
    samples, ended, shown = 0, False, False
    try:
        with sound_file.writing(out) as write:
            for event in reply:
                if isinstance(event, TextToken):
                    print(event.text, end="", flush=True)
                elif isinstance(event, AudioChunk):
                    write(event.waveform)
                    samples += len(event.waveform)
                    shown = reply.text_done and sys.stderr.isatty()  # until then, the text shows that something happens
                    if shown:
                        print(f"\r\033[K{samples / SAMPLE_RATE:.1f} s of speech", end="", file=sys.stderr, flush=True)
                if reply.text_done and not ended:
                    print(flush=True)
                    ended = True
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return samples


def _report(said: str, clock: Clock, seconds: float, amounts: dict[str, str]) -> None:
    """Print what was written, and how long it and each part took."""
    took = clock.elapsed
    print(one_line(f"{said}; {took:.2f} s in all (real-time factor {took / seconds:.2f})"))
    parts = [f"{part} {taken:.2f} s{amounts.get(part, '')}" for part, taken in clock.seconds.items()]
    print(f"  {', '.join(parts)}")


def check(arguments: list[str]) -> None:
    """Verify what the arguments name."""
    parser = Parser(prog="qwen-omni-onnx verify", description="Hashes, interfaces and golden cases, on this machine.")
    parser.add_argument("folder", type=Path, help="a published folder, or one that holds several")
    missed = []
    for found in verify(parser.parse_args(arguments).folder):
        print(f"{found.folder}: {found.files} files, {found.nbytes / 1e6:,.1f} MB, each byte as published")
        print(f"  {', '.join(found.graphs)}: interface as published")
        for drift in found.drifts:
            verdict, here = drift.verdict, f"{drift.here:.4g} {drift.verdict.unit}".rstrip()
            published = "no number" if verdict.value is None else f"{verdict.value:.4g}"
            print(
                f"  {'ok    ' if drift.ok else 'MISSED'} {verdict.of}: {verdict.label}: {here} here, "
                f"{published} where it was published (limit {verdict.comparison} {verdict.limit:g})"
            )
        missed += [f"{found.folder}: {d.verdict.of}: {d.verdict.label}" for d in found.drifts if not d.ok]
    if missed:
        raise UserError(f"{missed[0]} misses its limit on this machine")


def run() -> None:
    """Run as the console script ``qwen-omni-onnx``."""
    run_command(main, needs_reader=False)


if __name__ == "__main__":
    run_command(main, needs_reader=False)

"""``qwen-omni-onnx speak [IN.wav] OUT.wav``: a spoken reply to sound, text, or both; ``--direct``: the shortcut."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qwen_omni_onnx.bundle import CHAIN, SHORTCUT, Bundle, find
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.commands.shared import Overwrite, Seed, Variant
from qwen_omni_onnx.commands.speak_request import SpeakRequest, seconds
from qwen_omni_onnx.common.console import one_line, without_commands
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.reply import AudioChunk, Reply, ReplyOptions, TextToken
from qwen_omni_onnx.sound import file as sound_file
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, embeddings
from qwen_omni_onnx.sound.question import read_sounds
from qwen_omni_onnx.sound.raw import raw_samples
from qwen_omni_onnx.talker.runtime import MAX_NEW_CODES, SAMPLING
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE, read_limits
from qwen_omni_onnx.voices import pick

__all__ = ["speak"]


def speak(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="[IN.wav] OUT.wav", help="Sound to reply to, if any; .wav or .flac file to write."),
    ],
    text: Annotated[str | None, typer.Option(help="Text to reply to, instead of a sound or beside it.")] = None,
    system: Annotated[
        str | None, typer.Option(help="System prompt; the default is the one that speech was trained with.")
    ] = None,
    direct: Annotated[
        bool,
        typer.Option("--direct", help="Take the shortcut, encoder, projection, token2wav: what it says is not speech."),
    ] = False,
    live: Annotated[
        float | None,
        typer.Option(metavar="HZ", help="IN is a pipe, the standard input if none is given, of raw 16-bit mono samples "
                     "at this rate: they are heard as they come, and the reply begins when they end."),
    ] = None,
    models: Annotated[Path, typer.Option(help="Folder of the published components.")] = Path("models/published"),
    voice: Annotated[
        str | None,
        typer.Option(help="One of the model's voices, the first one if none is given; with --direct, a folder of your "
                     "own with cond.npy and ref_mel.npy, too."),
    ] = None,
    variant: Variant = None,
    float32: Annotated[bool, typer.Option("--float32", help="Run float32 graphs, not the quantized ones.")] = False,
    float32_parts: Annotated[
        str | None,
        typer.Option(metavar="PART,...", help=f"Run float32 graphs of these parts alone: {', '.join(CHAIN)}; with "
                     f"--direct: {', '.join(SHORTCUT)}."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens after which the text is cut off; the default is the checkpoint's.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds after which the speech is cut off; the default is about 82.")
    ] = None,
    seed: Seed = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the best token and the best code.")] = False,
    thinker_temperature: Annotated[
        float | None, typer.Option(help="Temperature that the logits of tokens are divided by.")
    ] = None,
    thinker_top_k: Annotated[
        int | None, typer.Option(help="Number of the best tokens to choose from; 0 is all.")
    ] = None,
    thinker_top_p: Annotated[
        float | None, typer.Option(help="Share of the probability that the tokens to choose from make up.")
    ] = None,
    thinker_repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalty on tokens that were there before: their logits are divided by it.")
    ] = None,
    talker_temperature: Annotated[
        float | None, typer.Option(help="Temperature that the logits of codes are divided by.")
    ] = None,
    talker_top_k: Annotated[int | None, typer.Option(help="Number of the best codes to choose from; 0 is all.")] = None,
    talker_top_p: Annotated[
        float | None, typer.Option(help="Share of the probability that the codes to choose from make up.")
    ] = None,
    talker_repetition_penalty: Annotated[
        float | None, typer.Option(help="Penalty on codes that were there before: their logits are divided by it.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Reply to a sound, a text, or both, with speech. Print the text as it comes."""
    request = SpeakRequest(
        files=files, text=text, system=system, direct=direct, live=live, models=models, voice=voice, variant=variant,
        float32=float32, float32_parts=float32_parts, max_tokens=max_tokens, max_seconds=max_seconds, seed=seed,
        greedy=greedy, thinker_temperature=thinker_temperature, thinker_top_k=thinker_top_k,
        thinker_top_p=thinker_top_p, thinker_repetition_penalty=thinker_repetition_penalty,
        talker_temperature=talker_temperature, talker_top_k=talker_top_k, talker_top_p=talker_top_p,
        talker_repetition_penalty=talker_repetition_penalty, overwrite=overwrite,
    )  # fmt: skip
    sound_file.require_sound_file(request.out, inputs=request.sounds, overwrite=overwrite)
    if direct:
        _speak_directly(request)
    else:
        _reply(request)


def _reply(request: SpeakRequest) -> None:
    """Speak what the models reply."""
    clock = Clock()
    with clock.running("loading"):
        bundle = Bundle(find(request.models, CHAIN), request.float32_components, threads=0)
        options = _options(request, bundle)
        reply = None
        if request.live is not None:
            _require_voice_and_variant(request, bundle, own=False)
        else:
            sounds, system = request.sounds, request.system
            reply = bundle.reply(request.text, audio=sounds, system=system, options=options, clock=clock)
        bundle.check(CHAIN)  # gigabytes are hashed, once it is known that there can be a reply
        bundle.thinker, bundle.talker, bundle.token2wav  # noqa: B018 - opened here, so that their time is counted here
        if request.sounds:
            bundle.listener  # noqa: B018
    reply = reply or _heard(request, bundle, options, clock)
    clock.restart()
    samples = _write(reply, request.out)
    if not samples:
        why = f"it was cut off: {reply.cut_off}" if reply.cut_off else "another --seed, or another question, may"
        raise UserError(f"{request.out}: not written: the reply holds no speech; {why}")
    duration = samples / OUTPUT_SAMPLE_RATE
    said = f"{request.out}: {duration:.2f} s of {reply.voice.name}, the first after {reply.first_sound:.2f} s"
    amounts = {"thinker": f" ({len(reply.tokens)} tokens)", "talker": f" ({len(reply.codes)} codes)"}
    _report(said, clock, duration, amounts)
    if reply.cut_off:
        print(f"cut off: {reply.cut_off}")


def _heard(request: SpeakRequest, bundle: Bundle, options: ReplyOptions, clock: Clock) -> Reply:
    """Return the reply to a question that was heard while it was asked."""
    (place,) = request.sounds
    assert request.live is not None
    question = bundle.live_question(system=request.system, rate=request.live, options=options, clock=clock)
    count = 0
    for samples in raw_samples(place):
        question.feed(samples)
        count += len(samples)
    took = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in question.clock.seconds.items())
    print(one_line(f"{place}: {count / request.live:.2f} s, heard while it was asked: {took}"))
    return question.reply(request.text)


def _options(request: SpeakRequest, bundle: Bundle) -> ReplyOptions:
    return ReplyOptions(
        voice=request.voice,
        thinker=request.sampling("thinker", bundle.chat.sampling),
        talker=request.sampling("talker", SAMPLING),
        max_new_tokens=request.max_tokens,
        max_new_codes=request.max_new_codes(MAX_NEW_CODES),
        seed=request.seed,
        variant=request.variant,
    )


def _write(reply: Reply, out: Path) -> int:
    """Write the speech and print the text, as both come; return the samples written."""
    samples, ended, shown = 0, False, False
    try:
        with sound_file.writing(out) as write:
            for event in reply:
                if isinstance(event, TextToken):
                    print(without_commands(event.text), end="", flush=True)
                elif isinstance(event, AudioChunk):
                    write(event.waveform)
                    samples += len(event.waveform)
                    shown = reply.text_done and sys.stderr.isatty()  # until then, the text shows that something happens
                    if shown:
                        done = samples / OUTPUT_SAMPLE_RATE
                        print(f"\r\033[K{done:.1f} s of speech", end="", file=sys.stderr, flush=True)
                if reply.text_done and not ended:
                    print(flush=True)
                    ended = True
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
    return samples


def _speak_directly(request: SpeakRequest) -> None:
    """Speak the codes that the projection finds in a sound."""
    (sound,) = read_sounds(request.sounds)
    clock = Clock()
    with clock.running("loading"):
        bundle = Bundle(find(request.models, SHORTCUT), request.float32_components, threads=0)
        _require_voice_and_variant(request, bundle, own=True)
        there = embeddings(len(sound))
        max_codes = request.max_new_codes(there)
        limits = read_limits(bundle.folders["token2wav"])
        if min(there, max_codes) > limits.max_codes:
            raise UserError(
                f"--direct: {there} codes of this sound; {limits.max_codes} is the most: give a shorter one, or "
                f"--max-seconds {seconds(limits.max_codes):g}"
            )
        bundle.check(SHORTCUT)
        direct, voice = bundle.direct(), bundle.voice(request.voice)
    clock.restart()
    with clock.running("listening, projection"):
        codes = direct.codes(sound, INPUT_SAMPLE_RATE)[:max_codes]
    with clock.running("token2wav"), sound_file.writing(request.out) as write:
        waveform = direct.token2wav.speak(codes, voice.cond, voice.ref_mel, seed=request.seed, variant=request.variant)
        write(waveform)
    duration = len(waveform) / OUTPUT_SAMPLE_RATE
    amounts = {"listening, projection": f" ({len(codes)} codes)"}
    _report(f"{request.out}: {duration:.2f} s of {voice.name}", clock, duration, amounts)
    print("  a shortcut: these are not a Talker's codes, and what it says is not speech")
    if max_codes < there:
        print(f"cut off: the speech after {max_codes} codes, the most allowed")


def _require_voice_and_variant(request: SpeakRequest, bundle: Bundle, *, own: bool) -> None:
    """Refuse a voice or a variant that there is none of, before gigabytes are hashed; ``own``: it may be a user's."""
    if request.voice is not None:
        pick(bundle.voices, request.voice, own=own)
    bundle.require_variant(request.variant)


def _report(said: str, clock: Clock, duration: float, amounts: dict[str, str]) -> None:
    """Print what was written, and how long it and each part took."""
    took = clock.elapsed
    print(one_line(f"{said}; {took:.2f} s in all (real-time factor {took / duration:.2f})"))
    parts = [f"{part} {taken:.2f} s{amounts.get(part, '')}" for part, taken in clock.seconds.items()]
    print(f"  {', '.join(parts)}")

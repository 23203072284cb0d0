"""The whole chain, sound and text to speech, beside ``generate`` of transformers' whole model; and as users call it."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli import open_nothing, requested, speak
from conftest import CODES, heed_signals
from replies import waveform_of

import qwen_omni_onnx
from qwen_omni_onnx.bundle import CHAIN, Bundle
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.metrics import compare
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.reply import AudioChunk, Code, Reply, ReplyOptions, TextToken, build_prompt
from qwen_omni_onnx.sampling import Sampling, checkpoint_sampling
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio
from qwen_omni_onnx.text.chat import conversation
from qwen_omni_onnx.token2wav import Window
from qwen_omni_onnx.voices import Voice, read_voices

GREEDY = Sampling(greedy=True, repetition_penalty=1.05)
WHOLE = Window(blocks=10**6, first=10**6)
MAX_NEW_TOKENS, MAX_NEW_CODES = 7, 40
_SHORT = ("--max-tokens", "5", "--max-seconds", "0.5", "--thinker-temperature", "1.5")


@pytest.fixture
def bundle(gated_chain: Path) -> Bundle:
    return qwen_omni_onnx.load("models/published", float32=CHAIN, threads=1)


def _style(bundle: Bundle, **changes: Any) -> ReplyOptions:
    how = {
        "voice": bundle.voice("Ethan"), "thinker": Sampling(greedy=True), "talker": GREEDY,
        "max_new_tokens": MAX_NEW_TOKENS, "max_new_codes": MAX_NEW_CODES, "seed": 3,
        "variant": "reference",
    }  # fmt: skip
    return ReplyOptions(**{**how, **changes})


def _clip(number: int) -> np.ndarray:
    return read_audio(sorted(Path("data/speech").rglob("*.flac"))[number])


def _prompts(bundle: Bundle) -> list[Any]:
    """A sound, a text, and both."""

    def heard(number: int) -> np.ndarray:
        return bundle.listener.embed(bundle.listener.features(_clip(number), INPUT_SAMPLE_RATE))

    return [
        build_prompt(bundle, conversation(None, 1, "short"), [heard(0)]),
        build_prompt(bundle, conversation("What is this? äöü 東京", 0)),
        build_prompt(bundle, conversation("Say it again, please.", 1), [heard(2)]),
    ]


# As transformers


def test_text_codes_and_sound_are_those_of_transformers(bundle: Bundle) -> None:
    """A batch of three, padded: ``generate`` treats the Talker's prompt of a single row in another way, see there."""
    from reference.whole_model import WholeModel, WholeQuestion

    questions = [
        WholeQuestion(_clip(0), system="short"),
        WholeQuestion(text="What is this? äöü 東京"),
        WholeQuestion(_clip(2), "Say it again, please."),
    ]
    replies = WholeModel(Path("models/source")).reply(
        questions, voice="Ethan", seed=3, max_new_tokens=MAX_NEW_TOKENS, max_new_codes=MAX_NEW_CODES
    )

    for prompt, expected in zip(_prompts(bundle), replies, strict=True):
        reply = Reply(bundle, prompt, _style(bundle, window=WHOLE))
        events = list(reply)

        assert reply.tokens == expected.tokens
        assert reply.codes == expected.codes
        assert len(set(reply.codes)) > 3
        assert compare(expected.waveform[None], waveform_of(events)[None], 0).sqnr_db > 80
        streamed = waveform_of(list(Reply(bundle, prompt, _style(bundle))))
        assert compare(expected.waveform[None], streamed[None], 0).sqnr_db > 50


# As a stream


def test_everything_comes_as_soon_as_it_is_there(bundle: Bundle) -> None:
    clock = Clock()
    reply = Reply(bundle, _prompts(bundle)[0], _style(bundle, max_new_tokens=30, max_new_codes=60), clock)
    kinds, when_first = [], None
    for event in reply:
        kinds.append(type(event))
        if isinstance(event, AudioChunk) and when_first is None:
            when_first = (len(reply.tokens), len(reply.codes), reply.text_done)

    assert kinds[:4] == [TextToken, Code, TextToken, Code]  # a token with each code
    assert when_first is not None
    words, codes, thought = when_first
    assert words == codes < 30  # long before the end
    assert not thought
    assert kinds.count(TextToken) == 30 == len(reply.tokens)
    assert kinds.count(Code) == 60 == len(reply.codes)
    assert reply.text_done
    assert set(clock.seconds) == {"thinker", "talker", "token2wav"}
    assert reply.first_sound is not None
    assert 0 < reply.first_sound < clock.elapsed
    assert sum(clock.seconds.values()) <= clock.elapsed


def test_nothing_is_kept_of_a_long_reply_but_keys_and_values(bundle: Bundle) -> None:
    """Room for these is made when a reply begins. A code's samples or hidden states would be 240 bytes and more."""
    reply = Reply(bundle, _prompts(bundle)[1], _style(bundle, max_new_tokens=30, max_new_codes=260))
    kept: dict[int, int] = {}

    tracemalloc.start()
    try:
        for event in reply:
            if isinstance(event, Code) and len(reply.codes) in (60, 252):  # as far into a window of four blocks
                gc.collect()
                kept[len(reply.codes)] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert kept[252] - kept[60] < 192 * 240


def test_text_goes_on_when_speech_is_cut_off(bundle: Bundle) -> None:
    reply = Reply(bundle, _prompts(bundle)[1], _style(bundle, max_new_tokens=12, max_new_codes=3))
    events = list(reply)

    assert len(reply.tokens) == 12
    assert len(reply.codes) == 3
    assert len(waveform_of(events)) == 3 * bundle.token2wav.repeats * bundle.token2wav.hop
    assert reply.text == "".join(event.text for event in events if isinstance(event, TextToken))
    assert reply.text


def test_a_reply_of_one_token_that_was_cut_off_has_no_speech(bundle: Bundle) -> None:
    events = list(Reply(bundle, _prompts(bundle)[1], _style(bundle, max_new_tokens=1)))

    assert [type(event) for event in events] == [TextToken]


def test_codes_without_sound_are_not_said(bundle: Bundle) -> None:
    """Random weights would: the Talker's vocabulary is larger than what token2wav has sound for."""
    reply = Reply(bundle, _prompts(bundle)[2], _style(bundle, talker=Sampling(), max_new_codes=100))
    list(reply)

    assert bundle.talker.decoder.vocabulary > bundle.token2wav.codes == CODES
    assert max(reply.codes) < CODES
    assert len(set(reply.codes)) > 5


def test_the_seed_decides_and_nothing_else(bundle: Bundle) -> None:
    prompt, how = _prompts(bundle)[1], {"thinker": Sampling(), "talker": Sampling()}
    replies = [Reply(bundle, prompt, _style(bundle, seed=seed, **how)) for seed in (1, 1, 2)]
    sounds = [waveform_of(list(reply)) for reply in replies]

    assert replies[0].tokens == replies[1].tokens != replies[2].tokens
    assert replies[0].codes == replies[1].codes != replies[2].codes
    np.testing.assert_array_equal(sounds[0], sounds[1])


def test_a_voice_of_ones_own_is_refused_by_the_talker(bundle: Bundle, message: Callable[..., str]) -> None:
    ethan = bundle.voice("Ethan")
    own = Voice("mine", ethan.cond, ethan.ref_mel, None)

    said = message(Reply, bundle, _prompts(bundle)[1], _style(bundle, voice=own))
    assert said == "voice 'mine': the Talker was not trained on it; there are: Chelsie, Ethan"


# Where a reply is cut off

ALLOWED, NO_POSITION = "the most allowed", "where the positions end"


def _endless(bundle: Bundle) -> dict[str, Sampling]:
    """How to choose tokens and codes so that no reply ends by itself."""
    return {
        "thinker": Sampling(suppressed=bundle.thinker.special_tokens.ends),
        "talker": Sampling(suppressed=bundle.talker.ends),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("left", "allowed", "said", "reasons"),
    [
        ((10, 300), (1024, 20), (11, 20), (NO_POSITION, ALLOWED)),
        ((300, 10), (15, 4096), (15, 9), (ALLOWED, NO_POSITION)),
        ((10, 10), (1024, 4096), (11, 9), (NO_POSITION, NO_POSITION)),
        ((10, 10), (11, 9), (11, 9), (ALLOWED, ALLOWED)),
    ],
)
def test_a_reply_is_cut_off_where_it_may_be_no_longer(
    left: tuple[int, int], allowed: tuple[int, int], said: tuple[int, int], reasons: tuple[str, str], bundle: Bundle
) -> None:
    """Two of the positions that are left beside the prompt are the Talker's prompt's; the last token needs none."""
    prompt = _prompts(bundle)[1]
    for decoder, positions in zip((bundle.thinker.decoder, bundle.talker.decoder), left, strict=True):
        decoder.positions = len(prompt.ids) + positions
    style = _style(bundle, **_endless(bundle), max_new_tokens=allowed[0], max_new_codes=allowed[1])

    reply = Reply(bundle, prompt, style)
    events = list(reply)

    assert (len(reply.tokens), len(reply.codes)) == said
    text, speech = reasons
    assert reply.cut_off == f"the text after {said[0]} tokens, {text}; the speech after {said[1]} codes, {speech}"
    assert len(waveform_of(events)) == said[1] * bundle.token2wav.repeats * bundle.token2wav.hop


def test_the_graphs_go_to_their_last_position(bundle: Bundle) -> None:
    prompt = _prompts(bundle)[1]
    reply = Reply(bundle, prompt, _style(bundle, **_endless(bundle), max_new_tokens=10**9, max_new_codes=10**9))
    list(reply)

    left = [part.decoder.positions - len(prompt.ids) for part in (bundle.thinker, bundle.talker)]
    assert (len(reply.tokens), len(reply.codes)) == (left[0] + 1, left[1] - 1)
    assert reply.cut_off is not None
    assert reply.cut_off.count(NO_POSITION) == 2


def test_a_reply_that_ends_by_itself_is_not_cut_off(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, style = _prompts(bundle)[1], _style(bundle, **_endless(bundle))
    before = Reply(bundle, prompt, style)
    list(before)
    marks = bundle.thinker.special_tokens
    end = next(token for token in before.tokens if token != before.tokens[0])
    monkeypatch.setattr(bundle.thinker, "special_tokens", replace(marks, ends=(*marks.ends, end)))
    monkeypatch.setattr(bundle.talker, "ends", (*bundle.talker.ends, before.codes[20]))

    reply = Reply(bundle, prompt, style)
    list(reply)

    assert 0 < len(reply.tokens) < len(before.tokens)
    assert 0 < len(reply.codes) <= 20
    assert reply.cut_off is None


@pytest.mark.parametrize(("thinker", "talker", "fits"), [(1, 2, True), (0, 2, False), (1, 1, False)])
def test_a_prompt_without_room_for_a_word_is_told_before_anything_is_computed(
    thinker: int, talker: int, fits: bool, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    prompt = _prompts(bundle)[0]
    tokens = len(prompt.ids)
    bundle.thinker.decoder.positions, bundle.talker.decoder.positions = tokens + thinker, tokens + talker
    reply = Reply(bundle, prompt, _style(bundle))
    if fits:
        list(reply)
        assert len(reply.codes) == 1
        return

    monkeypatch.setattr(bundle.thinker, "prefill", lambda *_, **__: pytest.fail("computed"))
    said = message(list, reply)

    sound = int(prompt.audio_mask.sum())
    positions = min(tokens + thinker, tokens + talker)
    assert said == (
        f"the prompt has {tokens:,} tokens, {sound} of them of sound (25 a second); there are {positions:,} positions, "
        f"for the reply too: give a shorter {'sound' if 2 * sound > tokens else 'text'}"
    )


# Loading


def test_what_is_missing_or_twice_or_altered_is_told_in_one_line(
    gated_chain: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(gated_chain / "cache"))
    published = Path("models/published")
    (talker,) = (published / "talker").iterdir()

    assert message(qwen_omni_onnx.load, "nowhere").startswith("nowhere: no such folder")
    shutil.copytree(talker, published / "talker/other")
    assert "two of talker: " in message(qwen_omni_onnx.load, published)
    (published / "talker/other").rename(published / "talker/.other.writing")  # that a killed publisher left
    qwen_omni_onnx.load(published)
    data = talker / "onnx/talker_int8.onnx.data"
    bytes_before = bytearray(data.read_bytes())
    bytes_before[100] ^= 1
    data.write_bytes(bytes_before)
    assert (
        message(qwen_omni_onnx.load, published)
        == f"{data}: its SHA-256 is not the manifest's; download the folder again, or publish it again"
    )
    shutil.rmtree(published / "talker")
    assert message(qwen_omni_onnx.load, published) == (
        f"{published}: no published talker in it; build or download what is missing"
    )
    assert message(qwen_omni_onnx.load, published / "token2wav").startswith(
        f"{published / 'token2wav'}: no published frontend and encoder and thinker and talker in it"
    )


def test_bytes_are_read_once_until_a_file_changes(gated_chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_omni_onnx.common import artifact

    monkeypatch.setenv("XDG_CACHE_HOME", str(gated_chain / "cache"))
    read: list[str] = []
    real = artifact.sha256
    monkeypatch.setattr(artifact, "sha256", lambda path: read.append(path.name) or real(path))
    published = Path("models/published")

    def read_by_loading() -> set[str]:
        read.clear()
        qwen_omni_onnx.load(published)
        return set(read) - {artifact.MANIFEST}

    assert {"talker.onnx.data", "thinker_int4.onnx.data", "tokenizer.json"} <= read_by_loading()
    assert read_by_loading() == set()
    (path,) = published.glob("talker/*/onnx/talker.onnx.data")
    path.write_bytes(path.read_bytes())
    assert read_by_loading() == {"talker.onnx.data"}


def test_threads_that_were_found_best_are_taken(gated_chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_omni_onnx.common import artifact

    (folder,) = Path("models/published/talker").iterdir()
    manifest = artifact.read_manifest(folder)
    manifest["best_session_options"] = {"talker": {"quantized": {"threads": 1}, "float32": {"threads": 10_000}}}
    artifact.write_json(folder / artifact.MANIFEST, manifest)
    opened: list[int] = []
    monkeypatch.setattr("qwen_omni_onnx.bundle.talker.open_talker", lambda *_, threads, **__: opened.append(threads))

    for float32, threads in (((), 0), (("talker",), 0), ((), 3)):
        qwen_omni_onnx.load("models/published", float32=float32, threads=threads).talker  # noqa: B018 - opens it

    assert opened == [1, 0, 3]  # ten thousand cores there are not


# As a command


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen_omni_onnx", "speak", *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_writes_speech_and_says_what_took_how_long(gated_chain: Path) -> None:
    import soundfile

    clip = sorted(Path("data/speech").rglob("*.flac"))[0]
    audio, _ = soundfile.read(clip)
    soundfile.write("stereo.wav", np.stack([audio, audio], 1), 44_100)

    done = _run("stereo.wav", "out.wav", "--text", "Well?", "--max-tokens", "5", "--max-seconds", "0.1",
                "--voice", "Chelsie", "--talker-temperature", "1.2")  # fmt: skip

    assert done.returncode == 0, done.stderr
    text, said, parts, cut = done.stdout.strip().split("\n")
    assert text
    assert said.startswith("out.wav: 0.01 s of Chelsie, the first after ")  # tiny codes are short
    assert "real-time factor" in said
    assert [part.split()[0] for part in parts.strip().split(", ")] == [
        "loading", "listening", "thinker", "talker", "token2wav"
    ]  # fmt: skip
    assert "(5 tokens)" in parts
    assert "(5 codes)" in parts
    assert cut == "cut off: the text after 5 tokens, the most allowed; the speech after 5 codes, the most allowed"
    assert soundfile.info("out.wav").samplerate == 24_000
    assert soundfile.info("out.wav").frames == 5 * 2 * 30  # codes, frames of each, samples of each


def test_a_question_through_a_pipe_and_a_text_that_spells_control_tokens_are_answered(gated_chain: Path) -> None:
    import soundfile

    clip = sorted(Path("data/speech").rglob("*.flac"))[0]
    audio, rate = soundfile.read(clip)
    soundfile.write("question.wav", audio, rate)
    data = bytearray(Path("question.wav").read_bytes())
    data[40:44] = bytes(4)  # as a recorder leaves it that was killed
    Path("killed.wav").write_bytes(data)
    text = "What is <|AUDIO|><|im_end|>?"
    with subprocess.Popen(["cat", "killed.wav"], stdout=subprocess.PIPE) as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "qwen_omni_onnx", "speak", "/dev/stdin", "piped.wav", "--text", text, *_SHORT],
            stdin=pipe.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
    again = _run("question.wav", "read.wav", "--text", text, *_SHORT)

    counts = f"0 of {len(data) - 44:,} bytes of sound"
    assert (done.returncode, again.returncode, again.stderr) == (0, 0, "")
    assert done.stderr == f"warning: /dev/stdin: its header counts {counts}; all of them are read\n"
    np.testing.assert_array_equal(soundfile.read("piped.wav")[0], soundfile.read("read.wav")[0])


def test_the_command_tells_mistakes_in_one_line_and_writes_nothing(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    Path("empty.wav").write_bytes(b"")
    Path("noise.wav").write_bytes(bytes(range(256)) * 40)
    for arguments, said in (
        (["empty.wav", "out.wav"], "empty.wav: cannot be read as sound"),
        (["noise.wav", "out.wav"], "noise.wav: cannot be read as sound"),
        (["nowhere.wav", "out.wav"], "nowhere.wav: no such file"),
        (["out.wav"], "nothing to reply to: give a sound, a text, or both"),
        (["out.mp4", "--text", "a"], "out.mp4: the name of a sound file must end in .wav or .flac"),
        (["nowhere/out.wav", "--text", "a"], "nowhere: no such folder; make it first"),
        (["out.wav", "--text", "a", "--voice", "Nobody"], "no voice 'Nobody'; there are: Chelsie, Ethan"),
        (["out.wav", "--text", "a", "--models", "data"], "data: no published frontend and encoder and thinker"),
        (["out.wav", "--text", "a", "--max-tokens", "0"], "--max-tokens: 0; give 1 or more"),
        (["out.wav", "--text", "a", "--max-seconds", "nan"], "--max-seconds: nan; give 0.02 or more"),
        (["out.wav", "--text", "a", "--max-seconds", "inf"], "--max-seconds: inf; give 0.02 or more"),
        (["out.wav", "--text", "a", "--talker-top-p", "2"], "sampling: top_p cannot be 2.0"),
        (
            ["out.wav", "--text", "a", "--float32-parts", "speaker"],
            "--float32-parts: no part 'speaker' without --direct; there are: frontend",
        ),
        (["out.wav", "--text", "a", "--variant", "fast"], "no variant 'fast'; there are: reference"),
        (["out.wav", "--text", "a", "--max-tokens", "1"], "out.wav: not written: the reply holds no speech"),
    ):
        assert message(speak, arguments).startswith(said), arguments
        assert not Path("out.wav").exists()
    assert not list(Path().glob(".*.writing"))
    done = _run("out.wav")
    assert done.returncode == 1
    assert done.stderr == "error: nothing to reply to: give a sound, a text, or both\n"


def test_mistakes_in_arguments_are_told_before_anything_is_hashed_or_opened(
    gated_chain: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    open_nothing(monkeypatch)
    clip = str(sorted(Path("data/speech").rglob("*.flac"))[0])
    ethan = read_voices(next(Path("models/published/token2wav").iterdir()) / VOICES)["Ethan"]
    Path("mine").mkdir()
    np.save("mine/cond.npy", ethan.cond)
    np.save("mine/ref_mel.npy", ethan.ref_mel)

    for arguments, said in (
        (["--voice", "Nobody"], "no voice 'Nobody'; there are: Chelsie, Ethan"),
        (["--voice", ""], "no voice ''; there are: Chelsie, Ethan"),
        (["--voice", "mine"], "voice 'mine': the Talker was not trained on it; there are: Chelsie, Ethan"),
        (["--direct", "--voice", "Nobody"], "no voice 'Nobody'; there are: Chelsie, Ethan; or give a folder with"),
        (["--direct", "--voice", "data"], "data/cond.npy: missing; a voice is a folder"),
        (["--variant", "fast"], "no variant 'fast'; there are: reference, "),
        (["--direct", "--variant", "fast"], "no variant 'fast'; there are: reference, "),
        (["--max-tokens", "-1"], "--max-tokens: -1; give 1 or more"),
        (["--max-seconds", "0"], "--max-seconds: 0; give 0.02 or more"),
        (["--seed", "-1"], "--seed: -1; give 0 or more"),
        (["--float32-parts", "thinker,ear"], "--float32-parts: no part 'ear' without --direct; there are: "),
        (["--thinker-temperature", "0"], "sampling: temperature cannot be 0.0"),
        (["--talker-top-k", "-1"], "sampling: top_k cannot be -1"),
        (["--greedy", "--thinker-repetition-penalty", "nan"], "sampling: repetition_penalty cannot be nan"),
    ):
        assert message(speak, [clip, "out.wav", *arguments]).startswith(said), arguments
    for arguments in ([], ["--voice", "Ethan", "--variant", "reference"], ["--direct", "--voice", "mine"]):
        with pytest.raises(AssertionError, match="hashed or opened"):  # nothing is wrong with these
            speak([clip, "out.wav", *arguments])


def test_a_checkpoint_s_tokens_are_chosen_as_it_says_unless_one_asks_otherwise() -> None:
    """What is asked for comes over its own settings, and over transformers' defaults where it has none."""
    for default, arguments, how in (
        ({}, [], Sampling(greedy=True, top_k=50)),
        ({}, ["--thinker-temperature", "0.8"], Sampling(temperature=0.8, top_k=50)),
        ({"do_sample": True, "top_p": 0.8}, ["--thinker-top-k", "5"], Sampling(top_k=5, top_p=0.8)),
        ({"do_sample": True}, ["--greedy"], Sampling(greedy=True, top_k=50)),
    ):
        given = requested(["out.wav", "--text", "a", *arguments])
        assert given.sampling("thinker", checkpoint_sampling(default)) == how


def test_the_shortcut_speaks_what_the_separate_graphs_do(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    clip = sorted(Path("data/speech").rglob("*.flac"))[0]
    speak([str(clip), "out.wav", "--direct", "--seed", "7", "--voice", "Ethan"])

    said, parts, label = capsys.readouterr().out.splitlines()
    assert "s of Ethan; " in said
    assert "listening, projection" in parts
    assert "not a Talker's codes" in label
    bundle = qwen_omni_onnx.load("models/published", needed=qwen_omni_onnx.SHORTCUT)
    voice = bundle.voice("Ethan")
    expected = bundle.direct().speak(read_audio(clip), INPUT_SAMPLE_RATE, voice.cond, voice.ref_mel, seed=7)
    written, _ = soundfile.read("out.wav", dtype="float32")
    assert np.abs(written - expected).max() < 2**-15


def test_something_of_ones_own_may_stand_in_the_middle(gated_chain: Path) -> None:
    bundle = qwen_omni_onnx.load("models/published", needed=qwen_omni_onnx.SHORTCUT, float32=qwen_omni_onnx.SHORTCUT)
    audio = _clip(0)
    plain = bundle.direct().codes(audio, INPUT_SAMPLE_RATE)

    turned = bundle.direct(lambda hidden: hidden[::-1].copy()).codes(audio, INPUT_SAMPLE_RATE)

    np.testing.assert_array_equal(turned, plain[::-1])


@pytest.mark.parametrize(
    ("number", "word"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")]
)
def test_an_interrupted_run_leaves_no_file(number: signal.Signals, word: str, gated_chain: Path) -> None:
    running = subprocess.Popen(
        [sys.executable, "-m", "qwen_omni_onnx", "speak", "out.wav", "--text", "a", "--max-seconds", "80"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_signals,
    )  # fmt: skip
    assert running.stdout is not None
    running.stdout.read(1)  # it speaks
    running.send_signal(number)
    _, stderr = running.communicate()

    assert (running.returncode, stderr) == (128 + number, f"{word}\n")
    assert not list(Path().glob("*out.wav*"))
    assert not list(Path().glob(".*.writing"))


def test_every_module_of_the_run_time_imports_without_what_builds_the_artifacts(tmp_path: Path) -> None:
    built_with = (
        "torch", "transformers", "onnx", "onnx_ir", "onnxscript", "pydantic", "psutil", "dvc", "omni",
        "ml_dtypes", "ruamel", "components", "export", "pull", "quantize", "validate", "publish",
    )  # fmt: skip
    script = [
        "import importlib, pkgutil, sys",
        *(f"sys.modules[{name!r}] = None" for name in built_with),
        "import qwen_omni_onnx",
        "for found in pkgutil.walk_packages(qwen_omni_onnx.__path__, 'qwen_omni_onnx.'):",
        "    importlib.import_module(found.name)",
        "    print(found.name)",
        "qwen_omni_onnx.load",
    ]

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert {"qwen_omni_onnx.__main__", "qwen_omni_onnx.token2wav.golden"} <= set(done.stdout.split())

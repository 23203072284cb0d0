"""The whole chain at the 7B's widths, two layers of each stack, beside transformers' whole model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from replies import waveform_of

import qwen_omni_onnx
from components import component
from export.__main__ import export
from omni.params import load
from pull.synthetic import write
from qwen_omni_onnx.bundle import CHAIN, Bundle
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import compare
from qwen_omni_onnx.reply import Reply, ReplyOptions, build_prompt
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio
from qwen_omni_onnx.text.chat import conversation
from qwen_omni_onnx.token2wav import Window

pytestmark = pytest.mark.slow
SOUND = read_audio(ROOT / "data/speech/held_out/de-m8-fahrrad.flac")
TEXT = "Was sagt sie?"
MAX_NEW_TOKENS, MAX_NEW_CODES = 12, 60


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """Float32 graphs of two layers, laid out as if they had been published; the current directory is theirs."""
    folder, here = tmp_path_factory.mktemp("chain"), Path.cwd()
    os.chdir(folder)
    os.symlink(ROOT / "params.yaml", "params.yaml")
    model = load().model
    for name in CHAIN:
        write(component(name), model.seed, 2, Path("models/source") / name)
        export(name)
        onnx = Path("models/onnx") / name
        with artifact.writing(Path("published") / name, kind="published", component=name) as beside:
            (beside / "onnx").mkdir()
            for path in onnx.iterdir():
                if path.name != artifact.MANIFEST:
                    place = beside / "onnx" if path.suffix in (".onnx", ".data") else beside
                    os.link(path, place / path.name)
    yield qwen_omni_onnx.load("published", float32=CHAIN)
    os.chdir(here)


def test_text_codes_and_sound_are_those_of_transformers(bundle: Bundle) -> None:
    heard = bundle.listener.embed(bundle.listener.features(SOUND, INPUT_SAMPLE_RATE))
    prompts = [
        build_prompt(bundle, conversation(None, 1), [heard]),
        build_prompt(bundle, conversation(TEXT, 0)),
        build_prompt(bundle, conversation(TEXT, 1), [heard]),
    ]
    style = ReplyOptions(
        bundle.voice("Chelsie"), Sampling(greedy=True), Sampling(greedy=True, repetition_penalty=1.05),
        MAX_NEW_TOKENS, MAX_NEW_CODES, seed=5, variant="reference", window=Window(blocks=10**6, first=10**6),
    )  # fmt: skip
    replies = []
    for prompt in prompts:
        reply = Reply(bundle, prompt, style)
        replies.append((reply, waveform_of(list(reply))))

    from reference.whole_model import WholeModel, WholeQuestion

    expected = WholeModel(Path("models/source")).reply(
        [WholeQuestion(SOUND), WholeQuestion(text=TEXT), WholeQuestion(SOUND, TEXT)],
        voice="Chelsie",
        seed=5,
        max_new_tokens=MAX_NEW_TOKENS,
        max_new_codes=MAX_NEW_CODES,
    )

    for (reply, waveform), other in zip(replies, expected, strict=True):
        assert reply.tokens == other.tokens
        assert reply.codes == other.codes
        assert len(set(reply.codes)) > 3
        assert compare(other.waveform[None], waveform[None], 0).sqnr_db > 50

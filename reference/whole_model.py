"""Transformers' whole Qwen2.5-Omni on the weights of a build: what a reply in ONNX is compared with.

The parts under ``models/source`` are loaded as one checkpoint, as a user of transformers would load it. Images and
videos have no part in this: the vision tower is a small random one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast, Qwen2_5OmniForConditionalGeneration, WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import _get_feat_extract_output_lengths
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from omni.quiet import quiet
from qwen_omni_onnx.clock import Clock
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE
from qwen_omni_onnx.text.chat import SYSTEM
from qwen_omni_onnx.token2wav import voice_noise
from qwen_omni_onnx.voices import read_voices

__all__ = ["WholeModel", "WholeQuestion", "WholeReply"]

_PARTS = ("encoder", "thinker", "talker", "token2wav")
_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
}


@dataclass(frozen=True, eq=False)
class WholeQuestion:
    """What a user says.

    Attributes:
        sound: Samples [samples] float32, 16 kHz; None: a text alone.
        text: The text; None: a sound alone.
        system: System prompt; None: the one that Qwen2.5-Omni learned to speak with.
    """

    sound: np.ndarray | None = None
    text: str | None = None
    system: str | None = None


@dataclass(frozen=True, eq=False)
class WholeReply:
    """What ``generate`` makes of a question.

    Attributes:
        tokens: Ids of the text's tokens, with the one that ends it.
        codes: Codec codes of the speech.
        waveform: Samples [samples] float32, 24 kHz.
    """

    tokens: list[int]
    codes: list[int]
    waveform: np.ndarray


class WholeModel:
    """The model, loaded.

    Args:
        source: Folder ``models/source`` of a build.
        dtype: Type of its weights, ``float32`` or ``bfloat16``; transformers keeps token2wav in float32.
    """

    def __init__(self, source: Path, dtype: str = "float32") -> None:
        self._source = source
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(source / "thinker" / TOKENIZER), padding_side="left", pad_token="<|endoftext|>"
        )
        # Images are left out, and transformers would list all that is missing.
        with quiet(), _without_progress_bars(), _as_one_checkpoint(source) as folder:
            made = Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        self._model = made.eval()

    def reply(
        self,
        questions: Sequence[WholeQuestion],
        *,
        voice: str,
        seed: int,
        max_new_tokens: int,
        max_new_codes: int,
        sampled: bool = False,
        clock: Clock | None = None,
    ) -> list[WholeReply]:
        """Return a reply to each question, as ``generate`` gives it to them as a batch; the text is greedy.

        The noise that token2wav begins with is the run-time's own. Codes that token2wav has no sound for are
        suppressed, as the run-time does: trained weights do not choose them.

        Args:
            questions: One a row of the batch.
            voice: Name of the voice that speaks.
            seed: Seed of the noise.
            max_new_tokens: Tokens after which a text is cut off.
            max_new_codes: Codes after which speech is cut off.
            sampled: Sample codes, as ``generate`` does by default, from the same seed; otherwise they are greedy, too.
            clock: Clock that the time of each model is added to: thinker (with the encoder), talker, token2wav.
        """
        clock = clock or Clock()
        model = self._model
        inputs = self._inputs(questions)
        ends = [model.talker.codec_pad_token, model.config.talker_config.tts_codec_end_token_id]
        symbols = model.config.token2wav_config.dit_config.num_embeds
        silent = set(range(symbols, model.config.talker_config.vocab_size)) - set(ends)
        think, talk, vocode = model.thinker.generate, model.talker.generate, model.token2wav.forward
        said: list[list[int]] = []

        def thinking(*arguments: Any, **given: Any) -> Any:
            with clock.running("thinker"):
                return think(*arguments, **given)

        def talking(**given: Any) -> Any:
            with clock.running("talker"):
                return talk(**{**given, "suppress_tokens": [*given["suppress_tokens"], *silent]})

        def vocoding(code: torch.Tensor, **given: Any) -> Any:
            said.append(code[0].tolist())
            with clock.running("token2wav"):
                return vocode(code, **given)

        def drawn(shape: list[int], **_: Any) -> torch.Tensor:
            return torch.from_numpy(voice_noise(seed).standard_normal(shape, np.float32))

        torch.manual_seed(seed)
        with (
            mock.patch.object(model.thinker, "generate", thinking),
            mock.patch.object(model.talker, "generate", talking),
            mock.patch.object(model.token2wav, "forward", vocoding),
            mock.patch.object(torch, "randn", drawn),
            torch.inference_mode(),
            quiet(),
        ):
            sequences, waveforms = model.generate(
                **inputs, speaker=voice, thinker_max_new_tokens=max_new_tokens, thinker_do_sample=False,
                talker_max_new_tokens=max_new_codes, talker_do_sample=sampled, talker_eos_token_id=ends,
            )  # fmt: skip
        if len(questions) == 1:  # comes without a list around it
            waveforms = [waveforms]
        prompt = inputs["input_ids"].shape[1]
        tokens = [row[prompt:].tolist() for row in sequences]
        return [WholeReply(t, c, w.float().numpy()) for t, c, w in zip(tokens, said, waveforms, strict=True)]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without those that control the model."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def understood(self, question: WholeQuestion, max_new_tokens: int) -> str:
        """Return the greedy text of a reply, without speech."""
        inputs = self._inputs([question])
        with torch.inference_mode(), quiet():
            ids = self._model.generate(
                **inputs, generation_mode="text", thinker_max_new_tokens=max_new_tokens, thinker_do_sample=False
            )
        return self.text(ids[0, inputs["input_ids"].shape[1] :].tolist())

    def _inputs(self, questions: Sequence[WholeQuestion]) -> dict[str, torch.Tensor]:
        """Return what transformers' processor makes of the questions: ids padded on the left, features, masks."""
        tokenizer = self._tokenizer
        template = (self._source / "thinker" / CHAT_TEMPLATE).read_text()
        features = self._features([question.sound for question in questions if question.sound is not None])
        lengths: Iterator[int] = iter(())
        if features:
            samples = features["feature_attention_mask"].sum(-1)
            lengths = iter(_get_feat_extract_output_lengths(samples).tolist())
        laid_out = []
        for question in questions:
            parts = [{"type": "audio"}] if question.sound is not None else []
            parts += [{"type": "text", "text": question.text}] if question.text else []
            messages = [
                {"role": "system", "content": [{"type": "text", "text": question.system or SYSTEM}]},
                {"role": "user", "content": parts},
            ]
            whole = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            if question.sound is not None:
                whole = whole.replace("<|AUDIO|>", "<|AUDIO|>" * next(lengths))
            laid_out.append(whole)
        ids = tokenizer(laid_out, return_tensors="pt", padding=True, add_special_tokens=False)
        return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], **features}

    def _features(self, sounds: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Return the sounds' features, of 30 s at least, and their masks; nothing where there is no sound."""
        if not sounds:
            return {}
        settings = json.loads((self._source / "frontend/preprocessor_config.json").read_text())
        heard = WhisperFeatureExtractor(**settings)(
            list(sounds),
            sampling_rate=INPUT_SAMPLE_RATE,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {
            "input_features": heard["input_features"].to(self._model.dtype),
            "feature_attention_mask": heard["attention_mask"],
        }


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Let transformers show no progress bars; it takes those of huggingface_hub away with its own."""
    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


@contextlib.contextmanager
def _as_one_checkpoint(source: Path) -> Iterator[Path]:
    """Lay the parts out as one checkpoint, whose shards are links."""
    config = json.loads((source / "thinker/config.json").read_text())
    own = {part: json.loads((source / part / "config.json").read_text()) for part in _PARTS}  # each part's own depth
    config["thinker_config"]["audio_config"] = own["encoder"]["thinker_config"]["audio_config"]
    config |= {key: own[key.removesuffix("_config")][key] for key in ("talker_config", "token2wav_config")}
    config["thinker_config"] |= {"vision_config": _VISION, "vision_start_token_id": 151652}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards: dict[str, str] = {}
        for part in _PARTS:
            os.symlink((source / part / "model.safetensors").resolve(), folder / f"{part}.safetensors")
            with safe_open(folder / f"{part}.safetensors", "pt") as file:
                shards |= dict.fromkeys(file.keys(), f"{part}.safetensors")
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        voices = {
            name: {
                "bos_token": voice.bos_token,
                "cond": torch.from_numpy(voice.cond),
                "ref_mel": torch.from_numpy(voice.ref_mel),
            }
            for name, voice in read_voices(source / "token2wav" / VOICES).items()
        }
        torch.save(voices, folder / "spk_dict.pt")
        yield folder

"""Transformers' whole Qwen2.5-Omni on the weights of a build, greedy and with given noise."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.reply import AudioChunk, Event
from qwen_omni_onnx.text.chat import SYSTEM
from qwen_omni_onnx.token2wav import voice_noise
from qwen_omni_onnx.voices import read_voices

__all__ = ["generate", "waveform_of"]

_PARTS = ("encoder", "thinker", "talker", "token2wav")
_VISION = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
}
Asked = tuple[np.ndarray | None, str | None, str | None]  # a sound, a text, a system prompt other than the usual one


def generate(
    source: Path,
    questions: list[Asked],
    *,
    voice: str,
    seed: int,
    max_new_tokens: int,
    max_new_codes: int,
    sounding: int,
) -> list[tuple[list[int], list[int], np.ndarray]]:
    """Return tokens, codes and waveform of each reply, as ``Qwen2_5OmniForConditionalGeneration.generate`` gives them.

    Args:
        source: ``models/source``.
        questions: one a row of the batch.
        voice: who speaks.
        seed: of the noise.
        max_new_tokens: of each reply.
        max_new_codes: of each reply.
        sounding: codes from this one on have no sound; what ends speech aside, they are suppressed.
    """
    import torch

    model = _model(source)
    inputs = _inputs(source, questions)
    said: list[list[int]] = []
    talk, sound = model.talker.generate, model.token2wav.forward

    def talk_of_sound(**given: Any) -> Any:
        ends = {model.talker.codec_pad_token, *given["eos_token_id"]}
        silent = set(range(sounding, model.config.talker_config.vocab_size)) - ends
        return talk(**{**given, "suppress_tokens": [*given["suppress_tokens"], *silent]})

    def sound_of(code: Any, **given: Any) -> Any:
        said.append(code[0].tolist())
        return sound(code, **given)

    def drawn(shape: list[int], **_: Any) -> Any:
        return torch.from_numpy(voice_noise(seed).standard_normal(shape, np.float32))

    with (
        mock.patch.object(model.talker, "generate", talk_of_sound),
        mock.patch.object(model.token2wav, "forward", sound_of),
        mock.patch.object(torch, "randn", drawn),
        torch.inference_mode(),
    ):
        sequences, waveforms = model.generate(
            **inputs, speaker=voice, thinker_max_new_tokens=max_new_tokens, thinker_do_sample=False,
            talker_max_new_tokens=max_new_codes, talker_do_sample=False,
            talker_eos_token_id=[model.talker.codec_pad_token, model.config.talker_config.tts_codec_end_token_id],
        )  # fmt: skip
    asked = inputs["input_ids"].shape[1]
    tokens = [row[asked:].tolist() for row in sequences]
    return [(t, c, w.numpy()) for t, c, w in zip(tokens, said, waveforms, strict=True)]


def waveform_of(events: list[Event]) -> np.ndarray:
    """Return the sound in what came of a reply."""
    return np.concatenate([event.waveform for event in events if isinstance(event, AudioChunk)])


def _model(source: Path) -> Any:
    """Load the parts as one checkpoint, as a user of transformers would."""
    import torch
    from safetensors import safe_open
    from transformers import Qwen2_5OmniForConditionalGeneration

    config = json.loads((source / "thinker/config.json").read_text())
    told = {part: json.loads((source / part / "config.json").read_text()) for part in _PARTS}  # of its own depth each
    config["thinker_config"]["audio_config"] = told["encoder"]["thinker_config"]["audio_config"]
    config |= {key: told[key.removesuffix("_config")][key] for key in ("talker_config", "token2wav_config")}
    config["thinker_config"] |= {"vision_config": _VISION, "vision_start_token_id": 151652}  # has no part in this
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
        return Qwen2_5OmniForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def _inputs(source: Path, questions: list[Asked]) -> dict[str, Any]:
    """Return what transformers' processor would make of the questions: ids padded on the left, features, masks."""
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor
    from transformers.models.qwen2_5_omni.processing_qwen2_5_omni import _get_feat_extract_output_lengths

    settings = json.loads((source / "frontend/preprocessor_config.json").read_text())
    extractor = WhisperFeatureExtractor(**settings)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "thinker" / TOKENIZER), padding_side="left", pad_token="<|endoftext|>"
    )
    template = (source / "thinker" / CHAT_TEMPLATE).read_text()
    sounds = [sound for sound, _, _ in questions if sound is not None]
    heard = extractor(
        sounds, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt"
    )
    lengths = iter(_get_feat_extract_output_lengths(heard["attention_mask"].sum(-1)).tolist())
    laid_out = []
    for sound, text, system in questions:
        parts: list[dict[str, str]] = [{"type": "audio"}] if sound is not None else []
        parts += [{"type": "text", "text": text}] if text else []
        messages = [
            {"role": "system", "content": [{"type": "text", "text": system or SYSTEM}]},
            {"role": "user", "content": parts},
        ]
        whole = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        laid_out.append(whole.replace("<|AUDIO|>", "<|AUDIO|>" * next(lengths)) if sound is not None else whole)
    ids = tokenizer(laid_out, return_tensors="pt", padding=True, add_special_tokens=False)
    return {
        "input_ids": ids["input_ids"],
        "attention_mask": ids["attention_mask"],
        "input_features": heard["input_features"],
        "feature_attention_mask": heard["attention_mask"],
    }

"""Transformers' own token2wav: a golden case holds what it gives at every step of the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniToken2WavConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel

from omni.component import Config
from omni.params import ExportParams
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.golden import EVALUATIONS
from reference.original import ATTENTION, Original, to_bfloat16

__all__ = ["ORIGINAL"]


def _tensor_name(parameter: str) -> str:
    return f"token2wav.{parameter}"


def _make(config: Config) -> Qwen2_5OmniToken2WavModel:
    section = Qwen2_5OmniToken2WavConfig(**config["token2wav_config"])
    section._attn_implementation = ATTENTION
    return Qwen2_5OmniToken2WavModel(section)


@contextlib.contextmanager
def _remembering(encoder: torch.nn.Module) -> Iterator[None]:
    """Let a module that is given the same again give the same again, without computing it.

    The speaker's reference goes through the speaker encoder at every evaluation of the ODE, most of the time of a run.
    """
    forward = encoder.forward
    seen: list[torch.Tensor] = []

    def remembered(given: torch.Tensor) -> torch.Tensor:
        if not (seen and seen[0].dtype == given.dtype and torch.equal(seen[0], given)):
            seen[:] = [given, forward(given)]
        return seen[1]

    encoder.forward = remembered
    try:
        yield
    finally:
        del encoder.forward  # the class's own is there again


def _record(model: Any, fed: Mapping[str, np.ndarray], export: ExportParams) -> dict[str, np.ndarray]:
    """Run transformers' model row by row (it takes no batch of unequal rows); return what a golden case holds.

    The velocity of ``EVALUATIONS``, each of them from the noise; the mel frames; the waveform. Rows are zero beyond
    their lengths.
    """
    vocoder, repeats = model.code2wav_bigvgan_model, model.code2wav_dit_model.repeats
    found = _frames(model, fed, export)
    batch, frames, _ = found["mel"].shape
    hop = int(np.prod(vocoder.config.upsample_rates))
    waveform = np.zeros((batch, frames * hop), np.float32)
    for row, mel, length in zip(waveform, found["mel"], fed["code_lens"], strict=True):
        inside = repeats * int(length)
        with torch.inference_mode():
            row[: inside * hop] = vocoder(torch.from_numpy(mel[:inside].T[None])).numpy()
    return {**found, "waveform": waveform}


def _frames(model: Any, fed: Mapping[str, np.ndarray], export: ExportParams) -> dict[str, np.ndarray]:
    """Return a golden case's velocity [evaluations, batch, frames, mels] and mel frames [batch, frames, mels]."""
    dit, repeats = model.code2wav_dit_model, model.code2wav_dit_model.repeats
    batch, frames, mels = fed["noise"].shape
    velocity = np.zeros((len(EVALUATIONS), batch, frames, mels), np.float32)
    mel = np.zeros((batch, frames, mels), np.float32)
    declared = variants({name: variant.model_dump() for name, variant in export.variants.items()})
    times = torch.from_numpy(declared[REFERENCE].times()[list(EVALUATIONS)])
    for row, length in enumerate(fed["code_lens"]):
        inside = repeats * int(length)
        codes, cond, reference, noise = (
            torch.from_numpy(fed[name][row : row + 1]) for name in ("codes", "cond", "ref_mel", "noise")
        )
        codes, noise = codes[:, :length], noise[:, :inside]
        with torch.inference_mode(), _remembering(dit.input_embed.spk_encoder):
            for number, time in enumerate(times):
                both = dit(
                    hidden_states=noise,
                    condition_vector=reference,
                    speaker_embedding=cond[:, None].repeat(1, inside, 1),
                    quantized_code=codes,
                    time_step=time,
                )
                guided, null = both.chunk(2)
                velocity[number, row, :inside] = (guided + (guided - null) * export.guidance_scale).numpy()
            mel[row, :inside] = _sampled(dit, cond, reference, codes, noise, export)[0].T.numpy()
    return {"velocity": velocity, "mel": mel}


def _lower(model: Any) -> None:
    """Let the DiT compute in bfloat16, which its checkpoint is not stored in: as a yardstick only.

    Times and the state of the ODE stay float32. Rounded to bfloat16, a time is another time, and what that costs is no
    noise of the network's arithmetic.
    """
    dit = model.code2wav_dit_model
    to_bfloat16(dit)

    rounded = ("hidden_states", "condition_vector", "speaker_embedding")

    def enter(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, given | {name: given[name].to(torch.bfloat16) for name in rounded}

    dit.register_forward_pre_hook(enter, with_kwargs=True)
    dit.time_embed.time_mlp[0].register_forward_pre_hook(lambda _, args: (args[0].to(torch.bfloat16),))
    dit.register_forward_hook(lambda _, args, velocity: velocity.float())


def _sampled(
    dit: Any,
    cond: torch.Tensor,
    reference: torch.Tensor,
    codes: torch.Tensor,
    noise: torch.Tensor,
    export: ExportParams,
) -> torch.Tensor:
    """Run transformers' own ``sample`` from a given noise, which it would draw itself; return mel [1, 80, frames]."""
    points = export.variants[REFERENCE].intervals + 1
    drawn, torch.randn = torch.randn, lambda *args, **kwargs: noise.clone()
    try:
        return dit.sample(cond, reference, codes, num_steps=points, guidance_scale=export.guidance_scale)
    finally:
        torch.randn = drawn


ORIGINAL = Original(
    make=_make,
    tensor_name=_tensor_name,
    record=_record,
    lower=_lower,
    record_yardstick=_frames,
)

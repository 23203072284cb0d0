"""Transformers' token2wav as the reference: a golden case holds velocity, mel frames and waveform."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniToken2WavConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel

from omni.component import Config
from omni.params import SampledParams
from qwen_omni_onnx.sampler import REFERENCE, variants
from qwen_omni_onnx.token2wav.golden import EVALUATIONS, FINER
from reference.original import ATTENTION, Original, to_bfloat16

__all__ = ["ORIGINAL"]


def _tensor_name(parameter: str) -> str:
    return f"token2wav.{parameter}"


def _make(config: Config) -> Qwen2_5OmniToken2WavModel:
    section = Qwen2_5OmniToken2WavConfig(**config["token2wav_config"])
    section._attn_implementation = ATTENTION
    return Qwen2_5OmniToken2WavModel(section)


@contextlib.contextmanager
def _cached_output(encoder: torch.nn.Module) -> Iterator[None]:
    """Cache a module's last output, and return it as long as the input stays the same.

    Transformers runs the speaker encoder on the same reference mel at every evaluation of the ODE, which takes most of
    the time of a run.
    """
    forward = encoder.forward
    cache: list[torch.Tensor] = []

    def cached_forward(reference: torch.Tensor) -> torch.Tensor:
        if not (cache and cache[0].dtype == reference.dtype and torch.equal(cache[0], reference)):
            cache[:] = [reference, forward(reference)]
        return cache[1]

    encoder.forward = cached_forward
    try:
        yield
    finally:
        del encoder.forward  # restores the method of the class


def _record(model: Any, inputs: Mapping[str, np.ndarray], export: SampledParams) -> dict[str, np.ndarray]:
    """Return the arrays of a golden case: velocity, mel frames and waveform, zero beyond each row's length.

    The velocity is that of ``EVALUATIONS``, each evaluated at the noise. Transformers runs row by row, because it takes
    no batch of rows of unequal length.
    """
    vocoder, repeats = model.code2wav_bigvgan_model, model.code2wav_dit_model.repeats
    arrays = _frames(model, inputs, export)
    batch, frames, _ = arrays["mel"].shape
    hop = int(np.prod(vocoder.config.upsample_rates))
    waveform = np.zeros((batch, frames * hop), np.float32)
    for row, mel, length in zip(waveform, arrays["mel"], inputs["code_lens"], strict=True):
        inside = repeats * int(length)
        with torch.inference_mode():
            row[: inside * hop] = vocoder(torch.from_numpy(mel[:inside].T[None])).numpy()
    return {**arrays, "waveform": waveform}


def _record_finer(model: Any, inputs: Mapping[str, np.ndarray], export: SampledParams) -> dict[str, np.ndarray]:
    """Return the solution of the ODE that variants of the solver are compared with: of one case, because it takes long.

    These are the mel frames [batch, frames, mels] after ``FINER`` times as many intervals as the reference's.
    """
    points = FINER * export.variants[REFERENCE].intervals + 1
    return {"mel_finer": _solved(model, inputs, export, points)}


def _frames(model: Any, inputs: Mapping[str, np.ndarray], export: SampledParams) -> dict[str, np.ndarray]:
    """Return a golden case's velocity [evaluations, batch, frames, mels] and mel frames [batch, frames, mels]."""
    dit, repeats = model.code2wav_dit_model, model.code2wav_dit_model.repeats
    batch, frames, mels = inputs["noise"].shape
    velocity = np.zeros((len(EVALUATIONS), batch, frames, mels), np.float32)
    declared = variants({name: variant.model_dump() for name, variant in export.variants.items()})
    times = torch.from_numpy(declared[REFERENCE].times()[list(EVALUATIONS)])
    for row, (codes, cond, reference, noise) in enumerate(_rows(inputs, repeats)):
        inside = noise.shape[1]
        with torch.inference_mode(), _cached_output(dit.input_embed.spk_encoder):
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
    points = export.variants[REFERENCE].intervals + 1
    return {"velocity": velocity, "mel": _solved(model, inputs, export, points)}


def _solved(model: Any, inputs: Mapping[str, np.ndarray], export: SampledParams, points: int) -> np.ndarray:
    """Return the mel frames [batch, frames, mels] that the ODE's solution over some points of time has."""
    dit = model.code2wav_dit_model
    found = np.zeros(inputs["noise"].shape, np.float32)
    for mel, (codes, cond, reference, noise) in zip(found, _rows(inputs, dit.repeats), strict=True):
        with torch.inference_mode(), _cached_output(dit.input_embed.spk_encoder):
            solved = _sampled(dit, cond, reference, codes, noise, points, export.guidance_scale)
            mel[: noise.shape[1]] = solved[0].T.numpy()
    return found


def _rows(inputs: Mapping[str, np.ndarray], repeats: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield codes, speaker, reference and noise of each row of a golden case, without what fills it up."""
    for row, length in enumerate(inputs["code_lens"]):
        codes, cond, reference, noise = (
            torch.from_numpy(inputs[name][row : row + 1]) for name in ("codes", "cond", "ref_mel", "noise")
        )
        yield codes[:, :length], cond, reference, noise[:, : repeats * int(length)]


def _lower(model: Any) -> None:
    """Cast the DiT to bfloat16, for the yardstick only: its checkpoint is stored in float32.

    Times and the state of the ODE stay float32: the error of a time rounded to bfloat16 is not one of the network's
    arithmetic.
    """
    dit = model.code2wav_dit_model
    to_bfloat16(dit)

    rounded = ("hidden_states", "condition_vector", "speaker_embedding")

    def cast(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {name: kwargs[name].to(torch.bfloat16) for name in rounded}

    dit.register_forward_pre_hook(cast, with_kwargs=True)
    dit.time_embed.time_mlp[0].register_forward_pre_hook(lambda _, args: (args[0].to(torch.bfloat16),))
    dit.register_forward_hook(lambda _, args, velocity: velocity.float())


def _sampled(
    dit: Any,
    cond: torch.Tensor,
    reference: torch.Tensor,
    codes: torch.Tensor,
    noise: torch.Tensor,
    points: int,
    guidance_scale: float,
) -> torch.Tensor:
    """Run transformers' ``sample`` on this noise instead of its own; return the mel frames [1, 80, frames]."""
    original_randn, torch.randn = torch.randn, lambda *args, **kwargs: noise.clone()
    try:
        return dit.sample(cond, reference, codes, num_steps=points, guidance_scale=guidance_scale)
    finally:
        torch.randn = original_randn


ORIGINAL = Original(
    make=_make,
    tensor_name=_tensor_name,
    record=_record,
    record_largest=_record_finer,
    lower=_lower,
    record_yardstick=_frames,
)

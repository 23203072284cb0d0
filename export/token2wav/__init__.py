"""token2wav's three graphs, and transformers' own token2wav beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniToken2WavConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel

from components.token2wav import CONDITION, STEP, VOCODER, dit_config, samples_per_frame
from export.exporter import Exporter
from export.token2wav.bigvgan import TRACED as VOCODER_TRACED
from export.token2wav.condition import TRACED as CONDITION_TRACED
from export.token2wav.step import TRACED as STEP_TRACED
from omni.component import Config
from omni.params import ExportParams
from speech.sampler import REFERENCE, evaluation_times, variants
from speech.token2wav.golden import EVALUATIONS
from speech.token2wav.runtime import SETTINGS, settings

__all__ = ["EXPORTER"]


def _tensor_name(parameter: str) -> str:
    return f"token2wav.{parameter}"


def _original(config: Config) -> Qwen2_5OmniToken2WavModel:
    section = Qwen2_5OmniToken2WavConfig(**config["token2wav_config"])
    section._attn_implementation = "sdpa"
    return Qwen2_5OmniToken2WavModel(section)


def _record(model: Any, fed: Mapping[str, np.ndarray], export: ExportParams) -> dict[str, np.ndarray]:
    """Run transformers' model row by row (it takes no batch of unequal rows); return what a golden case holds.

    The velocity of ``EVALUATIONS``, each of them from the noise; the mel frames; the waveform. Rows are zero beyond
    their lengths.
    """
    dit, repeats = model.code2wav_dit_model, model.code2wav_dit_model.repeats
    batch, frames, mels = fed["noise"].shape
    hop = int(np.prod(model.code2wav_bigvgan_model.config.upsample_rates))
    velocity = np.zeros((len(EVALUATIONS), batch, frames, mels), np.float32)
    mel, waveform = np.zeros((batch, frames, mels), np.float32), np.zeros((batch, frames * hop), np.float32)
    declared = variants({name: variant.model_dump() for name, variant in export.variants.items()})
    times = torch.from_numpy(declared[REFERENCE].times()[list(EVALUATIONS)])
    for row, length in enumerate(fed["code_lens"]):
        inside = repeats * int(length)
        codes, cond, reference, noise = (
            torch.from_numpy(fed[name][row : row + 1]) for name in ("codes", "cond", "ref_mel", "noise")
        )
        codes, noise = codes[:, :length], noise[:, :inside]
        with torch.inference_mode():
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
            found = _sampled(dit, cond, reference, codes, noise, export)
            mel[row, :inside] = found[0].T.numpy()
            waveform[row, : inside * hop] = model.code2wav_bigvgan_model(found).numpy()
    return {"velocity": velocity, "mel": mel, "waveform": waveform}


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


def _files(config: Config, export: ExportParams) -> dict[str, Mapping[str, Any]]:
    declared = {name: variant.model_dump() for name, variant in export.variants.items()}
    times = evaluation_times(variants(declared).values())
    said = settings(dit_config(config), samples_per_frame(config), times, declared, export.guidance_scale)
    return {SETTINGS: said}


EXPORTER = Exporter(
    graphs={CONDITION: CONDITION_TRACED, STEP: STEP_TRACED, VOCODER: VOCODER_TRACED},
    original=_original,
    tensor_name=_tensor_name,
    record=_record,
    files=_files,
)

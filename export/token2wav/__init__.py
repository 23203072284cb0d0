"""token2wav's three graphs, and the file that says how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.token2wav import CONDITION, STEP, VOCODER, dit_config, samples_per_frame
from export.exporter import Exporter
from export.token2wav.bigvgan import TRACED as VOCODER_TRACED
from export.token2wav.condition import TRACED as CONDITION_TRACED
from export.token2wav.step import TRACED as STEP_TRACED
from omni.component import Config
from omni.params import ExportParams
from qwen_omni_onnx.sampler import evaluation_times, variants
from qwen_omni_onnx.token2wav.runtime import SETTINGS, settings

__all__ = ["EXPORTER"]


def _files(config: Config, export: ExportParams) -> dict[str, Mapping[str, Any]]:
    declared = {name: variant.model_dump() for name, variant in export.variants.items()}
    times = evaluation_times(variants(declared).values())
    said = settings(dit_config(config), samples_per_frame(config), times, declared, export.guidance_scale)
    return {SETTINGS: said}


EXPORTER = Exporter(
    graphs={CONDITION: CONDITION_TRACED, STEP: STEP_TRACED, VOCODER: VOCODER_TRACED},
    files=_files,
)

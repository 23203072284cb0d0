"""token2wav's three graphs, and the file that says how they are run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.token2wav import dit_config, samples_per_frame
from export.bigvgan import TRACED as VOCODER_GRAPHS
from export.dit import TRACED as DIT_GRAPHS
from export.exporter import Exporter
from omni.component import Config
from omni.params import SampledParams
from qwen_omni_onnx.sampler import evaluation_times, variants
from qwen_omni_onnx.token2wav.runtime import SETTINGS, settings

__all__ = ["EXPORTER"]


def _files(config: Config, export: SampledParams) -> dict[str, Mapping[str, Any]]:
    declared = {name: variant.model_dump() for name, variant in export.variants.items()}
    times = evaluation_times(variants(declared).values())
    said = settings(dit_config(config), samples_per_frame(config), times, declared, export.guidance_scale)
    return {SETTINGS: said}


EXPORTER = Exporter(graphs={**DIT_GRAPHS, **VOCODER_GRAPHS}, files=_files)

"""The projection in PyTorch: two linear layers of transformers' own Talker, one after the other."""

from __future__ import annotations

import torch
from transformers import Qwen2_5OmniTalkerForConditionalGeneration
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

from components.projection import GRAPHS
from export.exporter import Exporter, Traced
from omni.component import Config

__all__ = ["EXPORTER"]


class Projection(torch.nn.Module):
    """hidden_states [batch, seq, Thinker's width] -> audio_logits [batch, seq, codes], both float32."""

    def __init__(self, talker: Qwen2_5OmniTalkerForConditionalGeneration) -> None:
        super().__init__()
        self.thinker_to_talker_proj = talker.thinker_to_talker_proj
        self.codec_head = talker.codec_head

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.codec_head(self.thinker_to_talker_proj(hidden_states))


def _build(config: Config) -> Projection:
    """Build the module with the widths of ``config.json``; the Talker's own layers, which are not run, are left out."""
    no_layers = {"num_hidden_layers": 0, "layer_types": None}  # transformers 5 writes a type for each
    talker = Qwen2_5OmniTalkerConfig(**{**config["talker_config"], **no_layers})
    return Projection(Qwen2_5OmniTalkerForConditionalGeneration(talker))


def _tensor_name(parameter: str) -> str:
    return f"talker.{parameter}"


EXPORTER = Exporter({GRAPHS: Traced(lambda config, _: _build(config), _tensor_name)})

"""The constructed graphs beside a trace of transformers' own modules: they share nothing but the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder as tiny
import torch

from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run


class _Whole(torch.nn.Module):
    """Embeddings to logits and hidden states, all tokens at once."""

    def __init__(self, module: Any, name: str) -> None:
        super().__init__()
        self.module, self.talks = module, name == "talker"

    def forward(self, inputs_embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fed = self.module.thinker_to_talker_proj(inputs_embeds) if self.talks else inputs_embeds
        hidden = self.module.model(inputs_embeds=fed, use_cache=False).last_hidden_state
        return (self.module.codec_head if self.talks else self.module.lm_head)(hidden), hidden


@pytest.mark.parametrize("name", [pytest.param("thinker", marks=pytest.mark.slow), "talker"])
def test_a_traced_graph_gives_what_the_constructed_one_gives(name: str, tmp_path: Path) -> None:
    checkpoint = tiny.write_source(name, tiny.config(num_hidden_layers=2), tmp_path)
    decoder = tiny.open_decoder(tiny.write_graph(name, checkpoint, tmp_path / "onnx"))
    module = tiny.talker_module(checkpoint) if name == "talker" else tiny.thinker_module(checkpoint)
    seq = torch.export.Dim("seq", min=2, max=512)
    traced = torch.onnx.export(
        _Whole(module, name).eval(), (torch.zeros(1, 7, decoder.width),), dynamo=True, verbose=False,
        dynamic_shapes={"inputs_embeds": {1: seq}}, output_names=["logits", "hidden_states"],
    )  # fmt: skip
    assert traced is not None
    traced.save(tmp_path / "traced.onnx")
    embeds = np.random.default_rng(0).standard_normal((1, 23, decoder.width), np.float32)

    logits, hidden = decoder.forward(embeds, np.array([23]))

    theirs = run(open_session(tmp_path / "traced.onnx", threads=1), {"inputs_embeds": embeds})
    assert sqnr_db(theirs["logits"], logits) >= 100
    assert sqnr_db(theirs["hidden_states"], hidden) >= 100

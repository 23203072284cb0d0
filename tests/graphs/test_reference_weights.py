"""The reference reads a decoder's weights layer by layer, and gives the bits of one that holds them all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from omni.checkpoint import Checkpoint
from qwen_omni_onnx.common import golden
from reference.original import to_bfloat16
from reference.originals import original
from reference.weights import load_weights, stream_weights


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_no_more_than_one_layer_is_in_memory_and_the_bits_are_the_same(
    name: str, bfloat16: bool, chain_once: Path
) -> None:
    checkpoint, implementation = Checkpoint(chain_once / "models/source" / name), original(name)
    assert implementation.run is not None
    streamed, whole = (implementation.make(checkpoint.config).eval() for _ in range(2))
    most = 0

    def read(parameter: str) -> np.ndarray:
        nonlocal most
        layer = parameter.rpartition(".")[0]
        held = {owner: parameter for owner, parameter in streamed.named_parameters() if not parameter.is_meta}
        assert {owner.rpartition(".")[0] for owner in held} <= {layer}
        array = checkpoint.read(implementation.tensor_name(parameter))
        most = max(most, array.size)
        return array

    stream_weights(streamed, read)
    load_weights(whole, lambda parameter: checkpoint.read(implementation.tensor_name(parameter)))
    assert not any(parameter.is_meta for parameter in whole.parameters())
    if bfloat16:
        to_bfloat16(streamed)
        to_bfloat16(whole)

    recorded = golden.read(chain_once / "models/reference" / name / golden.FILE)
    for _, ports in recorded:
        for expected, found in zip(implementation.run(whole, ports), implementation.run(streamed, ports), strict=True):
            np.testing.assert_array_equal(found, expected)
        if not bfloat16:
            np.testing.assert_array_equal(expected, ports["hidden_states"])
        assert all(parameter.is_meta for parameter in streamed.parameters())
    assert most == max(parameter.numel() for parameter in streamed.parameters())


def test_parameters_of_any_type_are_read(chain_once: Path) -> None:
    values = np.array([[1.5, -2.0]])
    for array in (values, values.astype(np.float16), values.astype("float8_e4m3fn")):
        layer = torch.nn.Linear(2, 1, bias=False, device="meta")
        stream_weights(layer, {"weight": array}.__getitem__)
        assert layer(torch.tensor([2.0, 1.0])).tolist() == [1.0]

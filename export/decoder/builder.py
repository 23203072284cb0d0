"""The graph of a Qwen2 decoder, constructed node by node: nothing is traced, and no weight is in memory.

Per layer, with h the normalized and x the residual stream, both [batch, seq, hidden]:

    h, x = norm(x + down), x + down         SkipSimplifiedLayerNormalization gives both
    a    = attention(h Wqkv + b)            GroupQueryAttention: rotary embedding, cache and causal mask inside
    h, x = norm(x + a Wo), x + a Wo
    down = (silu(h Wgate) * (h Wup)) Wdown

The operators are ONNX Runtime's own (com.microsoft), which its CPU kernels run without a copy of the cache.

The head reads the tokens that ``logits_to_keep`` names and no others, [batch, kept, hidden]: five minutes of sound are
7,500 tokens, whose logits would take 4.6 GB, and only the last one's choose the reply.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from export.decoder.graph import CONTRIB, Construction
from export.decoder.linear import Linear, Schemes
from export.decoder.weights import Matrix, vector
from omni.checkpoint import Checkpoint
from omni.decoder import Decoder, DecoderSizes, past_names, present_names

__all__ = ["FLOAT32", "build"]

FLOAT32 = Schemes()


def build(decoder: Decoder, checkpoint: Checkpoint, schemes: Schemes = FLOAT32) -> ir.Model:
    """Return the graph; its weights are read, and quantized, when it is written (``omni.streamed.save_graph``).

    Args:
        decoder: which.
        checkpoint: its tensors.
        schemes: how matrices are stored.

    Raises:
        UserError: the configuration asks for what the graph does not do, the checkpoint lacks a tensor, or ``schemes``
            names what is not there.
    """
    return _Builder(decoder, checkpoint, schemes).model()


class _Builder:
    def __init__(self, decoder: Decoder, checkpoint: Checkpoint, schemes: Schemes) -> None:
        self.decoder, self.checkpoint, self.schemes = decoder, checkpoint, schemes
        self.size = decoder.sizes(checkpoint.config)
        self.graph = Construction(decoder.graph, decoder.contracts(checkpoint.config)[decoder.graph])
        self.linear = Linear(self.graph, schemes)
        self.results: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        embeds = self.graph.input("inputs_embeds")
        if self.decoder.projection:
            embeds = self._layer(embeds, self.decoder.projection, bias=True)
        hidden = self._stack(embeds)
        head = self.decoder.head
        largest = self.size.inner * self.size.hidden  # the largest matrix that there is anyway
        weight = Matrix(self.checkpoint, (self.decoder.head_weight(self.checkpoint.config),))
        logits = self.linear.in_slices(self._kept(hidden), weight, head, largest)
        self.schemes.require_used(self.linear.names)
        return self.graph.finish({"logits": logits, "hidden_states": hidden, **self.results})

    def _stack(self, residual: ir.Value) -> ir.Value:
        """Append all layers and the final normalization."""
        lengths = self._lengths()
        tables = [self.graph.constant(name, table) for name, table in rotary_tables(self.size).items()]
        added: ir.Value | None = None
        for number in range(self.size.layers):
            module = f"model.layers.{number}"
            normed, residual = self._norm(added, residual, f"{module}.input_layernorm")
            attended = self._attention(normed, number, lengths, tables)
            added = self._layer(attended, f"{module}.self_attn.o_proj")
            normed, residual = self._norm(added, residual, f"{module}.post_attention_layernorm")
            added = self._feed_forward(normed, f"{module}.mlp")
        hidden, unread = self._norm(added, residual, "model.norm")
        self.graph.unused(unread)
        return hidden

    def _kept(self, hidden: ir.Value) -> ir.Value:
        """Return the hidden states of the tokens whose logits are wanted, [batch, kept, hidden]; -1 is the last one."""
        module = "logits_to_keep"
        last_axis = self.graph.constant(f"{module}.last_axis", np.array([-1], np.int64))
        places = self.graph.op("Unsqueeze", [self.graph.input(module), last_axis], module, dtype=ir.DataType.INT64)
        kept = self.graph.op("GatherND", [hidden, places], module, attributes={"batch_dims": 1})
        kept.shape = ir.Shape(["batch", "kept", self.size.hidden])
        return kept

    def _attention(self, normed: ir.Value, number: int, lengths: list[ir.Value], tables: list[ir.Value]) -> ir.Value:
        """Return the heads' values [batch, seq, heads * head_dim]; note the present keys and values."""
        module = f"model.layers.{number}.self_attn"
        matrix = self._matrix(f"{module}.qkv_proj")
        biases = tuple(name.removesuffix("weight") + "bias" for name in matrix.names)
        packed = self.linear(normed, matrix, f"{module}.qkv_proj", biases)
        past = [self.graph.input(name) for name in past_names(number)]
        attended, *present = self.graph.ops(
            "GroupQueryAttention",
            [packed, None, None, *past, *lengths, *tables],
            module,
            3,
            domain=CONTRIB,
            attributes={
                "num_heads": self.size.heads,
                "kv_num_heads": self.size.kv_heads,
                "scale": self.size.head_dim**-0.5,
                "do_rotary": 1,
                "rotary_interleaved": 0,
            },
        )
        attended.shape = ir.Shape(["batch", "seq", self.size.heads * self.size.head_dim])
        self.results |= zip(present_names(number), present, strict=True)
        return attended

    def _feed_forward(self, normed: ir.Value, module: str) -> ir.Value:
        gate, up = (self._layer(normed, f"{module}.{name}_proj") for name in ("gate", "up"))
        silu = self.graph.op("Mul", [gate, self.graph.op("Sigmoid", [gate], module)], module)
        gated = self.graph.op("Mul", [silu, up], module)
        gated.shape = up.shape
        return self._layer(gated, f"{module}.down_proj")

    def _norm(self, added: ir.Value | None, residual: ir.Value, module: str) -> tuple[ir.Value, ir.Value]:
        """Return ``norm(residual + added)`` and ``residual + added``."""
        name = f"{self.decoder.prefix}.{module}.weight"
        weight = self.graph.streamed(vector(self.checkpoint, (name,), f"{module}.weight"))
        if added is None:
            return self._first_norm(residual, weight, module), residual
        outputs = self.graph.ops(
            "SkipSimplifiedLayerNormalization",
            [added, residual, weight],
            module,
            4,
            domain=CONTRIB,
            attributes={"epsilon": self.size.epsilon},
        )
        for unread in outputs[1:3]:  # mean and deviation, for training
            self.graph.unused(unread)
        for value in (outputs[0], outputs[3]):
            value.shape = residual.shape
        return outputs[0], outputs[3]

    def _first_norm(self, hidden: ir.Value, weight: ir.Value, module: str) -> ir.Value:
        """Nothing is added before the first layer; ONNX has no operator for that, and ONNX Runtime fuses the nodes."""
        two = self.graph.constant("norm.two", np.array(2, np.float32))
        last = self.graph.constant("norm.last_axis", np.array([-1], np.int64))
        epsilon = self.graph.constant("norm.epsilon", np.array(self.size.epsilon, np.float32))
        square = self.graph.op("Pow", [hidden, two], module)
        mean = self.graph.op("ReduceMean", [square, last], module, attributes={"keepdims": 1})
        root = self.graph.op("Sqrt", [self.graph.op("Add", [mean, epsilon], module)], module)
        scaled = self.graph.op("Mul", [self.graph.op("Div", [hidden, root], module), weight], module)
        scaled.shape = hidden.shape
        return scaled

    def _lengths(self) -> list[ir.Value]:
        """Return what attention wants to know of the mask.

        That is, of each row, the index of its last token [batch] INT32, and the length of the longest one, a scalar:
        so padding must be on the right.
        """
        module, mask = "attention_mask", self.graph.input("attention_mask")
        whole = partial(self.graph.op, module=module, dtype=ir.DataType.INT64)
        one = self.graph.constant("attention_mask.one", np.array(1, np.int64))
        second = self.graph.constant("attention_mask.second_axis", np.array([1], np.int64))
        tokens = whole("ReduceSum", [mask, second], attributes={"keepdims": 0})
        total = whole("Gather", [whole("Shape", [mask]), one])
        to = {"to": int(ir.DataType.INT32)}
        return [
            self.graph.op("Cast", [value], module, attributes=to, dtype=ir.DataType.INT32)
            for value in (whole("Sub", [tokens, one]), total)
        ]

    def _layer(self, activation: ir.Value, module: str, bias: bool = False) -> ir.Value:
        biases = (f"{self.decoder.prefix}.{module}.bias",) if bias else ()
        return self.linear(activation, self._matrix(module), module, biases)

    def _matrix(self, module: str) -> Matrix:
        return Matrix(self.checkpoint, self.decoder.matrices(module))


def rotary_tables(size: DecoderSizes) -> dict[str, np.ndarray]:
    """Return cosines and sines of every position, each [positions, head_dim / 2] float32.

    By PyTorch, as transformers does: NumPy's powers and cosines round differently, and the tables would be 2e-3 apart
    at position 32,767.
    """
    import torch

    inverse = 1.0 / (size.theta ** (torch.arange(0, size.head_dim, 2, dtype=torch.float) / size.head_dim))
    angles = torch.arange(size.positions, dtype=torch.float)[:, None] * inverse
    return {"cos_cache": angles.cos().numpy(), "sin_cache": angles.sin().numpy()}

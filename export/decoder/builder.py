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
from pathlib import Path

import numpy as np
import onnx_ir as ir

from export.decoder.linear import Linear, Schemes
from export.decoder.weights import Matrix, vector, write_embedding
from export.exporter import Constructed
from omni.checkpoint import Checkpoint
from omni.decoder import DecoderSizes, DecoderSpec, past_names, present_names
from omni.graph_builder import CONTRIB, GraphBuilder
from omni.params import QuantizeParams
from omni.streamed import save_graph

__all__ = ["FLOAT32", "build", "constructed", "write"]

FLOAT32 = Schemes()


def constructed(decoder: DecoderSpec) -> Constructed:
    """Return what the stage ``export`` asks of a decoder: the graph, and the embedding table beside it."""

    def graph(checkpoint: Checkpoint, params: QuantizeParams | None) -> ir.Model:
        return build(decoder, checkpoint, Schemes(params.scheme, params.block, params.nodes) if params else FLOAT32)

    return Constructed(graph, partial(_write_table, decoder))


def write(decoder: DecoderSpec, checkpoint: Checkpoint, folder: Path, schemes: Schemes = FLOAT32) -> None:
    """Write a decoder's graph, its data, and its embedding table.

    Memory: twice the largest matrix, and a little; of the vocabulary's matrix, only slices are ever there.

    Args:
        decoder: The decoder.
        checkpoint: The checkpoint that holds its tensors.
        folder: The folder to write into, which exists.
        schemes: The schemes of its matrices.

    Raises:
        UserError: See :func:`build`.
    """
    save_graph(build(decoder, checkpoint, schemes), folder, decoder.graph)
    _write_table(decoder, checkpoint, folder)


def _write_table(decoder: DecoderSpec, checkpoint: Checkpoint, folder: Path) -> None:
    write_embedding(checkpoint, f"{decoder.prefix}.model.embed_tokens.weight", folder / decoder.embedding)


def build(decoder: DecoderSpec, checkpoint: Checkpoint, schemes: Schemes = FLOAT32) -> ir.Model:
    """Return the graph; its weights are read, and quantized, when it is written (``omni.streamed.save_graph``).

    Args:
        decoder: The decoder.
        checkpoint: The checkpoint that holds its tensors.
        schemes: The schemes of its matrices.

    Raises:
        UserError: The configuration asks for what the graph does not do, the checkpoint lacks a tensor, or ``schemes``
            names what is not there.
    """
    return _Builder(decoder, checkpoint, schemes).model()


class _Builder:
    def __init__(self, decoder: DecoderSpec, checkpoint: Checkpoint, schemes: Schemes) -> None:
        self.decoder, self.checkpoint, self.schemes = decoder, checkpoint, schemes
        self.size = decoder.sizes(checkpoint.config)
        self.contract = decoder.contracts(checkpoint.config)[decoder.graph]
        self.builder = GraphBuilder.of(decoder.graph, self.contract, ir.DataType.FLOAT)
        self.linear = Linear(self.builder, schemes)
        self.results: dict[str, ir.Value] = {}

    def model(self) -> ir.Model:
        embeds = self.builder.input("inputs_embeds")
        if self.decoder.projection:
            embeds = self._layer(embeds, self.decoder.projection, bias=True)
        hidden = self._stack(embeds)
        head = self.decoder.head
        largest = self.size.inner * self.size.hidden  # the largest matrix that there is anyway
        weight = Matrix(self.checkpoint, (self.decoder.head_weight(self.checkpoint.config),))
        logits = self.linear.in_slices(self._logits_to_keep(hidden), weight, head, largest)
        self.schemes.require_used(self.linear.names)
        results = {"logits": logits, "hidden_states": hidden, **self.results}
        outputs = {results[port.name]: port for port in self.contract.outputs}
        return self.builder.model(outputs, self.contract.ir_version)

    def _stack(self, residual: ir.Value) -> ir.Value:
        """Append all layers and the final normalization."""
        lengths = self._lengths()
        tables = [self.builder.constant(name, table) for name, table in rotary_tables(self.size).items()]
        added: ir.Value | None = None
        for number in range(self.size.layers):
            module = f"model.layers.{number}"
            normed, residual = self._norm(added, residual, f"{module}.input_layernorm")
            attended = self._attention(normed, number, lengths, tables)
            added = self._layer(attended, f"{module}.self_attn.o_proj")
            normed, residual = self._norm(added, residual, f"{module}.post_attention_layernorm")
            added = self._feed_forward(normed, f"{module}.mlp")
        hidden, unread = self._norm(added, residual, "model.norm")
        self.builder.unused(unread)
        return hidden

    def _logits_to_keep(self, hidden: ir.Value) -> ir.Value:
        """Return the hidden states of the tokens whose logits are wanted, [batch, kept, hidden]; -1 is the last one."""
        module = "logits_to_keep"
        last_axis = self.builder.constant(f"{module}.last_axis", np.array([-1], np.int64))
        places = self.builder.op(
            "Unsqueeze", [self.builder.input(module), last_axis], module=module, dtype=ir.DataType.INT64
        )
        kept = self.builder.op("GatherND", [hidden, places], module=module, attributes={"batch_dims": 1})
        kept.shape = ir.Shape(["batch", "kept", self.size.hidden])
        return kept

    def _attention(self, normed: ir.Value, number: int, lengths: list[ir.Value], tables: list[ir.Value]) -> ir.Value:
        """Return the heads' values [batch, seq, heads * head_dim]; add the present keys and values to the results."""
        module = f"model.layers.{number}.self_attn"
        matrix = self._matrix(f"{module}.qkv_proj")
        biases = tuple(name.removesuffix("weight") + "bias" for name in matrix.names)
        packed = self.linear(normed, matrix, f"{module}.qkv_proj", biases)
        past = [self.builder.input(name) for name in past_names(number)]
        attended, *present = self.builder.ops(
            "GroupQueryAttention",
            [packed, None, None, *past, *lengths, *tables],
            module=module,
            outputs=3,
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
        silu = self.builder.op("Mul", [gate, self.builder.op("Sigmoid", [gate], module=module)], module=module)
        gated = self.builder.op("Mul", [silu, up], module=module)
        gated.shape = up.shape
        return self._layer(gated, f"{module}.down_proj")

    def _norm(self, added: ir.Value | None, residual: ir.Value, module: str) -> tuple[ir.Value, ir.Value]:
        """Return ``norm(residual + added)`` and ``residual + added``, both [batch, seq, hidden]."""
        name = f"{self.decoder.prefix}.{module}.weight"
        weight = self.builder.initializer(vector(self.checkpoint, (name,), f"{module}.weight"))
        if added is None:
            return self._first_norm(residual, weight, module), residual
        outputs = self.builder.ops(
            "SkipSimplifiedLayerNormalization",
            [added, residual, weight],
            module=module,
            outputs=4,
            domain=CONTRIB,
            attributes={"epsilon": self.size.epsilon},
        )
        for unread in outputs[1:3]:  # mean and deviation, for training
            self.builder.unused(unread)
        for value in (outputs[0], outputs[3]):
            value.shape = residual.shape
        return outputs[0], outputs[3]

    def _first_norm(self, hidden: ir.Value, weight: ir.Value, module: str) -> ir.Value:
        """Normalize what the first layer reads, [batch, seq, hidden], to which nothing is added yet.

        ONNX at this opset has no operator for an RMS normalization; ONNX Runtime fuses the nodes.
        """
        two = self.builder.constant("norm.two", np.array(2, np.float32))
        last = self.builder.constant("norm.last_axis", np.array([-1], np.int64))
        epsilon = self.builder.constant("norm.epsilon", np.array(self.size.epsilon, np.float32))
        square = self.builder.op("Pow", [hidden, two], module=module)
        mean = self.builder.op("ReduceMean", [square, last], module=module, attributes={"keepdims": 1})
        root = self.builder.op("Sqrt", [self.builder.op("Add", [mean, epsilon], module=module)], module=module)
        scaled = self.builder.op("Mul", [self.builder.op("Div", [hidden, root], module=module), weight], module=module)
        scaled.shape = hidden.shape
        return scaled

    def _lengths(self) -> list[ir.Value]:
        """Return the lengths that GroupQueryAttention takes in place of a mask, so that padding must be on the right.

        They are the index of each row's last token, [batch] INT32, and the length of the longest row, a scalar INT32.
        """
        module, mask = "attention_mask", self.builder.input("attention_mask")
        whole = partial(self.builder.op, module=module, dtype=ir.DataType.INT64)
        one = self.builder.constant("attention_mask.one", np.array(1, np.int64))
        second = self.builder.constant("attention_mask.second_axis", np.array([1], np.int64))
        tokens = whole("ReduceSum", [mask, second], attributes={"keepdims": 0})
        total = whole("Gather", [whole("Shape", [mask]), one])
        to = {"to": int(ir.DataType.INT32)}
        return [
            self.builder.op("Cast", [value], module=module, attributes=to, dtype=ir.DataType.INT32)
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

"""The Qwen2 decoder of the Thinker and of the Talker: its tensors, and the interface of its graph.

Both take embeddings rather than token ids, because embeddings of text, of sound and of codec codes are combined before
the graph. Position ids are 0, 1, 2, ...: the checkpoint's rotary embedding has three axes, which are equal for text and
sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omni.checkpoint import TensorSpec
from omni.component import Config, checkpoint_dtype, require_speech, sizes
from qwen_omni_onnx.common.configuration import table_at
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.errors import UserError

__all__ = ["LOGITS_TO_KEEP", "DecoderSizes", "DecoderSpec", "past_names", "present_names"]

LOGITS_TO_KEEP = "logits_to_keep"  # transformers' and onnxruntime's name of the input that picks tokens before the head

_WIDTHS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_THETA = 1e6  # transformers' default as well
_IR_VERSION = 10


@dataclass(frozen=True)
class DecoderSizes:
    """Widths of a decoder.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        inner: Width of the feed-forward network between gate and down.
        heads: Number of query heads.
        kv_heads: Number of key and value heads; ``heads / kv_heads`` query heads share each.
        head_dim: Width of a head.
        vocabulary: Width of the logits, and rows of the embedding table.
        embedding: Width of ``inputs_embeds`` and of the embedding table; it differs from ``hidden`` where a projection
            follows them.
        positions: Largest number of positions.
        theta: Base of the rotary embedding's wavelengths.
        epsilon: Epsilon of the normalizations.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    embedding: int
    positions: int
    theta: float
    epsilon: float


def past_names(layer: int) -> tuple[str, str]:
    """Return the names of the inputs that hold a layer's past keys and values, as Optimum names them."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Return the names of the outputs that hold a layer's keys and values, as Optimum names them."""
    return f"present.{layer}.key", f"present.{layer}.value"


@dataclass(frozen=True)
class DecoderSpec:
    """Names of a decoder's section and tensors in the checkpoint, and of its files.

    Attributes:
        graph: Stem of the graph's file.
        section: Section of ``config.json``, its keys joined by dots.
        otherwise: Explanation for messages where a checkpoint lacks that section.
        prefix: Prefix of the names of all tensors; nodes of the graph are named after the tensors, without it.
        head: Name of the linear layer that gives the logits.
        embedding: Name of the file of the embedding table, beside the graph.
        projection: Name of the linear layer, with a bias, from embeddings to hidden states; None if the widths are
            equal.
        speaks: Whether only checkpoints with audio output have the decoder.
    """

    graph: str
    section: str
    otherwise: str
    prefix: str
    head: str
    embedding: str
    projection: str | None = None
    speaks: bool = False

    def sizes(self, config: Config) -> DecoderSizes:
        """Return the widths that a configuration gives.

        Raises:
            UserError: A width is missing, or the configuration asks for something that the graph does not support.
        """
        if self.speaks:
            require_speech(config)
        layers, hidden, inner, heads, kv_heads, vocabulary, positions = sizes(
            config, self.section, _WIDTHS, self.otherwise
        )
        section = table_at(config, self.section)
        self._require_supported(section)
        if heads % kv_heads:
            raise UserError(f"config.json: {self.section}: {heads} heads cannot share {kv_heads} of keys and values")
        head_dim = section.get("head_dim") or hidden // heads
        if type(head_dim) is not int or head_dim < 1 or head_dim % 16:  # GroupQueryAttention takes no other
            raise UserError(f"config.json: {self.section}.head_dim must be a multiple of 16, not {head_dim!r}")
        embedding = hidden
        if self.projection:
            (embedding,) = sizes(config, self.section, ("embedding_size",), self.otherwise)
        self._require_sections(section, head_dim)
        return DecoderSizes(
            layers, hidden, inner, heads, kv_heads, head_dim, vocabulary, embedding, positions,
            theta=float(section.get("rope_theta") or _rope(section).get("rope_theta") or _THETA),
            epsilon=float(section.get("rms_norm_eps", 1e-6)),
        )  # fmt: skip

    def ties(self, config: Config) -> bool:
        """Return whether the head is the embedding table itself, so that the checkpoint need not store it.

        Only ``tie_word_embeddings: true`` in the decoder's own section ties them, as transformers 4 read it. In
        transformers 5.23 the default of ``Qwen2_5OmniTextConfig`` is true, but the model never reads it there: it ties
        by ``thinker_config``, whose default is false. A section without the key therefore means a separate head. Where
        there is a projection, as in the Talker, the table has another width, and cannot be tied.
        """
        return self.projection is None and table_at(config, self.section).get("tie_word_embeddings") is True

    def head_weight(self, config: Config) -> str:
        """Return the name of the tensor [vocabulary, hidden] that gives the logits."""
        return f"{self.prefix}.{'model.embed_tokens' if self.ties(config) else self.head}.weight"

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        """Return the tensors that the checkpoint must hold; with tied embeddings, there is no separate head."""
        size = self.sizes(config)
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.prefix}.model.embed_tokens.weight": (size.vocabulary, size.embedding)
        }
        if self.projection:
            shapes[f"{self.prefix}.{self.projection}.weight"] = (size.hidden, size.embedding)
            shapes[f"{self.prefix}.{self.projection}.bias"] = (size.hidden,)
        for number in range(size.layers):
            shapes |= {f"{self.prefix}.model.layers.{number}.{name}": shape for name, shape in _layer(size).items()}
        shapes[f"{self.prefix}.model.norm.weight"] = (size.hidden,)
        shapes[self.head_weight(config)] = (size.vocabulary, size.hidden)
        dtype = checkpoint_dtype(config)
        return {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}

    def matrices(self, node: str) -> tuple[str, ...]:
        """Return the names of the tensors that are stacked into a MatMul's matrix, for the node's name in the graph.

        Queries, keys and values are one matrix; a node that computes a slice of the logits gives the whole head.
        """
        module = node.removesuffix("/MatMul")
        if module.startswith(f"{self.head}."):
            module = self.head
        parent, packed, rest = module.rpartition(".qkv_proj")
        modules = [f"{parent}.{letter}_proj" for letter in "qkv"] if packed and not rest else [module]
        return tuple(f"{self.prefix}.{name}.weight" for name in modules)

    def contracts(self, config: Config) -> dict[str, GraphContract]:
        """Return the graph's interface.

        ``logits_to_keep`` holds, for each row, the indices among its new tokens (``seq``) whose logits are returned,
        counted from 0, or from the end with -1 as the last one. Decoding after a prompt needs only the last one; all
        logits of a prompt of 15,000 tokens would take 9 GB. Examples ask for the last one.

        The axis ``present`` is as long as the mask, or as ``past``, whichever is longer: nothing is copied for a caller
        who binds one buffer, longer than the tokens so far, to both past and present.
        """
        size = self.sizes(config)
        tokens = ("batch", "seq")
        heads = ("batch", size.kv_heads)
        past = [
            Port(name, "FLOAT", (*heads, "past", size.head_dim)) for i in range(size.layers) for name in past_names(i)
        ]
        present = [
            Port(name, "FLOAT", (*heads, "present", size.head_dim))
            for i in range(size.layers)
            for name in present_names(i)
        ]
        contract = GraphContract(
            inputs=(
                Port("inputs_embeds", "FLOAT", (*tokens, size.embedding)),
                Port("attention_mask", "INT64", ("batch", "total")),
                Port(LOGITS_TO_KEEP, "INT64", ("batch", "kept")),
                *past,
            ),
            outputs=(
                Port("logits", "FLOAT", ("batch", "kept", size.vocabulary)),
                Port("hidden_states", "FLOAT", (*tokens, size.hidden)),
                *present,
            ),
            ir_version=_IR_VERSION,
            length="seq",
            derived={"total": int, "present": int},
            filled={"attention_mask": 1, LOGITS_TO_KEEP: -1},
            free={"past": 0, "kept": 1},
            places=LOGITS_TO_KEEP,
        )
        return {self.graph: contract}

    def whole(self, config: Config) -> GraphContract:
        """Return the interface of the decoder as its run-time offers it: rows of any length, without a cache.

        ``tokens`` is the length of each row; the rest of a row of ``inputs_embeds`` is padding, and its outputs are
        zero. Golden cases compare the logits of every token.
        """
        size = self.sizes(config)
        return GraphContract(
            inputs=(
                Port("inputs_embeds", "FLOAT", ("batch", "seq", size.embedding)),
                Port("tokens", "INT64", ("batch",)),
            ),
            outputs=(
                Port("logits", "FLOAT", ("batch", "seq", size.vocabulary)),
                Port("hidden_states", "FLOAT", ("batch", "seq", size.hidden)),
            ),
            ir_version=_IR_VERSION,
            length="seq",
        )

    def _require_sections(self, section: Mapping[str, Any], head_dim: int) -> None:
        """Refuse an ``mrope_section`` that does not add up to half a head: transformers cannot split by it."""
        axes = _rope(section).get("mrope_section")
        if axes is None:
            return
        valid = isinstance(axes, list) and len(axes) == 3 and all(type(axis) is int and axis >= 0 for axis in axes)
        if not valid or sum(axes) != head_dim // 2:
            raise UserError(
                f"config.json: {self.section}: mrope_section is {str(axes)[:80]!r}; it must be three numbers that add "
                f"up to {head_dim // 2}, half the {head_dim} channels of a head"
            )

    def _require_supported(self, section: Mapping[str, Any]) -> None:
        supported = {"hidden_act": "silu", "use_sliding_window": False}
        for key, value in supported.items():
            if section.get(key, value) != value:
                raise UserError(f"config.json: {self.section}.{key} is {section[key]!r}; the graph does {value!r} only")
        rope = _rope(section)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise UserError(
                f"config.json: {self.section}: rotary embedding of type {kind!r}; the graph does 'default' only"
            )


def _rope(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the rotary embedding: transformers 5 renamed their section."""
    return section.get("rope_parameters") or section.get("rope_scaling") or {}


def _layer(size: DecoderSizes) -> dict[str, tuple[int, ...]]:
    queries, keys = size.heads * size.head_dim, size.kv_heads * size.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        shapes |= {f"self_attn.{name}.weight": (rows, size.hidden), f"self_attn.{name}.bias": (rows,)}
    return shapes | {
        "self_attn.o_proj.weight": (size.hidden, queries),
        "mlp.gate_proj.weight": (size.inner, size.hidden),
        "mlp.up_proj.weight": (size.inner, size.hidden),
        "mlp.down_proj.weight": (size.hidden, size.inner),
        "input_layernorm.weight": (size.hidden,),
        "post_attention_layernorm.weight": (size.hidden,),
    }

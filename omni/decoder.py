"""What the Thinker and the Talker have in common: a Qwen2 decoder, its tensors, and the interface of its graph.

Both take embeddings and not ids, so that what hears, what speaks and what was said can be added up before. Positions
are those of the tokens, 0, 1, 2, ...: the checkpoint's rotary embedding has three axes, which are one and the same for
text and sound.
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

__all__ = ["LOGITS_TO_KEEP", "Decoder", "DecoderSizes", "past_names", "present_names"]

LOGITS_TO_KEEP = "logits_to_keep"  # transformers' and onnxruntime's name of the input that picks tokens before the head

_WIDTHS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "vocab_size", "max_position_embeddings",
)  # fmt: skip
_THETA = 1e6  # of both, where the configuration does not say; so does transformers
_IR_VERSION = 10


@dataclass(frozen=True)
class DecoderSizes:
    """Widths of a decoder.

    Attributes:
        layers: Number of layers.
        hidden: Width of the residual stream.
        inner: Width of the feed-forward network between gate and down.
        heads: Number of heads of queries.
        kv_heads: Number of heads of keys and values; each serves ``heads / kv_heads`` of the queries'.
        head_dim: Width of a head.
        vocabulary: Width of the logits, and rows of the embedding table.
        embedding: Width of ``inputs_embeds`` and of the embedding table; another than ``hidden`` where a projection
            lies between.
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
    """Names of a layer's past keys and values among the inputs, as Optimum gives them."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present_names(layer: int) -> tuple[str, str]:
    """Names of a layer's keys and values among the outputs."""
    return f"present.{layer}.key", f"present.{layer}.value"


@dataclass(frozen=True)
class Decoder:
    """Where a decoder stands in the checkpoint, and the files that it becomes.

    Attributes:
        graph: Stem of the graph's file.
        section: Section of ``config.json``, its keys joined by dots.
        otherwise: What a checkpoint without that section is, for messages.
        prefix: Start of the names of all its tensors; nodes of the graph are named after tensors, without it.
        head: Name of the linear layer that gives the logits.
        embedding: Name of the file that the embedding table goes into, beside the graph.
        projection: Name of the linear layer, with a bias, from embeddings to the first layer; None if they are as wide.
        speaks: Whether only a checkpoint that speaks has it.
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
            UserError: The configuration lacks one, or asks for what the graph does not do.
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

        Only ``tie_word_embeddings: true`` in the decoder's own section says so, as transformers 4 read it. The default
        of transformers 5.23's ``Qwen2_5OmniTextConfig`` is true, but its model never asks that class: it ties by
        ``thinker_config``, whose default is false. So a section that says nothing means a head of its own. Behind a
        projection, as in the Talker, the table has another width, and nothing can be tied.
        """
        return self.projection is None and table_at(config, self.section).get("tie_word_embeddings") is True

    def head_weight(self, config: Config) -> str:
        """Return the name of the tensor [vocabulary, hidden] that gives the logits."""
        return f"{self.prefix}.{'model.embed_tokens' if self.ties(config) else self.head}.weight"

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        """Return the tensors that the checkpoint must hold; of tied embeddings, the table alone."""
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
        """Return the tensors that make up a MatMul's matrix, one below the other, by the node's name in the graph.

        Queries, keys and values are one matrix; each slice of the vocabulary's is of the whole one.
        """
        module = node.removesuffix("/MatMul")
        if module.startswith(f"{self.head}."):
            module = self.head
        parent, packed, name = module.rpartition(".qkv_proj")
        modules = [f"{parent}.{one}_proj" for one in "qkv"] if packed and not name else [module]
        return tuple(f"{self.prefix}.{one}.weight" for one in modules)

    def contracts(self, config: Config) -> dict[str, GraphContract]:
        """Return the graph's interface.

        ``logits_to_keep`` names, for each row, the places among its new tokens (``seq``) whose logits are wanted, from
        0, or from the end with -1 as the last one. A caller who wants to go on from a prompt asks for one of them; all
        of a prompt of 15,000 would take 9 GB. Examples ask for the last one, as callers do.

        The axis ``present`` is as long as the mask, or as ``past``, whichever is longer: a caller who gives past keys
        in a buffer with room, and the same buffer for the present ones, has nothing copied.
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
        """Return the interface of the decoder as its run-time offers it: rows of any length, and no cache.

        ``tokens`` is the length of each row; what follows in ``inputs_embeds`` is padding, and its outputs are zero.
        Golden cases judge the logits of every token.
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
        """Refuse rotary axes that do not add up to a head: transformers cannot cut its frequencies by them."""
        axes = _rope(section).get("mrope_section")
        if axes is None:
            return
        counted = isinstance(axes, list) and len(axes) == 3 and all(type(axis) is int and axis >= 0 for axis in axes)
        if not counted or sum(axes) != head_dim // 2:
            raise UserError(
                f"config.json: {self.section}: mrope_section is {str(axes)[:80]!r}; it must be three numbers that add "
                f"up to {head_dim // 2}, half the {head_dim} channels of a head"
            )

    def _require_supported(self, section: Mapping[str, Any]) -> None:
        wanted = {"hidden_act": "silu", "use_sliding_window": False}
        for key, value in wanted.items():
            if section.get(key, value) != value:
                raise UserError(f"config.json: {self.section}.{key} is {section[key]!r}; the graph does {value!r} only")
        rope = _rope(section)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "mrope"):
            raise UserError(
                f"config.json: {self.section}: rotary embedding of type {kind!r}; the graph does 'default' only"
            )


def _rope(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a configuration says of the rotary embedding: transformers 5 renamed the section."""
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

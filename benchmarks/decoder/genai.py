"""Run a decoder in onnxruntime-genai, the run-time for decoders of ONNX Runtime's makers, on the same weights.

It does not support a Talker, so it gets a plain Qwen2. It takes ids and no embeddings
(https://github.com/microsoft/onnxruntime-genai/issues/1644), so the embedding table of that Qwen2 holds what all
contenders are fed, a row for each token, behind the projection. It computes the same but for the projection, which is
0.24 % of the Talker's weights.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoder.bench import Bench, libraries_bytes, measure_build
from benchmarks.decoder.contenders import Contender
from benchmarks.measure import Run
from benchmarks.variants import disk_bytes
from omni.checkpoint import TensorSpec, encode_header
from omni.decoder import DecoderSizes
from omni.resources import progress
from qwen_omni_onnx.common import artifact

__all__ = ["GENAI", "HEAD", "build", "graph", "installed", "open_built", "repackage"]

GENAI = "onnxruntime-genai int4"
HEAD = "lm_head"  # name of the linear layer that gives the logits, in a Qwen2
_BUILDER = "onnxruntime_genai.models.builder"
_BUILT, _GRAPH = "genai", "model.onnx"  # folder, and file in it
_OPTIONS = (
    "accuracy_level=4", "block_size=32", "hf_token=false",
    "prune_lm_head=true",  # the head reads the last token of a prompt alone, as ours does
)  # fmt: skip


def installed() -> bool:
    """Say whether onnxruntime-genai can be imported."""
    return importlib.util.find_spec("onnxruntime_genai") is not None


def build(bench: Bench, algorithm: str = "default", eight_bits: str = "last_matmul:int8") -> dict[str, int]:
    """Let its own builder make a graph, with blocks of 32 at 4 bits and the head at 8 bits, as in ours.

    Args:
        bench: What the contenders are made from.
        algorithm: Value of the builder's ``algo_config``.
        eight_bits: Value of its ``matmul_mixed_precision``: what stays at 8 bits.

    Returns:
        What :func:`benchmarks.decoder.bench.measure_build` returns.

    Raises:
        UserError: The builder failed.
    """
    source, out, cache = (bench.folder / name for name in ("qwen2", _BUILT, "cache"))
    with progress("onnxruntime-genai builds", 1) as advance:
        repackage(bench, source)
        arguments = ("-i", str(source), "-o", str(out), "-p", "int4", "-e", "cpu", "-c", str(cache))
        options = (*_OPTIONS, f"algo_config={algorithm}", f"matmul_mixed_precision={eight_bits}")
        libraries = libraries_bytes(_BUILDER)
        found = measure_build(out / _GRAPH, libraries, _BUILDER, *arguments, "--extra_options", *options)
        advance(1)
    shutil.rmtree(source)  # gigabytes
    return found


def repackage(bench: Bench, folder: Path) -> None:
    """Write the decoder as a checkpoint of ``Qwen2ForCausalLM``, with a tokenizer, which the builder insists on.

    Args:
        bench: What the contenders are made from.
        folder: Folder of the checkpoint, which must not exist yet.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    checkpoint, prefix = bench.checkpoint, f"{bench.decoder.prefix}."
    table = _embedded(bench)
    sources = {
        name.removeprefix(prefix): name
        for name in checkpoint.entries
        if name.startswith(f"{prefix}model.") and not name.endswith(".embed_tokens.weight")
    }
    sources[f"{HEAD}.weight"] = bench.decoder.head_weight(checkpoint.config)
    specs = {name: checkpoint.spec(source) for name, source in sources.items()}
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header({**specs, "model.embed_tokens.weight": TensorSpec("F32", table.shape)}))
        for source in sources.values():
            file.write(checkpoint.read(source).view(np.uint8).data)
        file.write(table.data)
    artifact.write_json(folder / "config.json", _config(bench.size))
    words = Tokenizer(WordLevel({"": 0}, unk_token=""))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


def graph(bench: Bench) -> Path:
    """Return the file of the graph that :func:`build` made."""
    return bench.folder / _BUILT / _GRAPH


def open_built(bench: Bench, name: str = GENAI) -> Contender:
    """Return the graph that :func:`build` made, in its run-time.

    Args:
        bench: What the contenders are made from; it is fed only rows that the bench has.
        name: Name in the tables.
    """
    import onnxruntime_genai

    folder = bench.folder / _BUILT
    known = {row.tobytes(): token for token, row in enumerate(_rows(bench))}
    config = onnxruntime_genai.Config(str(folder))
    session = {"intra_op_num_threads": bench.threads, "session.force_spinning_stop": "1"}  # as ours
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = onnxruntime_genai.Model(config)

    def ids_of(rows: np.ndarray) -> np.ndarray:
        return np.array([known[row.tobytes()] for row in rows], np.int32)

    def begin(tokens: int) -> Any:
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=tokens + 1, batch_size=1)
        return onnxruntime_genai.Generator(model, params)

    def teacher_forced(rows: np.ndarray) -> np.ndarray:
        generator = begin(len(rows))
        found = []
        for ids in ids_of(rows)[:, None]:
            generator.append_tokens(ids)
            found.append(_logits(generator))
        return np.stack(found)

    def prefill(rows: np.ndarray) -> Run:
        ids = ids_of(rows)

        def run() -> np.ndarray:
            generator = begin(len(ids))
            generator.append_tokens(ids)
            return _logits(generator)

        return run

    def step(rows: np.ndarray) -> Run:
        ids, past = ids_of(rows), len(rows) - 1
        generator = begin(len(ids))
        generator.append_tokens(ids[:past])

        def run() -> np.ndarray:
            generator.rewind_to(past)
            generator.append_tokens(ids[past:])
            return _logits(generator)

        return run

    return Contender(name, disk_bytes(folder / _GRAPH), teacher_forced, prefill, step)


def _embedded(bench: Bench) -> np.ndarray:
    """Return the embedding table [vocabulary, hidden] float32: row n stands for token n of all contenders."""
    rows = _rows(bench)
    projection = bench.decoder.projection
    if projection:
        weight, bias = (
            bench.checkpoint.read(f"{bench.decoder.prefix}.{projection}.{kind}").astype(np.float32)
            for kind in ("weight", "bias")
        )
        rows = rows @ weight.T + bias
    table = np.zeros((bench.size.vocabulary, bench.size.hidden), np.float32)
    table[: len(rows)] = rows
    return table


def _config(size: DecoderSizes) -> Mapping[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": size.hidden,
        "intermediate_size": size.inner,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "num_hidden_layers": size.layers,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": size.positions,
        "rms_norm_eps": size.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.theta},
        "tie_word_embeddings": False,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), size.vocabulary - 1),
    }


def _rows(bench: Bench) -> np.ndarray:
    """Return the rows that tokens stand for, as many as the vocabulary has: [tokens, width]."""
    return bench.rows[: bench.size.vocabulary]


def _logits(generator: Any) -> np.ndarray:
    """Return the logits after the last token, [vocabulary]."""
    return np.array(generator.get_logits()).reshape(-1)

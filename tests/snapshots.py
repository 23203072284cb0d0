"""Checkpoints as people have them, laid out without the project's own code: by transformers, safetensors and PyTorch.

A tiny Qwen2.5-Omni with random weights is made once a worker; each function lays it out in another way.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import tiny_config, tiny_preprocessor
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

# So that the signal keeps its size through the vocoder, as in a trained one.
_VOCODER_GAINS = {"bigvgan_model.conv_pre": 4.0, "bigvgan_model.ups": 1.8, "bigvgan_model.conv_post": 0.25}
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = {
    300: "<|im_start|>", 301: "<|im_end|>", 302: "<|audio_bos|>", 303: "<|AUDIO|>", 304: "<|audio_eos|>",
    305: "<|IMAGE|>", 306: "<|VIDEO|>", 307: "<|endoftext|>",
}  # fmt: skip


@functools.cache
def model() -> Any:
    """Transformers' own model, tiny, with weights of a trained model's size."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    made = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**tiny_config())).eval()
    random = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, weights in made.named_parameters():
            if weights.ndim > 1:
                bound = next((gain for part, gain in _VOCODER_GAINS.items() if part in name), 1.0)
                weights.uniform_(-1, 1, generator=random).mul_(bound / math.sqrt(weights[0].numel()))
            else:
                weights.normal_(float(name.endswith("weight")), 0.1, generator=random)
    return made


@functools.cache
def saved(folder: Path) -> tuple[Tensors, Config]:
    """What transformers 5 saves: float32 tensors by the hub's names, and its configuration."""
    model().save_pretrained(folder, max_shard_size="50MB")
    return load_file(folder / SINGLE), json.loads((folder / "config.json").read_text())


def hub_tensors(folder: Path) -> Tensors:
    """The tensors as the hub stores them: bfloat16 but for token2wav."""
    tensors, _ = saved(folder)
    return {name: t if name.startswith("token2wav.") else t.to(torch.bfloat16) for name, t in tensors.items()}


def only_thinker(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("thinker.")}


def renamed(tensors: Mapping[str, torch.Tensor], *changes: tuple[str, str]) -> Tensors:
    """The tensors with the first beginning of their names that fits replaced."""

    def name(old: str) -> str:
        return next((new + old[len(at) :] for at, new in changes if old.startswith(at)), old)

    return {name(old): tensor for old, tensor in tensors.items()}


def packed(tensors: Mapping[str, torch.Tensor], method: str, group: int = 16) -> Tensors:
    """The Thinker's layers in 4 bits, with random codes, zero points and scales, as AutoAWQ or GPTQ lay them out."""
    random, found = torch.Generator().manual_seed(5), dict(tensors)
    order = (0, 2, 4, 6, 1, 3, 5, 7) if method == "awq" else range(8)

    def words(codes: torch.Tensor) -> torch.Tensor:  # eight neighbours of the last axis in each
        eights = codes.to(torch.int64).unflatten(-1, (-1, 8))
        return sum(eights[..., output] << (4 * bits) for bits, output in enumerate(order)).to(torch.int32)

    for name in [name for name in found if re.search(r"thinker\.model\.layers\..*_proj\.weight", name)]:
        out, into = found.pop(name).shape
        module = name.removesuffix(".weight")
        codes = torch.randint(16, (into, out), generator=random)
        zeros = torch.randint(15, (into // group, out), generator=random)
        found[f"{module}.qweight"] = words(codes) if method == "awq" else words(codes.T).T
        found[f"{module}.qzeros"] = words(zeros)
        found[f"{module}.scales"] = torch.rand(into // group, out, generator=random).to(torch.float16) / 100
        if method == "gptq":
            found[f"{module}.g_idx"] = torch.arange(into, dtype=torch.int32) // group
    return found


def thinker_config() -> Config:
    """The configuration of a Thinker that was saved alone."""
    alone: Config = model().thinker.config.to_dict()
    return alone


def speakers() -> dict[str, Any]:
    """Two voices, as spk_dict.pt has them."""
    random = torch.Generator().manual_seed(4)
    return {
        name: {
            "bos_token": token,
            "cond": torch.randn(1, 10, generator=random),
            "ref_mel": torch.randn(1, 40, 8, generator=random) - 5,
        }
        for name, token in (("Chelsie", 328), ("Ethan", 327))
    }


def tokenizer() -> str:
    """Bytes, special tokens at the configuration's ids, and a few words up to its vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    vocabulary |= {f"w{number}": number for number in range(len(alphabet), 330) if number not in _SPECIAL}
    vocabulary |= {name: number for number, name in _SPECIAL.items()}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in _SPECIAL.values()])
    return made.to_str()


def companions() -> dict[str, bytes]:
    """The hub's small files, all but config.json and spk_dict.pt."""
    tables: dict[str, Any] = {
        "preprocessor_config.json": {**tiny_preprocessor(), "processor_class": "Qwen2_5OmniProcessor"},
        "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
        "chat_template.json": {"chat_template": TEMPLATE},
        "generation_config.json": {"_from_model_config": True, "transformers_version": "4.50.0.dev0"},
    }
    files = {name: json.dumps(table, indent=2).encode() for name, table in tables.items()}
    return {**files, "tokenizer.json": tokenizer().encode(), "LICENSE": b"Apache License\nVersion 2.0\n"}


def lay_out(
    folder: Path,
    tensors: Mapping[str, torch.Tensor] | None,
    config: Mapping[str, Any] | None,
    *,
    shards: int = 5,
    spk_dict: bool = True,
    save: Callable[[Tensors, Path], object] = lambda part, path: save_file(part, path, {"format": "pt"}),
    suffix: str = "safetensors",
    **files: bytes | None,
) -> Path:
    """Write a checkpoint's folder.

    Args:
        folder: Where to.
        tensors: By name; no weights at all if None.
        config: ``config.json``; none if None.
        shards: Files that the tensors go into; one of them needs no index.
        spk_dict: Whether the speakers are there.
        save: Writes one file of tensors.
        suffix: Of those files.
        files: In place of, or beside, the small files: a double underscore stands for a dot; None leaves one out.
    """
    folder.mkdir(parents=True)
    small = companions() | {name.replace("__", "."): content for name, content in files.items()}
    for name, content in small.items():
        if content is not None:
            (folder / name).write_bytes(content)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    if spk_dict:
        torch.save(speakers(), folder / "spk_dict.pt")
    if tensors is None:
        return folder
    names = list(tensors)
    if shards == 1:
        save({name: tensors[name].contiguous() for name in names}, folder / f"model.{suffix}")
        return folder
    where: dict[str, str] = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"model-{number + 1:05}-of-{shards:05}.{suffix}"
        save({name: tensors[name].contiguous() for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / f"model.{suffix}.index.json").write_text(json.dumps(index, indent=2))
    return folder

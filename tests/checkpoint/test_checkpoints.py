"""Checkpoints that people really have: what each gives, component by component; docs/checkpoints.md has the table.

None of them was written by the project: see ``snapshots``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snapshots
import torch
from conftest import CHAIN, ROOT, tiny_config
from snapshots import Tensors, hub_tensors, lay_out, only_thinker, packed, renamed, saved, thinker_config

from components import component
from omni.checkpoint import Checkpoint
from pull.folder import FolderSnapshot
from pull.plan import config_of, plan
from pull.speakers import speakers_of
from pull.write import fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

PAGE = ROOT / "docs/checkpoints.md"
SILENT = ("frontend", "encoder", "thinker")
SAY_SO = "set components: [frontend, encoder, thinker] and composed: []"


@dataclass(frozen=True)
class Case:
    """A checkpoint.

    Attributes:
        title: What it is, as the page says.
        make: Lays it out in the second folder, from what transformers saved in the first.
        builds: Components that it gives.
        refused: Of the others, what the message says; " ... " stands for anything between.
        speakers: ``model.speakers``; of the hub's layout, if True.
    """

    title: str
    make: Callable[[Path, Path], Path]
    builds: tuple[str, ...] = CHAIN
    refused: Mapping[str, str] = field(default_factory=dict)
    speakers: bool = False


def cast(dtype: torch.dtype) -> Callable[[Path, Path], Path]:
    def make(base: Path, folder: Path) -> Path:
        tensors, _ = saved(base)
        return lay_out(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, tiny_config())

    return make


def named(*changes: tuple[str, str]) -> Callable[[Path, Path], Path]:
    return lambda base, folder: lay_out(folder, renamed(hub_tensors(base), *changes), tiny_config())


def by_transformers_5(base: Path, folder: Path) -> Path:
    joined = {"feature_extractor": json.loads(snapshots.companions()["preprocessor_config.json"])}
    return lay_out(
        folder, hub_tensors(base), saved(base)[1], spk_dict=False, shards=1,
        preprocessor_config__json=None, processor_config__json=json.dumps(joined).encode(),
        chat_template__json=None, chat_template__jinja=snapshots.TEMPLATE.encode(),
    )  # fmt: skip


def thinker_alone(base: Path, folder: Path) -> Path:
    tensors = renamed(only_thinker(hub_tensors(base)), ("thinker.", ""))
    return lay_out(folder, tensors, thinker_config(), spk_dict=False)


def lora(base: Path, folder: Path) -> Path:
    adapter = {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(8, 96)}
    lay_out(folder, adapter, None, shards=1, spk_dict=False, adapter_config__json=b'{"peft_type": "LORA"}')
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    return folder


def pickles(base: Path, folder: Path) -> Path:
    lay_out(folder, hub_tensors(base), tiny_config(), save=torch.save, suffix="bin")
    for path in folder.glob("model*"):
        path.rename(folder / f"pytorch_{path.name}")
    return folder


def fp8(base: Path, folder: Path) -> Path:
    def lowered(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.float8_e4m3fn) if re.search(r"thinker\.model\.layers.*_proj\.weight", name) else tensor

    tensors = {name: lowered(name, tensor) for name, tensor in hub_tensors(base).items()}
    return lay_out(folder, tensors, {**tiny_config(), "quantization_config": {"quant_method": "fp8"}})


def in_four_bits(method: str, **says: Any) -> Callable[[Path, Path], Path]:
    config = {"quant_method": method, "bits": 4, "group_size": 16, **says}
    return lambda base, folder: lay_out(
        folder, packed(hub_tensors(base), method), {**tiny_config(), "quantization_config": config}
    )


EVERYTHING_BUT_TOKEN2WAV = tuple(name for name in CHAIN if name != "token2wav")
SPOKEN = {name: SAY_SO for name in CHAIN if name not in SILENT}
CASES = [
    Case("as the hub holds it", lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config())),
    Case("all in one file", lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config(), shards=1)),
    Case("F32 throughout", cast(torch.float32)),
    Case("F16 throughout", cast(torch.float16)),
    Case("BF16 throughout, token2wav too", cast(torch.bfloat16)),
    Case("saved by transformers 5", by_transformers_5, EVERYTHING_BUT_TOKEN2WAV,
         {"token2wav": "no spk_dict.pt in it ... set model.speakers"}),
    Case("the same, with `model.speakers`", by_transformers_5, speakers=True),
    Case("names of vLLM, `thinker.language_model.model.*`", named(("thinker.model.", "thinker.language_model.model."))),
    Case("the same, the head's too", named(("thinker.model.", "thinker.language_model.model."),
                                           ("thinker.lm_head.", "thinker.language_model.lm_head."))),
    Case("names of transformers 5's modules", named(("thinker.model.", "thinker.model.language_model."),
                                                    ("thinker.audio_tower.", "thinker.model.audio_tower."))),
    Case("the Thinker saved alone", thinker_alone, SILENT, SPOKEN),
    Case("`thinker.*` only, `enable_audio_output: false`",
         lambda base, folder: lay_out(folder, only_thinker(hub_tensors(base)),
                                      {**tiny_config(), "enable_audio_output": False}, spk_dict=False),
         SILENT, SPOKEN),
    Case("`thinker.*` only, with the whole configuration",
         lambda base, folder: lay_out(folder, only_thinker(hub_tensors(base)), tiny_config(), spk_dict=False, shards=1),
         SILENT, {**SPOKEN, "token2wav": SAY_SO}),
    Case("no spk_dict.pt (merged by LLaMA-Factory, ms-swift)",
         lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config(), spk_dict=False),
         EVERYTHING_BUT_TOKEN2WAV, {"token2wav": "no spk_dict.pt in it ... set model.speakers"}),
    Case("`eos_token_id` as a list",
         lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config(),
                                      generation_config__json=b'{"do_sample": true, "eos_token_id": [301, 307]}')),
    Case("AWQ in 4 bits (scheme `int4-import`)", in_four_bits("awq", version="gemm", zero_point=True)),
    Case("GPTQ in 4 bits (scheme `int4-import`)", in_four_bits("gptq", desc_act=False, sym=False)),
    Case("GPTQ in 8 bits", in_four_bits("gptq", bits=8), tuple(name for name in CHAIN if name != "thinker"),
         {"thinker": "quantization_config: bits 8: only 4 are read"}),
    Case("a LoRA adapter", lora, (), dict.fromkeys(CHAIN, "a LoRA adapter, not a model: merge it")),
    Case("`.bin` shards", pickles, ("frontend",),
         dict.fromkeys(CHAIN[1:], "its weights are in .bin files ... save it with save_pretrained")),
    Case("FP8", fp8, tuple(name for name in CHAIN if name != "thinker"), {"thinker": "is F8_E4M3: an FP8 checkpoint"}),
    Case("no preprocessor_config.json",
         lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config(), preprocessor_config__json=None),
         tuple(name for name in CHAIN if name != "frontend"),
         {"frontend": "no preprocessor_config.json in it ... take it from the base model"}),
    Case("no tokenizer.json",
         lambda base, folder: lay_out(folder, hub_tensors(base), tiny_config(), tokenizer__json=None),
         tuple(name for name in CHAIN if name != "thinker"),
         {"thinker": "no tokenizer.json in it; save the tokenizer"}),
    Case("another model",
         lambda base, folder: lay_out(folder, hub_tensors(base), {"model_type": "qwen3_omni_moe"}),
         (), dict.fromkeys(CHAIN, "is of 'qwen3_omni_moe'; this builds Qwen2.5-Omni")),
    Case("the Talker saved alone",
         lambda base, folder: lay_out(folder, {}, {"model_type": "qwen2_5_omni_talker"}, shards=1, spk_dict=False),
         (), dict.fromkeys(CHAIN, "of qwen2_5_omni_talker, a part of Qwen2.5-Omni saved alone")),
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transformers")


def pull(snapshot: Any, name: str, folder: Path) -> None:
    part = component(name)
    fetch(snapshot, plan(snapshot, part, config_of(snapshot, part)), folder)


def opened(case: Case, base: Path, folder: Path) -> Any:
    snapshot: Any = FolderSnapshot(case.make(base, folder))
    if not case.speakers:
        return snapshot
    lender = lay_out(folder.with_name("base-model"), None, None)
    return speakers_of(snapshot, str(lender))


def stored(folder: Path) -> Tensors:
    """Every tensor of a checkpoint's safetensors files, read by the library."""
    tensors: Tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= snapshots.load_file(path)
    return tensors


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_a_checkpoint_is_pulled_or_refused_with_one_line(case: Case, base: Path, tmp_path: Path) -> None:
    snapshot = opened(case, base, tmp_path / "checkpoint")
    values = stored(tmp_path / "checkpoint")
    for name in CHAIN:
        place = tmp_path / "models/source" / name
        if name not in case.builds:
            with pytest.raises(UserError) as caught:
                pull(snapshot, name, place)
            assert "\n" not in str(caught.value)
            pieces = map(re.escape, case.refused[name].split(" ... "))
            assert re.search(".*".join(pieces), str(caught.value)), caught.value
            assert not place.exists()
            continue
        pull(snapshot, name, place)
        assert_the_same_values(place, values, base)
        said = artifact.read_json(place / "source.json")
        dtypes = {name.rpartition(".")[2]: entry["dtype"] for name, entry in said["tensors"].items()}
        codes = {dtypes.pop(name, "I32") for name in ("qweight", "qzeros", "g_idx")}
        assert codes == {"I32"}
        assert set(dtypes.values()) <= {"F32", "F16", "BF16"}


def assert_the_same_values(place: Path, values: Tensors, base: Path) -> None:
    """What was pulled are the checkpoint's values of exactly the component's tensors, by the hub's names."""
    pulled = Checkpoint(place)
    wanted: set[str] = set()
    for name in component(place.name).tensors(pulled.config):
        module = name.removesuffix(".weight")
        packing = {other for other in values if other.startswith(f"{module}.") and f"{module}.qweight" in values}
        wanted |= packing or {name}
    assert pulled.entries.keys() == wanted
    by_value = {tensor.float().numpy().tobytes(): tensor for tensor in values.values()}
    for name in pulled.entries:
        array = pulled.read(name).astype(np.float32)
        tensor = values.get(name)
        if tensor is None:  # it goes by another name there
            tensor = by_value[array.tobytes()]
        np.testing.assert_array_equal(array, tensor.float().numpy())
        if name in saved(base)[0]:
            np.testing.assert_allclose(array, saved(base)[0][name].numpy(), rtol=2**-8, atol=1e-6)


def test_the_page_says_of_each_checkpoint_what_it_gives() -> None:
    """Rewrite the table with ``UPDATE_DOCS=1``."""
    before, _, rest = PAGE.read_text().partition("<!-- checkpoints -->\n")
    table, _, after = rest.partition("<!-- end -->")
    expected = "| checkpoint | builds | of the others, it is said |\n| --- | --- | --- |\n"
    expected += "".join(f"| {case.title} | {_given(case)} | {_said(case)} |\n" for case in CASES)
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(f"{before}<!-- checkpoints -->\n{expected}<!-- end -->{after}")
    else:
        assert table == expected


def _given(case: Case) -> str:
    missing = [name for name in CHAIN if name not in case.builds]
    if not missing:
        return "everything"
    if len(missing) == 1:
        return f"all but {missing[0]}"
    return ", ".join(case.builds) or "nothing"


def _said(case: Case) -> str:
    return "; ".join(f"“{said}”" for said in dict.fromkeys(case.refused.values()))

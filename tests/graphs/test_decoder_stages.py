"""Thinker and Talker through the stages: what feeds them, what checks them, how they are quantized and published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIPS, CODES, EMBEDDING, HIDDEN, TOKENS, VOCABULARY, chained_params, recorded_names, write_params
from tamper import edit, flip_sign, reseal

from calibrate.__main__ import calibrate
from components import component
from export.__main__ import export
from inputs.__main__ import main as inputs
from inputs.dialogue import speaking_inputs, talker_inputs
from omni.inputs import CALIBRATION, HELD_OUT, read
from omni.params import load
from omni.reports import GateReport
from quantize.__main__ import main as quantize
from qwen_omni_onnx import talker, thinker
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.quantized import quantized_graph, quantized_stem
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker.golden import open_graphs as open_talker
from qwen_omni_onnx.text.chat import Chat
from qwen_omni_onnx.thinker.golden import open_graphs as open_thinker
from qwen_omni_onnx.thinker.prompts import open_prompts
from validate.__main__ import run_gate, run_parity
from validate.ceiling import kernels
from validate.measured import built_components

DECODERS = ("thinker", "talker")


def _published(name: str) -> Path:
    return Path(f"models/published/{name}/qwen2.5-omni-7b-{name}-onnx-synthetic")


# What feeds them


def _chat(chain: Path) -> Chat:
    return Chat(chain / "models/onnx/thinker", open_prompts(chain / "models/onnx/thinker").special_tokens.sound)


def _reply(chain: Path, split: str, clip: str) -> np.ndarray:
    return _chat(chain).text_ids((chain / "data/speech" / split / f"{clip}.txt").read_text().strip())


def test_the_thinker_is_fed_sound_and_the_reply_that_comes_with_it(chain: Path) -> None:
    prompts = open_prompts(Path("models/onnx/thinker"))
    heard, recorded = read("projection", HELD_OUT), read("thinker", HELD_OUT)

    assert list(recorded) == [*sorted(CLIPS["held_out"]), "text/remark", "text/request"]
    for clip, sound in heard.items():
        prompt, reply = prompts.prompt_of_sound(sound), _reply(chain, HELD_OUT, clip)
        assert len(reply) > 3
        np.testing.assert_array_equal(recorded[clip][: len(prompt.ids)], prompt.embeds)
        np.testing.assert_array_equal(recorded[clip], np.concatenate([prompt.embeds, prompts.embedding(reply)]))


def test_the_talker_is_fed_what_it_is_told_and_its_own_codes(chain: Path) -> None:
    told, recorded = read("thinker", CALIBRATION), read("talker", CALIBRATION)
    prompts = open_prompts(Path("models/onnx/thinker"))
    thinker = open_thinker({"thinker": Path("models/onnx/thinker/thinker.onnx")}, Path("models/onnx/thinker"), 1)
    talker = open_talker({"talker": Path("models/onnx/talker/talker.onnx")}, Path("models/onnx/talker"), 1)

    assert set(recorded) == recorded_names(CALIBRATION, texts=False)
    for clip in CLIPS["calibration"]:
        tokens, reply = told[clip], len(_reply(chain, CALIBRATION, clip))
        spoken = len(recorded[clip]) - (len(tokens) - reply + 2)
        assert 0 < spoken <= 47
        hidden = thinker.decoder.forward(tokens[None], np.array([len(tokens)]))[1][0]
        rows = talker_inputs(prompts, tokens, hidden, reply)
        expected = speaking_inputs(talker, rows, reply)
        assert expected.shape == recorded[clip].shape
        assert sqnr_db(expected, recorded[clip]) > 100  # hidden states came in segments, and without the head


def test_a_clip_without_a_reply_is_a_prompt_alone_and_is_not_told(chain: Path, message: Callable[..., str]) -> None:
    reply = Path("data/speech/held_out/hum.txt")
    reply.write_bytes(b"\xff\xfe")
    assert f"{reply}: cannot be read as UTF-8" in message(inputs, ["thinker"])
    reply.unlink()
    inputs(["talker"])
    assert set(read("thinker", HELD_OUT)) == {"hum", "sweep", "text/remark", "text/request"}
    assert set(read("talker", HELD_OUT)) == {"sweep", "text/request"}

    params = chained_params()
    params["thinker"]["inputs"]["replies"] = None
    write_params(chain, params)
    inputs(["talker"])

    prompts = open_prompts(Path("models/onnx/thinker"))
    for clip, sound in read("projection", HELD_OUT).items():
        np.testing.assert_array_equal(read("thinker", HELD_OUT)[clip], prompts.prompt_of_sound(sound).embeds)
    assert set(read("talker", HELD_OUT)) == {"text/request"}  # the only one that is replied to


def test_a_sequence_that_the_talker_was_taught_gives_the_codes_that_it_chose(chain: Path) -> None:
    model = open_talker({"talker": Path("models/onnx/talker/talker.onnx")}, Path("models/onnx/talker"), 1)
    random = np.random.default_rng(0)
    prompt, reply = (random.standard_normal((count, EMBEDDING), np.float32) for count in (6, 4))
    greedy = Sampling(greedy=True)

    codes = np.array(list(model.speak(prompt, reply, greedy, max_new_codes=12)))
    rows = model.teacher_forced_embeddings(prompt, reply, codes)

    assert rows.shape == (6 + 11, EMBEDDING)
    logits, _ = model.decoder.forward(rows[None], np.array([len(rows)]))
    logits[..., 151] = -np.inf  # the code that starts speech is never chosen
    np.testing.assert_array_equal(logits[0, 5:].argmax(-1), codes)


def test_token2wav_can_be_fed_the_talkers_codes(chain: Path) -> None:
    params = chained_params()
    params["token2wav"]["inputs"] = {"source": "talker"}
    write_params(chain, params)

    inputs(["token2wav"])

    for clip, codes in read("token2wav", HELD_OUT).items():
        assert codes.shape == read("talker", HELD_OUT)[clip].shape[:1]
        assert codes.max() < CODES


def test_what_feeds_no_other_component_is_told(chain: Path, message: Callable[..., str]) -> None:
    params = chained_params()
    params["components"] = [*params["components"][:-1], "token2wav"]
    params["components"].remove("projection")
    params["components"].append("projection")
    params["projection"]["inputs"]["source"] = "token2wav"
    write_params(chain, params)

    assert "inputs.source: token2wav feeds no other component" in message(inputs, ["projection"])


# What checks them


@pytest.mark.parametrize("name", DECODERS)
def test_golden_cases_are_zero_beyond_their_rows_and_agree(name: str, gated_chain: Path) -> None:
    for case, ports in golden.read(Path("models/reference") / name / golden.FILE):
        width, vocabulary = {"thinker": (EMBEDDING, TOKENS), "talker": (HIDDEN, VOCABULARY)}[name]
        batch, seq = ports["inputs_embeds"].shape[:2]
        assert ports["logits"].shape == (batch, seq, vocabulary), case
        assert ports["hidden_states"].shape == (batch, seq, width), case
        beyond = np.arange(seq) >= ports["tokens"][:, None]
        assert not ports["logits"][beyond].any()
    checks = artifact.read_json(Path("reports") / name / "parity.json")["checks"]
    assert set(checks) == {"prompt", "hidden", "steps"}
    for check, graphs in checks.items():
        assert graphs[FLOAT]["sqnr_db"] >= 100
        assert (graphs[QUANTIZED]["kl"] is not None) == (check != "hidden")
        assert len(graphs[FLOAT]["cases"]) == (2 if check == "steps" else 3)  # a single token has none to step after


@pytest.mark.parametrize("tensor", ["model.layers.1.self_attn.o_proj.weight", "model.norm.weight"])
def test_a_flipped_weight_of_a_decoder_turns_its_gate_red(
    tensor: str, gated_chain: Path, message: Callable[..., str]
) -> None:
    folder = Path("models/onnx/talker")
    edit(folder, tensor, flip_sign)
    reseal(folder)

    run_parity(["talker"])
    message(run_gate, ["talker"])

    red = {f"{v.subject}_{v.metric}" for v in GateReport.read("talker").verdicts if not v.ok}
    assert {"prompt_sqnr_db", "hidden_sqnr_db", "steps_sqnr_db"} <= red


# How they are quantized


def test_a_quantized_graph_is_named_after_how_most_weights_are_stored(gated_chain: Path) -> None:
    assert quantized_stem("talker", "int8-block") == quantized_stem("talker", "float32") == "talker_int8"
    assert quantized_graph(Path("models/quantized/thinker"), "thinker").name == "thinker_int4.onnx"
    assert quantized_graph(Path("models/quantized/talker"), "talker").name == "talker_int8.onnx"


def test_a_folder_without_the_quantized_graph_is_told(tmp_path: Path, message: Callable[..., str]) -> None:
    assert "0 quantized graphs of talker, not one" in message(quantized_graph, tmp_path, "talker")


@pytest.mark.parametrize("name", DECODERS)
def test_a_checkpoint_becomes_the_same_quantized_graph_in_one_pass_where_nothing_is_calibrated(
    name: str, chain: Path
) -> None:
    params = chained_params()
    params[name]["calibrate"] = {}
    params[name]["quantize"][name]["compensation"] = {}
    write_params(chain, params)
    for stage in (calibrate, quantize):
        stage(name)

    export(name, out=Path("models/direct"), quantized=True)

    staged = quantized_graph(Path("models/quantized") / name, name)
    direct = Path("models/direct") / staged.name
    open_graphs = {"thinker": open_thinker, "talker": open_talker}[name]
    rows = next(iter(read(name, HELD_OUT).values()))[None]
    said = [
        open_graphs({name: graph}, Path("models/onnx") / name, 1).decoder.forward(rows, np.array([rows.shape[1]]))
        for graph in (staged, direct)
    ]
    for one, other in zip(*said, strict=True):
        np.testing.assert_array_equal(one, other)
    text = {"tokenizer.json", "chat_template.jinja", "generation_config.json"} if name == "thinker" else set()
    assert {path.name for path in Path("models/direct").iterdir()} == text | {
        staged.name, f"{staged.name}.data", f"{'codec' if name == 'talker' else 'token'}_embedding.npy", "config.json",
        "manifest.json", "source.json",
    }  # fmt: skip
    assert artifact.check(Path("models/direct"))["graphs"] == [staged.stem]


def test_one_pass_is_for_decoders_and_a_folder_of_its_own(chain: Path, message: Callable[..., str]) -> None:
    said = message(export, "encoder", out=Path("models/direct"), quantized=True)
    assert said == "--quantized: encoder is quantized by python -m quantize encoder, after its export"
    assert "--quantized: needs --out" in message(export, "talker", quantized=True)
    params = chained_params()
    params["talker"]["quantize"]["talker"]["scheme"] = "int8-token"
    params["talker"]["calibrate"] = {"talker": {"smoothing": 0.5, "headroom": 1.3, "nodes": {}}}
    write_params(chain, params)
    assert "scheme 'int8-token'" in message(export, "talker", out=Path("models/direct"), quantized=True)
    assert not Path("models/direct").exists()


def test_a_decoder_can_be_calibrated_and_run_in_int8_by_the_token(chain: Path) -> None:
    params = chained_params()
    params["talker"]["quantize"] = {"talker": {"scheme": "int8-token", "block": 32, "nodes": {}}}
    params["talker"]["calibrate"] = {"talker": {"smoothing": 0.5, "headroom": 1.3, "nodes": {}}}
    write_params(chain, params)

    calibrate("talker")
    quantize("talker")

    config = read_config(Path("models/onnx/talker"))
    rows = next(iter(read("talker", HELD_OUT).values()))[None]
    given = []
    for graph in (Path("models/onnx/talker/talker.onnx"), Path("models/quantized/talker/talker_int8.onnx")):
        model = open_talker({"talker": graph}, Path("models/onnx/talker"), 1)
        given.append(model.decoder.forward(rows, np.array([rows.shape[1]]))[0])
    assert sqnr_db(*given) > 15
    assert component("talker").contracts(config)["talker"].filled == {"attention_mask": 1, "logits_to_keep": -1}


@pytest.mark.parametrize("name", DECODERS)
def test_the_ceiling_counts_the_head_for_the_last_token_as_a_prompt_does(name: str, chain: Path) -> None:
    ((measured, _),) = built_components([name])

    found = kernels(measured.graphs[name], 12)

    rows = dict.fromkeys((1, 12), 0)
    for kernel, count in found.items():
        rows[kernel.activation[1]] += count
    nodes = {node.partition("/MatMul.")[0] for node in measured.graphs[name].quantization}  # parts are of one node
    heads = sum("_head" in node for node in nodes)
    assert rows == {1: heads, 12: len(nodes) - heads}


# Published


@pytest.mark.parametrize("name", DECODERS)
def test_a_published_decoder_travels_with_its_table(name: str, gated_chain: Path) -> None:
    opened = {"thinker": thinker.open_thinker, "talker": talker.open_talker}[name]
    folder = _published(name)

    for quantized in (True, False):
        model = opened(folder, quantized=quantized, threads=1)
        assert model.embedding.width == model.decoder.width
    card = (folder / "README.md").read_text()
    assert f"tags: [onnx, {'int4' if name == 'thinker' else 'int8'}, qwen2.5-omni, speech]" in card
    assert "| input | `past_key_values.N.key` | FLOAT | [batch, 2, past, " in card
    assert card.count("`present.N.value`") == 1
    assert "| KL |" in card


def test_a_published_decoder_of_another_kind_is_refused(gated_chain: Path, message: Callable[..., str]) -> None:
    assert "not a published talker" in message(talker.open_talker, _published("thinker"))
    shutil.rmtree(_published("talker") / "onnx")
    assert "missing" in message(talker.open_talker, _published("talker"))


def test_the_parameters_of_the_repository_smooth_both_decoders_for_free_and_compensate_four_bits(chain: Path) -> None:
    thinker, talker = (load().component(name).graph(name) for name in ("thinker", "talker"))

    assert (thinker.quantize.scheme, talker.quantize.scheme) == ("int4-block", "int8-block")
    assert thinker.quantize.compensation
    assert not talker.quantize.compensation
    for name in DECODERS:
        record = artifact.read_manifest(Path("models/quantized") / name)["quantization"][name]
        smoothed = {node for node, entry in record.items() if entry["smoothing"] != "none"}
        assert smoothed == {node for node in record if node.startswith("model.layers.")}
        assert all(record[node]["smoothing"].startswith("folded into ") for node in smoothed)

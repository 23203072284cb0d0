"""Sound to sound in one graph: the same as the separate graphs, in little memory, and red where it is not."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import COMPOSED, EMBEDDING, build_here, chained_params, write_params
from safetensors.numpy import load_file, save_file
from tamper import edit, reseal

from calibrate.__main__ import calibrate
from components.audio_core import COMPONENT, COMPONENTS, GRAPH
from compose.__main__ import compose, record
from compose.audio_core import compose_float32, compose_quantized
from compose.join import GraphComposer, port_value
from export.__main__ import export
from inputs.__main__ import main as inputs
from omni.build_memory import read as read_memory
from omni.params import load
from omni.reports import GateReport
from omni.resources import peak_bytes
from omni.streamed import data_file, save_graph
from publish.__main__ import publish
from pull.__main__ import pull
from quantize.__main__ import main as quantize
from quantize.compensate import main as compensate
from qwen_omni_onnx.audio_core import AudioCore, open_audio_core
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import Port
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.direct import Direct, open_direct
from qwen_omni_onnx.sound.audio import HOP, SHORTEST, embeddings
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE as RATE
from qwen_omni_onnx.voices import Voice, read_voices
from reference.__main__ import reference
from validate.__main__ import run_gate, run_parity
from validate.measured import built_components
from validate.rebuild import different

NAME = "audio_core"
ONNX, INT8, REFERENCE = (Path("models/composed") / kind / NAME for kind in ("onnx", "quantized", "reference"))
MIB = 2**20


def _published(name: str) -> Path:
    return Path(f"models/published/{name}/qwen2.5-omni-7b-{name}-onnx-synthetic")


def _report(measurement: str) -> dict:
    return json.loads(Path(f"reports/{NAME}/{measurement}.json").read_text())


def _sound(samples: int) -> np.ndarray:
    seconds = np.arange(samples) / RATE
    noise = 0.02 * np.random.default_rng(samples).standard_normal(samples)
    return (0.3 * np.sin(2 * np.pi * 300 * seconds * (1 + seconds)) + noise).astype(np.float32)


def _core(quantized: bool) -> AudioCore:
    return open_audio_core(_published(NAME), quantized=quantized, threads=1)


def _direct(quantized: bool, between: Callable[[np.ndarray], np.ndarray] | None = None) -> Direct:
    return open_direct(*(_published(part) for part in COMPONENTS), quantized=quantized, threads=1, between=between)


def _voice() -> Voice:
    return next(iter(read_voices(_published(NAME) / "speakers.safetensors").values()))


# The same as the separate graphs


@pytest.mark.parametrize("quantized", [False, True], ids=["float32", "int8"])
def test_one_graph_says_what_the_separate_graphs_say(quantized: bool, gated_chain: Path) -> None:
    """From the shortest sound that has a code, over block edges of encoder and DiT, to a piece of the vocoder more."""
    core, direct, voice = _core(quantized), _direct(quantized), _voice()
    lengths = [SHORTEST, 961, 16 * HOP, 16 * HOP + 1, 5000, 16_001, 90_000]

    for seed, samples in enumerate(lengths):
        audio = _sound(samples)
        expected = direct.speak(audio, RATE, voice.cond, voice.ref_mel, seed=seed)

        waveform = core.speak(audio, RATE, voice, seed=seed)

        noise = np.zeros((1, core.repeats * embeddings(samples), core.mels), np.float32)
        codes, _ = core.run(audio, RATE, voice.cond, voice.ref_mel, noise)
        np.testing.assert_array_equal(codes, direct.codes(audio, RATE))
        assert len(set(codes)) > 1 or samples < 5000
        assert waveform.shape == (embeddings(samples) * core.repeats * core.hop,)
        assert sqnr_db(expected, waveform) >= 60, samples


def test_another_seed_or_sound_says_something_else(gated_chain: Path) -> None:
    core, voice, audio = _core(False), _voice(), _sound(5000)
    said = core.speak(audio, RATE, voice)

    np.testing.assert_array_equal(said, core.speak(audio, RATE, voice, seed=0))
    assert sqnr_db(said, core.speak(audio, RATE, voice, seed=1)) < 20
    audio[:2500] *= np.float32(0.001)
    assert sqnr_db(said, core.speak(audio, RATE, voice)) < 60  # tiny: noise and voice say more than codes do


def test_the_variant_inside_is_the_one_that_params_yaml_names(chain: Path, message: Callable[..., str]) -> None:
    _vary(chain, "abm2-8")

    compose(NAME)

    assert artifact.read_json(ONNX / "audio_core.json")["variant"] == "abm2-8"
    (loop,) = (node for node in ir.load(ONNX / f"{GRAPH}.onnx").graph if node.op_type == "Loop")
    assert loop.inputs[0].const_value.numpy() == 8
    run_parity([NAME])
    found = _report("parity")["checks"]["waveform"]
    assert min(found[FLOAT]["sqnr_db"], found[QUANTIZED]["sqnr_db"]) >= 60
    _vary(chain, "heun")
    assert "audio_core.variant: 'heun' is none; sampler.json has reference, rk4-6, abm2-16" in message(compose, NAME)


def _vary(folder: Path, variant: str) -> None:
    params = chained_params()
    params[NAME]["variant"] = variant
    write_params(folder, params)


def test_how_many_codes_there_are_the_contract_and_the_run_time_agree(chain: Path) -> None:
    contract = COMPONENT.interface(read_config(ONNX))

    assert contract.least == SHORTEST
    for samples in (1, SHORTEST - 1, SHORTEST, 961, 962, 16_000, 480_001):
        assert contract.sizes(1, samples)["codes"] == embeddings(samples)
    assert embeddings(SHORTEST) == 1
    assert embeddings(SHORTEST - 1) == 0


# Direct


def test_what_stands_between_is_handed_the_embeddings_and_tells_the_projection(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    audio, heard = _sound(5000), []
    plain = _direct(False).codes(audio, RATE)

    def backwards(states: np.ndarray) -> np.ndarray:
        heard.append(states)
        return states[::-1]

    assert _direct(False, backwards).codes(audio, RATE).tolist() == plain[::-1].tolist()
    assert heard[0].shape == (embeddings(5000), EMBEDDING)
    assert len(_direct(False, lambda states: states[:3].astype(np.float64)).codes(audio, RATE)) == 3
    for wrong in (
        lambda states: states[:0],
        lambda states: states[:, :5],
        lambda states: states[None],
        lambda states: states.astype(np.int64),
    ):
        said = message(_direct(False, wrong).codes, audio, RATE)
        assert f"floats [hidden states, {EMBEDDING}], at least one, are needed" in said
    assert message(_direct(False, lambda s: s * np.nan).codes, audio, RATE) == "between: gave NaN or infinity"


def test_a_folder_of_another_component_is_refused(gated_chain: Path, message: Callable[..., str]) -> None:
    folders = [_published(part) for part in COMPONENTS]

    assert "not a published projection" in message(open_direct, folders[0], folders[1], folders[3], folders[3])
    assert "not a published audio_core" in message(open_audio_core, _published("encoder"))


# Bad input


def test_sound_speaker_and_noise_that_do_not_fit_are_refused(gated_chain: Path, message: Callable[..., str]) -> None:
    core, voice, audio = _core(True), _voice(), _sound(5000)
    short = f"{SHORTEST - 1} samples give no code; at least {SHORTEST} are needed"
    noise = np.zeros((1, core.repeats * embeddings(5000), core.mels), np.float32)

    assert short in message(core.speak, _sound(SHORTEST - 1), RATE, voice)
    assert short in message(_direct(True).codes, _sound(SHORTEST - 1), RATE)
    assert "8000 Hz; 16000 Hz is needed" in message(core.speak, audio, 8000, voice)
    assert "sample 7 is nan" in message(core.speak, np.where(np.arange(5000) == 7, np.nan, audio), RATE, voice)
    assert "needed for this audio" in message(core.run, audio, RATE, voice.cond, voice.ref_mel, noise[:, 1:])
    assert "cond is float32" in message(core.run, audio, RATE, voice.cond[:, 1:], voice.ref_mel, noise)
    assert "NaN or infinity" in message(core.run, audio, RATE, voice.cond * np.nan, voice.ref_mel, noise)
    core.longest = 10
    assert "the model goes to 10" in message(core.speak, audio, RATE, voice)


def test_the_graph_itself_takes_noise_for_its_own_codes_only(gated_chain: Path, message: Callable[..., str]) -> None:
    """Whoever runs it without the run-time is not to get sound from noise that is cut or filled up."""
    from qwen_omni_onnx.common.session import open_session, run

    session, voice = open_session(ONNX / f"{GRAPH}.onnx", threads=1), _voice()
    frames = 2 * embeddings(5000)
    fed = {"audio": _sound(5000)[None], "cond": voice.cond, "ref_mel": voice.ref_mel}

    for wrong in (frames - 1, frames + 1, frames + 6):
        assert "cannot run the graph" in message(run, session, {**fed, "noise": np.zeros((1, wrong, 8), np.float32)})
    assert run(session, {**fed, "noise": np.zeros((1, frames, 8), np.float32)})["codes"].shape == (1, frames // 2)


def test_commands_for_components_with_weights_of_their_own_say_so(chain: Path, message: Callable[..., str]) -> None:
    for command in (pull, export, lambda name: inputs([name]), reference, calibrate, compensate, quantize):
        said = message(command, NAME)
        assert "composed of frontend, encoder, projection, token2wav; name these, or run python -m compose" in said
    assert "encoder has weights of its own: run python -m export encoder" in message(compose, "encoder")


def test_a_part_that_is_missing_or_another_is_told(chain: Path, message: Callable[..., str]) -> None:
    before = artifact.fingerprint(ONNX)
    Path("models/onnx/encoder").rename("elsewhere")
    assert "models/onnx/encoder: no artifact here" in message(compose, NAME)
    Path("elsewhere").rename("models/onnx/encoder")
    source = artifact.read_json(Path("models/onnx/encoder/source.json"))
    artifact.write_json(Path("models/onnx/encoder/source.json"), {**source, "seed": 5})
    reseal(Path("models/onnx/encoder"))
    assert "from another checkpoint than models/onnx/frontend; build both from one" in message(compose, NAME)
    assert "composed of other graphs than are here now; run python -m compose audio_core" in message(
        compose_quantized, ONNX, INT8
    )
    assert artifact.fingerprint(ONNX) == before
    assert not list(Path("models/composed/onnx").glob(".*"))


def test_a_part_quantized_from_another_graph_is_told(chain: Path, message: Callable[..., str]) -> None:
    manifest = artifact.read_manifest(Path("models/quantized/encoder"))
    manifest["made_from"]["onnx"] = "0" * 64
    artifact.write_json(Path("models/quantized/encoder/manifest.json"), manifest)

    assert "made from another models/onnx/encoder; run python -m quantize encoder" in message(compose, NAME)
    assert "composed of other graphs than are here now; run python -m compose audio_core" in message(
        record, COMPONENT, load().whole(NAME)
    )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("composed", ["audio_heart"], "composed.0: 'audio_heart' is not one of audio_core"),
        ("composed", ["encoder"], "composed.0: 'encoder' is not one of audio_core"),
        ("components", ["audio_core"], "components.0: 'audio_core' is not one of encoder, frontend, projection"),
        ("components", ["frontend", "encoder", "projection"], "add token2wav to components, or leave audio_core out"),
        ("audio_core", {"variant": ""}, "audio_core.cases: missing"),
        ("audio_core", None, "audio_core: None is not allowed"),
    ],
)
def test_parameters_that_cannot_be_are_told(
    key: str, value: object, said: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    params = chained_params()
    params[key] = value
    write_params(tmp_path, params)

    assert said in message(load, tmp_path / "params.yaml")


def test_nothing_needs_to_be_composed(tmp_path: Path) -> None:
    params = chained_params()
    params |= {"components": ["frontend", "encoder"], "composed": []}
    write_params(tmp_path, params)

    assert load(tmp_path / "params.yaml").composed == []


# Building


def test_two_builds_give_the_same_bytes_and_weights_are_those_of_the_parts(chain: Path, tmp_path: Path) -> None:
    before = artifact.fingerprint(REFERENCE)
    compose(NAME, out=tmp_path / "second")
    for kind, folder in (("onnx", ONNX), ("quantized", INT8)):
        assert artifact.fingerprint(tmp_path / "second" / kind / NAME) == artifact.fingerprint(folder)
    assert artifact.fingerprint(REFERENCE) == before

    whole = ir.load(INT8 / f"{GRAPH}_int8.onnx").graph.initializers
    for stem, path in (("encoder", "encoder/audio_encoder_int8"), ("bigvgan", "token2wav/bigvgan_int8")):
        part = ir.load(Path("models/quantized") / f"{path}.onnx").graph.initializers
        assert len(part) > 20
        for name, value in part.items():
            np.testing.assert_array_equal(whole[f"{stem}/{name}"].const_value.numpy(), value.const_value.numpy())
    assert data_file(INT8 / f"{GRAPH}_int8.onnx").stat().st_size < sum(
        path.stat().st_size for path in Path("models").glob("*/*/*.onnx.data")
    )


def test_composing_a_second_time_finds_a_wrong_byte(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    ((measured, _),) = built_components([NAME])

    assert different(measured) == []
    for folder, stem, bias in ((INT8, f"{GRAPH}_int8", "proj.bias_shifted"), (ONNX, GRAPH, "proj.bias")):
        _wrong_weight(folder, f"encoder/{bias}", stem)
        reseal(folder)
        (wrong,) = different(measured)
        assert wrong.startswith(f"{folder / stem}.onnx")


def test_memory_that_was_recorded_of_another_build_is_refused(chain: Path, message: Callable[..., str]) -> None:
    compose_float32(load().whole(NAME), ONNX)
    assert read_memory(NAME, "quantize", INT8).peak_bytes >= read_memory(NAME, "export", ONNX).peak_bytes
    _wrong_weight(INT8, "encoder/proj.bias_shifted", f"{GRAPH}_int8")
    reseal(INT8)

    assert "is of another build than" in message(read_memory, NAME, "quantize", INT8)
    assert "run python -m compose audio_core again" in message(read_memory, NAME, "quantize", INT8)


def test_no_two_parts_share_the_name_of_an_axis(chain: Path) -> None:
    """ONNX Runtime lets values share memory whose axes have the same names."""
    graph = ir.load(ONNX / f"{GRAPH}.onnx").graph
    outside = {axis for port in (*graph.inputs, *graph.outputs) for axis in port.shape if not isinstance(axis, int)}

    inside = {
        str(axis.value): str(value.name).partition("/")[0]
        for node in graph.all_nodes()
        for value in node.outputs
        if value.shape is not None and value not in graph.outputs
        for axis in value.shape
        if not isinstance(axis, int) and axis.value
    }
    assert len(inside) > 10
    assert all(axis.startswith(f"{part}/") for axis, part in inside.items())
    assert {axis.value for axis in outside} == {"samples", "ref_frames", "mel_frames", "codes", "spoken_samples"}


def test_graphs_that_do_not_fit_together_are_refused(tmp_path: Path, message: Callable[..., str]) -> None:
    _write_stack(tmp_path, 1, 8)
    model = ir.load(tmp_path / "stack.onnx")
    x = port_value(Port("x", "FLOAT", ("rows", 8)))
    whole = GraphComposer()

    assert message(whole.add, "part", model, {"y": x}) == "part: takes x, not y; export it again"
    whole.add("part", model, {"x": x})
    other = ir.load(tmp_path / "stack.onnx")
    other.graph.opset_imports[""] = 20
    assert "operators of ai.onnx 20, not 21" in message(whole.add, "other", other, {"x": x})


LAYERS, WIDTH, TIMES = 12, 1024, 3  # MatMuls of 4 MiB in a part; parts


def test_composing_takes_the_memory_of_two_tensors_and_a_little(tmp_path: Path) -> None:
    """A control that reads the weights, as ``onnx.compose`` does, takes all of it."""
    _write_stack(tmp_path, LAYERS, WIDTH)
    tensor = 4 * WIDTH * WIDTH
    total, allowed = TIMES * LAYERS * tensor, 2 * tensor + 24 * MIB

    joined, control = (_peak(tmp_path, loaded) for loaded in (False, True))

    assert data_file(tmp_path / "whole.onnx").stat().st_size == total
    assert joined <= allowed < total / 3
    assert control > total


def _write_stack(folder: Path, layers: int, width: int) -> None:
    """Write a graph x -> y of that many matrix multiplications."""
    x = port_value(Port("x", "FLOAT", ("rows", width)))
    here, nodes, weights = x, [], []
    for layer in range(layers):
        tensor = ir.tensor(np.full((width, width), layer, np.float32), name=f"w{layer}")
        weight = ir.Value(name=f"w{layer}", shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        nodes.append(ir.node("MatMul", [here, weight], name=f"m{layer}"))
        weights.append(weight)
        (here,) = nodes[-1].outputs
        here.name = f"h{layer}"
    here.name, here.shape, here.type = "y", x.shape, x.type
    graph = ir.Graph([x], [here], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="stack")
    save_graph(ir.Model(graph, ir_version=10), folder, "stack")


def _peak(folder: Path, loaded: bool) -> int:
    """Return by how many bytes the memory of a process grows that joins the stack to itself and writes the whole."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_join, args=(theirs, folder, loaded))
    process.start()
    theirs.close()
    grown = ours.recv()
    process.join()
    return grown


def _join(result: Connection, folder: Path, loaded: bool) -> None:
    (folder / "warm").mkdir(exist_ok=True)
    _write_stack(folder / "warm", 1, 8)  # imports what saving imports
    before = peak_bytes()
    x = port_value(Port("x", "FLOAT", ("rows", WIDTH)))
    whole, here = GraphComposer(), x
    for number in range(TIMES):
        part = ir.load(folder / "stack.onnx")
        if loaded:
            for value in part.graph.initializers.values():
                value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
        here = whole.add(f"part{number}", part, {"x": here})["y"]
    save_graph(whole.model("whole", [x], {here: Port("y", "FLOAT", ("rows", WIDTH))}, 10), folder, "whole")
    result.send(peak_bytes() - before)


# Gates and publishing


def test_every_gate_is_green_and_the_folder_is_published(gated_chain: Path) -> None:
    verdicts = {(v.kind, v.subject, v.metric): v.value for v in GateReport.read("audio_core").verdicts}

    assert _report("gate")["passed"]
    assert verdicts[FLOAT, "codes", "top1"] == 1
    waveform = verdicts[FLOAT, "waveform", "sqnr_db"]
    assert waveform is not None
    assert waveform >= 60
    assert set(verdicts) == {
        (FLOAT, "codes", "top1"), (FLOAT, "waveform", "sqnr_db"), (FLOAT, "", "build_mib"),
        (QUANTIZED, "codes", "top1"), (QUANTIZED, "waveform", "sqnr_db"), (QUANTIZED, "", "share"),
        (QUANTIZED, "", "build_mib"),
        (QUANTIZED, GRAPH, "share_700"), (QUANTIZED, GRAPH, "share_1600"), (QUANTIZED, GRAPH, "speedup_1600"),
        (FLOAT, GRAPH, "run_mib"), (QUANTIZED, GRAPH, "run_mib"),
    }  # fmt: skip
    assert _report("memory")["build"]["quantize"]["rebuilt_the_same"] is None  # `validate rebuild` tells
    assert artifact.check(_published(NAME))["component"] == NAME
    assert {path.name for path in (_published(NAME) / "onnx").iterdir()} == {
        f"{GRAPH}{kind}.onnx{data}" for kind in ("", "_int8") for data in ("", ".data")
    }
    source = artifact.read_manifest(_published(NAME))["source"]
    assert source["kind"] == "synthetic"
    assert any(name.startswith("token2wav.") for name in source["tensors"])
    assert any(name.startswith("thinker.audio_tower.") for name in source["tensors"])


def test_the_card_says_that_it_is_a_shortcut_and_what_it_was_compared_with(gated_chain: Path) -> None:
    card = (_published(NAME) / "README.md").read_text()

    assert "**This is a shortcut: nothing thinks and no Talker speaks" in card
    assert "| output | `codes` | INT64 | [1, codes] |" in card
    assert "Against the graphs of frontend, encoder, projection, token2wav, run one after another" in card
    assert "Against PyTorch" not in card
    assert re.search(r"\| codes float32 \| 300.0 \|", card)


def _wrong_weight(path: Path, name: str, stem: str = GRAPH) -> None:
    def halve(array: np.ndarray) -> None:
        array *= np.float32(0.5)

    edit(path, name, halve, stem)


@pytest.mark.parametrize(
    ("tensor", "red"),
    [
        ("encoder/proj.bias", (FLOAT, "codes", "top1")),
        ("bigvgan/conv_pre.bias", (FLOAT, "waveform", "sqnr_db")),
        ("dit_ode/ode.after", (FLOAT, "waveform", "sqnr_db")),
    ],
)
def test_a_part_that_is_broken_turns_a_gate_red(
    tensor: str, red: tuple[str, str, str], gated_chain: Path, message: Callable[..., str]
) -> None:
    """As a defective stage would have made it: with hashes that fit."""
    _wrong_weight(ONNX, tensor)
    reseal(ONNX)

    run_parity([NAME])

    message(run_gate, [NAME])
    missed = {(v.kind, v.subject, v.metric) for v in GateReport.read("audio_core").verdicts if not v.ok}
    assert red in missed
    assert "made from another models/composed/onnx/audio_core" in message(publish, [NAME])


def test_another_code_in_the_golden_case_turns_a_gate_red(gated_chain: Path, message: Callable[..., str]) -> None:
    path = REFERENCE / golden.FILE
    tensors = load_file(path)
    tensors["samples16001/codes"][0, 3] ^= 1
    save_file(tensors, path)
    reseal(REFERENCE)

    run_parity([NAME])

    message(run_gate, [NAME])
    red = {(v.kind, v.subject, v.metric) for v in GateReport.read("audio_core").verdicts if not v.ok}
    assert red == {(FLOAT, "codes", "top1")}


def test_a_waveform_is_compared_where_the_codes_are_the_same(gated_chain: Path) -> None:
    """One code differs: so may the sound around it, and no more of it."""
    path = REFERENCE / golden.FILE
    tensors = load_file(path)
    before = tensors["samples16001/codes"].shape[1] // 2 * 60
    tensors["samples16001/codes"][0, 0] ^= 1
    tensors["samples16001/waveform"][0, : 3 * 6 * 30] = 0  # as far as it is heard: its block, and two more
    save_file(tensors, path)
    reseal(REFERENCE)

    run_parity([NAME])
    assert _report("parity")["checks"]["waveform"][FLOAT]["sqnr_db"] >= 60

    tensors["samples16001/waveform"][0, before] += 1
    save_file(tensors, path)
    reseal(REFERENCE)
    run_parity([NAME])
    assert _report("parity")["checks"]["waveform"][FLOAT]["sqnr_db"] < 60


def test_golden_cases_and_reports_of_another_whole_are_not_published(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    _vary(gated_chain, "rk4-6")
    compose_float32(load().whole(NAME), ONNX)

    assert "made from another models/composed/onnx/audio_core" in message(publish, [NAME])
    compose_quantized(ONNX, INT8)
    assert "made from other artifacts than are here now" in message(publish, [NAME])
    manifest = artifact.read_manifest(REFERENCE)
    manifest["made_from"]["quantized"]["encoder"] = "0" * 64
    artifact.write_json(REFERENCE / "manifest.json", manifest)
    assert "recorded from other graphs than models/composed/quantized/audio_core has" in message(publish, [NAME])


def test_all_that_is_built_is_what_is_measured_where_nothing_is_named(gated_chain: Path) -> None:
    assert set(COMPOSED) <= {measured.name for measured, _ in built_components([])}

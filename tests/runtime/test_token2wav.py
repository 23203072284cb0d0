"""token2wav as users run it: published folders, whole or as a stream; and what its gates see."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import BLOCK_CODES, CODES, ROOT, VOICE_WIDTH, chained_params, write_params
from tamper import edit, flip_sign, reseal

from inputs.__main__ import main as record_inputs
from omni.inputs import CALIBRATION, HELD_OUT, Feeds, read
from omni.reports import GateReport
from publish.__main__ import publish
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.speakers import VOICES
from qwen_omni_onnx.sampler import REFERENCE
from qwen_omni_onnx.token2wav import Token2Wav, Window, open_token2wav, stream, voice_noise
from qwen_omni_onnx.voices import Voice, read_voices
from validate.__main__ import run_contract, run_gate, run_memory, run_parity

NAME = "token2wav"
ONNX, INT8 = Path("models/onnx") / NAME, Path("models/quantized") / NAME
PUBLISHED = Path(f"models/published/{NAME}/qwen2.5-omni-7b-{NAME}-onnx-synthetic")
HOP = 30  # samples of a mel frame, of the tiny vocoder


@pytest.fixture(scope="module")
def folder(gated_chain_once: Path) -> Path:
    return gated_chain_once / PUBLISHED


@pytest.fixture(scope="module")
def model(folder: Path) -> Token2Wav:
    return open_token2wav(folder, quantized=False, threads=1)


@pytest.fixture(scope="module")
def voice(folder: Path) -> Voice:
    return read_voices(folder / VOICES)["Chelsie"]


def _codes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(CODES, size=count)


def _report(measurement: str) -> dict:
    return json.loads(Path(f"reports/{NAME}/{measurement}.json").read_text())


# Parity


@pytest.mark.parametrize(("check", "least"), [("evaluation", 100), ("mel", 80), ("vocoder", 100), ("waveform", 60)])
def test_every_step_of_the_way_agrees_with_transformers(check: str, least: float, gated_chain: Path) -> None:
    found = _report("parity")["checks"][check]

    assert {case["case"] for case in found["float32"]["cases"]} == set(golden.cases(PUBLISHED / "golden" / golden.FILE))
    assert found["float32"]["sqnr_db"] >= least
    assert 10 < found["quantized"]["sqnr_db"] < found["float32"]["sqnr_db"]  # INT8 happened, and is no noise


def test_golden_cases_hold_unequal_rows_as_each_row_alone(gated_chain: Path) -> None:
    cases = dict(golden.read(PUBLISHED / "golden" / golden.FILE))
    ragged = cases["codes11+5"]

    assert ragged["code_lens"].tolist() == [11, 5]
    assert ragged["waveform"].shape == (2, 11 * 2 * HOP)
    assert not ragged["waveform"][1, 5 * 2 * HOP :].any()
    assert np.abs(ragged["waveform"]).max() > 0


def test_a_batch_of_unequal_rows_gives_what_each_row_gives_alone(model: Token2Wav, voice: Voice) -> None:
    lens = np.array([23, 9])
    codes, noise = (
        np.stack([_codes(23, 1), _codes(23, 2)]),
        voice_noise(0).standard_normal((2, 46, model.mels), np.float32),
    )
    cond, ref_mel = np.repeat(voice.cond, 2, 0), np.repeat(voice.ref_mel, 2, 0)

    together = model.mel(codes, lens, cond, ref_mel, noise)

    for row, length in enumerate(lens):
        alone = model.mel(
            codes[row : row + 1, :length],
            lens[row : row + 1],
            voice.cond,
            voice.ref_mel,
            noise[row : row + 1, : 2 * length],
        )
        assert sqnr_db(alone[0], together[row, : 2 * length]) > 100
        assert not together[row, 2 * length :].any()


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_evaluations_in_pieces_give_what_they_give_at_once(
    blocks: int, model: Token2Wav, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece hears one block ahead of it, and looks back on keys and values of the one before."""
    codes, lens = np.stack([_codes(8 * BLOCK_CODES + 1), _codes(8 * BLOCK_CODES + 1, 1)]), np.array([25, 13])
    speaker = {port: np.repeat(getattr(voice, port), 2, 0) for port in ("cond", "ref_mel")}
    state = model.blocked(voice_noise(0).standard_normal((2, 50, model.mels), np.float32))
    conditioned = model.condition(codes, lens, **speaker)
    at_once = [model.velocity(conditioned)(state, row) for row in (0, 7)]

    monkeypatch.setattr("qwen_omni_onnx.token2wav.velocity._BLOCKS", blocks)
    velocity = model.velocity(conditioned)

    for row, expected in zip((0, 7), at_once, strict=True):
        assert sqnr_db(expected, velocity(state, row)) >= 100
    monkeypatch.setattr(model, "_ahead", 0)
    assert sqnr_db(at_once[0], model.velocity(conditioned)(state, 0)) < 60


@pytest.mark.parametrize("own", [1, 3, 4])
def test_a_part_goes_on_where_the_one_before_ended(
    own: int, model: Token2Wav, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with pieces inside of the parts, and with blocks behind the first that belong to the second."""
    monkeypatch.setattr("qwen_omni_onnx.token2wav.velocity._BLOCKS", 2)
    conditioned = model.condition(_codes(6 * BLOCK_CODES)[None], np.array([6 * BLOCK_CODES]), voice.cond, voice.ref_mel)
    state = model.blocked(voice_noise(0).standard_normal((1, 12 * BLOCK_CODES, model.mels), np.float32))
    whole = [model.velocity(conditioned)(state, row) for row in (0, 7)]

    def cut(start: int, end: int) -> dict[str, np.ndarray]:
        condition, bias = conditioned["condition"], conditioned["key_bias"]
        return {"condition": condition[:, :, start:end], "key_bias": bias[:, start:end]}

    first = model.velocity(cut(0, own + 2), own=own)
    found = [first(state[:, : own + 2], row)[:, :own] for row in (0, 7)]
    second = model.velocity(cut(own, 6), past=first.present)

    for expected, before, row in zip(whole, found, (0, 7), strict=True):
        together = np.concatenate([before, second(state[:, own:], row)], 1)
        assert sqnr_db(expected, together) >= 100
    assert [len(part.present) for part in (first, second)] == [2, 2]


def test_the_vocoder_in_pieces_gives_what_it_gives_at_once(
    model: Token2Wav, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mel = np.random.default_rng(0).standard_normal((300, model.mels), np.float32)
    at_once = open_token2wav(folder, quantized=False, threads=3)

    chunk_by_chunk = np.concatenate([model.vocode_chunk(mel, start, start + 50) for start in range(0, 300, 50)])
    side_by_side = at_once.vocode(mel)

    monkeypatch.setattr("qwen_omni_onnx.token2wav.runtime._CHUNK_SIZE", 300)
    whole = model.vocode(mel)
    assert sqnr_db(whole, chunk_by_chunk) > 100
    assert sqnr_db(whole, side_by_side) > 100
    assert sqnr_db(whole[: 40 * HOP], at_once.vocode(mel[:40])) < 100  # what is not there is not heard


# Streaming


def _in_pieces(codes: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(codes), size):
        yield codes[start : start + size]


@pytest.mark.parametrize("count", [1, 2, BLOCK_CODES - 1, BLOCK_CODES, BLOCK_CODES + 1, 7 * BLOCK_CODES, 97])
def test_a_stream_is_what_is_spoken_at_once(count: int, model: Token2Wav, voice: Voice) -> None:
    codes = _codes(count)

    whole = model.speak(codes, voice.cond, voice.ref_mel, seed=5)
    pieces = list(stream(model, _in_pieces(codes, 5), voice.cond, voice.ref_mel, seed=5))

    assert sum(map(len, pieces)) == len(whole) == count * 2 * HOP
    assert sqnr_db(whole, np.concatenate(pieces)) >= 60


def test_it_does_not_matter_how_the_codes_are_cut(model: Token2Wav, voice: Voice) -> None:
    codes = _codes(60)

    one, other = (
        np.concatenate(list(stream(model, _in_pieces(codes, size), voice.cond, voice.ref_mel))) for size in (1, 60)
    )

    assert sqnr_db(one, other) > 60


def test_the_first_sound_comes_before_the_last_code_and_the_seams_are_smooth(model: Token2Wav, voice: Voice) -> None:
    codes, heard = _codes(30 * BLOCK_CODES), []

    def listening() -> Iterator[np.ndarray]:
        for index, piece in enumerate(_in_pieces(codes, BLOCK_CODES)):
            heard.append(index)
            yield piece

    pieces, firsts = [], []
    for piece in stream(model, listening(), voice.cond, voice.ref_mel):
        firsts.append(len(heard))
        pieces.append(piece)

    # 16 frames of context are 2 and two thirds blocks of 6 frames here
    assert firsts[0] <= 8
    assert firsts == sorted(firsts)
    whole = np.concatenate(pieces)
    steps = np.abs(np.diff(whole))
    seams = np.cumsum([len(piece) for piece in pieces])[:-1]
    assert len(seams) > 3
    assert steps[seams - 1].max() <= np.quantile(steps, 0.999)


def test_a_wider_window_comes_closer_and_an_impossible_one_is_refused(
    model: Token2Wav, voice: Voice, message: Callable[..., str]
) -> None:
    codes = _codes(80)
    whole = model.speak(codes, voice.cond, voice.ref_mel)

    def distance(window: Window) -> float:
        spoken = stream(model, _in_pieces(codes, 6), voice.cond, voice.ref_mel, window=window)
        return sqnr_db(whole, np.concatenate(list(spoken)))

    assert distance(Window(blocks=2, ahead=1)) < distance(Window(blocks=2, ahead=3))
    assert "at least 1" in message(Window, ahead=0)


def test_windows_grow_and_no_block_that_was_spoken_is_computed_again(
    model: Token2Wav, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    solved = model.mel_part

    def watch(codes: np.ndarray, *rest: Any, own: int, **options: Any) -> Any:
        seen.append((own, -(-codes.shape[1] // BLOCK_CODES)))
        return solved(codes, *rest, own=own, **options)

    monkeypatch.setattr(model, "mel_part", watch)
    codes = _codes(14 * BLOCK_CODES + 1)

    list(stream(model, _in_pieces(codes, 1), voice.cond, voice.ref_mel, window=Window(blocks=4, ahead=2, first=1)))

    assert seen == [(1, 2), (2, 4), (4, 6), (4, 6), (4, 4)]  # the last one has nothing ahead of it


def test_an_end_without_a_code_is_refused(model: Token2Wav, voice: Voice, message: Callable[..., str]) -> None:
    said = message(lambda: list(stream(model, iter([]), voice.cond, voice.ref_mel)))

    assert said == "codes: none; there is nothing to say"


# Bad input


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codes": np.full((1, 4), CODES)}, f"codes: {CODES} is none; they go from 0 to {CODES - 1}"),
        ({"codes": np.full((1, 4), -1)}, "codes: -1 is none"),
        ({"codes": np.zeros((1, 4), np.float32)}, "codes: float32 [1, 4]"),
        ({"codes": np.zeros((1, 0), np.int64), "code_lens": np.array([0])}, "codes: none; there is nothing to say"),
        ({"code_lens": np.array([5])}, "code_lens: 5 of a row of 4 codes"),
        ({"cond": np.zeros((1, VOICE_WIDTH + 1), np.float32)}, "cond is float32"),
        ({"ref_mel": np.zeros((1, 4, 8), np.float32)}, "ref_mel has 4 frames; give at least 5"),
        ({"ref_mel": np.full((1, 9, 8), np.nan, np.float32)}, "ref_mel holds NaN or infinity"),
        ({"noise": np.zeros((1, 7, 8), np.float32)}, "noise: float32 [1, 7, 8]; float32 [1, 8, 8] is needed"),
        ({"variant": "best"}, "no variant 'best'; there are: reference, "),
        ({"noise": np.full((1, 8, 8), np.nan, np.float32)}, "evaluation 1 of 12 gave NaN or infinity"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_told_in_one_line(
    change: dict, said: str, model: Token2Wav, voice: Voice, message: Callable[..., str]
) -> None:
    given = {
        "codes": _codes(4)[None],
        "code_lens": np.array([4]),
        "cond": voice.cond,
        "ref_mel": voice.ref_mel,
        "noise": np.zeros((1, 8, 8), np.float32),
    }

    assert said in message(model.mel, **given | change)


def test_more_codes_than_the_model_goes_to_are_refused(model: Token2Wav, message: Callable[..., str]) -> None:
    codes = np.zeros(model.longest // 2 + 1, np.int64)

    assert "use the stream" in message(model.speak, codes, np.zeros((1, 1)), np.zeros((1, 1, 1)))


# Command


def _run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qwen_omni_onnx", "vocode", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_command_speaks_a_file_of_codes_whole_and_as_a_stream(folder: Path, tmp_path: Path, voice: Voice) -> None:
    np.save(tmp_path / "codes.npy", _codes(50).astype(np.int32))

    whole = _run(str(folder), "codes.npy", "whole.wav", "--float32", cwd=tmp_path)
    streamed = _run(str(folder), "codes.npy", "stream.flac", "--float32", "--stream", cwd=tmp_path)

    assert whole.returncode == streamed.returncode == 0, whole.stderr + streamed.stderr
    assert whole.stdout.startswith("whole.wav: ")
    assert "Chelsie" in whole.stdout
    (one, rate), (other, _) = soundfile.read(tmp_path / "whole.wav"), soundfile.read(tmp_path / "stream.flac")
    assert rate == 24_000
    assert len(one) == len(other) == 50 * 2 * HOP
    assert sqnr_db(one, other) > 50  # of 16 bits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codes.npy", "stream.flac", "whole.wav"]


def test_the_command_speaks_with_a_voice_of_one_s_own(folder: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "mine").mkdir()
    np.save(tmp_path / "mine/cond.npy", random.standard_normal(VOICE_WIDTH).astype(np.float32))
    np.save(tmp_path / "mine/ref_mel.npy", random.standard_normal((30, 8)).astype(np.float32))
    np.save(tmp_path / "codes.npy", _codes(8))

    done = _run(str(folder), "codes.npy", "out.wav", "--voice", "mine", "--variant", "abm2-8", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert " of mine in " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["codes.npy", "out.mp3"], "error: out.mp3: the name of a sound file must end in .wav or .flac\n"),
        (["codes.npy", "out.wav", "--voice", "Nobody"], "Chelsie"),
        (["codes.npy", "out.wav", "--variant", "worst"], "error: no variant 'worst'"),
        (["none.npy", "out.wav"], "error: none.npy: no such file\n"),
        (["text.npy", "out.wav"], "error: text.npy: cannot be read as an array"),
        (["wide.npy", "out.wav"], "error: wide.npy: int64 [1, 8]; integers [codes] are needed\n"),
    ],
)
def test_the_command_tells_a_mistake_in_one_line_and_writes_nothing(
    arguments: list[str], said: str, folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "codes.npy", _codes(8))
    np.save(tmp_path / "wide.npy", _codes(8)[None])
    (tmp_path / "text.npy").write_text("no array")

    done = _run(str(folder), *arguments, cwd=tmp_path)

    assert done.returncode == 1
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"codes.npy", "wide.npy", "text.npy"}


def test_a_folder_with_a_flipped_byte_is_not_opened(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy/onnx/bigvgan_int8.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    assert "its SHA-256 is not the manifest's" in message(open_token2wav, tmp_path / "copy")


def test_the_run_time_imports_nothing_that_builds() -> None:
    builds = {"torch", "transformers", "onnx", "onnx_ir", "pydantic", "ml_dtypes"}
    code = f"import sys, qwen_omni_onnx.__main__; print(sorted({builds} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


# The stages


def test_calibration_sees_what_the_graphs_themselves_made_of_codes_that_judge_nothing(gated_chain: Path) -> None:
    steps, mels = Feeds(NAME, "dit_step"), Feeds(NAME, "bigvgan")
    calibrating, judging = read(NAME, CALIBRATION), read(NAME, HELD_OUT)

    assert {clip.partition(".")[0] for clip in steps} == set(calibrating)
    assert not set(calibrating) & set(judging)
    assert len(steps) == 8 * len(calibrating)
    assert {int(fed["evaluation"]) for fed in steps.values()} > {0}
    inputs = {"mel", "condition", "key_bias", "evaluation", "past", "past_bias", "present_block"}
    assert all(set(fed) == inputs for fed in steps.values())
    assert all(np.isfinite(fed["mel"]).all() for fed in mels.values())


def test_variants_are_measured_beside_the_reference_and_published(gated_chain: Path) -> None:
    found = _report("latency")["variants"]
    by_name = {entry["variant"]: entry for entry in found if entry["graphs"] == "float32"}

    assert next(iter(by_name)) == REFERENCE
    assert by_name[REFERENCE]["mel_db"] == 300
    assert [entry["evaluations"] for entry in by_name.values()] == [36, 24, 16, 12, 8]
    assert 5 < by_name["abm2-8"]["finer_db"] < by_name["abm2-16"]["finer_db"] < by_name[REFERENCE]["finer_db"] < 200
    for entry in by_name.values():  # the reference is near the solution, so that both distances tell of the solver
        assert entry["mel_median_db"] > 5
        assert entry["finer_median_db"] > 5
    assert {entry["graphs"] for entry in found} == {"float32", "quantized"}
    assert artifact.read_manifest(PUBLISHED)["variants"] == found
    assert "| float32 | `abm2-12` | 12 |" in (PUBLISHED / "README.md").read_text()


def test_what_is_published_is_all_that_the_run_time_needs(gated_chain: Path) -> None:
    names = {str(path.relative_to(PUBLISHED)) for path in PUBLISHED.rglob("*") if path.is_file()}

    assert names >= {"sampler.json", VOICES, "config.json", "README.md", "SHA256SUMS", "onnx/dit_condition.onnx"}
    assert "onnx/dit_condition_int8.onnx" not in names  # it stays float32
    run_parity([str(PUBLISHED)])
    run_contract([str(PUBLISHED)])


@pytest.mark.parametrize(
    ("where", "graph", "tensor"),
    [
        (ONNX, "dit_step", "proj_out.bias"),
        pytest.param(ONNX, "bigvgan", "conv_pre.bias", marks=pytest.mark.slow),
        pytest.param(ONNX, "dit_condition", "text_embed.codec_embed.weight", marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value).rpartition("/")[2],
)
def test_a_flipped_weight_turns_a_gate_red_and_blocks_publishing(
    where: Path, graph: str, tensor: str, gated_chain: Path, message: Callable[..., str]
) -> None:
    edit(where, tensor, _flip_all, graph=graph)
    assert "SHA-256" in message(run_contract, [NAME])

    reseal(where)
    run_contract([NAME])
    run_parity([NAME])
    message(run_gate, [NAME])

    red = {f"{v.subject}_{v.metric}" for v in GateReport.read("token2wav").verdicts if not v.ok}
    assert red & {"evaluation_sqnr_db", "mel_sqnr_db", "vocoder_sqnr_db", "waveform_sqnr_db"}
    refused = message(publish, [NAME])
    assert "not published, the gate is red" in refused or "made from" in refused


def _flip_all(array: np.ndarray) -> None:
    np.negative(array, out=array)


def test_one_flipped_quantized_weight_is_seen_by_the_second_build(
    gated_chain: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import build_here

    monkeypatch.setattr("omni.resources.measure_module", build_here)
    stored = sorted(name for name in _initializers(INT8 / "bigvgan_int8.onnx") if name.endswith("weight_int8"))
    edit(INT8, stored[0], flip_sign, graph="bigvgan_int8")
    reseal(INT8)

    run_contract([NAME])
    run_parity([NAME])
    run_memory([NAME])
    message(run_gate, [NAME])

    assert "same_bytes" in {v.metric for v in GateReport.read("token2wav").verdicts if not v.ok}


def _initializers(graph: Path) -> list[str]:
    import onnx_ir as ir

    return list(ir.load(graph).graph.initializers)


def test_codes_that_are_none_are_refused_where_inputs_are_recorded(chain: Path, message: Callable[..., str]) -> None:
    params = chained_params()
    params[NAME]["inputs"] = {"source": "recorded"}
    write_params(chain, params)
    Path("recorded").mkdir()
    np.save("recorded/a.npy", _codes(20))
    np.save("recorded/b.npy", np.array([CODES]))

    assert f"b.npy goes from {CODES} to {CODES}; 0 to {CODES - 1} is allowed" in message(record_inputs, [NAME])

    np.save("recorded/b.npy", np.zeros(4, np.float32))
    assert "b.npy is float32; integers are needed" in message(record_inputs, [NAME])

    np.save("recorded/b.npy", _codes(9))
    record_inputs([NAME])
    assert [len(codes) for codes in read(NAME, HELD_OUT).values()] == [9]

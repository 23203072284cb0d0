"""What components are fed: synthetic hidden states, recorded arrays, clips, and what comes through the chain."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CLIPS, EMBEDDING, MELS, NAME, TEXTS, chained_params, tiny_params, write_params
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from components import component
from inputs.__main__ import main, record
from omni.inputs import CALIBRATION, FOLDER, HELD_OUT, feed, read
from omni.params import Params, load
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.sound.audio import read_audio

TOKENS = GraphContract(
    (Port("x", "FLOAT", ("batch", "seq", 3)),), (Port("y", "FLOAT", ("batch", "seq", 5)),), 10, length="seq"
)
FRAMES = GraphContract(
    (Port("x", "FLOAT", ("batch", 3, "frames")), Port("lens", "INT64", ("batch",))),
    (Port("y", "FLOAT", ("batch", "frames", 5)), Port("out_lens", "INT64", ("batch",))),
    10,
    length="frames",
)


def _params(source: str = "synthetic", **synthetic: object) -> Params:
    """The tiny parameters with another source of the projection's inputs, written and read."""
    params = tiny_params()
    params[NAME]["inputs"]["source"] = source
    params[NAME]["inputs"]["synthetic"] |= synthetic
    write_params(Path(), params)
    return load()


def _recorded(params: Params, split: str = CALIBRATION, name: str = NAME) -> dict[str, np.ndarray]:
    return {recording.name: recording.array for recording in record(name, params)[split]}


# Synthetic


def test_the_same_channels_stand_out_in_calibration_and_held_out_tokens(workplace: Path) -> None:
    params = _params(outlier_channels=3, tokens=200)

    seen, other = (np.abs(np.concatenate(list(_recorded(params, s).values()))).mean(0) for s in (CALIBRATION, HELD_OUT))

    assert set(np.argsort(seen)[-3:]) == set(np.argsort(other)[-3:])
    assert np.sort(seen)[-3] > 10 * np.median(seen)


def test_synthetic_tokens_are_the_same_each_time_and_other_ones_with_another_seed(workplace: Path) -> None:
    one, again, other = _recorded(_params()), _recorded(_params()), _recorded(_params(seed=99))

    assert list(one) == [f"synthetic-{index}" for index in range(4)]
    for clip, tokens in one.items():
        assert tokens.shape == (32, EMBEDDING)
        np.testing.assert_array_equal(tokens, again[clip])
        assert (tokens != other[clip]).all()


def test_held_out_tokens_are_not_among_the_calibration_tokens(workplace: Path) -> None:
    seen, judged = (
        {row.tobytes() for tokens in _recorded(_params(), split).values() for row in tokens}
        for split in (CALIBRATION, HELD_OUT)
    )

    assert len(seen) == len(judged) == 4 * 32
    assert seen.isdisjoint(judged)


def test_more_outliers_than_channels_are_all_channels(workplace: Path) -> None:
    tokens = _recorded(_params(outlier_channels=10_000, outlier_range=[50, 50], token_spread=0))["synthetic-0"]

    assert tokens.std() == pytest.approx(50, rel=0.1)


# Recorded arrays


def test_recorded_files_are_split_and_read_in_both_formats(workplace: Path) -> None:
    folder = Path("recorded")
    folder.mkdir()
    arrays = {f"{i:02}": np.full((3, EMBEDDING), i, np.float32) for i in range(6)}
    for name in ("00", "01", "02", "04"):
        np.save(folder / f"{name}.npy", arrays[name])
    save_file({"a": arrays["03"][None], "b": arrays["05"].astype(np.float16)}, folder / "03.safetensors")
    np.save(folder / "05.npy", np.stack([arrays["05"], arrays["00"]]))
    params = _params("recorded")

    seen = {name: float(tokens[0, 0]) for name, tokens in _recorded(params).items()}
    judged = {name: float(tokens[0, 0]) for name, tokens in _recorded(params, HELD_OUT).items()}

    assert seen == {
        "00.npy/0": 0, "01.npy/0": 1, "02.npy/0": 2, "03.safetensors/a/0": 3, "03.safetensors/b/0": 5,
        "05.npy/0": 5, "05.npy/1": 0,
    }  # fmt: skip
    assert judged == {"04.npy/0": 4}
    assert {tokens.shape for tokens in _recorded(params).values()} == {(3, EMBEDDING)}
    assert {tokens.dtype for tokens in _recorded(params).values()} == {np.dtype(np.float32)}


def test_of_few_recorded_files_the_last_one_judges(workplace: Path) -> None:
    Path("recorded").mkdir()
    for name in "abc":
        np.save(f"recorded/{name}.npy", np.zeros((2, EMBEDDING), np.float32))

    assert list(_recorded(_params("recorded"))) == ["a.npy/0", "b.npy/0"]
    assert list(_recorded(_params("recorded"), HELD_OUT)) == ["c.npy/0"]


def test_recorded_files_in_two_folders_are_the_splits(workplace: Path, message: Callable[..., str]) -> None:
    for split, names in (("calibration", "ab"), ("held_out", "c")):
        Path("recorded", split).mkdir(parents=True)
        for name in names:
            np.save(f"recorded/{split}/{name}.npy", np.zeros((2, EMBEDDING), np.float32))

    assert list(_recorded(_params("recorded"))) == ["a.npy/0", "b.npy/0"]
    assert list(_recorded(_params("recorded"), HELD_OUT)) == ["c.npy/0"]
    Path("recorded/held_out/c.npy").unlink()
    expected = "recorded/held_out: no .npy or .safetensors file; some must calibrate, and others judge"
    assert message(_recorded, _params("recorded"), HELD_OUT) == expected
    Path("recorded/held_out").rmdir()
    assert message(_recorded, _params("recorded"), HELD_OUT) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((3, EMBEDDING + 1), np.float32), f"[3, {EMBEDDING + 1}]; [seq, {EMBEDDING}]"),
        (np.zeros((EMBEDDING,), np.float32), f"[{EMBEDDING}]; [seq, {EMBEDDING}]"),
        (np.zeros((1, 1, 3, EMBEDDING), np.float32), f"[1, 1, 3, {EMBEDDING}]; [seq"),
        (np.zeros((0, EMBEDDING), np.float32), f"[0, {EMBEDDING}]"),
        (np.full((3, EMBEDDING), np.nan, np.float32), "holds NaN"),
        (np.full((3, EMBEDDING), 1e300), "holds NaN or infinity"),
    ],
)
def test_a_recorded_array_that_does_not_fit_is_named(
    array: np.ndarray, expected: str, workplace: Path, message: Callable[..., str]
) -> None:
    Path("recorded").mkdir()
    for name in "ab":
        np.save(f"recorded/{name}.npy", array)

    said = message(_recorded, _params("recorded"))

    assert expected in said
    assert "a.npy" in said


def test_a_recorded_file_that_is_no_array_is_named(workplace: Path, message: Callable[..., str]) -> None:
    Path("recorded").mkdir()
    for name in ("a.npy", "b.npy"):
        Path("recorded", name).write_bytes(b"not an array")

    assert "a.npy: cannot be read" in message(_recorded, _params("recorded"))


def test_too_few_recorded_files_are_told(workplace: Path, message: Callable[..., str]) -> None:
    Path("recorded").mkdir()
    np.save("recorded/a.npy", np.zeros((3, EMBEDDING), np.float32))

    assert "1 .npy or .safetensors files; at least 2" in message(_recorded, _params("recorded"))
    assert "nowhere: no such folder" in message(_recorded, _params("nowhere"))


# The stage


def test_the_stage_writes_an_artifact_that_can_be_read(workplace: Path) -> None:
    shutil.rmtree(FOLDER / NAME)

    main([NAME])

    assert artifact.check(FOLDER / NAME)["kind"] == "inputs"
    for split in (CALIBRATION, HELD_OUT):
        recorded = _recorded(load(), split)
        assert read(NAME, split).keys() == recorded.keys()
        for clip, tokens in read(NAME, split).items():
            np.testing.assert_array_equal(tokens, recorded[clip])


def test_inputs_that_are_missing_or_damaged_are_told_with_what_to_do(
    workplace: Path, message: Callable[..., str]
) -> None:
    path = FOLDER / NAME / f"{HELD_OUT}.safetensors"
    path.write_bytes(b"short")
    assert "held_out.safetensors: cannot be read" in message(read, NAME, HELD_OUT)

    path.unlink()
    assert "held_out.safetensors: missing; run python -m inputs projection" in message(read, NAME, HELD_OUT)


def test_inputs_need_the_component_s_graph(workplace: Path, message: Callable[..., str]) -> None:
    shutil.rmtree(Path("models/onnx") / NAME)

    assert f"models/onnx/{NAME}: no artifact here" in message(main, [NAME])


# The chain


def _first(name: str, split: str, clip: str) -> np.ndarray:
    return read(name, split)[clip]


@pytest.mark.parametrize("split", CLIPS)
def test_clips_go_through_the_graphs_before_a_component(chain: Path, split: str) -> None:
    frontend, encoder, projection = (read(name, split) for name in ("frontend", "encoder", "projection"))

    assert set(frontend) == set(encoder) == set(projection) == set(CLIPS[split])
    for clip, audio in frontend.items():
        np.testing.assert_array_equal(audio, read_audio(Path("data/speech") / split / f"{clip}.flac"))
        assert encoder[clip].shape == (MELS, -(-len(audio) // 160))
    for before, after in (("frontend", "encoder"), ("encoder", "projection")):
        folder = Path("models/onnx") / before
        stem, contract = component(before).graph(read_config(folder))
        session = open_session(folder / f"{stem}.onnx", threads=1)
        signal, length = contract.inputs
        for clip, recording in read(before, split).items():
            fed = {signal.name: recording[None], length.name: np.array([recording.shape[-1]])}
            outputs = list(run(session, fed).values())
            np.testing.assert_array_equal(read(after, split)[clip], outputs[0][0])
            assert outputs[1].tolist() == [outputs[0].shape[2 if before == "frontend" else 1]]


def test_two_builds_of_inputs_give_the_same_bytes(chain: Path) -> None:
    for name in ("frontend", "encoder", "projection"):
        before = artifact.fingerprint(FOLDER / name)

        main([name])

        assert artifact.fingerprint(FOLDER / name) == before


def test_a_component_before_this_one_that_is_not_built_is_named(chain: Path, message: Callable[..., str]) -> None:
    shutil.rmtree("models/onnx/frontend")

    for name in ("encoder", "projection"):
        assert "inputs.source: frontend is not built" in message(main, [name])


def test_a_graph_before_this_one_that_was_altered_is_refused(chain: Path, message: Callable[..., str]) -> None:
    data = Path("models/onnx/encoder/audio_encoder.onnx.data")
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")

    assert "audio_encoder.onnx.data" in message(main, ["projection"])
    assert artifact.check(FOLDER / NAME)["kind"] == "inputs"


def test_a_component_whose_output_does_not_fit_is_named(chain: Path, message: Callable[..., str]) -> None:
    params = chained_params()
    params[NAME]["inputs"]["source"] = "frontend"
    write_params(chain, params)

    said = message(main, [NAME])

    assert f"inputs.source: frontend gives [{MELS}, " in said
    assert "projection takes hidden_states FLOAT" in said


def test_clips_that_give_no_embedding_are_left_out(chain: Path) -> None:
    import soundfile

    soundfile.write("data/speech/held_out/click.wav", np.full(320, 0.5, np.float32), 16_000)

    for name in ("frontend", "encoder", "projection"):
        main([name])

    assert _first("encoder", HELD_OUT, "click").shape == (MELS, 2)
    assert set(read(NAME, HELD_OUT)) == set(CLIPS["held_out"])


def test_as_many_clips_are_taken_as_the_parameters_say(chain: Path) -> None:
    params = chained_params()
    params["thinker"]["inputs"]["clips"] = 1
    params["talker"]["inputs"]["clips"] = 5  # there is one only
    write_params(chain, params)
    before = read("talker", HELD_OUT)

    for name in ("thinker", "talker"):
        main([name])

        for split in CLIPS:
            texts = {f"text/{TEXTS[split][0]}"} if name == "thinker" else set()
            assert set(read(name, split)) == {sorted(CLIPS[split])[0], *texts}
    (clip,) = read("talker", HELD_OUT)
    np.testing.assert_array_equal(_first("talker", HELD_OUT, clip), before[clip])


def test_a_split_in_which_nothing_is_left_is_told(chain: Path, message: Callable[..., str]) -> None:
    import soundfile

    shutil.rmtree("data/speech/held_out")
    Path("data/speech/held_out").mkdir()
    soundfile.write("data/speech/held_out/click.wav", np.full(320, 0.5, np.float32), 16_000)

    assert "inputs.source: encoder: no held_out recording in it" in message(main, [NAME])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda: shutil.rmtree("data/speech"), "data/speech/calibration: no such folder"),
        (lambda: shutil.rmtree("data/speech/held_out"), "data/speech/held_out: no such folder"),
        (lambda: [path.unlink() for path in Path("data/speech/calibration").iterdir()], "no .flac, .mp3"),
        (lambda: Path("data/speech/calibration/low.flac").write_bytes(b"no sound"), "low.flac: cannot be read"),
    ],
)
def test_a_folder_of_clips_that_is_not_usable_is_told(
    spoil: Callable[[], object], expected: str, chain: Path, message: Callable[..., str]
) -> None:
    before = artifact.fingerprint(FOLDER / "frontend")
    spoil()

    assert expected in message(main, ["frontend"])
    assert artifact.fingerprint(FOLDER / "frontend") == before


def test_two_clips_of_one_name_are_told(chain: Path, message: Callable[..., str]) -> None:
    shutil.copyfile("data/speech/calibration/high.flac", "data/speech/calibration/low.wav")

    assert "calibration: two recordings are named low; rename one" in message(main, ["frontend"])


@pytest.mark.parametrize("name", ["größe", "模型", "a b", "a\nb", "%s {x}", "a'b\"c", ".hidden", "x" * 250])
def test_a_clip_may_be_called_anything(chain: Path, name: str) -> None:
    shutil.copyfile("data/speech/held_out/hum.flac", f"data/speech/held_out/{name}.flac")

    main(["encoder"])

    np.testing.assert_array_equal(read("encoder", HELD_OUT)[name], read("encoder", HELD_OUT)["hum"])


@pytest.mark.parametrize("name", ["\udcff", "__metadata__"])
def test_a_name_that_no_recording_can_have_is_told(chain: Path, message: Callable[..., str], name: str) -> None:
    before = artifact.fingerprint(FOLDER / "frontend")
    shutil.copyfile("data/speech/held_out/hum.flac", f"data/speech/held_out/{name}.flac")

    expected = f"inputs.source: held_out: {name} cannot be the name of a recording; rename the file"
    assert message(main, ["frontend"]) == expected
    assert artifact.fingerprint(FOLDER / "frontend") == before


def test_a_recorded_array_s_file_whose_name_is_no_text_is_told(workplace: Path, message: Callable[..., str]) -> None:
    Path("recorded").mkdir()
    for name in ("a", "\udcff"):
        np.save(f"recorded/{name}.npy", np.zeros((2, EMBEDDING), np.float32))
    _params("recorded")

    assert "\udcff.npy/0 cannot be the name of a recording" in message(main, [NAME])


def test_a_projection_without_frontend_and_encoder_is_fed_synthetic_tokens(workplace: Path) -> None:
    """The tiny build that most tests use, and anybody who wants this component alone."""
    assert [path.name for path in Path("models/onnx").iterdir()] == [NAME]
    assert len(read(NAME, HELD_OUT)) == 4


# Batches


def test_rows_are_cut_one_after_another_and_start_over() -> None:
    recordings = [np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(6, 15, dtype=np.float32).reshape(3, 3)]

    fed = feed(TOKENS, recordings, [3, 3])

    assert list(fed) == ["x"]
    np.testing.assert_array_equal(fed["x"][:, :, 0], [[0, 3, 6], [9, 12, 0]])
    assert fed["x"].flags.c_contiguous


def test_shorter_rows_are_filled_up_with_zeros_along_the_right_axis() -> None:
    recording = np.arange(1, 13, dtype=np.float32).reshape(3, 4)

    fed = feed(FRAMES, [recording], [4, 1])

    np.testing.assert_array_equal(fed["x"][0], recording)
    np.testing.assert_array_equal(fed["x"][1], [[1, 0, 0, 0], [5, 0, 0, 0], [9, 0, 0, 0]])
    assert fed["lens"].tolist() == [4, 1]
    assert fed["lens"].dtype == np.int64


def test_unequal_rows_are_refused_where_the_graph_takes_equal_ones_only(message: Callable[..., str]) -> None:
    assert "x takes rows of one length only" in message(feed, TOKENS, [np.zeros((2, 3), np.float32)], [1, 2])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_row_holds_the_recordings_in_order(sizes: list[int], lengths: list[int]) -> None:
    total = sum(sizes)
    signal = np.arange(3 * total, dtype=np.float32).reshape(3, total)
    recordings = np.split(signal, np.cumsum(sizes)[:-1], axis=1)

    fed = feed(FRAMES, recordings, lengths)

    taken = np.concatenate([row[:, :length] for row, length in zip(fed["x"], lengths, strict=True)], 1)
    np.testing.assert_array_equal(taken, signal[:, np.arange(sum(lengths)) % total])
    assert all(not row[:, length:].any() for row, length in zip(fed["x"], lengths, strict=True))

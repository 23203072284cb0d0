"""The benchmarks run, and their tables say what the project claims about accuracy."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import encoder, frameworks, live, long_sound, measure, projection
from benchmarks.reply import __main__ as reply
from benchmarks.reply import beside
from qwen_omni_onnx import AudioChunk, ReplyOptions, Sampling, load
from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, clips, read_audio

ROWS = [
    "ours float32",
    "ours as built",
    "ours int8-token",
    "ours int8-tensor",
    "ours int8-static",
    "ours int8-block",
    "ours int4-block",
    "ORT quantize_dynamic",
    "ORT quantize_static MinMax",
    "ORT quantize_static Percentile",
    "ORT quantize_static Entropy",
    "ORT MatMulNBitsQuantizer 8 bits, block 32",
    "ORT MatMulNBitsQuantizer 4 bits, block 32",
    "PyTorch float32",
    "PyTorch bfloat16",
    "ceiling: bare INT8 kernels over bare float kernels",
]
ENCODER_ROWS = [
    "PyTorch float32",
    "PyTorch bfloat16",
    "ours float32",
    "ours as built",
    "ours int8-tensor",
    "ours int8-static",
    "ORT quantize_dynamic",
]


def first_column(printed: str) -> list[str]:
    """Return the names in a Markdown table, below its head."""
    head, _, *names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")]
    assert head == "variant"
    return names


@pytest.mark.usefixtures("workplace")
def test_every_variant_gets_a_row_of_finite_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frameworks, "openvino_installed", lambda: False)

    projection.main(seq="1,4", rounds=2, json=tmp_path / "found.json")

    found = {row["variant"]: row for row in read_json(tmp_path / "found.json")["variants"]}
    assert sorted(found) == sorted(ROWS)
    for name, row in found.items():
        numbers = [number for speed in row["speed"].values() for number in speed.values()]
        if not name.startswith("ceiling"):
            numbers += [row["mb"], row["sqnr_db"], row["top1"]]
        assert all(math.isfinite(number) for number in numbers), name
        assert list(row["speed"]) == ["1", "4"]
    assert found["ours as built"]["sqnr_db"] > found["ORT quantize_dynamic"]["sqnr_db"]
    assert found["ours float32"]["top1"] == 1

    printed, warned = capsys.readouterr()
    assert first_column(printed) == ROWS
    assert "weights: synthetic" in printed
    assert "pip install '.[bench]'" in printed
    assert not warned


def test_lengths_that_are_no_numbers_of_tokens_are_refused(message: Callable[..., str]) -> None:
    for text in ("", "1,x", "0"):
        assert f"--seq: {text!r} is not allowed" in message(projection.main, seq=text)


def test_a_benchmark_of_nothing_says_how_to_build(message: Callable[..., str], workplace: Path) -> None:
    shutil.rmtree(workplace / "models")

    assert "dvc repro" in message(projection.main)


@pytest.mark.usefixtures("chain")
def test_the_encoder_is_compared_with_everything_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frameworks, "openvino_installed", lambda: False)

    encoder.main(layers="built", frames=40, rounds=2, json=tmp_path / "found.json")

    report = read_json(tmp_path / "found.json")
    found = {row["variant"]: row for row in report["variants"]}
    assert list(found) == ENCODER_ROWS
    for name, row in found.items():
        numbers = [number for speed in row["speed"].values() for number in speed.values()]
        numbers += [row[key] for key in ("mb", "share", "sqnr_db", "worst_clip_db", "ms")]
        assert all(math.isfinite(number) and number > 0 for number in numbers), name
        assert row["worst_clip_db"] == min(row["clips"].values())
    assert found["PyTorch float32"]["sqnr_db"] == 300
    assert found["ours float32"]["sqnr_db"] > 100
    assert found["ours as built"]["sqnr_db"] > found["ORT quantize_dynamic"]["sqnr_db"]
    for name, baseline in (("PyTorch bfloat16", "bfloat16"), ("ours float32", "float32")):
        assert found[name]["speed"][baseline]["speedup"] == 1
    assert sum(report["profile"].values()) == pytest.approx(1)
    assert "MatMulIntegerToFloat" in report["profile"]
    assert not list(Path("models").glob(".*"))

    printed, warned = capsys.readouterr()
    assert first_column(printed) == ENCODER_ROWS
    assert "2 layers" in printed
    assert "weights: synthetic" in printed
    assert "time of ours as built, by operator: " in printed
    assert not warned


def test_what_takes_far_longer_than_our_float32_graph_runs_few_rounds() -> None:
    def takes(seconds: float) -> measure.Variant:
        return measure.Variant(f"takes {seconds} s", lambda fed: time.sleep(seconds), 1)

    comparison = encoder.Comparison(bfloat16=takes(0.2), float32=takes(0.01), fed={}, rounds=5)

    assert comparison.bfloat16_rounds == 2
    assert comparison.rounds_of(takes(0.011)) == 5


def test_a_number_of_layers_that_is_none_is_refused(message: Callable[..., str]) -> None:
    for text in ("", "0", "-1", "half"):
        assert f"--layers: {text!r} is not allowed" in message(encoder.main, layers=text)


@pytest.mark.slow
def test_the_encoder_benchmark_builds_what_it_needs_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frameworks, "openvino_installed", lambda: False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")

    encoder.main(layers="1", frames=200, rounds=1, json=Path("found.json"))

    assert first_column(capsys.readouterr().out) == ENCODER_ROWS
    found = {row["variant"]: row for row in read_json(tmp_path / "found.json")["variants"]}
    assert found["ours as built"]["sqnr_db"] > found["ORT quantize_dynamic"]["sqnr_db"] + 6
    assert not list((tmp_path / "models").iterdir())


def test_nncf_is_told_where_int8_sums_saturate(monkeypatch: pytest.MonkeyPatch) -> None:
    for instructions, saturates in (("avx512f avx2", True), ("avx_vnni avx2", False), ("amx_int8 avx2", False)):
        monkeypatch.setattr(frameworks, "machine", lambda found=instructions: {"instructions": found})

        assert frameworks.sums_saturate() is saturates


def _seed_that_speaks(*seconds: int) -> int:
    """Return a seed with which the tiny models speak of so much sound, whatever their weights are."""
    bundle = load(Path("models/published"))
    questions = [(long_sound.sound_of(length, Path("data/speech/held_out")), 16_000) for length in seconds]
    options = ReplyOptions(thinker=Sampling(temperature=1), max_new_tokens=8, max_new_codes=50)

    def speaks(seed: int) -> bool:
        replies = (bundle.reply(audio=question, options=options, seed=seed) for question in questions)
        return all(any(isinstance(part, AudioChunk) for part in reply) for reply in replies)

    return next(seed for seed in range(100) if speaks(seed))


def test_a_long_sound_is_measured_beside_a_short_one(
    gated_chain: Path,
    capsys: pytest.CaptureFixture[str],
    message: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled = ("--thinker-temperature", "1", "--seed", str(_seed_that_speaks(2, 6)))
    monkeypatch.setattr(long_sound, "_REPLY", (*long_sound._REPLY, *sampled))
    long_sound.main(minutes=0.1, json=Path("found.json"))

    found, printed = read_json(Path("found.json")), capsys.readouterr().out
    assert [found[length]["sound_seconds"] for length in ("short", "long")] == [2, 6]
    assert found["tokens"] == 150
    assert found["above_bytes"] == found["long"]["peak_bytes"] - found["short"]["peak_bytes"]
    assert set(found["caches"]) == {"thinker", "talker"}
    assert "150 embeddings of sound take" in printed
    assert "--minutes: 0; give more than 0" in message(long_sound.main, 0)
    shutil.rmtree("models/published/talker")
    assert "no published talker in it" in message(long_sound.main, 0.1)


def test_a_reply_is_measured_on_one_core_and_on_all(
    gated_chain: Path, capsys: pytest.CaptureFixture[str], message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "machine", lambda: {"cores": 2})
    length: dict[str, Any] = {"seconds": 2.0, "tokens": 8, "codes": 50}

    def speaks(seed: int) -> bool:
        with contextlib.suppress(UserError):
            reply.main(**length, seed=seed, json=Path("found.json"))
            return True
        return False

    assert any(speaks(seed) for seed in range(20))

    found, printed = read_json(Path("found.json")), capsys.readouterr().out
    one, two = found["measured"]
    assert (one["cores"], two["cores"]) == (1, 2)
    assert (one["tokens"], one["codes"]) == (two["tokens"], two["codes"])
    for run in (one, two):
        assert set(run["parts"]) == {"listening", "thinker", "talker", "token2wav"}
        assert 0 < sum(run["first"].values()) <= sum(run["parts"].values())
        assert run["in_turns"] > 0
        assert run["side_by_side"] > 0
        assert run["peak_bytes"] > 50e6
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in printed.splitlines() if line.startswith("|")}
    assert [len(rows[name]) for name in ("seconds", "in turns", "side by side", "peak memory, GB")] == [5] * 4
    assert "16, estimated" in rows["seconds"][-1]
    shutil.rmtree("models/published/talker")
    assert "talker" in message(reply.main, **length)


def test_a_reply_is_measured_beside_transformers(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = clips(Path("data/speech/held_out"))[0]

    found = beside.compare(Path("models/published"), Path("models/source"), clip, ["float32", "bfloat16"], 8, 50, 1)
    beside.print_comparison(found)

    assert found["baseline"] == "PyTorch float32"
    replies = found["replies"]
    assert [*replies] == [
        "ours, a stream, side by side",
        "ours, a stream, in turns",
        "ours, at once",
        "PyTorch float32",
        "PyTorch bfloat16",
    ]
    assert len({took["sound"] for took in replies.values()}) == 1, "50 codes each"
    for name, took in replies.items():
        assert took["speed"]["speedup"] == pytest.approx(replies["PyTorch float32"]["all"] / took["all"])
        assert 0 < took["first"] <= took["all"]
        parts = [took[part] for part in beside.PARTS if part in took]
        assert len(parts) == (3 if "PyTorch" in name else 0 if "side by side" in name else 4)
        assert sum(parts) <= took["all"]
    assert "times as fast as PyTorch float32" in capsys.readouterr().out


def test_a_live_question_is_measured_beside_a_whole_one(
    gated_chain: Path, message: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    def speaks(seconds: float) -> bool:
        with contextlib.suppress(UserError):  # what random weights say may end at once
            live.main(seconds=seconds, rounds=1, json=Path("found.json"))
            return True
        return False

    assert any(speaks(seconds) for seconds in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2))

    found = read_json(Path("found.json"))
    assert set(found["first_sound"]) == {"whole", "live"}
    assert min(found["first_sound"].values()) > 0
    assert set(found["embeddings_db"]) == {path.name for path in clips(Path("data/speech/held_out"))}
    assert all(decibels > 10 for decibels in found["embeddings_db"].values())
    assert "heard live" in capsys.readouterr().out
    shutil.rmtree("models/published/talker")
    assert "talker" in message(live.main)


def test_more_cores_are_estimated_by_amdahls_law() -> None:
    assert reply.amdahl(10.0, 6.0, 2, 4) == pytest.approx(4.0), "2 s are serial, 8 s are not"
    assert reply.amdahl(10.0, 11.0, 2, 16) == 10.0, "what gains nothing from two cores gains nothing from more"


def test_a_long_sound_is_clips_over_and_over_of_the_length_that_was_asked_for(gated_chain: Path) -> None:
    folder = Path("data/speech/held_out")
    once = np.concatenate([read_audio(path) for path in clips(folder)])

    sound = long_sound.sound_of(2.5 * len(once) / INPUT_SAMPLE_RATE, folder)

    assert len(sound) == round(2.5 * len(once))
    np.testing.assert_array_equal(sound[len(once) : 2 * len(once)], once)

"""The trained decoder judged by text: questions about texts, and losses that two counts must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import text as benchmark
from data.tasks.sentences import ask
from profiles.__main__ import COPIED

TEXTS = sorted(Path("data/text/held_out").resolve().glob("en-*.txt"))


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.stem)
def test_the_right_sentence_follows_and_stands_in_every_place(file: Path) -> None:
    whole = " ".join(file.read_text(encoding="utf-8").split())

    questions = list(ask(whole))

    assert len(questions) > 20
    for question in questions:
        assert f"{question['context']} {question['choices'][question['right']]}" in whole
        assert len(set(question["choices"])) == 4
        assert all(len(choice.split()) >= 4 for choice in question["choices"])
    assert {question["right"] for question in questions} == {0, 1, 2, 3}


@pytest.mark.parametrize("text", ["", "One. Two. Three.", "A sentence of six words here. " * 7])
def test_a_text_too_short_has_no_question(text: str) -> None:
    assert not list(ask(text))


def test_a_copy_of_the_repository_has_the_tasks() -> None:
    assert str(benchmark._TASKS) in COPIED


def _found(bits: float) -> dict[str, Any]:
    """Return what float32 and a graph were measured as: 100 tokens of 400 bytes, and what lm-eval says of the graph."""

    def row(name: str, nats: float, bits: float) -> dict[str, Any]:
        tasks = {
            "held_out_text": {"bits_per_byte,none": bits, "word_perplexity,none": 30.0},
            "next_sentence": {"acc_norm,none": 0.5},
        }
        judged = {"tokens": 100, "kl": 0.05, "top1": 0.9, "perplexity": math.exp(nats), "nats": nats}
        return {"graph": name, "mb": 1.0, **judged, "tasks": tasks}

    return {"bytes": 400, "machine": {}, "rows": [row("float32", 3.0, _bits(3.0)), row("int4-block", 3.06, bits)]}


def _bits(nats: float) -> float:
    """Return nats a token as bits a byte, of four bytes a token."""
    return nats / math.log(2) / 4


def test_both_counts_must_be_the_same(message: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    same = _found(_bits(3.06))

    assert benchmark.by_harness(same, same["rows"][1]) == pytest.approx(3.06)
    benchmark._require_agreement(same)
    benchmark._print(same)
    assert [row[-2:] for row in rows(capsys.readouterr().out)] == [["0.0000", "0.500"], ["0.0600", "0.500"]]
    for wrong in (3.0, 3.061, 3.1):
        assert message(benchmark._require_agreement, _found(_bits(wrong))) == (
            f"int4-block: 3.06 nats a token by our own count and {wrong:.6g} by lm-eval's: one is wrong"
        )


def rows(printed: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows."""
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]

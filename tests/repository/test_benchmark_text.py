"""The trained decoder judged by text: questions about texts, and losses that two counts must agree on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import text as benchmark
from data.tasks.sentences import ask

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


def _found(harness_bits: float) -> dict[str, Any]:
    """Return what a graph and float32 were measured as: 100 tokens of 400 bytes, of which it loses 0.06 nats each."""

    def row(name: str, nats: float, bits: float) -> dict[str, Any]:
        tasks = {
            "held_out_text": {"bits_per_byte,none": bits, "word_perplexity,none": 30.0},
            "next_sentence": {"acc,none": 0.5},
        }
        judged = {"tokens": 100, "kl": 0.05, "top1": 0.9, "perplexity": math.exp(nats)}
        return {"graph": name, "mb": 1.0, **judged, "tasks": tasks}

    return {"bytes": 400, "machine": {}, "rows": [row("float32", 3.0, 1.0), row("int4-block", 3.06, harness_bits)]}


def test_losses_are_of_the_same_tokens_and_must_agree(
    message: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = 1 + 0.06 / math.log(2) / 4  # bits a byte, of four bytes a token

    assert benchmark.losses(_found(same)) == {"int4-block": pytest.approx((0.06, 0.06))}
    benchmark._require_agreement(_found(same))
    benchmark._print(_found(same))
    assert "0.0600" in capsys.readouterr().out
    for wrong in (1.0, 1 + 2 * (same - 1)):
        assert "int4-block: loses 0.0600 nats a token by our own count" in message(
            benchmark._require_agreement, _found(wrong)
        )

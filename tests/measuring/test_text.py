"""``python -m validate text``: lm-eval on a tiny published Thinker, with tasks of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import qwen_omni_onnx
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.text import TOKENIZER
from qwen_omni_onnx.thinker import Thinker
from validate.__main__ import app

pytestmark = pytest.mark.ear
TASK = """\
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""
KINDS = {
    "tiny_choices": """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "tiny_perplexity": """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
    "tiny_greedy": """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["zzz"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
QUESTIONS = [
    {"question": "the sea is", "choices": [" cold", " a spoon"], "answer": 0},
    {"question": "two and two are", "choices": [" four", " seven", " blue"], "answer": 1},
]


@pytest.fixture
def tasks(gated_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, kind in KINDS.items():
        (folder / f"{name}.yaml").write_text((TASK + kind).replace("NAME", name).replace("DATA", str(data)))
    return folder


def text(*arguments: str) -> None:
    app(["text", *arguments], standalone_mode=False)


def log_probabilities(thinker: Thinker, ids: list[int]) -> np.ndarray:
    """Return the logarithms of the probabilities of every token after the first, [seq - 1]."""
    embeds = thinker.prompt(np.array(ids[:-1])).embeds[None]
    logits, _ = thinker.decoder.forward(embeds, np.array([len(ids) - 1]))
    shifted = logits[0].astype(np.float64) - logits[0].max(axis=-1, keepdims=True)
    normalized = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.asarray(normalized[np.arange(len(ids) - 1), ids[1:]])


def found(tasks: Path, name: str, *arguments: str) -> dict[str, Any]:
    text(name, "--folder", str(tasks), "--json", f"{name}.json", "--overwrite", *arguments)
    results: dict[str, Any] = artifact.read_json(Path(f"{name}.json"))["results"][name]
    return results


@pytest.mark.parametrize("float32", [(), ("--float32",)])
def test_choices_and_perplexity_are_those_of_the_graphs_logits(tasks: Path, float32: tuple[str, ...]) -> None:
    bundle = qwen_omni_onnx.load("models/published", needed=["thinker"], float32=["thinker"] if float32 else [])
    thinker = bundle.thinker
    tokenizer = Tokenizer.from_file(str(bundle.folders["thinker"] / TOKENIZER))

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    right, total, characters = 0, 0.0, 0
    for question in QUESTIONS:
        before = encode(str(question["question"]))
        sums = []
        for choice in question["choices"]:  # type: ignore[attr-defined]
            whole = encode(str(question["question"]) + choice)
            sums.append(log_probabilities(thinker, whole)[len(before) - 1 :].sum())
        right += int(np.argmax(sums) == question["answer"])
        total += log_probabilities(thinker, [min(thinker.special_tokens.ends), *before]).sum()
        characters += len(str(question["question"]).encode())

    assert found(tasks, "tiny_choices", *float32)["acc,none"] == right / len(QUESTIONS)
    bits = found(tasks, "tiny_perplexity", *float32)["bits_per_byte,none"]
    assert bits == pytest.approx(-total / np.log(2) / characters, rel=1e-4)


def test_greedy_text_is_the_thinkers(tasks: Path) -> None:
    assert found(tasks, "tiny_greedy", "--limit", "1")["exact_match,none"] == 0


def test_what_cannot_be_asked_is_told(tasks: Path, message: Callable[..., str]) -> None:
    assert "nonsense: lm-eval knows no such task" in message(text, "nonsense")
    assert "no folder with tasks" in message(text, "tiny_choices", "--folder", "nowhere")
    assert "nowhere" in message(text, "tiny_choices", "--folder", str(tasks), "--models", "nowhere")

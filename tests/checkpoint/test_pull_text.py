"""Pulling what turns text into tokens: the tokenizer, a template that is kept in one of three places, and defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import REPOSITORY, checkpoint, hub_with, point_huggingface_hub_at

from components import component
from pull import text
from pull.folder import FolderSnapshot
from pull.hub import HubSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, GENERATION, TOKENIZER

NAMED = json.dumps(
    {"chat_template": [{"name": "tool_use", "template": "first"}, {"name": "default", "template": "second"}]}
).encode()
GOOD = {TOKENIZER: b'{"model": {"type": "BPE"}}', CHAT_TEMPLATE: b"plain"}


def _snapshot(folder: Path, files: dict[str, bytes]) -> Snapshot:
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return FolderSnapshot(folder)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({CHAT_TEMPLATE: b"plain", "chat_template.json": b'{"chat_template": "json"}'}, b"plain"),
        ({"chat_template.json": b'{"chat_template": "json"}', "tokenizer_config.json": b"{}"}, b"json"),
        ({"chat_template.json": b"{}", "tokenizer_config.json": b'{"chat_template": "config"}'}, b"config"),
        ({"chat_template.json": b'{"chat_template": null}', "tokenizer_config.json": NAMED}, b"second"),
        ({"chat_template.json": NAMED, "tokenizer_config.json": b'{"chat_template": "config"}'}, b"second"),
        ({"chat_template.json": b'{"chat_template": {"default": "table", "rag": "other"}}'}, b"table"),
    ],
)
def test_the_template_is_found_where_it_is(tmp_path: Path, kept: dict[str, bytes], expected: bytes) -> None:
    snapshot = _snapshot(tmp_path / "a", {TOKENIZER: GOOD[TOKENIZER], **kept})

    assert text.files(snapshot) == {TOKENIZER: GOOD[TOKENIZER], CHAT_TEMPLATE: expected}


def test_generation_defaults_come_if_there_are_any(tmp_path: Path) -> None:
    defaults = b'{"do_sample": true}'

    assert GENERATION not in text.files(_snapshot(tmp_path / "a", GOOD))
    assert text.files(_snapshot(tmp_path / "a", {**GOOD, GENERATION: defaults}))[GENERATION] == defaults


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({TOKENIZER: None}, "a: no tokenizer.json in it; save the tokenizer"),
        ({TOKENIZER: b"{}"}, "a: tokenizer.json is no tokenizer"),
        ({TOKENIZER: b"\xff"}, "a: tokenizer.json is not JSON"),
        ({CHAT_TEMPLATE: None}, "a: no chat template, neither chat_template.jinja nor in chat_template.json"),
        ({CHAT_TEMPLATE: b"\xff"}, "a: chat_template.jinja is not text"),
        ({CHAT_TEMPLATE: None, "chat_template.json": b"[]"}, "a: chat_template.json is not a JSON object"),
        (
            {CHAT_TEMPLATE: None, "tokenizer_config.json": NAMED.replace(b"default", b"rag")},
            "a: tokenizer_config.json: chat_template has no template named default; there are: rag, tool_use",
        ),
        (
            {CHAT_TEMPLATE: None, "chat_template.json": b'{"chat_template": []}'},
            "a: chat_template.json: chat_template has no template named default; there are: none",
        ),
        *(
            (
                {CHAT_TEMPLATE: None, "chat_template.json": json.dumps({"chat_template": wrong}).encode()},
                "a: chat_template.json: chat_template is neither a template nor a list of templates with name and",
            )
            for wrong in (5, ["text"], [{"name": "default"}], [{"template": "text"}], {"default": None})
        ),
        ({GENERATION: b"no"}, "a: generation_config.json is not JSON"),
        ({GENERATION: b'{"top_k": "all"}'}, "a: generation_config.json: top_k is 'all', not an integer"),
        ({GENERATION: b'{"num_beams": 4}'}, "a: generation_config.json: num_beams is 4: not supported here"),
        ({GENERATION: b'{"eos_token_id": []}'}, "a: generation_config.json: eos_token_id is [], not the number"),
        ({GENERATION: b'{"max_new_tokens": 0}'}, "a: generation_config.json: max_new_tokens is 0, not a positive"),
    ],
)
def test_what_is_not_usable_is_told(
    tmp_path: Path, changes: dict[str, bytes | None], said: str, message: Callable[..., str]
) -> None:
    files = {name: content for name, content in {**GOOD, **changes}.items() if content is not None}

    assert message(text.files, _snapshot(tmp_path / "a", files)).startswith(said)


def _plan(snapshot: Snapshot) -> Plan:
    part = replace(component("projection"), text=True)
    return plan(snapshot, part, config_of(snapshot, part))


def test_a_component_that_reads_gets_them_from_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.dumps({"chat_template": "said"}).encode()
    with hub_with({**checkpoint(), TOKENIZER: GOOD[TOKENIZER], "chat_template.json": config}) as hub:
        point_huggingface_hub_at(monkeypatch, hub.endpoint)
        snapshot = HubSnapshot(REPOSITORY, "main")
        fetch(snapshot, replace(_plan(snapshot), text=False), tmp_path / "projection")
        assert not already_here(snapshot, _plan(snapshot), tmp_path / "projection")  # of an older version

        fetch(snapshot, _plan(snapshot), tmp_path / "projection")

        assert already_here(snapshot, _plan(snapshot), tmp_path / "projection")
    assert artifact.check(tmp_path / "projection")
    assert (tmp_path / "projection" / CHAT_TEMPLATE).read_text() == "said"
    assert (tmp_path / "projection" / TOKENIZER).read_bytes() == GOOD[TOKENIZER]


def test_nothing_is_fetched_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    with hub_with(checkpoint()) as hub:
        point_huggingface_hub_at(monkeypatch, hub.endpoint)
        snapshot = HubSnapshot(REPOSITORY, "main")
        said = message(fetch, snapshot, _plan(snapshot), tmp_path / "projection")

        assert "no tokenizer.json in it" in said
        assert not [request for request in hub.asked("storage") if request.sent > 5000]
    assert not (tmp_path / "projection").exists()

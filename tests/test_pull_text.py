"""Pulling what turns text into tokens: the tokenizer, a template that is kept in one of three places, and defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hub_server import REPOSITORY, checkpoint, hub_with, point_huggingface_hub_at

from omni import artifact
from omni.component import component
from omni.text import CHAT_TEMPLATE, GENERATION, TOKENIZER
from pull import text
from pull.folder import FolderSnapshot
from pull.hub import HubSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.write import already_here, fetch

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
        ({GENERATION: b"no"}, "a: generation_config.json is not JSON"),
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

"""JSON Schemas of ``params.yaml`` and ``manifest.json``: as generated, and as strict as what reads the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAIN, COMPOSED, ROOT, tiny_params
from jsonschema import Draft202012Validator, ValidationError
from ruamel.yaml import YAML

from publish.schemas import SCHEMAS, text


def _validate(name: str, content: Any) -> None:
    Draft202012Validator(json.loads((ROOT / "schemas" / name).read_text())).validate(json.loads(json.dumps(content)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_committed_schema_is_the_generated_one(name: str) -> None:
    assert (ROOT / "schemas" / name).read_text() == text(name), "run python -m publish.schemas"
    Draft202012Validator.check_schema(SCHEMAS[name]())


def test_the_page_on_the_format_has_every_key_of_an_entry_of_gates() -> None:
    page = (ROOT / "docs/format.md").read_text(encoding="utf-8").partition("### An entry of gates\n")[2]

    keys = re.findall(r"^\| `(\w+)` \|", page, re.M)

    assert keys == list(SCHEMAS["manifest.schema.json"]()["$defs"]["Verdict"]["properties"])


def test_the_repository_s_parameters_fit_and_name_their_schema() -> None:
    file = (ROOT / "params.yaml").read_text()

    _validate("params.schema.json", YAML(typ="safe", pure=True).load(file))
    _validate("params.schema.json", tiny_params())
    assert file.startswith("# yaml-language-server: $schema=schemas/params.schema.json\n")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda params: params.update(encodr={}),
        lambda params: params["encoder"]["quantize"]["audio_encoder"].update(scheme="int7"),
        lambda params: params["encoder"].update(quantize={"scheme": "int8-token", "block": 32, "nodes": {}}),
        lambda params: params["encoder"]["gates"].pop("build_memory_mb"),
        lambda params: params["encoder"]["gates"]["checks"]["audio_features"].update(float_sqnr=3),
        lambda params: params["sessions"].update(threads=-1),
        lambda params: params.update(components=["visual"]),
    ],
)
def test_parameters_that_the_program_refuses_do_not_fit(spoil: Callable[[dict], object]) -> None:
    params = tiny_params()
    spoil(params)

    with pytest.raises(ValidationError):
        _validate("params.schema.json", params)


@pytest.mark.parametrize("name", [*CHAIN, *COMPOSED])
def test_every_published_manifest_fits(name: str, gated_chain: Path) -> None:
    (folder,) = (gated_chain / "models/published" / name).iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())

    _validate("manifest.schema.json", manifest)
    for key in ("files", "gates", "interface"):
        with pytest.raises(ValidationError):
            _validate("manifest.schema.json", {**manifest, key: 3})
        with pytest.raises(ValidationError):
            _validate("manifest.schema.json", {other: value for other, value in manifest.items() if other != key})

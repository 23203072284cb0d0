"""The model card of a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from keys import key_pair
from releases import published
from ruamel.yaml import YAML

from publish.release import opened, release
from publish.release_card import Released, listed, render
from publish.sign import Signer
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.identity import Model

QWEN = Model(
    "Qwen2.5-Omni-7B",
    "Qwen/Qwen2.5-Omni-7B",
    "f" * 40,
    "other",
    "apache-2.0-or-so",
    license_link="LICENSE",
)


def folder_of(component: str, model: Model = QWEN, *, signed: bool = False, **files: int) -> Released:
    named = {
        f"onnx/{component}.onnx": 1_000,
        f"onnx/{component}.onnx.data": 4_000_000,
        f"onnx/{component}_int8.onnx": 1_000_000,
    }
    manifest: dict[str, Any] = {
        "component": component,
        "name": f"x-{component}-onnx",
        "synthetic_weights": False,
        "source": {"model": model.record()},
        "quantization": {component: {}},
        "files": {name: {"bytes": nbytes, "sha256": ""} for name, nbytes in {**named, **files}.items()},
    }
    return Released(manifest, signed)


def head(card: str) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(card.split("---")[1])


def test_the_head_has_the_licence_the_tags_and_what_it_was_made_from() -> None:
    card = render([folder_of("thinker", LICENSE=1)], "hf://someone/x", None)

    assert head(card) == {
        "license": "other",
        "license_name": "apache-2.0-or-so",
        "license_link": "thinker/x-thinker-onnx/LICENSE",
        "library_name": "onnxruntime",
        "tags": ["onnx", "int8", "qwen2.5-omni", "speech"],
        "base_model": ["Qwen/Qwen2.5-Omni-7B"],
        "base_model_relation": "quantized",
    }


def test_of_several_licences_none_is_named() -> None:
    tune = Model("my-tune", license="mit", license_name=None, base_model=("a/b", "Qwen/Qwen2.5-Omni-7B"))

    card = render([folder_of("thinker"), folder_of("talker", tune)], "hf://someone/x", None)

    assert (head(card)["license"], head(card)["license_name"]) == ("other", "see-each-folder")
    assert sorted(head(card)["base_model"]) == ["Qwen/Qwen2.5-Omni-7B", "a/b"]
    assert "# my-tune and Qwen2.5-Omni-7B as ONNX" in card


def test_the_table_links_to_the_cards_of_the_folders_and_can_be_read() -> None:
    card = render([folder_of("thinker", signed=True), folder_of("encoder")], "hf://someone/x", None)

    row = "| [thinker](thinker/x-thinker-onnx/README.md) | `thinker.onnx`, `thinker_int8.onnx` | 1.0 | 5.0 | yes |"
    assert row in card
    assert listed(card) == {"encoder": "encoder/x-encoder-onnx", "thinker": "thinker/x-thinker-onnx"}


def test_the_order_of_components_makes_no_other_card() -> None:
    folders = [folder_of("thinker"), folder_of("encoder")]

    assert render(folders, "hf://someone/x", None) == render(reversed(folders), "hf://someone/x", None)


@pytest.mark.parametrize("speaks", [True, False])
def test_it_says_how_to_speak_where_it_can(speaks: bool) -> None:
    parts = ["frontend", "encoder", "thinker", "talker", *(["token2wav"] if speaks else [])]

    card = render(map(folder_of, parts), "hf://someone/x", None)

    assert ("qwen-omni-onnx speak" in card) == speaks


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# A user's own\n",
        "| [a](../../../etc/README.md) |",
        "| [a](a/README.md) |",
        "| [a]( |",
        "| [a](/x/y/README.md)",
    ],
)
def test_a_card_that_lists_no_folder_lists_none(text: str) -> None:
    assert [path for path in listed(text).values() if ".." in path or path.startswith("/")] == []


def test_it_says_how_it_is_signed(tmp_path: Path) -> None:
    by_key, by_identity = Signer(key_pair(tmp_path)[0]), Signer()

    assert "Nobody has signed this" in render([folder_of("thinker")], "hf://someone/x", None)
    assert "pull hf://someone/x --key KEY.pub" in render([folder_of("thinker", signed=True)], "hf://someone/x", by_key)
    assert "--identity IDENTITY --issuer URL" in render(
        [folder_of("thinker", signed=True)], "hf://someone/x", by_identity
    )


def test_a_release_of_one_component_keeps_the_others_in_the_table(tmp_path: Path) -> None:
    to = tmp_path / "to"
    for component in ("thinker", "talker"):
        folder = published(tmp_path, component)
        release({component: folder}, opened(str(to)), None, dry_run=False)

    card = (to / "README.md").read_text()
    assert set(listed(card)) == {"talker", "thinker"}
    assert "qwen-omni-onnx pull FOLDER" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", json.dumps({"component": "talker", "name": "another"})])
def test_a_folder_whose_manifest_is_none_is_left_out_of_the_table(tmp_path: Path, content: str) -> None:
    to = tmp_path / "to"
    release({"talker": (folder := published(tmp_path, "talker"))}, opened(str(to)), None, dry_run=False)
    (to / "talker" / folder.name / artifact.MANIFEST).write_text(content)

    thinker = published(tmp_path, "thinker")
    release({"thinker": thinker}, opened(str(to)), None, dry_run=False)

    assert set(listed((to / "README.md").read_text())) == {"thinker"}

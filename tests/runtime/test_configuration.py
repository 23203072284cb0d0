"""config.json as transformers understands it: defaults, second names, a Thinker that was saved alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
from conftest import CHAIN, tiny_config
from transformers.models.qwen2_5_omni import configuration_qwen2_5_omni as theirs

from components import component
from pull.synthetic import CONFIGS
from qwen_omni_onnx.common.configuration import ALIASES, DEFAULTS, IGNORED_ALIASES, completed

CLASSES = {
    "thinker_config": theirs.Qwen2_5OmniThinkerConfig,
    "thinker_config.audio_config": theirs.Qwen2_5OmniAudioEncoderConfig,
    "thinker_config.text_config": theirs.Qwen2_5OmniTextConfig,
    "talker_config": theirs.Qwen2_5OmniTalkerConfig,
    "token2wav_config.dit_config": theirs.Qwen2_5OmniDiTConfig,
    "token2wav_config.bigvgan_config": theirs.Qwen2_5OmniBigVGANConfig,
}


def real(name: str = "7b") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS[name] / "config.json").read_text())
    return found


def section(config: dict[str, Any], path: str) -> dict[str, Any]:
    return reduce(lambda table, key: table[key], path.split("."), config)


@pytest.mark.parametrize("path", DEFAULTS)
def test_defaults_are_those_of_transformers_classes(path: str) -> None:
    transformers = CLASSES[path]().to_dict()

    as_json = json.loads(json.dumps({key: transformers[key] for key in DEFAULTS[path]}))

    assert as_json == DEFAULTS[path]


@pytest.mark.parametrize("path", ALIASES)
def test_second_names_are_those_of_transformers_classes(path: str) -> None:
    assert ALIASES[path] == CLASSES[path].attribute_map


def test_the_hubs_names_for_the_dit_are_not_looked_at_by_transformers() -> None:
    ((path, names),) = IGNORED_ALIASES.items()
    usual = CLASSES[path]()

    for ignored, name in names.items():
        assert getattr(CLASSES[path](**{ignored: 999}), name) == getattr(usual, name)


@pytest.mark.parametrize("name", ["7b", "3b", "tiny", "tiny-3b"])
def test_a_completed_configuration_says_what_transformers_reads(name: str) -> None:
    config = completed(real(name))
    transformers = theirs.Qwen2_5OmniConfig(**copy.deepcopy(real(name))).to_dict()

    for path, defaults in DEFAULTS.items():
        ours, read = section(config, path), section(transformers, path)
        assert {key: ours[key] for key in defaults} == json.loads(json.dumps({key: read[key] for key in defaults}))


def test_completing_twice_changes_nothing_and_what_was_given_stays() -> None:
    given = real()
    before = copy.deepcopy(given)

    once = completed(given)

    assert given == before
    assert completed(once) == once
    assert once["token2wav_config"]["dit_config"]["block_size"] == 24


@pytest.mark.parametrize("name", CHAIN[1:])
@pytest.mark.parametrize("widths", ["7b", "3b"])
def test_every_component_knows_the_hubs_configuration(name: str, widths: str) -> None:
    assert component(name).tensors(completed(real(widths)))


def test_a_thinker_that_was_saved_alone_is_a_part_of_the_whole() -> None:
    whole = real()
    alone = {**whole["thinker_config"], "torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}}

    config = completed(alone)

    assert config["thinker_config"]["text_config"] == completed(whole)["thinker_config"]["text_config"]
    assert (config["torch_dtype"], config["quantization_config"]) == ("float16", {"quant_method": "awq"})
    assert "talker_config" not in config


@pytest.mark.parametrize(
    ("path", "changes", "expected"),
    [
        (
            "thinker_config.audio_config",
            {"num_hidden_layers": 6},
            "encoder_layers is 2 and num_hidden_layers, the",
        ),
        ("thinker_config", {"audio_token_id": 5}, "audio_token_index is 303 and audio_token_id, the same thing, 5"),
        ("token2wav_config.dit_config", {"depth": 12}, "depth is 12, but transformers reads num_hidden_layers, which"),
        ("token2wav_config.dit_config", {"heads": 4}, "heads is 4, but transformers reads num_attention_heads, which"),
    ],
)
def test_two_names_that_say_different_things_are_told(
    path: str, changes: dict[str, Any], expected: str, message: Callable[..., str]
) -> None:
    config = tiny_config()
    section(config, path).update(changes)

    assert expected in message(completed, config)


def test_a_second_name_alone_is_read() -> None:
    config = tiny_config()
    audio = config["thinker_config"]["audio_config"]
    audio["hidden_size"] = audio.pop("d_model")

    assert completed(config)["thinker_config"]["audio_config"]["d_model"] == 64


def test_as_many_heads_of_keys_as_of_queries_is_what_null_means() -> None:
    config = tiny_config()
    config["talker_config"]["num_key_value_heads"] = None

    assert completed(config)["talker_config"]["num_key_value_heads"] == 4


@pytest.mark.parametrize("path", ["thinker_config", "thinker_config.text_config", "talker_config", "token2wav_config"])
@pytest.mark.parametrize("value", [3, "x", [1]])
def test_a_section_that_is_no_table_is_told(path: str, value: Any, message: Callable[..., str]) -> None:
    config = tiny_config()
    *outer, key = path.split(".")
    reduce(lambda table, name: table[name], outer, config)[key] = value

    assert f"config.json: {path} is " in message(completed, config)

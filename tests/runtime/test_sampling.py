"""Choosing tokens, beside transformers' own logits processors, and what a checkpoint says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen_omni_onnx.common import generation
from qwen_omni_onnx.common.text import GENERATION
from qwen_omni_onnx.sampling import Sampler, Sampling, checkpoint_sampling

VOCABULARY = 300


def _transformers(how: Sampling, seen: list[int], logits: np.ndarray) -> np.ndarray:
    """What ``generate`` does to logits: the same processors, in the order in which it builds them."""
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, Qwen2_5OmniTalkerForConditionalGeneration
    from transformers.generation import GenerationMixin

    config = GenerationConfig(
        do_sample=not how.greedy,
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        repetition_penalty=how.repetition_penalty,
        suppress_tokens=list(how.suppressed) or None,
    )
    model = object.__new__(Qwen2_5OmniTalkerForConditionalGeneration)  # its configuration is looked at, nothing else
    torch.nn.Module.__init__(model)
    model.config = type("Config", (), {"is_encoder_decoder": False})()
    processors = GenerationMixin._get_logits_processor(
        model, config, input_ids_seq_length=len(seen), logits_processor=LogitsProcessorList()
    )
    ids, scores = torch.tensor([seen], dtype=torch.long), torch.from_numpy(logits.copy())[None]
    return processors(ids, scores)[0].numpy()


SETTINGS = {
    "the Talker's": Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05, suppressed=(7,)),
    "nothing": Sampling(),
    "hot": Sampling(temperature=3.0),
    "few": Sampling(top_k=3),
    "more than there are": Sampling(top_k=10 * VOCABULARY),
    "a small share": Sampling(top_p=0.01),
    "a large share": Sampling(top_p=0.999),
    "penalty": Sampling(repetition_penalty=1.7, suppressed=(0, 299)),
    "reward": Sampling(repetition_penalty=0.6, top_p=0.5),
    "greedy": Sampling(greedy=True, temperature=0.1, top_k=2, repetition_penalty=1.3, suppressed=(5,)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("how", SETTINGS.values(), ids=SETTINGS)
def test_scores_are_those_of_transformers(how: Sampling, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(VOCABULARY) * random.choice([0.5, 3, 10])).astype(np.float32)
    seen = [*random.integers(0, VOCABULARY, 30).tolist(), VOCABULARY + 4]  # a placeholder beyond the vocabulary
    before = logits.copy()

    tokens, scores = Sampler(how, VOCABULARY, seen).candidates(logits)

    expected = _transformers(how, seen, logits)
    assert tokens.tolist() == ([expected.argmax()] if how.greedy else np.flatnonzero(np.isfinite(expected)).tolist())
    np.testing.assert_allclose(scores, expected[tokens], rtol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_tokens_that_were_chosen_count_as_seen() -> None:
    how = Sampling(greedy=True, repetition_penalty=2.0)
    sampler = Sampler(how, 3)
    logits = np.array([4.0, 3.0, -1.0], np.float32)

    chosen = [sampler.choose(logits) for _ in range(3)]

    assert chosen == [0, 1, 0]
    assert [sampler.choose(logits) for _ in range(3)] == [0, 0, 0]  # 2.0, 1.5, -1.0: a token is not penalized twice


def test_ties_at_the_edge_of_the_best_stay_together() -> None:
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)

    tokens, _ = Sampler(Sampling(top_k=2), 5).candidates(logits)

    assert tokens.tolist() == [1, 2, 3]


def test_the_same_seed_gives_the_same_tokens_and_another_others() -> None:
    logits = np.random.default_rng(0).standard_normal((50, VOCABULARY)).astype(np.float32)

    one, same, other = ([sampler.choose(row) for row in logits] for sampler in (
        Sampler(Sampling(top_k=40), VOCABULARY, seed=seed) for seed in (1, 1, 2)
    ))  # fmt: skip

    assert one == same
    assert one != other


def test_tokens_come_as_often_as_they_are_probable() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(), 4, seed=3)
    draws = 20_000

    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=4)

    deviation = np.sqrt(draws * np.array([0.25, 0.21, 0.1275, 0.0475]))
    assert (np.abs(counts - draws * np.array([0.5, 0.3, 0.15, 0.05])) < 4 * deviation).all()


def test_what_is_out_is_never_chosen() -> None:
    how = Sampling(top_k=2, suppressed=(1,))
    sampler = Sampler(how, 4)

    chosen = {sampler.choose(np.array([1.0, 9.0, 1.0, 0.9], np.float32)) for _ in range(200)}

    assert chosen == {0, 2}


def test_logits_without_a_choice_are_refused(message: Callable[..., str]) -> None:
    for logits in ([np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]):
        said = message(Sampler(Sampling(), 2).choose, np.array(logits, np.float32))
        assert "NaN or infinity" in said
    assert "every token is suppressed" in message(
        Sampler(Sampling(suppressed=(0, 1)), 2).choose, np.zeros(2, np.float32)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0),
        ("temperature", np.inf),
        ("repetition_penalty", np.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
    ],
)
def test_impossible_settings_are_refused(field: str, value: float, message: Callable[..., str]) -> None:
    assert message(Sampling, **{field: value}) == f"sampling: {field} cannot be {value}"


def test_a_suppressed_token_that_there_is_not_is_refused(message: Callable[..., str]) -> None:
    assert message(Sampler, Sampling(suppressed=(4,)), 4) == "sampling: suppressed: no token 4; there are 4"


# generation_config.json


def _defaults_of_transformers(said: dict[str, Any]) -> Sampling:
    """How ``generate`` chooses by such a file, what it leaves out filled in as ``_prepare_generation_config`` does."""
    from transformers import GenerationConfig

    config = GenerationConfig(**said)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    suppressed = tuple(config.suppress_tokens or ())
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    return Sampling(not config.do_sample, suppressed=suppressed, **{name: getattr(config, name) for name in names})


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"_from_model_config": True, "transformers_version": "4.50.0.dev0"},
        {"do_sample": True},
        {"do_sample": None, "temperature": 0.7},
        {"do_sample": True, "temperature": None, "top_k": None, "top_p": None, "repetition_penalty": None},
        {"do_sample": True, "top_k": 0},
        {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.05, "suppress_tokens": [7, 3]},
        {"do_sample": False, "top_k": 20, "suppress_tokens": None, "min_p": 0.1},
        {"do_sample": True, "num_beams": 1, "min_length": 0, "typical_p": 1.0, "use_cache": False, "chat_format": "x"},
        {"eos_token_id": [151645, 151643], "pad_token_id": 151643, "do_sample": True, "temperature": 0.1, "top_k": 1},
    ],
)
def test_what_a_file_says_and_leaves_out_is_read_as_transformers_does(said: dict[str, Any]) -> None:
    assert checkpoint_sampling(said) == _defaults_of_transformers(said)


def test_a_temperature_of_zero_does_nothing_where_the_best_token_is_taken(message: Callable[..., str]) -> None:
    assert checkpoint_sampling({"do_sample": False, "temperature": 0.0}) == checkpoint_sampling({})
    said = message(checkpoint_sampling, {"do_sample": True, "temperature": 0.0})
    assert said == "generation_config.json: sampling: temperature cannot be 0.0"


# Keys of transformers' GenerationConfig that change neither which tokens are chosen nor how many, in a batch of one
# without beams; or, as max_length, that `generate` of the whole model overrides.
_WITHOUT_EFFECT = {
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind",
    "bos_token_id", "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "decoder_start_token_id", "disable_compile", "diversity_penalty", "early_stopping", "length_penalty", "low_memory",
    "max_cache_len", "max_length", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "output_attentions", "output_hidden_states", "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size",
    "prompt_lookup_num_tokens", "remove_invalid_values", "renormalize_logits", "return_dict_in_generate",
    "speculation_type", "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
}  # fmt: skip
_READ = {
    "do_sample", "eos_token_id", "max_new_tokens", "repetition_penalty", "suppress_tokens", "temperature", "top_k",
    "top_p",
}  # fmt: skip


def test_every_key_that_transformers_knows_is_read_refused_or_without_effect() -> None:
    from transformers import GenerationConfig

    refused = generation._UNSUPPORTED | generation._UNSUPPORTED_SAMPLING
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}

    assert known == _READ | set(refused) | _WITHOUT_EFFECT
    for key, default in GenerationConfig._get_default_generation_params().items():
        assert key not in refused or default is None or default == refused[key], key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_new_tokens", 5), ("min_length", 2), ("begin_suppress_tokens", [3]), ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[1]]), ("num_beams", 4), ("guidance_scale", 1.5), ("stop_strings", ["."]), ("min_p", 0.05),
        ("typical_p", 0.9), ("epsilon_cutoff", 3e-4), ("forced_eos_token_id", 2), ("penalty_alpha", 0.6),
    ],
)  # fmt: skip
def test_what_would_change_the_choice_and_is_not_done_is_refused_by_name(
    key: str, value: Any, message: Callable[..., str]
) -> None:
    said = message(checkpoint_sampling, {"do_sample": True, key: value})

    assert said.startswith(f"generation_config.json: {key} is {value!r}: not supported here, and transformers would")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"do_sample": "yes"}, "do_sample is 'yes', not true or false"),
        ({"do_sample": 1}, "do_sample is 1, not true or false"),
        ({"temperature": "hot"}, "temperature is 'hot', not a number"),
        ({"temperature": True}, "temperature is True, not a number"),
        ({"top_p": [0.5]}, "top_p is [0.5], not a number"),
        ({"top_k": 5.0}, "top_k is 5.0, not an integer"),
        ({"top_k": -1}, "sampling: top_k cannot be -1"),
        ({"repetition_penalty": 0}, "sampling: repetition_penalty cannot be 0"),
        ({"do_sample": True, "top_p": float("nan")}, "sampling: top_p cannot be nan"),
        ({"suppress_tokens": 4}, "suppress_tokens is 4, not a list of tokens' numbers"),
        ({"suppress_tokens": [4, -1]}, "suppress_tokens is [4, -1], not the number of a token or a list of them"),
    ],
)
def test_values_that_are_none_are_refused(said: dict[str, Any], wrong: str, message: Callable[..., str]) -> None:
    assert message(checkpoint_sampling, said).startswith(f"generation_config.json: {wrong}")


def test_how_many_tokens_at_most_is_a_positive_integer_or_not_said(message: Callable[..., str]) -> None:
    assert generation.max_new_tokens({}) is generation.max_new_tokens({"max_new_tokens": None}) is None
    assert generation.max_new_tokens({"max_new_tokens": 7}) == 7
    for wrong in (0, -1, 2.0, "many", True):
        said = message(generation.max_new_tokens, {"max_new_tokens": wrong})
        assert said.startswith(f"generation_config.json: max_new_tokens is {wrong!r}, not a positive integer")


def test_tokens_that_end_a_reply_are_one_or_several(message: Callable[..., str]) -> None:
    assert generation.eos_token_ids({}) == generation.eos_token_ids({"eos_token_id": None}) == ()
    assert generation.eos_token_ids({"eos_token_id": 3}) == (3,)
    assert generation.eos_token_ids({"eos_token_id": [151645, 151643]}) == (151645, 151643)
    for wrong in ([], -1, [3, -1], True, [3, None], "3", 3.0, {"3": 3}):
        said = message(generation.eos_token_ids, {"eos_token_id": wrong})
        assert said == f"generation_config.json: eos_token_id is {wrong!r}, not the number of a token or a list of them"


def test_a_file_need_not_be_there_but_must_be_an_object(tmp_path: Path, message: Callable[..., str]) -> None:
    assert generation.read_generation_config(tmp_path) == {}
    for content in (list[int](), None, 3):
        (tmp_path / GENERATION).write_text(json.dumps(content))
        assert "not a JSON object" in message(generation.read_generation_config, tmp_path)

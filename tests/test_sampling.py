"""Choosing tokens, beside transformers' own logits processors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from speech.sampling import Sampler, Sampling

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
    [("temperature", 0.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("repetition_penalty", 0.0)],
)
def test_impossible_settings_are_refused(field: str, value: float, message: Callable[..., str]) -> None:
    assert message(Sampling, **{field: value}) == f"sampling: {field} cannot be {value}"


def test_a_suppressed_token_that_there_is_not_is_refused(message: Callable[..., str]) -> None:
    assert message(Sampler, Sampling(suppressed=(4,)), 4) == "sampling: suppressed: no token 4; there are 4"

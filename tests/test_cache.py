"""The continuous cache against its definition, written out with loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.evaluation.log_probs import Scores
from rnnnas.evaluation.neural_cache import Cache, CacheConfig, mixed, with_cache


def by_definition(states: Tensor, words: Tensor, size: int, theta: float) -> Tensor:
    """p_cache of every target, (T, B); nan where there is no past. states (T, B, H)."""
    table = torch.full(words.shape, math.nan, dtype=torch.float64)
    for b in range(words.shape[1]):
        for t in range(1, len(words)):
            found = total = 0.0
            for i in range(max(0, t - size), t):
                pairs = zip(states[t, b].tolist(), states[i, b].tolist(), strict=True)
                weight = math.exp(theta * sum(x * y for x, y in pairs))
                total += weight
                found += weight * (int(words[i, b]) == int(words[t, b]))
            table[t, b] = found / total
    return table


def some_text(seed: int, steps: int = 23, streams: int = 2) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    states = torch.randn(steps, streams, 4, generator=draws, dtype=torch.float64)
    return states, torch.randint(0, 5, (steps, streams), generator=draws)


def in_windows(cache: Cache, states: Tensor, words: Tensor, lengths: list[int]) -> Tensor:
    pairs = zip(states.split(lengths), words.split(lengths), strict=True)
    return torch.cat([cache.log_probs(s, w) for s, w in pairs])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 3, 8, 22, 100])
@pytest.mark.parametrize("theta", [0.0, 0.4, 2.0])
def test_the_definition_whatever_the_windows(seed: int, size: int, theta: float) -> None:
    states, words = some_text(seed)
    expected = by_definition(states, words, size, theta)
    for lengths in ([23], [5, 5, 5, 5, 3], [1] * 23, [2, 17, 4]):
        result = in_windows(Cache(size, theta), states, words, lengths).exp()
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=0, equal_nan=True)


def test_streams_do_not_see_each_other() -> None:
    states, words = some_text(5, streams=3)
    together = Cache(7, 0.5).log_probs(states, words)
    for b in range(3):
        alone = Cache(7, 0.5).log_probs(states[:, b : b + 1], words[:, b : b + 1])
        torch.testing.assert_close(together[:, b : b + 1], alone, equal_nan=True)


def test_a_target_is_not_in_its_own_cache() -> None:
    states, words = some_text(6)
    words[9] = 77  # nowhere else
    result = Cache(100, 0.5).log_probs(states, words)
    assert bool((result[9] == -math.inf).all())
    assert bool(result[0].isnan().all()) and not bool(result[1:].isnan().any())


def test_large_products_do_not_overflow() -> None:
    states, words = some_text(7)
    result = Cache(100, 1.0).log_probs((states * 100).float(), words)[1:]
    assert bool(((result <= 0) & ~result.isnan()).all())
    # The nearest state decides: its word has all the probability there is.
    scores = (states[-1] * states[:-1]).sum(-1)  # (T-1, B)
    nearest = words[scores.argmax(0), torch.arange(2)]
    assert (result[-1] > -1e-6).tolist() == (nearest == words[-1]).tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_the_mixture(seed: int, share: float) -> None:
    states, words = some_text(seed)
    model = torch.rand(words.shape, dtype=torch.float64) * 0.9 + 0.05
    scores = Scores(states, words, model.log())
    result = with_cache(scores, Cache(6, 0.7), share)
    cached = by_definition(states, words, 6, 0.7)
    expected = (1 - share) * model + share * cached
    expected[0] = model[0]  # the cache is empty
    torch.testing.assert_close(result.log_probs.exp(), expected, rtol=1e-11, atol=0)
    assert result.outputs is states and result.targets is words
    if share == 0:
        assert torch.equal(result.log_probs, scores.log_probs)


def test_the_mixture_is_a_distribution() -> None:
    """Its probabilities of all words add up to 1: each word in turn as the last target."""
    states, words = some_text(8, streams=1)
    model = torch.randn(9, dtype=torch.float64).log_softmax(0)
    total = 0.0
    for word in range(9):
        following = words.clone()
        following[-1] = word
        cached = Cache(10, 0.3).log_probs(states, following)[-1]
        total += float(mixed(model[word].view(1), cached, 0.3).exp())
    assert total == pytest.approx(1, rel=1e-12)


def test_theta_0_counts_words() -> None:
    words = torch.tensor([[1], [2], [1], [1], [2], [1]])
    result = Cache(4, 0.0).log_probs(torch.randn(6, 1, 3), words).exp().flatten()
    expected = torch.tensor([math.nan, 0, 1 / 2, 2 / 3, 1 / 4, 2 / 4])
    torch.testing.assert_close(result, expected, equal_nan=True)


@pytest.mark.parametrize(
    "values", [{"size": 0}, {"theta": -1.0}, {"theta": math.nan}, {"theta": math.inf},
               {"share": 1.0}, {"share": -0.1}, {"share": math.nan}],
)  # fmt: skip
def test_senseless_settings_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"cache.{next(iter(values))}"):
        CacheConfig(**values)  # type: ignore[arg-type]

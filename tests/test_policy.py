"""Policies over cells against enumeration, and REINFORCE against the exact gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rnnnas.errors import UsageError
from rnnnas.nas.derive import derive
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.methods import METHODS
from rnnnas.nas.reinforce import Reinforce
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.categorical import Categorical
from rnnnas.nas.relax.enas import Enas
from rnnnas.nas.relax.policy import Draw, Policy
from rnnnas.nas.relax.uniform import Uniform
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.types import Batch, InnerStep, Loss

DOUBLE = torch.float64
CNN = CellSpace(inputs=2, nodes=2, ops=("none", "a", "b"), keep=2)
SPACES: dict[str, dict[str, CellSpace]] = {
    "recurrent": {"recurrent": recurrent_space(2)},
    "pruned": {
        "recurrent": recurrent_space(2).prune(
            [[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [1, 0, 0, 0, 1]]  # type: ignore[list-item]
        )
    },
    "two edges": {"normal": CNN},
    "two edges of one input": {
        "recurrent": recurrent_space(
            2, ops=("none", "tanh", "relu"), edges_per_node=2, output="loose_ends"
        )
    },
    "other operations": {"recurrent": recurrent_space(2, ops=("gelu", "sin"), output="last")},
}
POLICIES: dict[str, Policy] = {
    "categorical": Categorical(),
    "enas": Enas(hidden=4, temperature=0.3),
    "enas, distance": Enas(hidden=4, distance=True),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas_of(policy: Policy, spaces: Any, scale: float = 1.0) -> dict[str, Tensor]:
    """Parameters at random places, in float64."""
    draws = seeded(3)
    return {
        name: (scale * torch.randn(a.shape, dtype=DOUBLE, generator=draws)).requires_grad_()
        for name, a in policy.init(spaces, seeded(0)).items()
    }


def every_draw(policy: Policy, alphas: Any, spaces: Any) -> Iterator[Draw]:
    """Every sequence of choices, once, as a tree is walked."""
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        begun = waiting.pop()
        made: list[int] = []

        def pick(logs: Tensor, begun: Any = begun, made: Any = made) -> int:
            known = len(made) < len(begun)
            if not known:
                waiting.extend((*made, other) for other in range(1, len(logs)))
            made.append(begun[len(made)] if known else 0)
            return int(made[-1])

        yield policy.roll(alphas, spaces, pick)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", POLICIES)
class TestEveryPolicy:
    def test_the_choices_are_a_distribution(self, name: str, kind: str) -> None:
        """Probabilities add up to 1, and the mean of the summed entropies is the whole's."""
        policy, spaces = POLICIES[name], SPACES[kind]
        alphas = alphas_of(policy, spaces)
        draws = list(every_draw(policy, alphas, spaces))
        logs = torch.stack([drawn.log_probability for drawn in draws])
        entropies = torch.stack([drawn.entropy for drawn in draws])
        assert len(draws) > 5 and float((logs.max() - logs.min()).detach()) > 0.1
        torch.testing.assert_close(logs.exp().sum(), torch.tensor(1.0, dtype=DOUBLE))
        torch.testing.assert_close((logs.exp() * entropies).sum(), -(logs.exp() * logs).sum())

    def test_every_cell_of_the_space_is_drawn(self, name: str, kind: str) -> None:
        """And nothing else, but that a categorical choice of edges may leave one out."""
        policy, spaces = POLICIES[name], SPACES[kind]
        ((cell, space),) = spaces.items()
        found = set()
        for drawn in every_draw(policy, alphas_of(policy, spaces), spaces):
            weights, paths = drawn.mixtures[cell]
            assert not weights.requires_grad and paths is not None
            assert bool(((weights == 0) | (weights == 1)).all())
            ones = {(int(e), int(o)) for e, o in weights.nonzero()}
            real = {pair for pair in ones if space.ops[pair[1]] != "none"}
            # `none` is not computed, but stays where a node has nothing else, as a path to it.
            empty = [n for n in range(space.nodes) if not any(e in space.rows(n) for e, _ in real)]
            assert set(paths) == real | {
                (e, o) for e, o in ones if any(e in space.rows(n) for n in empty)
            }
            assert all(space.allowed[e][o] for e, o in ones)
            found.add(tuple(sorted(ones)))
        if space.keep == 2 and name == "categorical":
            assert len(found) == 3 ** len(space.edges)
        else:
            assert len(found) == space.count()
            for ones in found:
                targets = [space.edges[e][1] for e, _ in ones]
                assert all(targets.count(t) == space.kept(t - space.inputs) for t in targets)

    def test_draws_follow_the_seed_and_mix_has_no_gradient(self, name: str, kind: str) -> None:
        policy, spaces = POLICIES[name], SPACES[kind]
        alphas = alphas_of(policy, spaces)
        (cell,) = spaces
        torch.manual_seed(1)
        one = [policy.mix(alphas, spaces, 0.5, seeded(s))[cell] for s in range(30)]
        torch.manual_seed(2)
        other = [policy.sample(alphas, spaces, 0.5, seeded(s)).mixtures[cell] for s in range(30)]
        assert all(
            torch.equal(a.weights, b.weights) and a.paths == b.paths
            for a, b in zip(one, other, strict=True)
        )
        assert len({a.paths for a in one}) > 1

    def test_the_greedy_cell_is_derived(self, name: str, kind: str) -> None:
        policy, spaces = POLICIES[name], SPACES[kind]
        scores = policy.scores(alphas_of(policy, spaces), spaces)
        ((cell, space),) = spaces.items()
        assert scores[cell].shape == (len(space.edges), len(space.ops))
        banned = ~torch.tensor(space.allowed)
        assert bool((scores[cell][banned] == 0).all()) and bool((scores[cell] >= 0).all())
        genotype = derive(policy, alphas_of(policy, spaces), spaces)
        assert genotype.cells[cell] == space.discretise(scores[cell].tolist())


def marginals(policy: Policy, alphas: Any, spaces: Any, cell: str, given: Any = None) -> Tensor:
    """The probability of each (edge, operation), among the draws that hold the pair `given`."""
    parts, total = [], torch.zeros((), dtype=DOUBLE)
    for drawn in every_draw(policy, alphas, spaces):
        weights = drawn.mixtures[cell].weights
        if given is None or weights[given] == 1:
            parts.append(drawn.log_probability.exp() * weights)
            total = total + drawn.log_probability.exp()
    return torch.stack(parts).sum(0) / total


@pytest.mark.parametrize("kind", SPACES)
def test_categorical_scores_are_marginals(kind: str) -> None:
    policy, spaces = Categorical(), SPACES[kind]
    (cell,) = spaces
    alphas = alphas_of(policy, spaces)
    expected = marginals(policy, alphas, spaces, cell)
    torch.testing.assert_close(policy.scores(alphas, spaces)[cell], expected)


@pytest.mark.parametrize("kind", ["recurrent", "pruned"])
def test_enas_scores_are_conditional_on_the_greedy_genes(kind: str) -> None:
    policy, spaces = POLICIES["enas"], SPACES[kind]
    alphas = alphas_of(policy, spaces)
    scores = policy.scores(alphas, spaces)["recurrent"]
    first = marginals(policy, alphas, spaces, "recurrent")
    torch.testing.assert_close(scores[0], first[0])
    best = (0, int(first[0].argmax()))
    second = marginals(policy, alphas, spaces, "recurrent", given=best)
    torch.testing.assert_close(scores[1:], second[1:])


@pytest.mark.parametrize("distance", [False, True])
def test_the_controller_is_an_lstm_with_attention(distance: bool) -> None:
    """log p of 'tanh0 relu1 sigmoid0' by torch's own LSTM cell, gene by gene."""
    space = recurrent_space(3)
    policy = Enas(hidden=5, distance=distance)
    alphas = alphas_of(policy, {"recurrent": space}, 2.0)
    a = {name: value.detach() for name, value in alphas.items()}
    lstm = nn.LSTMCell(5, 5, bias=False, dtype=DOUBLE).requires_grad_(False)
    i, f, o, g = a["lstm"].chunk(4, 1)  # torch has them in the order i, f, g, o
    both = torch.cat([i, f, g, o], 1).T
    lstm.weight_ih.data, lstm.weight_hh.data = both[:, :5].clone(), both[:, 5:].clone()
    h = c = torch.zeros(5, dtype=DOUBLE)
    x, known, total = a["start"], [a["states"][0]], 0.0
    wanted = [("tanh", 0), ("relu", 1), ("sigmoid", 0)]
    for node, (op, source) in enumerate(wanted, start=1):
        h, c = lstm(x, (h, c))
        scores = [
            2.25 * math.tanh(float(a["attention"] @ torch.tanh(k @ a["keys"] + h @ a["query"])) / 5)
            - (distance and (node - j) ** 2 / 6)
            for j, k in enumerate(known)
        ]
        total += scores[source] - math.log(sum(map(math.exp, scores)))
        h, c = lstm(known[source], (h, c))
        logits = [2.25 * math.tanh(float(s) / 5) for s in (h @ a["decode"])[1:]]  # without none
        number = space.ops.index(op)
        total += logits[number - 1] - math.log(sum(map(math.exp, logits)))
        x = a["operations"][number]
        known.append(h)
    choices = iter([0, 0, 1, 1, 0, 2])  # predecessor and operation of each gene
    drawn = policy.roll(alphas, {"recurrent": space}, lambda logs: next(choices))
    genotype = Genotype(
        cells={"recurrent": space.discretise(drawn.mixtures["recurrent"].weights.tolist())}
    )
    assert genotype.to_text() == "tanh0 relu1 sigmoid0"
    assert float(drawn.log_probability.detach()) == pytest.approx(total, rel=1e-12)


def test_enas_starts_near_uniform_from_the_seed() -> None:
    spaces = {"recurrent": recurrent_space()}
    policy = METHODS["enas"].relaxation()
    one, same, other = (policy.init(spaces, seeded(s)) for s in (1, 1, 2))
    assert isinstance(policy, Enas) and policy.hidden == 64 and policy.tanh == 2.25
    assert policy.temperature == 5 and policy.entropy == 1e-5 and policy.decay == 0.999
    for name, alpha in one.items():
        assert alpha.requires_grad and torch.equal(alpha, same[name])
        assert not torch.equal(alpha, other[name]) and float(alpha.detach().abs().max()) <= 0.1
    log_probability = policy.sample(one, spaces, 0.0, seeded(0)).log_probability
    assert float(log_probability.detach()) == pytest.approx(
        -math.log(spaces["recurrent"].count()), abs=0.5
    )


def test_enas_refuses_cells_of_different_operations() -> None:
    with pytest.raises(UsageError, match="the same operations"):
        Enas().init({"a": CNN, "b": recurrent_space()}, seeded(0))


@pytest.mark.parametrize(
    "setting", [{"samples": 0}, {"reward": 0.0}, {"decay": 1.5}, {"entropy": -1.0}, {"hidden": 0}]
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"relax.{next(iter(setting))} = "):
        Enas(**setting)


def test_uniform_draws_every_cell_alike_and_has_no_alphas() -> None:
    spaces = {"recurrent": CellSpace(inputs=1, nodes=2, ops=("none", "a", "b"), keep=1)}
    policy = Uniform()
    assert policy.init(spaces, seeded(0)) == {}
    drawn = [policy.mix({}, spaces, 0.0, seeded(s))["recurrent"] for s in range(800)]
    counts = [sum(m.paths == paths for m in drawn) for paths in {m.paths for m in drawn}]
    assert len(counts) == 8 and all(abs(count - 100) < 45 for count in counts)  # 4.8 sigma
    for weights, paths in drawn[:20]:
        assert paths == tuple((int(e), int(o)) for e, o in weights.nonzero())
    assert policy.scores({}, spaces)["recurrent"].tolist() == [[0, 0.5, 0.5]] * 3


# REINFORCE


class Table(nn.Module):
    """A network whose loss is a fixed function of the mixture."""

    def __init__(self, space: CellSpace) -> None:
        super().__init__()
        self.space = {"recurrent": space}
        self.costs = torch.rand(len(space.edges), len(space.ops), dtype=DOUBLE, generator=seeded(4))

    def noise(self, batch: Batch, generator: torch.Generator) -> None:
        raise AssertionError("rewards are computed without noise")

    def forward(
        self, batch: Batch, hidden_state: Any, mixtures: Mapping[str, Mixture], noise: Any
    ) -> Loss:
        assert noise is None and not torch.is_grad_enabled()
        value = (mixtures["recurrent"].weights * self.costs).sum() ** 2
        return Loss(
            value=value, count=1, hidden_state=hidden_state, penalty=torch.zeros_like(value)
        )


WINDOW = (Batch(torch.tensor(0), torch.tensor(0)), None)
TINY = CellSpace(inputs=1, nodes=2, ops=("none", "a", "b"), keep=1)


def update(reinforce: Reinforce, seed: int = 0) -> Loss:
    return reinforce.step(
        train=WINDOW, valid=WINDOW, inner=InnerStep(lr=1.0), progress=0.5, generator=seeded(seed)
    )


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("kind", ["categorical", "enas"])
def test_the_expected_update_is_the_gradient_of_the_expected_reward(
    kind: str, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summed over every tuple of draws with its probability; times 1 - (1 - decay) / n."""
    decay, bonus = 0.7, 0.3
    settings: dict[str, Any] = {"samples": samples, "decay": decay, "reward": 80.0}
    # The summed entropy of independent choices is the same for every draw.
    policy = (
        Categorical(**settings, entropy=bonus)
        if kind == "categorical"
        else Enas(**settings, hidden=3, entropy=0.0)
    )
    net = Table(TINY)
    start = alphas_of(policy, net.space)
    draws = list(every_draw(policy, start, net.space))
    with torch.no_grad():
        losses = [net(*WINDOW, drawn.mixtures, None).value for drawn in draws]
    chances = torch.stack([drawn.log_probability for drawn in draws]).exp()
    expected_reward = (chances * 80 * torch.exp(-torch.stack(losses))).sum()
    objective = -(1 - (1 - decay) / samples) * expected_reward
    if kind == "categorical":
        objective = objective + bonus * (chances * chances.log()).sum()
    exact = torch.autograd.grad(objective, list(start.values()))
    total = [torch.zeros_like(alpha) for alpha in start.values()]
    for chosen in itertools.product(range(len(draws)), repeat=samples):
        alphas = {name: a.detach().clone().requires_grad_() for name, a in start.items()}
        fresh = list(every_draw(policy, alphas, net.space))
        queue = iter([fresh[i] for i in chosen])
        monkeypatch.setattr(type(policy), "sample", lambda *_, queue=queue: next(queue))
        reinforce = Reinforce(net, alphas, policy, torch.optim.SGD(alphas.values(), lr=1.0))
        reinforce.baseline = 31.0
        update(reinforce)
        chance = math.prod(float(chances[i].detach()) for i in chosen)
        for sum_, name in zip(total, alphas, strict=True):
            sum_ += chance * (start[name] - alphas[name]).detach()
    assert max(float(grad.abs().max()) for grad in exact) > 0.1
    for found, wanted in zip(total, exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_the_baseline_is_a_moving_average_that_starts_at_the_first_mean() -> None:
    policy = Categorical(samples=3, decay=0.9)
    net = Table(TINY)
    alphas = alphas_of(policy, net.space)
    reinforce = Reinforce(net, alphas, policy, torch.optim.Adam(alphas.values(), lr=0.1))
    expected: float | None = None
    seen = []
    for seed in range(6):
        draws = seeded(seed)
        with torch.no_grad():
            cells = [policy.sample(alphas, net.space, 0.5, draws) for _ in range(3)]
            losses = [float(net(*WINDOW, cell.mixtures, None).value) for cell in cells]
        mean = sum(80 * math.exp(-loss) for loss in losses) / 3
        expected = mean if expected is None else 0.9 * expected + 0.1 * mean
        loss = update(reinforce, seed)
        assert float(loss.value) == pytest.approx(sum(losses) / 3, rel=1e-12)
        assert reinforce.baseline == pytest.approx(expected, rel=1e-12)
        seen.append(expected)
    assert len(set(seen)) == 6
    other = Reinforce(net, alphas, policy, reinforce.optimizer)
    assert other.state() == {"baseline": None}
    other.restore(reinforce.state())
    assert other.baseline == reinforce.baseline


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    policy = Categorical()
    net = Table(TINY)
    net.costs[0] = torch.nan
    alphas = alphas_of(policy, net.space)
    before = {name: a.detach().clone() for name, a in alphas.items()}
    reinforce = Reinforce(net, alphas, policy, torch.optim.Adam(alphas.values(), lr=0.1))
    assert math.isnan(float(update(reinforce).value))
    assert reinforce.baseline is None
    assert all(torch.equal(alphas[name], a) for name, a in before.items())


@pytest.mark.parametrize(
    "policy", [Categorical(), Enas(hidden=8, samples=4, decay=0.9)], ids=["categorical", "enas"]
)
def test_the_policy_finds_the_best_cell(policy: Policy) -> None:
    net = Table(TINY)
    alphas = {
        name: a.detach().to(DOUBLE).requires_grad_()
        for name, a in policy.init(net.space, seeded(1)).items()
    }
    reinforce = Reinforce(net, alphas, policy, torch.optim.Adam(alphas.values(), lr=0.05))
    for seed in range(80):
        update(reinforce, seed)
    with torch.no_grad():
        draws = list(every_draw(policy, alphas, net.space))
        losses = [float(net(*WINDOW, drawn.mixtures, None).value) for drawn in draws]
    best = draws[losses.index(min(losses))]
    weights = best.mixtures["recurrent"].weights.tolist()
    assert derive(policy, alphas, net.space).cells["recurrent"] == TINY.discretise(weights)
    assert float(best.log_probability.detach()) > math.log(0.5)

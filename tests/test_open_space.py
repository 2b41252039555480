"""Spaces of recurrent cells beside DARTS': what they hold, derive and compute, on every path."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sample_spaces import OPEN
from torch import Tensor

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.config.text import SearchConfig
from rnnnas.errors import UsageError
from rnnnas.lm import cell as derived
from rnnnas.lm import search_cell
from rnnnas.lm.fast.known import note_of, reason_against
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas import operations
from rnnnas.nas.genotype import CellGene, Gene, Genotype
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.relax.policy import Policy, cell_mixture, one_hot
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.runs.differences import differences
from rnnnas.searching.derive_by_trying import PolicyCells
from rnnnas.types import Batch

DOUBLE = torch.float64
SPACES = {name: spaces["recurrent"] for name, spaces in OPEN.items()}


def rand(seed: int, *shape: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=DOUBLE, generator=draws)


def config_of(*settings: str) -> SearchConfig:
    flags = {"corpus": "text"}
    found: SearchConfig = resolve("search", preset="smoke", file=None, settings=settings,
                                  flags=flags)  # fmt: skip
    return found


# What a space holds


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("ops", [("none", "gelu", "sin"), ("tanh",)])
def test_counting_is_enumerating(keep: int, ops: tuple[str, ...]) -> None:
    space = recurrent_space(3, ops=ops, edges_per_node=keep)
    able = [op for op in ops if op != "none"]
    cells = 1
    for node in range(3):
        sources = list(itertools.combinations(range(node + 1), min(keep, node + 1)))
        cells *= sum(len(able) ** len(chosen) for chosen in sources)
    assert space.count() == cells
    draws = random.Random(1)
    seen = {space.sample(draws) for _ in range(60 * cells)}
    assert len(seen) == cells


@pytest.mark.parametrize("name", SPACES)
def test_cells_are_of_the_space_and_have_a_text(name: str) -> None:
    space = SPACES[name]
    draws = random.Random(3)
    for _ in range(50):
        cell = space.sample(draws)
        taken = {gene.source for node in cell.nodes for gene in node}
        everything = range(1, space.nodes + 1)
        expected = {
            "last": (space.nodes,), "loose_ends": tuple(s for s in everything if s not in taken),
        }  # fmt: skip
        assert cell.concat == expected[space.output]
        assert [len(node) for node in cell.nodes] == [
            min(space.keep, i + 1) for i in range(space.nodes)
        ]
        genotype = Genotype(cells={"recurrent": cell})
        assert Genotype.from_text(genotype.to_text()) == genotype
        assert Genotype.from_plain(genotype.to_plain()) == genotype


def test_deriving_keeps_the_best_edges() -> None:
    space = recurrent_space(3, ops=("none", "tanh", "sin"), edges_per_node=2, join="sum")
    scores = [[9, 1, 2], [9, 5, 1], [9, 1, 3], [9, 1, 0], [9, 2, 7], [9, 6, 1]]
    cell = space.discretise(scores)
    assert Genotype(cells={"recurrent": cell}).to_text() == "sin0 tanh0+sin1 sin1+tanh2 join sum"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('space.ops=["none", "swish"]', "uses 'swish', which is no operation here"),
        ('space.ops=["none"]', "at least one operation beside 'none'"),
        ('space.ops=["tanh", "tanh"]', "each once"),
        ("space.edges_per_node=0", "space.edges_per_node = 0 must be at least 1"),
        ("space.nodes=-1", "space.nodes = -1 must be at least 1"),
        ("space.output=first", "space.output = 'first' must be one of"),
        ("space.join=max", "space.join = 'max' must be one of"),
    ],
)
def test_settings_of_no_space_are_refused(setting: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        config_of(setting)
    assert named in caught.value.cause


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('space.ops=["tanh", "gelu"]', "no operation 'gelu'"),
        ("space.edges_per_node=2", "no cells of several edges"),
    ],
)
def test_a_price_on_latency_is_for_what_is_measured(setting: str, named: str) -> None:
    config_of(setting)
    with pytest.raises(UsageError, match=named):
        config_of(setting, "latency.weight=1", "method=darts-1st")


@pytest.mark.parametrize("chooser", ["select.by=race", "derive.by=perturbation"])
def test_a_price_is_refused_beside_what_goes_by_the_loss_alone(chooser: str) -> None:
    with pytest.raises(UsageError, match="decides by the loss alone") as caught:
        config_of("latency.weight=1", "method=darts-1st", chooser)
    assert chooser.partition("=")[0] in caught.value.remedy
    config_of("latency.weight=1", "method=darts-1st", "select.by=alphas", "derive.by=scores")


def test_nodes_whose_edges_are_all_left_out_have_an_empty_route() -> None:
    """Of two edges a node, each with an operation drawn: that of both may be `none`."""
    space = recurrent_space(2, ops=("none", "tanh"), edges_per_node=2)
    like = torch.zeros(())
    mixture = one_hot(space, [(0, 0), (1, 0), (2, 1)], like)
    assert search_cell.routes(space, mixture.paths) == ((), ((2, (1,)),))
    whole = one_hot(space, [(0, 1), (1, 0), (2, 1)], like)
    assert whole.paths == ((0, 1), (2, 1))


def test_a_policy_that_draws_more_edges_than_are_kept_leaves_the_choice_to_chance() -> None:
    settings = config_of("method=proxyless-reinforce", "space.edges_per_node=2",
                         'space.ops=["tanh", "relu"]', "model.nodes=4")  # fmt: skip
    spaces = {"recurrent": settings.cell_space}
    policy = settings.relaxation
    assert isinstance(policy, Policy)
    alphas = policy.init(spaces, torch.Generator().manual_seed(1))
    cells = PolicyCells(policy, alphas, spaces, 1, 40)
    sources = set()
    for _ in range(40):
        found = cells.ask()
        cells.tell(found, 0.0)
        sources.add(tuple(sorted(gene.source for gene in found.recurrent.nodes[-1])))
    assert len(sources) > 3


def test_an_exact_second_order_needs_a_path_that_has_it() -> None:
    exact = ("method=darts", "alphas.second_order=exact", 'space.ops=["tanh", "gelu"]')
    with pytest.raises(UsageError, match="the kernels do not know gelu") as caught:
        config_of(*exact)
    assert "model.path=eager" in caught.value.remedy
    config_of(*exact, "model.path=eager")


def test_two_names_of_the_number_of_nodes() -> None:
    assert config_of("space.nodes=11") == config_of("model.nodes=11")
    assert config_of("space.nodes=11").cell_space.nodes == 11
    assert config_of().cell_space == recurrent_space(config_of().model.nodes)
    enas = config_of("space.nodes=11", 'space.ops=["tanh", "relu", "sigmoid", "identity"]',
                     "space.output=loose_ends").cell_space  # fmt: skip
    assert enas == SPACES["enas"]


def test_a_run_from_before_the_settings_goes_on() -> None:
    here = to_plain(config_of())
    before = {key: value for key, value in here.items() if key != "space"}
    assert differences(before, here, ()) == []
    other = to_plain(config_of("space.edges_per_node=2"))
    assert differences(before, other, ()) == ["space.edges_per_node is 1 there and 2 here"]


def test_stages_count_the_operations_of_the_space() -> None:
    seven = 'space.ops=["none", "tanh", "gelu", "sin", "elu", "silu", "relu"]'
    assert [stage.ops for stage in config_of(seven, "stages.ops=[7, 2]", "epochs=2").plan] == [7, 2]
    with pytest.raises(UsageError, match="must begin with 7"):
        config_of(seven, "stages.ops=[5, 2]", "epochs=2")


# Operations

FORMULAS: dict[str, Callable[[float], float]] = {
    "tanh": math.tanh,
    "relu": lambda z: max(z, 0.0),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "identity": lambda z: z,
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "sin": math.sin,
    "softsign": lambda z: z / (1 + abs(z)),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "elu": lambda z: z if z > 0 else math.expm1(z),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_shipped_operations_by_their_formulas(name: str) -> None:
    values = [-3.0, -0.7, 0.0, 0.4, 2.5]
    found = operations.function_of(name)(torch.tensor(values, dtype=DOUBLE))
    expected = torch.tensor([FORMULAS[name](value) for value in values], dtype=DOUBLE)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# What a derived cell computes


@pytest.mark.parametrize("join", ["mean", "sum"])
def test_a_node_of_several_edges_number_by_number(join: str) -> None:
    cell = Genotype.from_text(f"gelu0 sin0+tanh1 elu2+silu0+sin1 concat 2,3 join {join}").recurrent
    x, h, first, nodes = rand(0, 2, 3), rand(1, 2, 3), rand(2, 6, 6), rand(3, 3, 3, 6)
    mask = rand(4, 2, 3).abs()

    def edge(op: str, s: list[float], matrix: Tensor, left: list[float]) -> list[float]:
        made = []
        for k in range(3):
            c, z = (sum(a * float(matrix[i, at]) for i, a in enumerate(left)) for at in (k, k + 3))
            gate = 1 / (1 + math.exp(-c))
            made.append(s[k] + gate * (FORMULAS[op](z) - s[k]))
        return made

    rows = []
    for b in range(2):
        carried, m = h[b].tolist(), mask[b].tolist()
        joined = x[b].tolist() + [a * c for a, c in zip(carried, m, strict=True)]
        states = [edge("tanh", carried, first, joined)]
        for i, node in enumerate(cell.nodes):
            parts = [
                edge(op, states[j], nodes[i], [a * c for a, c in zip(states[j], m, strict=True)])
                for op, j in node
            ]
            count = len(parts) if join == "mean" else 1
            states.append([sum(column) / count for column in zip(*parts, strict=True)])
        rows.append([(a + c) / 2 for a, c in zip(states[2], states[3], strict=True)])
    found = derived.step(x, h, first, nodes, cell, None, mask)
    torch.testing.assert_close(found, torch.tensor(rows, dtype=DOUBLE))


def loss_and_gradients(net: RecurrentLM, mixtures: dict[str, Mixture]) -> list[Tensor]:
    ids = torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(2))
    value = net(Batch(ids[:-1], ids[1:]), None, mixtures, None).value
    return [value, *torch.autograd.grad(value, [net.embedding, net.first, net.nodes])]


CELLS: dict[str, CellGene | CellSpace] = {
    "two edges, mean": Genotype.from_text("tanh0 tanh0+relu1 sigmoid1+relu2").recurrent,
    "two edges, sum": Genotype.from_text("tanh0 tanh0+relu1 join sum").recurrent,
    "one edge, other operations": Genotype.from_text("gelu0 sin1 relu0 concat 2,3").recurrent,
    "two edges under a mixture": recurrent_space(3, edges_per_node=2),
    **SPACES,
}


@pytest.mark.parametrize("name", CELLS)
def test_every_path_computes_every_cell(name: str) -> None:
    cell = CELLS[name]
    mixtures = {}
    if isinstance(cell, CellSpace):
        mixtures = {"recurrent": Mixture(rand(9, len(cell.edges), len(cell.ops)).softmax(-1))}
    results = []
    for path in ("reference", "eager", "fast"):
        config = ModelConfig(hidden=4, path=path)  # type: ignore[arg-type]
        net = RecurrentLM(
            config, 7, cell, noise=NoiseConfig(), penalty=PenaltyConfig(),
            generator=torch.Generator().manual_seed(1),
        ).double()  # fmt: skip
        results.append(loss_and_gradients(net, mixtures))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_what_the_kernels_do_not_know_is_told() -> None:
    assert not any(map(reason_against, (recurrent_space(), recurrent_space(3, edges_per_node=2))))
    assert note_of("lstm") == "" == note_of(recurrent_space())
    assert "gelu, sin" in note_of(CELLS["one edge, other operations"])
    assert "one edge" in note_of(CELLS["two edges, sum"])
    assert "not loose_ends" in note_of(SPACES["enas"])


# What a cell under a mixture gives


def unrolled(space: CellSpace, weights: Tensor, form: Any, paths: Any = None) -> list[Tensor]:
    """Outputs and gradients of a form of the cell under a mixture."""
    given = [rand(1, 3, 4, 3), rand(2, 4, 3), rand(3, 6, 6), rand(4, space.nodes, 3, 6), weights]
    leaves = [t.clone().requires_grad_() for t in given]
    inputs, h, first, nodes, p = leaves
    out = form(inputs, h, first, nodes, space, p, None, None, paths=paths)
    gradient = rand(5, *out.shape)
    return [out, *torch.autograd.grad((out * gradient).sum(), leaves)]


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_the_cheaper_form_is_the_readable_one(name: str, drawn: bool) -> None:
    space = SPACES[name]
    weights, paths = rand(7, len(space.edges), len(space.ops)).softmax(-1), None
    if drawn:
        cell = space.sample(random.Random(4))
        weights, paths = cell_mixture(space, cell, weights)
    results = [
        unrolled(space, weights, form, paths)
        for form in (search_cell.unroll_reference, search_cell.unroll)
    ]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SPACES)
def test_a_drawn_cell_gives_what_the_derived_one_does_but_for_the_normalisation(name: str) -> None:
    space = SPACES[name]
    cell = space.sample(random.Random(5))
    weights, paths = cell_mixture(space, cell, torch.zeros((), dtype=DOUBLE))
    x, h, first = rand(0, 4, 3), rand(1, 4, 3), rand(2, 6, 6)
    nodes = rand(3, space.nodes, 3, 6)
    states = [search_cell.normalise(derived.first_state(x, h, first, None, None))]
    for weight, genes in zip(nodes, cell.nodes, strict=True):
        parts = [derived.gated(states[j], states[j] @ weight, op) for op, j in genes]
        states.append(search_cell.normalise(sum(parts, torch.zeros_like(h))))
    expected = torch.stack([states[i] for i in cell.concat]).mean(0)
    found = search_cell.unroll(x[None], h, first, nodes, space, weights, None, None, paths=paths)
    torch.testing.assert_close(found[0], expected)


def test_loose_ends_of_a_soft_mixture_are_chances() -> None:
    """Each node draws its edge apart from the others: enumerated over all cells."""
    space = recurrent_space(4, ops=("none", "tanh", "sin"), output="loose_ends")
    weights = rand(3, len(space.edges), 3).softmax(-1)
    share = weights[:, 1:].sum(-1)
    chances = [0.0] * 5
    for sources in itertools.product(*(range(node + 1) for node in range(4))):
        chance = 1.0
        for node, source in enumerate(sources):
            rows = space.rows(node)
            chance *= float(share[rows[source]] / share[rows.start : rows.stop].sum())
        for state in range(1, 5):
            chances[state] += chance * (state not in sources)
    expected = torch.tensor(chances[1:], dtype=DOUBLE) / sum(chances)
    ways = search_cell.routes(space, None)
    found = search_cell.output_shares(space, ways, weights)
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_weights_off_the_paths_do_not_count_in_the_output() -> None:
    space = recurrent_space(3, ops=("tanh", "sin"), output="loose_ends")
    paths = ((0, 0), (1, 1), (3, 0))  # s1 of s0, s2 of s0, s3 of s0: three loose ends
    shares = search_cell.output_shares(
        space, search_cell.routes(space, paths), torch.full((6, 2), 0.5, dtype=DOUBLE)
    )
    assert shares is not None
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=DOUBLE))


def test_genes_may_name_any_registered_operation() -> None:
    derived.check_cell(CellGene(nodes=((Gene("softsign", 0),),), concat=(1,)))

"""The search space against brute force: order of rows, deriving, sampling, counting, pruning."""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.space import NONE, RECURRENT_OPS, CellSpace, recurrent_space
from rnnnas.nas.zoo import ZOO, genotype_of

CNN_OPS = ("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3")


def cnn_space(nodes: int = 4) -> CellSpace:
    return CellSpace(inputs=2, nodes=nodes, ops=CNN_OPS, keep=2)


def table(space: CellSpace, draws: random.Random, levels: int = 0) -> list[list[float]]:
    """Random scores (E, O); with `levels` only so many different ones, so that ties abound."""
    value = (lambda: float(draws.randrange(levels))) if levels else draws.random
    return [[value() for _ in space.ops] for _ in space.edges]


def genes(cell: CellGene) -> list[list[tuple[str, int]]]:
    return [[tuple(gene) for gene in node] for node in cell.nodes]  # type: ignore[misc]


def every_cell(space: CellSpace) -> Iterator[tuple[frozenset[tuple[str, int]], ...]]:
    """All cells, by trying every subset of (source, operation) pairs of every node."""
    a_node = []
    for node in range(space.nodes):
        pairs = [
            (space.ops[o], source)
            for row, (source, target) in enumerate(space.edges)
            if target == node + space.inputs
            for o in range(len(space.ops))
            if space.allowed[row][o] and space.ops[o] != NONE
        ]
        choices = [
            frozenset(chosen)
            for chosen in itertools.combinations(pairs, space.keep)
            if len({source for _, source in chosen}) == space.keep
        ]
        a_node.append(choices)
    yield from itertools.product(*a_node)


# Order of rows


def test_rows_of_the_recurrent_cell() -> None:
    space = recurrent_space()
    assert len(space.edges) == 36 and space.ops == ("none", "tanh", "relu", "sigmoid", "identity")
    for i in range(8):
        assert space.rows(i) == range(i * (i + 1) // 2, (i + 1) * (i + 2) // 2)
        assert [space.edges[row] for row in space.rows(i)] == [(j, i + 1) for j in range(i + 1)]
    assert space.concat == tuple(range(1, 9))


def test_rows_of_the_image_cell() -> None:
    space = cnn_space()
    assert len(space.edges) == 14 and space.concat == (2, 3, 4, 5)
    assert [list(space.rows(i)) for i in range(4)] == [
        [0, 1], [2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12, 13],
    ]  # fmt: skip
    for i in range(4):
        assert [space.edges[row] for row in space.rows(i)] == [(j, i + 2) for j in range(i + 2)]


@pytest.mark.parametrize(
    "bad",
    [
        {"nodes": 0},
        {"nodes": -1},
        {"keep": 0},
        {"keep": -1},
        {"inputs": 0},
        {"inputs": 2, "keep": 1},  # its cells would read as cells of one input
        {"inputs": 3, "keep": 3},
        {"ops": ()},
        {"ops": ("none",)},
        {"allowed": ((True, True, True),)},
        {"allowed": ((True, True),) * 3},
        {"allowed": ((True, False, False), (True, True, True), (True, True, True))},
    ],
)
def test_spaces_without_cells_are_refused(bad: dict[str, object]) -> None:
    good: dict[str, object] = {"inputs": 1, "nodes": 2, "ops": ("none", "tanh", "relu"), "keep": 1}
    CellSpace(**good)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        CellSpace(**{**good, **bad})  # type: ignore[arg-type]


def test_the_refusal_names_the_node() -> None:
    rows = ((True, True), (True, False), (True, False))
    with pytest.raises(UsageError, match="node 2 has fewer than 1 edges"):
        CellSpace(inputs=1, nodes=2, ops=("none", "tanh"), keep=1, allowed=rows)


def test_neither_genotypes_nor_spaces_need_torch() -> None:
    code = "import rnnnas.nas.space, sys; print('torch' in sys.modules or 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Deriving


def derived_by_hand(space: CellSpace, scores: Sequence[Sequence[float]]) -> list[set[object]]:
    """Section 2.4 of the paper, by comparing every edge with every other."""
    nodes = []
    for target in range(space.inputs, space.inputs + space.nodes):
        strength: dict[int, tuple[float, str]] = {}
        for row, (source, end) in enumerate(space.edges):
            if end != target:
                continue
            for o, op in enumerate(space.ops):
                if op == "none" or not space.allowed[row][o]:
                    continue
                if source not in strength or scores[row][o] > strength[source][0]:
                    strength[source] = (scores[row][o], op)
        kept: set[object] = set()
        for source, (score, op) in strength.items():
            ahead = sum(
                other > score or (other == score and before < source)
                for before, (other, _) in strength.items()
            )
            if ahead < space.keep:
                kept.add((op, source))
        nodes.append(kept)
    return nodes


@pytest.mark.parametrize("levels", [0, 2, 3])
@pytest.mark.parametrize("space", [recurrent_space(), recurrent_space(3), cnn_space()])
def test_deriving_equals_brute_force(space: CellSpace, levels: int) -> None:
    draws = random.Random(levels)
    for _ in range(60):
        scores = table(space, draws, levels)
        cell = space.discretise(scores)
        assert [set(node) for node in genes(cell)] == derived_by_hand(space, scores)
        assert cell.concat == space.concat


@pytest.mark.parametrize("space", [recurrent_space(4), cnn_space(3)])
def test_deriving_from_a_pruned_space_equals_brute_force(space: CellSpace) -> None:
    draws = random.Random(5)
    done = 0
    while done < 60:
        try:
            pruned = space.prune([[draws.random() < 0.6 for _ in space.ops] for _ in space.edges])
        except UsageError:
            continue
        scores = table(pruned, draws, 3)
        found = [set(node) for node in genes(pruned.discretise(scores))]
        assert found == derived_by_hand(pruned, scores)
        done += 1


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize(
    "limits",
    [{"skip_connect": 2}, {"skip_connect": 0}, {"skip_connect": 1, "max_pool_3x3": 0}, {}],
)
def test_a_limit_takes_the_weakest_away_again_and_again(
    limits: dict[str, int], levels: int
) -> None:
    """The paper's own way: the smallest score is set to nothing, and all is derived anew."""
    space, draws = cnn_space(3), random.Random(levels)
    acted = 0
    for _ in range(60):
        scores = table(space, draws, levels)
        for row in scores:  # so that skips are too many
            row[space.ops.index("skip_connect")] += 0.6
        left, before = [list(row) for row in scores], space.discretise(scores)
        while True:
            nodes = derived_by_hand(space, left)
            many = [
                (left[row][o], -row, o)
                for row, (source, end) in enumerate(space.edges)
                for o, op in enumerate(space.ops)
                if (op, source) in nodes[end - space.inputs]
                and sum(str(gene[0]) == op for n in nodes for gene in n) > limits.get(op, 99)  # type: ignore[index]
            ]
            if not many:
                break
            _, row, o = min(many)
            left[-row][o] = -9.0
        cell = space.discretise_within(scores, limits)
        assert [set(node) for node in genes(cell)] == nodes
        for op, most in limits.items():
            assert sum(gene.op == op for node in cell.nodes for gene in node) <= most
        acted += cell != before
    assert acted > 20 if limits else not acted


def test_a_gene_that_its_node_cannot_do_without_stays() -> None:
    space = cnn_space(2)
    skip, conv = space.ops.index("skip_connect"), space.ops.index("sep_conv_3x3")
    only = [[o == skip or (o == conv and e == 4) for o in range(len(space.ops))] for e in range(5)]
    scores = [[0.1] * len(space.ops) for _ in space.edges]
    for edge, score in enumerate((0.5, 0.6, 0.7, 0.8, 0.9)):
        scores[edge][skip] = score
    cell = space.prune(only).discretise_within(scores, {"skip_connect": 0})
    # The first node has two edges with a skip each. The second uses those of states 1 and 2, and
    # loses the weaker one; state 0, which comes up, must stay then, and state 2 has another choice.
    assert genes(cell) == [
        [("skip_connect", 1), ("skip_connect", 0)],
        [("skip_connect", 0), ("sep_conv_3x3", 2)],
    ]


def test_the_best_edge_comes_first() -> None:
    scores = [[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 2.0]]
    assert genes(cnn_space(1).discretise(scores)) == [[("sep_conv_3x3", 1), ("max_pool_3x3", 0)]]


def test_ties_go_to_the_lowest_predecessor_and_the_first_operation() -> None:
    space = recurrent_space(3)
    cell = space.discretise([[0.0] * 5 for _ in space.edges])
    assert genes(cell) == [[("tanh", 0)]] * 3
    scores = [[0.0] * 5 for _ in space.edges]
    scores[4][3] = scores[5][2] = 1.0  # sigmoid of state 1 and relu of state 2, into node 3
    assert genes(space.discretise(scores))[2] == [("sigmoid", 1)]


def test_none_is_never_derived() -> None:
    space = recurrent_space(4)
    draws = random.Random(0)
    for _ in range(20):
        scores = [[1e6, *row[1:]] for row in table(space, draws)]
        cell = space.discretise(scores)
        assert all(op != "none" for node in genes(cell) for op, _ in node)
        assert cell == space.discretise([[-1e6, *row[1:]] for row in scores])


def test_shapes_and_values_of_scores_are_checked() -> None:
    space = recurrent_space(2)
    good = [[0.0] * 5 for _ in range(3)]
    for bad in (good[:2], [*good, [0.0] * 5], [[0.0] * 4] * 3, [*good[:2], [0.0] * 6]):
        with pytest.raises(UsageError, match="3 x 5"):
            space.discretise(bad)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UsageError, match="finite"):
            space.discretise([*good[:2], [0.0, 0.0, value, 0.0, 0.0]])


# Pruning


def test_pruning_keeps_what_both_allow() -> None:
    space = recurrent_space(2)
    once = space.prune([[True, False, True, True, True]] * 3)
    twice = once.prune([[True, True, True, False, True]] * 3)
    assert twice.allowed == ((True, False, True, False, True),) * 3
    assert space.allowed == ((True,) * 5,) * 3  # a value: the old one stays
    assert (twice.edges, twice.ops, twice.keep) == (space.edges, space.ops, space.keep)


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (4, 5)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="3 x 5"):
        recurrent_space(2).prune([[True] * shape[1]] * shape[0])


# Sampling and counting


def chi_square(counts: Sequence[int]) -> float:
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


@pytest.mark.parametrize(
    "space",
    [recurrent_space(2), CellSpace(inputs=2, nodes=2, ops=("none", "a", "b"), keep=2)],
)
def test_samples_are_uniform_over_all_cells(space: CellSpace) -> None:
    known = set(every_cell(space))
    draws = random.Random(11)
    count = 100 * len(known)
    found = Counter(
        tuple(frozenset(node) for node in genes(space.sample(draws))) for _ in range(count)
    )
    assert set(found) == known  # nothing else, and nothing left out
    freedom = len(known) - 1
    # Mean `freedom`, variance 2 `freedom`: five deviations would not happen by chance.
    assert chi_square(list(found.values())) < freedom + 5 * math.sqrt(2 * freedom)


def test_samples_use_only_what_is_allowed() -> None:
    mask = [[True, True, False, True, False], [True, False, False, False, False],
            [True, False, True, False, False]]  # fmt: skip
    space = recurrent_space(2).prune(mask)
    draws = random.Random(1)
    seen = {tuple(map(tuple, genes(space.sample(draws)))) for _ in range(200)}
    assert seen == {
        ((("tanh", 0),), (("relu", 1),)),
        ((("sigmoid", 0),), (("relu", 1),)),
    }


def test_a_seed_gives_one_sample() -> None:
    space = recurrent_space()
    assert space.sample(random.Random(3)) == space.sample(random.Random(3))
    assert len({space.sample(random.Random(seed)).nodes for seed in range(20)}) == 20


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_the_count_equals_enumeration(nodes: int) -> None:
    for space in (
        recurrent_space(nodes),
        CellSpace(inputs=2, nodes=nodes, ops=("none", "a", "b"), keep=2),
    ):
        assert space.count() == sum(1 for _ in every_cell(space))


@pytest.mark.parametrize("space", [recurrent_space(3), cnn_space(2)])
def test_the_count_of_a_pruned_space_equals_enumeration(space: CellSpace) -> None:
    draws = random.Random(2)
    done = 0
    while done < 10:
        try:
            pruned = space.prune([[draws.random() < 0.5 for _ in space.ops] for _ in space.edges])
        except UsageError:
            continue
        assert pruned.count() == sum(1 for _ in every_cell(pruned))
        done += 1


def test_the_count_of_the_published_space() -> None:
    assert recurrent_space().count() == 4**8 * math.factorial(8) == 2_642_411_520


# Genotypes by word


def test_random_genotypes() -> None:
    own = genotype_of("random:7", seed=1)
    assert own == genotype_of("random:7", seed=2) == genotype_of("random", seed=7)
    assert own != genotype_of("random", seed=1)
    cell = own.recurrent
    assert len(cell.nodes) == 8 and {op for ((op, _),) in cell.nodes} <= set(RECURRENT_OPS[1:])


def test_other_references_are_read_as_ever() -> None:
    assert genotype_of("DARTS_V2", seed=1) == ZOO["DARTS_V2"].genotype
    assert genotype_of("tanh0 relu1", seed=1).to_text() == "tanh0 relu1"


@pytest.mark.parametrize("reference", ["random:x", "random:-1", "random:1.5", "random:1:2"])
def test_bad_seeds_are_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="'random' or 'random:SEED'"):
        genotype_of(reference, seed=1)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a file"):
        genotype_of("randon", seed=1)

"""Columns of boxes: few crossings, level groups, distances kept."""

import itertools
import random

from rnnnas.draw.layout import Item, _descent, _Gap, join, order, settle


def crossings(columns, edges):
    place = {id(item): i for column in columns for i, item in enumerate(column)}
    return sum(
        (place[id(a)] - place[id(c)]) * (place[id(b)] - place[id(d)]) < 0
        for group in edges
        for (a, b), (c, d) in itertools.combinations(group, 2)
    )


def test_ordering_crosses_hardly_more_edges_than_the_best_of_all_orders():
    found = least = before = 0
    for seed in range(20):
        rng = random.Random(seed)
        columns = [[Item(1.0, 1.0) for _ in range(3)] for _ in range(3)]
        edges = []
        for left, right in itertools.pairwise(columns):
            edges.append(rng.sample(list(itertools.product(left, right)), 4))
            for a, b in edges[-1]:
                join(a, b, "op")
        every = itertools.product(*[list(itertools.permutations(column)) for column in columns])
        least += min(crossings(orders, edges) for orders in every)
        before += crossings(columns, edges)
        order(columns)
        found += crossings(columns, edges)
    print(f"crossings: {before} as given, {found} ordered, {least} at least")
    assert least <= found <= 1.2 * least < 0.5 * before


def test_groups_share_a_height_unless_the_order_forbids_it():
    a, b, c, d = (Item(10.0, 10.0) for _ in range(4))
    columns = [[a, b], [c, d]]
    settle(columns, [[a, d]])
    assert a.y == d.y and b.y >= a.y + 22 and c.y <= d.y - 22
    settle(columns, [[a, d], [b, c]])  # a above b and c above d: both cannot be
    assert a.y == d.y and b.y > a.y > c.y
    assert _descent(2, [_Gap(0, 1, 1.0), _Gap(1, 0, 1.0)]) is None

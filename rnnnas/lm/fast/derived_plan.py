"""The plan of a derived cell: which nodes are computed together, and when."""

from __future__ import annotations

from dataclasses import dataclass

from rnnnas.nas.genotype import CellGene


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Nodes that take the same state, ordered by operation.

    source: the slot of that state. start, size: the slots of their own states. runs: (operation,
    first node, end) of each stretch with one operation, counted within the group.
    """

    source: int
    start: int
    size: int
    runs: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a derived cell is computed.

    Slots number the states in the order in which they are computed: s0 is slot 0. groups: in an
    order in which every source is known before it is needed, by depth. nodes: the genotype's node
    (0-based) in slot i + 1. outputs: the slots whose mean is the output.
    """

    groups: tuple[Group, ...]
    nodes: tuple[int, ...]
    outputs: tuple[int, ...]


def plan(cell: CellGene) -> Plan:
    """Group the nodes of a cell by predecessor and depth."""
    depth = [0]
    for ((_, source),) in cell.nodes:
        depth.append(depth[source] + 1)
    slot = {0: 0}
    order: list[int] = []
    groups: list[Group] = []
    # A state's users lie one level below it, so going by depth knows every source in time.
    for source in sorted(range(len(depth)), key=lambda state: (depth[state], state)):
        users = [i for i, ((_, taken),) in enumerate(cell.nodes) if taken == source]
        if not users:
            continue
        users.sort(key=lambda i: (cell.nodes[i][0].op, i))
        start = len(order) + 1
        runs: list[tuple[str, int, int]] = []
        for k, i in enumerate(users):
            op = cell.nodes[i][0].op
            if runs and runs[-1][0] == op:
                runs[-1] = (op, runs[-1][1], k + 1)
            else:
                runs.append((op, k, k + 1))
            slot[i + 1] = start + k
        order += users
        groups.append(Group(source=slot[source], start=start, size=len(users), runs=tuple(runs)))
    outputs = tuple(sorted(slot[state] for state in cell.concat))
    return Plan(groups=tuple(groups), nodes=tuple(order), outputs=outputs)

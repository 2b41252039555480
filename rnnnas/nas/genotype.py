"""A found architecture as plain values: genes, cells, genotypes, and their text and JSON forms.

States of a cell are numbered 0, 1, ...: first the cell's inputs (one for a recurrent cell: s0),
then its nodes. A gene's `source` and a cell's `concat` are such numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from rnnnas.errors import UsageError

RECURRENT = "recurrent"
MEAN, SUM = "mean", "sum"
JOINS = (MEAN, SUM)
MOST_NODES = 256
_GENE = re.compile(r"([a-z_]+(?:_\d+x\d+)*)([0-9]{1,9})")
_FORM = "write a cell as 'sigmoid0 relu1 tanh1', one word a node, 'tanh0+relu1' for two edges"


class Gene(NamedTuple):
    """One incoming edge of a node: `op` applied to state `source`."""

    op: str
    source: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGene:
    """A cell: for every node the edges that enter it, and the states that form the output.

    inputs: number of input states; where it is 0, one if every node has one edge, else two.
    join: what a node of a recurrent cell with several edges takes of them. Image cells add theirs.
    """

    nodes: tuple[tuple[Gene, ...], ...]
    concat: tuple[int, ...]
    inputs: int = 0
    join: str = MEAN

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UsageError("a cell needs at least one node")
        single = all(len(node) == 1 for node in self.nodes)
        if self.inputs == 0:
            object.__setattr__(self, "inputs", 1 if single else 2)
        if self.inputs not in (1, 2):
            raise UsageError(f"a cell has one input state or two, not {self.inputs}")
        if self.join not in JOINS:
            raise UsageError(f"join {self.join!r} must be one of {', '.join(JOINS)}")
        if single and self.join != MEAN:  # of one edge, mean and sum are one
            object.__setattr__(self, "join", MEAN)
        if len(self.nodes) > MOST_NODES:
            raise UsageError(
                f"a cell of {len(self.nodes):,} nodes is more than the {MOST_NODES} that are read: "
                "every node waits for the one before it, and published cells have 4 to 12"
            )
        for i, node in enumerate(self.nodes):
            if not node:
                raise UsageError(f"node {i + self.inputs} has no incoming edge")
            for op, source in node:
                if not op.isprintable():  # it would be drawn, printed and written
                    raise UsageError(f"{op!r} cannot be the name of an operation")
                if not 0 <= source < i + self.inputs:
                    raise UsageError(
                        f"node {i + self.inputs} takes {op} of state {source}, "
                        f"but only states 0 to {i + self.inputs - 1} come before it"
                    )
        states = range(self.inputs, self.inputs + len(self.nodes))
        if not self.concat or len(set(self.concat)) != len(self.concat):
            raise UsageError(f"concat {self.concat} must name at least one state, each once")
        for state in self.concat:
            if state not in states:
                raise UsageError(f"concat names state {state}; the nodes are {list(states)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Genotype:
    """The cells of one architecture, by name: {"recurrent"} or {"normal", "reduce"}."""

    cells: Mapping[str, CellGene]

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints; `from_plain` is the inverse."""
        return {
            name: {
                "nodes": [[[gene.op, gene.source] for gene in node] for node in cell.nodes],
                "concat": list(cell.concat),
                **({} if cell.join == MEAN else {"join": cell.join}),
            }
            for name, cell in self.cells.items()
        }

    @classmethod
    def from_plain(cls, plain: object) -> Genotype:
        """Read what `to_plain` wrote.

        Raises:
            UsageError: where the value has another form, naming the part that is wrong.
        """
        if not isinstance(plain, Mapping) or not plain:
            raise UsageError("a genotype is an object with one entry a cell")
        cells = {}
        for name, cell in plain.items():
            try:
                nodes = tuple(
                    tuple(Gene(_text(op), _index(source)) for op, source in node)
                    for node in cell["nodes"]
                )
                concat = tuple(_index(state) for state in cell["concat"])
                join = _text(cell.get("join", MEAN))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"cell {name!r} of the genotype is not understood: {error!r}",
                    'expected {"nodes": [[["tanh", 0]], ...], "concat": [1, ...]}',
                ) from error
            inputs = 1 if name == RECURRENT else 0
            cells[str(name)] = CellGene(nodes=nodes, concat=concat, inputs=inputs, join=join)
        return cls(cells=cells)

    def to_text(self) -> str:
        """The field's short form of a recurrent cell, e.g. 'sigmoid0 relu1 tanh1'.

        A node with several edges is 'tanh0+relu1'; 'join sum' says that they are added.

        Raises:
            UsageError: where there is no recurrent cell.
        """
        cell = self.recurrent
        if cell.inputs != 1:
            raise UsageError("the short form is for cells with one input state; use JSON")
        genes = " ".join(
            "+".join(f"{gene.op}{gene.source}" for gene in node) for node in cell.nodes
        )
        default = tuple(range(1, len(cell.nodes) + 1))
        concat = "" if cell.concat == default else " concat " + ",".join(map(str, cell.concat))
        return genes + concat + ("" if cell.join == MEAN else f" join {cell.join}")

    @classmethod
    def from_text(cls, text: str) -> Genotype:
        """Read the short form of a recurrent cell.

        'relu0 tanh1 tanh1 concat 2,3': one 'operation predecessor' pair a node, in order;
        without `concat` the output is the mean of all nodes. 'tanh0+relu1' is a node with two
        edges, their mean; with 'join sum' at the end, the nodes add theirs.

        Raises:
            UsageError: naming the word that is not understood.
        """
        words = text.split()
        join = MEAN
        if len(words) > 1 and words[-2] == "join":
            join, words = words[-1], words[:-2]
        at = words.index("concat") if "concat" in words else len(words)
        nodes = []
        for word in words[:at]:
            node = []
            for gene in word.split("+"):
                match = _GENE.fullmatch(gene)
                if match is None:
                    raise UsageError(f"{gene!r} is not an operation with its predecessor", _FORM)
                node.append(Gene(match[1], int(match[2])))
            nodes.append(tuple(node))
        tail = " ".join(words[at + 1 :])
        try:
            concat = tuple(int(part) for part in tail.replace(",", " ").split())
        except ValueError as error:
            raise UsageError(f"concat {tail.strip()!r} is not a list of node numbers") from error
        if at < len(words) and not concat:
            raise UsageError("concat names no node", "write it as 'concat 1,2', or leave it out")
        everything = tuple(range(1, len(nodes) + 1))
        cell = CellGene(nodes=tuple(nodes), concat=concat or everything, inputs=1, join=join)
        return cls(cells={RECURRENT: cell})

    @property
    def recurrent(self) -> CellGene:
        """The recurrent cell.

        Raises:
            UsageError: where this is the genotype of another kind of network.
        """
        if RECURRENT not in self.cells:
            raise UsageError(f"this genotype has cells {sorted(self.cells)}, not a recurrent one")
        return self.cells[RECURRENT]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not an operation's name")
    return value


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def cell_text(genotype: Genotype) -> str:
    """The short form of a cell, or JSON where it has none."""
    try:
        return genotype.to_text()
    except UsageError:
        return json.dumps(genotype.to_plain())

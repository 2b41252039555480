"""A found architecture as plain values: genes, cells, genotypes, and their text and JSON forms.

States of a cell are numbered 0, 1, ...: first the cell's inputs (one for a recurrent cell: s0),
then its nodes. A gene's `source` and a cell's `concat` are such numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rnnnas.errors import UsageError, nearest

RECURRENT = "recurrent"
_GENE = re.compile(r"([a-z_]+(?:_\d+x\d+)*)(\d+)")


class Gene(NamedTuple):
    """One incoming edge of a node: `op` applied to state `source`."""

    op: str
    source: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGene:
    """A cell: for every node the edges that enter it, and the states that form the output."""

    nodes: tuple[tuple[Gene, ...], ...]
    concat: tuple[int, ...]

    @property
    def inputs(self) -> int:
        """Number of input states: one where every node has one edge, else two."""
        return 1 if all(len(node) == 1 for node in self.nodes) else 2

    def __post_init__(self) -> None:
        if not self.nodes:
            raise UsageError("a cell needs at least one node")
        for i, node in enumerate(self.nodes):
            if not node:
                raise UsageError(f"node {i + self.inputs} has no incoming edge")
            for op, source in node:
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
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"cell {name!r} of the genotype is not understood: {error!r}",
                    'expected {"nodes": [[["tanh", 0]], ...], "concat": [1, ...]}',
                ) from error
            cells[str(name)] = CellGene(nodes=nodes, concat=concat)
        return cls(cells=cells)

    def to_text(self) -> str:
        """The field's short form of a recurrent cell, e.g. 'sigmoid0 relu1 tanh1'.

        Raises:
            UsageError: where there is no recurrent cell, or a node of it has several edges.
        """
        cell = self.recurrent
        if any(len(node) != 1 for node in cell.nodes):
            raise UsageError("the short form is for cells with one edge a node; use JSON")
        genes = " ".join(f"{node[0].op}{node[0].source}" for node in cell.nodes)
        default = tuple(range(1, len(cell.nodes) + 1))
        concat = "" if cell.concat == default else " concat " + ",".join(map(str, cell.concat))
        return genes + concat

    @classmethod
    def from_text(cls, text: str) -> Genotype:
        """Read the short form of a recurrent cell.

        'relu0 tanh1 tanh1 concat 2,3': one 'operation predecessor' pair a node, in order;
        without `concat` the output is the mean of all nodes.

        Raises:
            UsageError: naming the word that is not understood.
        """
        body, word, tail = text.partition("concat")
        nodes = []
        for gene in body.split():
            match = _GENE.fullmatch(gene)
            if match is None:
                raise UsageError(
                    f"{gene!r} is not an operation with its predecessor",
                    "write a cell as 'sigmoid0 relu1 tanh1', one word a node",
                )
            nodes.append((Gene(match[1], int(match[2])),))
        try:
            concat = tuple(int(part) for part in tail.replace(",", " ").split())
        except ValueError as error:
            raise UsageError(f"concat {tail.strip()!r} is not a list of node numbers") from error
        if word and not concat:
            raise UsageError("concat names no node", "write it as 'concat 1,2', or leave it out")
        cell = CellGene(nodes=tuple(nodes), concat=concat or tuple(range(1, len(nodes) + 1)))
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


class Published(NamedTuple):
    """A genotype of the literature with the numbers its authors, or a re-run, gave."""

    genotype: Genotype
    source: str
    results: str


def _published(text: str, source: str, results: str) -> Published:
    return Published(Genotype.from_text(text), source, results)


# The published recurrent cells. Perplexities are validation/test after full retraining.
ZOO: dict[str, Published] = {
    "DARTS_V1": _published(
        "relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1",
        "Liu, Simonyan, Yang 2018, first release (arXiv 1806.09055v1)",
        "superseded by DARTS_V2",
    ),
    "DARTS_V2": _published(
        "sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5",
        "Liu, Simonyan, Yang, ICLR 2019 (arXiv 1806.09055)",
        "PTB 58.1/55.7 (23M), WikiText-2 71.2/69.6 (33M)",
    ),
    "ENAS": _published(
        "tanh0 tanh1 relu1 tanh3 tanh3 relu3 relu4 relu7 relu8 relu8 relu8 concat 2,5,6,9,10,11",
        "Pham et al. 2018, figure 6, in the DARTS set-up",
        "PTB 60.8/58.6 (24M)",
    ),
    "ENAS_LM": _published(
        "sigmoid0 tanh1 relu2 sigmoid2 tanh4 tanh5 sigmoid3 sigmoid6",
        "google-research/enas_lm",
        "PTB test 56.1 to 57.3 in its own recipe",
    ),
    "GDAS": _published(
        "relu0 relu0 identity1 relu1 tanh0 relu2 identity4 identity2",
        "Dong, Yang, CVPR 2019",
        "PTB 59.8/57.5 (23M), WikiText-2 71.0/69.4 (33M)",
    ),
    "SDARTS_RS": _published(
        "sigmoid0 sigmoid1 identity2 sigmoid1 tanh2 tanh2 sigmoid0 sigmoid3",
        "Chen, Hsieh, ICML 2020, random smoothing",
        "PTB 58.7/56.4 (23M)",
    ),
    "SDARTS_ADV": _published(
        "relu0 relu1 tanh2 relu3 identity2 relu1 tanh2 relu7",
        "Chen, Hsieh, ICML 2020, adversarial",
        "PTB 58.3/56.1 (23M)",
    ),
    "NAO": _published(
        "relu0 relu0 relu1 tanh3 relu4 relu4 relu5 relu1 relu7 relu1 identity1",
        "Luo et al., NeurIPS 2018",
        "PTB test 56.02 (27M), WikiText-2 test 67.10, in its own recipe",
    ),
    "NAO_WS": _published(
        "relu0 relu1 sigmoid2 sigmoid1 relu4 relu4 relu4 relu7 sigmoid8 tanh1 relu4",
        "Luo et al., NeurIPS 2018, with weight sharing",
        "PTB test 56.7",
    ),
}

# Cells that `--genotype` understands beside these but that no genotype describes: torch's own.
BASELINES: dict[str, str] = {
    "LSTM": "LSTM: torch's own cell, not a genotype. With weight drop it is the AWD-LSTM (Merity "
    "et al. 2018): PTB 60.0/57.3 (24M, 3 layers, finetuned), WikiText-2 68.6/65.8 (33M)",
    "GRU": "GRU: torch's own cell, not a genotype (Cho et al. 2014)",
}


def read_genotype(reference: str) -> Genotype:
    """A genotype from a zoo name, a JSON file, a run folder or the short text form itself.

    Raises:
        UsageError: where the reference is none of these, with the nearest zoo name.
    """
    if reference.upper() in ZOO and not Path(reference).exists():
        return ZOO[reference.upper()].genotype
    path = Path(reference)
    if reference.strip() and _is(path.is_dir):
        path = path / "genotype.json"
        if not path.is_file():
            raise UsageError(
                f"{reference} holds no genotype.json",
                "give the folder of a search that has run, e.g. checkpoints/search-ptb-darts-s1",
            )
    if _is(path.is_file):
        try:
            return Genotype.from_plain(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
            raise UsageError(f"{path} is not a genotype in JSON: {error}") from error
    if " " in reference.strip() or _GENE.fullmatch(reference):
        return Genotype.from_text(reference)
    raise UsageError(
        f"genotype {reference!r} is neither a file, a run folder nor a published cell"
        + nearest(reference, [*ZOO, *BASELINES]),
        f"published cells: {', '.join(ZOO)}; or write one: 'sigmoid0 relu1 tanh1'",
    )


def _is(test: Callable[[], bool]) -> bool:
    """What `Path.is_dir` or `Path.is_file` says, and no where the text cannot be a path."""
    try:
        return test()
    except OSError:  # a cell's short form can be longer than any file name
        return False

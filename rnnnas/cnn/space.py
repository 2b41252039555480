"""The search space of an image network: a normal and a reduction cell. Needs no torch."""

from __future__ import annotations

from rnnnas.cnn.dense.genotype import is_dense, parts_of
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import NONE, CellSpace

NORMAL, REDUCE = "normal", "reduce"
EDGES = 2  # that a node of a derived cell keeps
NODES = 4  # of a cell, as in DARTS; random cells have as many

# The operations of a search, in the order of a mixture's columns (DARTS, section 3.1.1).
OPERATIONS = (
    NONE,
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
# What published cells use besides.
FURTHER = ("sep_conv_7x7", "conv_7x1_1x7")


def image_spaces(nodes: int = NODES) -> dict[str, CellSpace]:
    """Both cells' space in DARTS: the two cells before as inputs, two edges a node, (14, 8)."""
    space = CellSpace(inputs=2, nodes=nodes, ops=OPERATIONS, keep=EDGES)
    return {NORMAL: space, REDUCE: space}


def check_genotype(genotype: Genotype) -> Genotype:
    """`genotype`, where an image network can be built of it.

    Raises:
        UsageError: where it is of another kind of network, or an operation is unknown.
    """
    if is_dense(genotype.cells):
        parts_of(genotype)
        return genotype
    if set(genotype.cells) != {NORMAL, REDUCE}:
        raise UsageError(
            f"this genotype has cells {sorted(genotype.cells)}; an image network needs "
            f"{NORMAL!r} and {REDUCE!r}",
            "published ones: NASNet, AmoebaNet, DARTS_V1, DARTS_V2; or random:7",
        )
    known = {*OPERATIONS, *FURTHER} - {NONE}
    for name, cell in genotype.cells.items():
        if cell.inputs != 2:
            raise UsageError(f"the {name} cell has one edge a node; an image cell has two inputs")
        for gene in (gene for node in cell.nodes for gene in node):
            if gene.op not in known:
                raise UsageError(
                    f"the {name} cell uses {gene.op!r}, which no image network computes",
                    f"operations: {', '.join(sorted(known))}",
                )
    return genotype

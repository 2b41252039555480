"""Which cells the fast forms compute; the readable ones compute all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rnnnas.lm.fast.cpu_library import COLUMNS
from rnnnas.nas.genotype import CellGene
from rnnnas.nas.space import NONE, CellSpace

if TYPE_CHECKING:
    import torch

STREAMS = 1024  # of a search by kernels on a device, at most: a unit's statistics are one program's


def reason_against(cell: CellGene | CellSpace) -> str:
    """Why the fast path does not compute a cell, or one under a mixture; empty where it does."""
    if isinstance(cell, CellGene):
        used = {gene.op for node in cell.nodes for gene in node}
    else:
        used = set(cell.ops) - {NONE}
    if unknown := sorted(used - set(COLUMNS)):
        return f"the kernels do not know {', '.join(unknown)}"
    if isinstance(cell, CellGene) and any(len(node) != 1 for node in cell.nodes):
        return "the kernels know cells with one edge a node"
    if isinstance(cell, CellSpace) and cell.output != "mean":
        return f"the kernels know the mean of all nodes as output, not {cell.output}"
    return ""


def note_of(cell: CellGene | CellSpace | str) -> str:
    """The line for the user where torch's operations compute a cell; empty where kernels do.

    Args:
        cell: where it is a name, that of a baseline.
    """
    reason = "" if isinstance(cell, str) else reason_against(cell)
    return reason and f"note: the cell is computed by torch's operations, hence slower: {reason}"


def without_device_kernels(device: torch.device, streams: int, processes: int) -> str:
    """The line for the user where a search on CUDA has to do without the kernels of the cell; empty
    where it has them.
    """
    if device.type != "cuda" or (processes == 1 and streams <= STREAMS):
        return ""
    why = f"{processes} processes share them" if processes > 1 else f"they are over {STREAMS:,}"
    return (
        "note: without the kernels of a cell under a mixture, hence slower: these take the "
        f"statistics of all streams at once, and {why}"
    )

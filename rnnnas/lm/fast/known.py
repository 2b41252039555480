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


def has_kernels(device: torch.device) -> bool:
    """Whether the recurrent cells have their kernels on a device. Builds those of a CPU."""
    return not _reason_without(device)


def _reason_without(device: torch.device) -> str:
    from rnnnas.lm.fast import cpu_library
    from rnnnas.lm.fast import triton_support as devices

    if device.type == "cuda":
        return devices.reason(device)
    return cpu_library.built().reason if device.type == "cpu" else ""


def notes_on_device(device: torch.device, precision: str = "auto") -> list[str]:
    """Lines for the user: that the recurrent cells have to do without their compiled kernels, and
    that `precision` asks for what the processor can only imitate. Builds the kernels of a CPU.
    """
    from rnnnas.lm.fast import cpu_library

    notes = []
    if reason := _reason_without(device):
        which = "kernels for CUDA" if device.type == "cuda" else "compiled kernels"
        notes.append(f"note: without {which}, hence slower: {reason}")
    if device.type == "cpu" and precision == "bfloat16" and not cpu_library.has_bfloat16():
        notes.append(
            "note: this processor has no bfloat16 products: imitating them is many times slower "
            "than model.precision=float32"
        )
    return notes

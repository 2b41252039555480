"""A network of dense blocks as a genotype: a stem, blocks on one path, an end. Needs no torch.

Every part is a cell of its own, a chain of operations, whose name gives the part's width and the
stride of its first operation: {"stem_w16_s1": conv_3x3, "block2_w24_s2": mbconv_3x3_e6 →
mbconv_5x5_e3, "end_w128_s1": conv_1x1}. A block keeps the number that it had in the search space.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import CellGene, Gene, Genotype

STEM, BLOCK, END = "stem", "block", "end"
STEM_OP, END_OP = "conv_3x3", "conv_1x1"
_PART = re.compile(r"(stem|block(?P<number>[1-9]\d*)|end)_w(?P<width>[1-9]\d*)_s(?P<stride>[12])")
_MBCONV = re.compile(r"mbconv_([1-9]\d*)x\1_e([1-9]\d*)")
_ORDER = {STEM: 0, BLOCK: 1, END: 2}


class Part(NamedTuple):
    """kind: stem, block or end; number: of a block, else 0; width: channels; stride: of the first
    of its operations, `ops`.
    """

    kind: str
    number: int
    width: int
    stride: int
    ops: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name as a cell of the genotype."""
        number = self.number or ""
        return f"{self.kind}{number}_w{self.width}_s{self.stride}"


def mbconv(kernel: int, expansion: int) -> str:
    """The name of an operation; `mbconv_sizes` is the inverse."""
    return f"mbconv_{kernel}x{kernel}_e{expansion}"


def mbconv_sizes(op: str) -> tuple[int, int]:
    """Kernel and expansion of an operation's name.

    Raises:
        UsageError: where it is no such operation.
    """
    match = _MBCONV.fullmatch(op)
    if match is None or int(match[1]) % 2 == 0:
        raise UsageError(
            f"a dense block has no operation {op!r}", "operations: mbconv_3x3_e6 and the like"
        )
    return int(match[1]), int(match[2])


def is_dense(cells: Mapping[str, object]) -> bool:
    """Whether cells of these names are parts of a dense network."""
    return any(_PART.fullmatch(name) for name in cells)


def genotype_of_parts(parts: Iterable[Part]) -> Genotype:
    """The genotype of these parts; `parts_of` is the inverse."""
    return Genotype(cells={part.name: _chain(part.ops) for part in parts})


def _chain(ops: tuple[str, ...]) -> CellGene:
    nodes = tuple((Gene(op, place),) for place, op in enumerate(ops))
    return CellGene(nodes=nodes, concat=(len(ops),))


def parts_of(genotype: Genotype) -> list[Part]:
    """The parts of a dense network from the stem on, whatever order the genotype has them in.

    Raises:
        UsageError: where the genotype is of no such network.
    """
    parts = []
    for name, cell in genotype.cells.items():
        match = _PART.fullmatch(name)
        ops = tuple(node[0].op for node in cell.nodes)
        if match is None or cell != _chain(ops):
            raise UsageError(
                f"{name!r} is no part of a network of dense blocks",
                "parts are chains of operations, named stem_w16_s1, block2_w24_s2, end_w128_s1",
            )
        kind = match[1].rstrip("0123456789")
        number, width, stride = (int(match[key] or 0) for key in ("number", "width", "stride"))
        part = Part(kind, number, width, stride, ops)
        if kind == BLOCK:
            for op in ops:
                mbconv_sizes(op)
        elif part.stride != 1 or ops != ((STEM_OP if kind == STEM else END_OP),):
            raise UsageError(f"the {kind} of a dense network is one convolution of stride 1")
        parts.append(part)
    parts.sort(key=lambda part: (_ORDER[part.kind], part.number))
    kinds = [part.kind for part in parts]
    numbers = [part.number for part in parts]
    if kinds.count(STEM) != 1 or kinds.count(END) != 1 or len(set(numbers[1:-1])) != len(kinds) - 2:
        raise UsageError("a network of dense blocks has one stem, one end, and each block once")
    return parts

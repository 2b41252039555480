"""Published image cells, and how a reference to a pair of cells is read. Needs no torch."""

from __future__ import annotations

import random
from pathlib import Path

from rnnnas.cnn.space import NORMAL, REDUCE, check_genotype, image_spaces
from rnnnas.errors import UsageError, nearest
from rnnnas.nas.field_form import from_field_form, is_field_form
from rnnnas.nas.genotype import CellGene, Gene, Genotype
from rnnnas.nas.zoo import ALIASES, Published, read_genotype

# 'image:DARTS_V2' is never the recurrent cell of that name.
PREFIX = "image:"
_SHORT = {
    "max3": "max_pool_3x3",
    "avg3": "avg_pool_3x3",
    "skip": "skip_connect",
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "sep7": "sep_conv_7x7",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "conv7": "conv_7x1_1x7",
}


def _cell(text: str, concat: str) -> CellGene:
    """'sep3 0,sep3 1 | skip 0,dil3 2' and '2,3': for every node its edges, then the output."""
    nodes = tuple(
        tuple(
            Gene(_SHORT[op], int(source)) for op, source in (edge.split() for edge in n.split(","))
        )
        for n in text.split("|")
    )
    return CellGene(nodes=nodes, concat=tuple(int(state) for state in concat.split(",")))


def _published(normal: CellGene, reduce: CellGene, source: str, results: str) -> Published:
    return Published(Genotype(cells={NORMAL: normal, REDUCE: reduce}), source, results)


# Errors are in percent, of tests on CIFAR-10 and on ImageNet (top 1/top 5), as tables 1 and 3 of
# the DARTS paper (arXiv 1806.09055v2) cite or report them. (The 2.55 +- 0.05 with cutout in table 1
# are those of AmoebaNet-B, another pair of cells.)
ZOO: dict[str, Published] = {
    "NASNET": _published(
        _cell(
            "sep5 1,sep3 0 | sep5 0,sep3 0 | avg3 1,skip 0 | avg3 0,avg3 0 | sep3 1,skip 1",
            "2,3,4,5,6",
        ),
        _cell(
            "sep5 1,sep7 0 | max3 1,sep7 0 | avg3 1,sep5 0 | skip 3,avg3 2 | sep3 2,max3 1",
            "4,5,6",
        ),
        "Zoph, Vasudevan, Shlens, Le, CVPR 2018 (arXiv 1707.07012), NASNet-A",
        "CIFAR-10 with cutout 2.65 (3.3M), ImageNet 26.0/8.4 (5.3M)",
    ),
    "AMOEBANET": _published(
        _cell(
            "avg3 0,max3 1 | sep3 0,sep5 2 | sep3 0,avg3 3 | sep3 1,skip 1 | skip 0,avg3 1",
            "4,5,6",
        ),
        _cell(
            "avg3 0,sep3 1 | max3 0,sep7 2 | sep7 0,avg3 1 | max3 0,max3 1 | conv7 0,sep3 5",
            "3,4,6",
        ),
        "Real, Aggarwal, Huang, Le, AAAI 2019 (arXiv 1802.01548), AmoebaNet-A",
        "CIFAR-10 without cutout 3.34 +- 0.06 (3.2M), ImageNet 25.5/8.0 (5.1M)",
    ),
    "DARTS_V1": _published(
        _cell("sep3 1,sep3 0 | skip 0,sep3 1 | skip 0,sep3 1 | sep3 0,skip 2", "2,3,4,5"),
        _cell("max3 0,max3 1 | skip 2,max3 0 | max3 0,skip 2 | skip 2,avg3 0", "2,3,4,5"),
        "Liu, Simonyan, Yang 2018, first release (arXiv 1806.09055v1)",
        "none of this cell (3.2M) since DARTS_V2 took its place; the paper's first-order searches: "
        "CIFAR-10 with cutout 3.00 +- 0.14 (3.3M)",
    ),
    "DARTS_V2": _published(
        _cell("sep3 0,sep3 1 | sep3 0,sep3 1 | sep3 1,skip 0 | skip 0,dil3 2", "2,3,4,5"),
        _cell("max3 0,max3 1 | skip 2,max3 1 | max3 0,skip 2 | skip 2,max3 1", "2,3,4,5"),
        "Liu, Simonyan, Yang, ICLR 2019 (arXiv 1806.09055)",
        "CIFAR-10 with cutout 2.76 +- 0.09 (3.3M), ImageNet 26.7/8.7 (4.7M)",
    ),
}


def published(reference: str) -> Published | None:
    """The entry of the zoo that `reference` names, with or without 'image:' before it."""
    name = reference.removeprefix(PREFIX).upper()
    return ZOO.get(ALIASES.get(name, name))


def genotype_of(reference: str, seed: int) -> Genotype:
    """The two cells that `reference` stands for.

    Args:
        reference: a published name, 'random' or 'random:SEED' (both cells drawn from the search
            space), a JSON file or a run folder; 'image:' may stand before any of them.
        seed: what 'random' without a seed of its own is drawn by.

    Raises:
        UsageError: where it is none of these, or of another kind of network.
    """
    plain = reference.removeprefix(PREFIX)
    word, _, own = plain.partition(":")
    if word == "random":
        if own and not own.isdecimal():
            raise UsageError(f"genotype {reference!r} must be 'random' or 'random:SEED'")
        rng = random.Random(f"{own or seed}/cells")
        return Genotype(cells={name: s.sample(rng) for name, s in image_spaces().items()})
    if is_field_form(plain):
        return check_genotype(from_field_form(plain))
    known = published(plain)
    if known is not None:
        return known.genotype
    try:
        there = bool(plain.strip()) and Path(plain).exists()
    except OSError:  # longer than any file name
        there = False
    if not there:
        raise UsageError(
            f"genotype {reference!r} is neither a file, a run folder nor a published pair of cells"
            + nearest(plain, list(ZOO)),
            f"published: {', '.join(ZOO)}; or draw one: random:7",
        )
    return check_genotype(read_genotype(plain))

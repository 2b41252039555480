"""Signs that a search has collapsed, and what to do about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.operations import NONE
from rnnnas.nas.space import CellSpace

_LEFT = 1  # genes of another operation that a collapsed cell may hold
_FEWEST = 4  # genes of a cell that can be called collapsed


def collapse_note(
    genotype: Genotype,
    perplexity: float | None = None,
    unigram: float | None = None,
    spaces: Mapping[str, CellSpace] | None = None,
) -> str | None:
    """One line where a search has collapsed, else None: nearly all genes of a cell have the same
    operation, or the search network is worse than the words' frequencies.

    Args:
        perplexity: of the search network on validation text. unigram: of the words' frequencies
            on the same text.
        spaces: that the cells were searched in; one whose edges have one operation tells nothing.
    """
    signs = []
    for name, cell in genotype.cells.items():
        if spaces is not None and len({*spaces[name].ops} - {NONE}) < 2:
            continue
        counts = Counter(gene.op for genes in cell.nodes for gene in genes)
        genes = sum(counts.values())
        op, most = counts.most_common(1)[0]
        if genes >= _FEWEST and most >= genes - _LEFT:
            which = "" if len(genotype.cells) == 1 else f" of the {name} cell"
            signs.append(f"{most} of {genes} operations{which} are {op}")
    if perplexity is not None and unigram is not None and not perplexity < unigram:
        signs.append(
            f"the search network's perplexity, {perplexity:,.0f}, is above that of the words' "
            f"frequencies, {unigram:,.0f}"
        )
    if not signs:
        return None
    remedy = "; let short trainings decide with --set select.by=race, or search by --method halving"
    if RECURRENT not in genotype.cells:  # images have neither
        remedy = "; try another method, fewer epochs, or derive.limits for such operations"
    return f"the search has collapsed: {' and '.join(signs)}{remedy}"

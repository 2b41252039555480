"""The cells one gene away from a cell, and whether a cell is of a space at all."""

from __future__ import annotations

from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.strategies import Spaces


def fits(genotype: Genotype, spaces: Spaces) -> bool:
    """Whether the cell is one of the spaces' own; a published one may have more nodes."""
    return genotype.cells.keys() == spaces.keys() and all(
        len(cell.nodes) == spaces[name].nodes
        and all(
            len(genes) == spaces[name].kept(node) and all(g.op in spaces[name].ops for g in genes)
            for node, genes in enumerate(cell.nodes)
        )
        and spaces[name].cell(cell.nodes) == cell  # its output, and how edges are joined
        for name, cell in genotype.cells.items()
    )


def neighbours(genotype: Genotype, spaces: Spaces) -> list[Genotype]:
    """Every cell that differs in one gene, its operation or its predecessor; in a fixed order.

    A cell of another number of nodes than its space's, e.g. a published one, has none.
    """
    if not fits(genotype, spaces):
        return []
    found = []
    for name, cell in genotype.cells.items():
        space = spaces[name]
        for node, genes in enumerate(cell.nodes):
            for slot, gene in enumerate(genes):
                used = {other.source for other in genes}
                rows = space.rows(node)
                options = [
                    Gene(space.ops[o], gene.source) for o in space.choices(rows[gene.source])
                ]
                options += [
                    Gene(gene.op, source)
                    for source, row in enumerate(rows)
                    if source not in used and space.ops.index(gene.op) in space.choices(row)
                ]
                for other in options:
                    if other != gene:
                        changed = (*genes[:slot], other, *genes[slot + 1 :])
                        nodes = (*cell.nodes[:node], changed, *cell.nodes[node + 1 :])
                        cells = {**genotype.cells, name: space.cell(nodes)}
                        found.append(Genotype(cells=cells))
    return found

"""Published image cells, references to them, and that they can be shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rnnnas.cli import main
from rnnnas.cnn.space import FURTHER, OPERATIONS, check_genotype, image_spaces
from rnnnas.cnn.zoo import ZOO, genotype_of, published
from rnnnas.draw.layout import colour
from rnnnas.errors import UsageError
from rnnnas.nas import zoo as recurrent
from rnnnas.nas.genotype import CellGene, Gene, Genotype


def test_the_space_is_that_of_the_paper() -> None:
    spaces = image_spaces()
    assert set(spaces) == {"normal", "reduce"}
    space = spaces["normal"]
    assert len(space.edges) == 14 and len(space.ops) == 8 and space.concat == (2, 3, 4, 5)
    # Two of two, three, four and five states, and one of seven operations each.
    assert space.count() == 1 * 3 * 6 * 10 * 7**8


def test_published_cells_are_what_was_published() -> None:
    assert {n: [len(c.nodes) for c in z.genotype.cells.values()] for n, z in ZOO.items()} == {
        "NASNET": [5, 5], "AMOEBANET": [5, 5], "DARTS_V1": [4, 4], "DARTS_V2": [4, 4],
    }  # fmt: skip
    v2 = ZOO["DARTS_V2"].genotype.cells
    assert v2["normal"].nodes[3] == (Gene("skip_connect", 0), Gene("dil_conv_3x3", 2))
    assert v2["reduce"].nodes[0] == (Gene("max_pool_3x3", 0), Gene("max_pool_3x3", 1))
    nasnet, amoeba = (ZOO[name].genotype.cells for name in ("NASNET", "AMOEBANET"))
    assert nasnet["normal"].concat == (2, 3, 4, 5, 6) and nasnet["reduce"].concat == (4, 5, 6)
    assert amoeba["normal"].concat == (4, 5, 6) and amoeba["reduce"].concat == (3, 4, 6)
    assert amoeba["reduce"].nodes[4] == (Gene("conv_7x1_1x7", 0), Gene("sep_conv_3x3", 5))
    used = {g.op for z in ZOO.values() for c in z.genotype.cells.values() for n in c.nodes for g in n}  # fmt: skip  # noqa: E501
    assert used <= {*OPERATIONS, *FURTHER} and set(FURTHER) <= used
    for entry in ZOO.values():
        assert check_genotype(entry.genotype) is entry.genotype
        assert Genotype.from_plain(json.loads(json.dumps(entry.genotype.to_plain()))) == entry.genotype  # fmt: skip  # noqa: E501


def test_published_errors_are_those_of_the_darts_papers_tables() -> None:
    """Table 1 (CIFAR-10) and table 3 (ImageNet); 3.00 is of no cell here, but of its searches."""
    wanted = {
        "NASNET": ("with cutout 2.65 (3.3M)", "26.0/8.4 (5.3M)"),
        "AMOEBANET": ("without cutout 3.34 +- 0.06 (3.2M)", "25.5/8.0 (5.1M)"),
        "DARTS_V1": ("none of this cell (3.2M)", "with cutout 3.00 +- 0.14 (3.3M)"),
        "DARTS_V2": ("with cutout 2.76 +- 0.09 (3.3M)", "26.7/8.7 (4.7M)"),
    }
    assert set(wanted) == set(ZOO)
    for name, texts in wanted.items():
        shown = CliRunner().invoke(main, ["show", f"image:{name}"]).output
        assert all(text in shown for text in texts), shown


def test_references_are_read(tmp_path: Path) -> None:
    v2 = ZOO["DARTS_V2"].genotype
    for reference in ("DARTS_V2", "darts_v2", "image:DARTS_V2"):
        assert genotype_of(reference, 1) == v2
        assert published(reference) == ZOO["DARTS_V2"]
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(v2.to_plain()), encoding="utf-8")
    assert genotype_of(str(path), 1) == genotype_of(str(tmp_path), 1) == v2


def test_random_cells_follow_their_seed() -> None:
    cells = genotype_of("random:7", 1)
    assert cells == genotype_of("random", 7) == genotype_of("image:random:7", 3)
    assert cells != genotype_of("random:8", 1)
    assert cells.cells["normal"] != cells.cells["reduce"]
    check_genotype(cells)
    for seed in range(20):
        for cell in genotype_of("random", seed).cells.values():
            assert all(a.source != b.source for a, b in cell.nodes)


@pytest.mark.parametrize(
    ("reference", "words"),
    [("DARTS_V3", "DARTS_V"), ("random:x", "random:SEED"), ("", "neither"),
     ("sigmoid0 relu1", "neither"), ("x" * 5000, "neither")],
)  # fmt: skip
def test_other_references_are_refused(reference: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        genotype_of(reference, 1)


def test_genotypes_of_other_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps(recurrent.ZOO["DARTS_V2"].genotype.to_plain()), encoding="utf-8")
    with pytest.raises(UsageError, match="recurrent"):
        genotype_of(str(path), 1)
    one = CellGene(nodes=((Gene("skip_connect", 0),),), concat=(1,))
    odd = CellGene(nodes=((Gene("tanh", 0), Gene("skip_connect", 1)),), concat=(2,))
    for cell, word in ((one, "two inputs"), (odd, "tanh")):
        with pytest.raises(UsageError, match=word):
            check_genotype(Genotype(cells={"normal": cell, "reduce": cell}))


@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet", "image:DARTS_V2", "image:random:3"])
def test_both_cells_are_shown(name: str) -> None:
    text = CliRunner().invoke(main, ["show", name])
    assert text.exit_code == 0, text.output
    assert "normal cell" in text.output and "reduce cell" in text.output
    entry = published(name)
    if entry is not None:
        assert entry.source in text.output and entry.results in text.output
    svg = CliRunner().invoke(main, ["show", name, "--format", "svg"]).output
    assert svg.count('class="cell"') == 2 and "reduce" in svg
    cells = json.loads(CliRunner().invoke(main, ["show", name, "--format", "json"]).output)
    assert Genotype.from_plain(cells) == genotype_of(name, 1)


def test_names_of_both_zoos_mean_the_recurrent_cell_unless_told_otherwise() -> None:
    assert "recurrent cell" in CliRunner().invoke(main, ["show", "DARTS_V2"]).output
    both = set(recurrent.ZOO) & set(ZOO)
    assert both == {"DARTS_V1", "DARTS_V2"}


def test_operations_of_image_cells_have_colours_of_their_own() -> None:
    ops = [*OPERATIONS[1:], *FURTHER]
    assert len({colour(op) for op in ops}) == len(ops)

"""`show`: a search that moves, two cells beside each other, TikZ, and a best.pt as an argument."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from sample_runs import search_run

from rnnnas.cli import main
from rnnnas.cnn import zoo as images
from rnnnas.draw.compare import common, compare_svg, compare_text
from rnnnas.draw.history import as_animation, as_gif
from rnnnas.draw.layout import arrange_all
from rnnnas.draw.tikz import as_tikz, escaped
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Gene, Genotype
from rnnnas.nas.zoo import ZOO
from rnnnas.reporting.read import read_run
from rnnnas.runs.checkpoint import save_content

CELLS = [Genotype.from_text(text) for text in ("tanh0 relu1", "tanh0 relu0", "sigmoid0 relu0")]
FRAMES = [(f"epoch {i}", cell) for i, cell in enumerate(CELLS, 1)]
SVG = "{http://www.w3.org/2000/svg}"


def run(*words: str) -> str:
    done = CliRunner().invoke(main, ["show", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*words: str) -> str:
    done = CliRunner().invoke(main, ["show", *words])
    assert done.exit_code in (2, 4), done.output
    return done.output


def test_an_animation_shows_one_frame_at_a_time_in_turn() -> None:
    text = as_animation(FRAMES, seconds=0.5)
    root = ElementTree.fromstring(text)
    groups = [g for g in root.findall(f"{SVG}g") if g.get("class", "").startswith("f")]
    assert [g.find(f"{SVG}text").text for g in groups] == ["epoch 1", "epoch 2", "epoch 3"]  # type: ignore[union-attr]
    period = 0.5 * 5  # the last one stays three times as long
    delays = [float(re.search(r"(-[\d.]+)s", g.get("style", ""))[1]) for g in groups]  # type: ignore[index]
    style = root.find(f"{SVG}style").text or ""  # type: ignore[union-attr]
    shares = dict(re.findall(r"@keyframes (\w+)\{0%\{visibility:visible\}([\d.]+)%", style))
    assert f"{period:.2f}s step-end infinite" in style and "prefers-reduced-motion" in style
    for moment in (0.1, 0.6, 1.1, 1.6, 2.1):
        visible = [
            i
            for i, delay in enumerate(delays)
            if (moment - delay) % period / period
            < float(shares["end" if groups[i].get("class") == "f last" else "one"]) / 100
        ]
        assert visible == [min(int(moment / 0.5), 2)], moment


def test_a_gif_has_a_page_an_epoch_and_rests_at_the_last() -> None:
    with Image.open(io.BytesIO(as_gif(FRAMES, seconds=0.5))) as image:
        times, pages = [], []
        for i in range(image.n_frames):
            image.seek(i)
            times.append(image.info["duration"])
            pages.append(image.convert("RGB").tobytes())
        assert times == [500, 500, 1500] and len(set(pages)) == 3
        assert image.info["loop"] == 0
        assert image.size[0] >= max(arrange_all(cell).width for cell in CELLS) - 1


def test_history_is_of_a_run_that_logged_its_cells(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "found")
    out = tmp_path / "search.svg"
    run(str(folder), "--history", "--out", str(out))
    root = ElementTree.parse(out).getroot()
    assert len(root.findall(f"{SVG}g")) == len(read_run(folder).frames) == 4
    run(str(folder), "--history", "--out", str(tmp_path / "search.gif"))
    assert (tmp_path / "search.gif").read_bytes().startswith(b"GIF89a")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(x for x in lines if '"alphas"' not in x))
    assert "no history to show" in refused(str(folder), "--history", "--out", str(out))
    assert "in a file" in refused(str(folder), "--history")
    assert "no run folder" in refused("DARTS_V2", "--history", "--out", str(out))


def test_two_cells_are_compared_node_by_node() -> None:
    one, other = (Genotype.from_text(t) for t in ("tanh0 relu1 relu1", "tanh0 relu0 relu1 tanh3"))
    same = [set(genes) for genes in common(one.recurrent, other.recurrent)]
    assert same == [{Gene("tanh", 0)}, set(), {Gene("relu", 1)}]
    text = compare_text(one, other, ("A", "B"))
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("s")}
    assert {name: line.endswith("differs") for name, line in rows.items()} == {
        "s1": False, "s2": True, "s3": False, "s4": True,
    }  # fmt: skip
    assert "2 of 4 genes of the recurrent cell are the same" in text
    with pytest.raises(UsageError, match="different kinds"):
        compare_text(one, Genotype.from_plain(
            {n: {"nodes": [[["skip_connect", 0], ["skip_connect", 1]]], "concat": [2]}
             for n in ("normal", "reduce")}), ("A", "B"))  # fmt: skip


def test_what_two_cells_have_in_common_is_pale() -> None:
    one, other = (Genotype.from_text(t) for t in ("tanh0 relu1 sigmoid1", "tanh0 relu0 sigmoid1"))
    root = ElementTree.fromstring(compare_svg(one, other, ("A", "B")))
    strokes: dict[str, set[str]] = {}
    for edge in root.iter(f"{SVG}g"):
        if edge.get("data-kind") == "op":
            path = edge.find(f"{SVG}path")
            assert path is not None
            strokes.setdefault(edge.get("data-op", ""), set()).add(path.get("stroke", ""))
    assert strokes == {"tanh": {"#c2c8d1"}, "relu": {"#d55e00"}, "sigmoid": {"#c2c8d1"}}
    names = [t.text for t in root.iter(f"{SVG}text") if t.get("font-weight") == "bold"]
    assert names == ["A", "B"]


def test_the_command_compares(tmp_path: Path) -> None:
    assert "0 of 8 genes" in run("DARTS_V2", "--compare", "random:1")
    run("DARTS_V2", "--compare", "GDAS", "--out", str(tmp_path / "both.svg"))
    ElementTree.parse(tmp_path / "both.svg")
    assert "no genotype" in refused("LSTM", "--compare", "GDAS")
    assert "no form as tikz" in refused("GDAS", "--compare", "ENAS", "--format", "tikz")


@pytest.mark.parametrize("name", ["DARTS_V2", "image"])
def test_tikz_has_every_box_and_edge_and_is_balanced(name: str) -> None:
    plain = {n: {"nodes": [[["sep_conv_3x3", 0], ["skip_connect", 1]]], "concat": [2]}
             for n in ("normal", "reduce")}  # fmt: skip
    cell = ZOO[name].genotype if name in ZOO else Genotype.from_plain(plain)
    text = as_tikz(cell, "100% & more")
    drawings = arrange_all(cell).cells
    links = [link for d in drawings for link in d.links]
    boxes = [box for d in drawings for box in d.boxes]
    assert text.count("\\draw[") == len(links)
    labels = sum(link.label is not None for link in links)
    assert text.count("\\node[draw=") == len(boxes) + labels
    assert text.count("{") == text.count("}") and text.count("[") == text.count("]")
    assert text.startswith("% 100% & more\n")
    defined = set(re.findall(r"\\definecolor\{(\w+)\}", text))
    used = set(re.findall(r"\\(?:draw|fill)\[(\w+)", text)) | set(re.findall(r"draw=(\w+)", text))
    assert used <= defined and all(word.isalnum() for word in defined)
    assert "sep_conv" not in re.sub(r"sep\\_conv", "", text)  # escaped where it is written
    assert ("$s_{1}$" in text) == (name in ZOO)


def test_latex_commands_are_escaped() -> None:
    assert escaped(r"a_b%c\d{e}") == r"a\_b\%c\textbackslash{}d\{e\}"


def test_a_checkpoint_is_a_genotype(tmp_path: Path) -> None:
    path = tmp_path / "best.pt"
    cell = Genotype.from_text("tanh0 relu1")
    save_content(path, {"genotype": cell.to_plain(), "config": {"cell": "derived"}})
    assert json.loads(run(str(path), "--format", "json")) == cell.to_plain()
    assert "1 of 2 genes" in run(str(path), "--compare", "tanh0 relu0")
    lstm = {"cell": "lstm", "model": {"hidden": 8}}
    save_content(path, {"genotype": None, "config": lstm, "corpus": {"name": "mine"}})
    assert run(str(path)).startswith("LSTM")
    save_content(path, {"weights": 1})
    assert "holds no trained cell" in refused(str(path))
    assert "best.pt" in refused(str(tmp_path / "missing" / "best.pt"))


def test_equal_genes_are_counted_as_often_as_they_are_there() -> None:
    """A node of NASNet takes one state twice by one operation; two edges have no order."""
    nasnet = images.ZOO["NASNET"].genotype
    text = compare_text(nasnet, nasnet, ("a", "b"))
    assert "10 of 10 genes of the normal cell" in text and "differs" not in text
    turned = Genotype(cells={n: dataclasses.replace(c, nodes=tuple(g[::-1] for g in c.nodes))
                             for n, c in nasnet.cells.items()})  # fmt: skip
    assert "differs" not in compare_text(nasnet, turned, ("a", "b"))


def test_a_name_with_a_control_character_is_no_broken_picture() -> None:
    cell = Genotype.from_text("tanh0 relu1")
    ElementTree.fromstring(compare_svg(cell, cell, ("a\x01b", "c")))


def test_an_ending_of_no_form_is_refused(tmp_path: Path) -> None:
    for name in ("cell.png", "cell.pdf"):
        assert ".svg" in refused("DARTS_V2", "--out", str(tmp_path / name))
        assert not (tmp_path / name).exists()


def test_the_ending_says_the_form(tmp_path: Path) -> None:
    for ending, start in ((".svg", "<svg"), (".dot", "digraph"), (".tex", "%"), (".json", "{")):
        out = tmp_path / f"cell{ending}"
        run("GDAS", "--out", str(out))
        assert out.read_text().startswith(start)
    assert "--history" in refused("GDAS", "--format", "gif")

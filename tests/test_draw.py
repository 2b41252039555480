"""Drawn cells: every gene is there, joined to the right states, and nothing hides anything."""

import itertools
import random
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from rnnnas.cnn.zoo import ZOO as IMAGE_ZOO
from rnnnas.draw.layout import arrange_all, colour, graph, runs, text_width
from rnnnas.draw.text_svg_dot import as_dot, as_svg, as_text
from rnnnas.nas.genotype import CellGene, Gene, Genotype
from rnnnas.nas.space import CellSpace, recurrent_space
from rnnnas.nas.zoo import ZOO

SVG = "{http://www.w3.org/2000/svg}"
CNN_OPS = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5")


def cnn_cell(text, concat):
    """A cell from 'op source, op source | ...', one group a node."""
    nodes = tuple(
        tuple(Gene(op, int(source)) for op, source in (edge.split() for edge in node.split(",")))
        for node in text.split("|")
    )
    return CellGene(nodes=nodes, concat=concat)


def darts_v2_cnn():
    sep, dil, pool, skip = "sep_conv_3x3", "dil_conv_3x3", "max_pool_3x3", "skip_connect"
    normal = f"{sep} 0, {sep} 1 | {sep} 0, {sep} 1 | {sep} 1, {skip} 0 | {skip} 0, {dil} 2"
    reduce = f"{pool} 0, {pool} 1 | {skip} 2, {pool} 1 | {pool} 0, {skip} 2 | {skip} 2, {pool} 1"
    concat = (2, 3, 4, 5)
    return Genotype(cells={"normal": cnn_cell(normal, concat), "reduce": cnn_cell(reduce, concat)})


def twins():
    """Two edges of one kind between the same states, as NASNet has them, and an unknown name."""
    text = "avg_pool_3x3 0, avg_pool_3x3 0 | conv_7x1_1x7 2, avg_pool_3x3 1"
    return Genotype(cells={"normal": cnn_cell(text, (3,))})


def samples():
    found = {name: published.genotype for name, published in ZOO.items()}
    for seed in range(12):
        space = recurrent_space(1 + seed)
        found[f"recurrent-{seed}"] = Genotype(
            cells={"recurrent": space.sample(random.Random(seed))}
        )
    for seed in range(6):
        space = CellSpace(inputs=2, nodes=3 + seed % 3, ops=CNN_OPS, keep=2)
        rng = random.Random(seed)
        cells = {name: space.sample(rng) for name in ("normal", "reduce")}
        found[f"cnn-{seed}"] = Genotype(cells=cells)
    found.update({f"image-{name}": entry.genotype for name, entry in IMAGE_ZOO.items()})
    found["DARTS_V2-cnn"] = darts_v2_cnn()
    found["twins"] = twins()
    found["chain"] = Genotype.from_text(" ".join(f"tanh{i}" for i in range(24)))
    return found


SAMPLES = samples()
each = pytest.mark.parametrize("genotype", SAMPLES.values(), ids=SAMPLES.keys())
recurrent_ones = {name: g for name, g in SAMPLES.items() if "recurrent" in g.cells}


def expected(cell):
    """All edges that a drawing must show, (source, target, operation), by another route."""
    if cell.inputs == 1:
        edges, names, output = [("x_t", "s0", ""), ("h_{t-1}", "s0", "")], {0: "s0"}, "h_t"
    else:
        edges, names, output = [], {0: "c_{k-2}", 1: "c_{k-1}"}, "c_k"
    for i, node in enumerate(cell.nodes):
        state = i + cell.inputs
        edges += [(names.get(s, f"s{s}"), f"s{state}", op) for op, s in node]
    return sorted(edges + [(f"s{state}", output, "") for state in cell.concat])


def depth(cell, state):
    """Longest path from an input to a state, by the definition."""
    if state < cell.inputs:
        return 0
    return 1 + max(depth(cell, gene.source) for gene in cell.nodes[state - cell.inputs])


def rect(group):
    box = group.find(f"{SVG}rect")
    x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def overlap(a, b, slack=0.0):
    return (
        a[0] < b[2] - slack and b[0] < a[2] - slack and a[1] < b[3] - slack and b[1] < a[3] - slack
    )


def along(path, pieces=12):
    """Points on an SVG path of 'M' and 'C' (de Casteljau, unlike the drawing code)."""
    numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]
    points = list(zip(numbers[::2], numbers[1::2], strict=True))
    found = [points[0]]
    for start in range(0, len(points) - 1, 3):
        for k in range(1, pieces + 1):
            curve = points[start : start + 4]
            while len(curve) > 1:
                curve = [
                    tuple(p + (q - p) * k / pieces for p, q in zip(a, b, strict=True))
                    for a, b in itertools.pairwise(curve)
                ]
            found.append(curve[0])
    return found


def parsed(genotype, title="a title"):
    root = ElementTree.fromstring(as_svg(genotype, title))
    cells = {group.get("data-name"): group for group in root.findall(f"{SVG}g[@class='cell']")}
    return root, cells


@each
def test_svg_holds_every_state_and_every_edge(genotype):
    _, cells = parsed(genotype)
    assert list(cells) == list(genotype.cells)
    for name, cell in genotype.cells.items():
        states = [g.get("data-name") for g in cells[name].findall(f"{SVG}g[@class='state']")]
        edges = cells[name].findall(f"{SVG}g[@class='edge']")
        found = [(e.get("data-source"), e.get("data-target"), e.get("data-op")) for e in edges]
        assert sorted(found) == expected(cell)
        assert sorted(states) == sorted({end for edge in expected(cell) for end in edge[:2]})
        for edge in edges:
            assert "".join(edge.itertext()).strip() == edge.get("data-op")


@each
def test_svg_edges_run_from_their_source_to_their_target_and_through_nothing_else(genotype):
    _, cells = parsed(genotype)
    for group in cells.values():
        boxes = {g.get("data-name"): rect(g) for g in group.findall(f"{SVG}g[@class='state']")}
        edges = group.findall(f"{SVG}g[@class='edge']")
        labels = {i: rect(e) for i, e in enumerate(edges) if e.find(f"{SVG}rect") is not None}
        for i, edge in enumerate(edges):
            points = along(edge.find(f"{SVG}path").get("d"))
            source, target = boxes[edge.get("data-source")], boxes[edge.get("data-target")]
            assert points[0][0] == pytest.approx(source[2], abs=0.2)
            assert source[1] < points[0][1] < source[3]
            assert points[-1][0] == pytest.approx(target[0], abs=0.2)
            assert target[1] < points[-1][1] < target[3]
            others = list(boxes.values()) + [box for j, box in labels.items() if j != i]
            for x, y in points:
                inside = [
                    box
                    for box in others
                    if overlap((x, y, x, y), box, slack=0.3) and x > box[0] + 0.3
                ]
                assert not inside
            if i in labels:
                x0, y0, x1, y1 = labels[i]
                middle = [y for x, y in points if x0 - 0.2 <= x <= x1 + 0.2]
                assert middle and all(y == pytest.approx((y0 + y1) / 2, abs=0.2) for y in middle)


@each
def test_svg_boxes_and_labels_are_apart_and_inside_the_view(genotype):
    root, cells = parsed(genotype)
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = [
        rect(g)
        for cell in cells.values()
        for g in cell.findall(f"{SVG}g")
        if g.find(f"{SVG}rect") is not None
    ]
    for x0, y0, x1, y1 in boxes:
        assert x0 >= 10 and y0 >= 30 and x1 <= width - 10 and y1 <= height - 10
    for a, b in itertools.combinations(boxes, 2):
        assert not overlap((a[0] - 3, a[1] - 3, a[2] + 3, a[3] + 3), b)


@each
def test_states_stand_in_columns_by_their_level(genotype):
    picture = arrange_all(genotype)
    for drawing, cell in zip(picture.cells, genotype.cells.values(), strict=True):
        at = {box.name: box.x for box in drawing.boxes}
        states = {
            f"s{s}": depth(cell, s) for s in range(cell.inputs, cell.inputs + len(cell.nodes))
        }
        assert {name: graph(cell).levels[name] for name in states} == states
        for a, b in itertools.product(states, repeat=2):
            assert (at[a] < at[b]) == (states[a] < states[b])
        assert max(at.values()) == at["h_t" if cell.inputs == 1 else "c_k"]


@pytest.mark.parametrize("genotype", recurrent_ones.values(), ids=recurrent_ones.keys())
def test_edges_of_a_recurrent_cell_never_cross(genotype):
    for drawing in arrange_all(genotype).cells:
        spans = [
            (curve[0], curve[3], link.target)
            for link in drawing.links
            for curve in link.curves
            if curve[3][0] > curve[0][0]
        ]
        for (a, b, _), (c, d, _) in itertools.combinations(spans, 2):
            if a[0] == c[0] and b[0] == d[0]:
                assert (a[1] - c[1]) * (b[1] - d[1]) >= -1e-6


def test_svg_is_accessible_and_white_and_says_what_it_shows():
    root, _ = parsed(ZOO["DARTS_V2"].genotype, "DARTS_V2")
    assert root.get("role") == "img"
    assert root.get("aria-label").startswith("DARTS_V2: s1 = sigmoid of s0, s2 = relu of s1,")
    assert root.get("aria-label").endswith("h_t from s1, s2, s3, s4, s5, s6, s7, s8")
    assert root[0].tag == f"{SVG}title" and root[0].text == "DARTS_V2"
    background = root.find(f"{SVG}rect")
    assert background.get("fill") == "#ffffff" and float(background.get("rx")) > 0
    assert background.get("width") == root.get("width")
    words = {"".join(text.itertext()) for text in root.iter(f"{SVG}text")}
    assert {"DARTS_V2", "xt", "ht-1", "s0", "s8", "ht = mean", "identity"} <= words
    assert "<image" not in as_svg(ZOO["DARTS_V2"].genotype)


def test_without_a_title_svg_still_has_a_name():
    root, _ = parsed(darts_v2_cnn(), "")
    assert root[0].text == "normal and reduce cell"
    captions = [t.text for t in root.iter(f"{SVG}text") if t.get("class") == "caption"]
    assert captions == ["normal", "reduce"]
    assert not [t for t in root.iter(f"{SVG}text") if t.get("class") == "title"]


def test_operations_have_colours_of_their_own():
    ops = recurrent_space().ops[1:]
    assert len({colour(op) for op in ops}) == len(ops)
    root, _ = parsed(ZOO["DARTS_V2"].genotype)
    for edge in root.iter(f"{SVG}g"):
        if edge.get("data-op"):
            assert edge.find(f"{SVG}path").get("stroke") == colour(edge.get("data-op"))
    assert colour("mish") == colour("mish")


def test_strange_names_and_titles_are_escaped_everywhere():
    op = 'a<b>&"q"\\_{x}'
    title = 'if 1 < 2 && "x"\n\x1b[0m</svg>\\'
    genotype = Genotype(cells={'c"<&': CellGene(nodes=((Gene(op, 0),),), concat=(1,))})
    root, cells = parsed(genotype, title)
    assert list(cells) == ['c"<&']
    assert 'if 1 < 2 && "x"' in root[0].text and "</svg>" in root[0].text
    labels = ["".join(e.itertext()).strip() for e in root.iter(f"{SVG}g") if e.get("data-op")]
    assert labels == ['a<b>&"q"\\_{x}']
    source = as_dot(genotype, title)
    assert r"\"q\"\\_{x}" in source and "\0" not in source
    assert len(re.findall(r'(?<!\\)(?:\\\\)*"', source)) % 2 == 0
    assert "</svg>" in as_text(genotype, title)


def test_a_long_title_is_shortened_in_the_picture_but_kept_whole_as_its_name():
    title = "long " * 60
    root, _ = parsed(ZOO["GDAS"].genotype, title)
    assert root[0].text == title.strip()
    shown = next(t for t in root.iter(f"{SVG}text") if t.get("class") == "title")
    assert len(shown.text) == 100 and shown.text.endswith("...")
    assert float(root.get("width")) > 1.0 * text_width([(shown.text, False)], 15)


@each
def test_dot_has_every_state_and_edge(genotype):
    source = as_dot(genotype, "a title")
    assert source.startswith("digraph") and source.count("{") == source.count("}")
    assert 'label="a title"' in source
    edges = re.findall(r'^ *"([^"]+)/([^"]+)" -> "([^"]+)/([^"]+)"(?: \[(.*)\])?;$', source, re.M)
    states = re.findall(r'^ *"([^"]+)/([^"]+)" \[label="([^"]+)"\];$', source, re.M)
    for name, cell in genotype.cells.items():
        assert f'subgraph "cluster_{name}" {{' in source
        found = []
        for first, start, second, stop, style in edges:
            if first == name:
                assert second == name
                label = re.search(r'label="([^"]*)"', style)
                found.append((start, stop, label[1] if label else ""))
        assert sorted(found) == expected(cell)
        ends = {end for edge in expected(cell) for end in edge[:2]}
        assert sorted(state for group, state, _ in states if group == name) == sorted(ends)
    known = len(edges) + len(states)
    assert source.count(";\n") == known + 3 + len(genotype.cells)


@pytest.mark.parametrize("genotype", recurrent_ones.values(), ids=recurrent_ones.keys())
def test_text_tree_can_be_read_back(genotype):
    text = as_text(genotype, "some cell")
    assert text.startswith("some cell\n") and text.endswith("\n")
    assert max(map(len, text.splitlines())) <= 80 and text.isascii()
    rows = [
        re.fullmatch(r" *(\d+)  [|` -]*(\S+) -> s(\d+)( \*)?", line) for line in text.splitlines()
    ]
    path, genes, concat = {0: 0}, {}, []
    for row in filter(None, rows):
        level, op, state = int(row[1]), row[2], int(row[3])
        path[level] = state
        genes[state] = (Gene(op, path[level - 1]),)
        concat += [state] if row[4] else []
    cell = genotype.recurrent
    assert tuple(genes[state] for state in sorted(genes)) == cell.nodes
    assert sorted(concat) == sorted(cell.concat)
    short = text.rstrip().rpartition("\n\n")[2]
    assert Genotype.from_text(short) == genotype
    assert text.count("0  s0 = gated tanh(x_t, h_{t-1})") == 1


def test_text_of_a_cell_too_deep_for_the_terminal_stays_within_it():
    text = as_text(Genotype.from_text(" ".join(f"sigmoid{i}" for i in range(90))))
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"^   90 .*sigmoid -> s90 \*$", text, re.M)


def test_text_of_darts_v2():
    lines = as_text(ZOO["DARTS_V2"].genotype).splitlines()
    assert lines[0].startswith("recurrent cell: 8 nodes, 4 levels, h_t = mean(s1, s2, ")
    assert lines[3:8] == [
        "    0  s0 = gated tanh(x_t, h_{t-1})",
        "    1  `-- sigmoid -> s1 *",
        "    2      |-- relu -> s2 *",
        "    3      |   `-- tanh -> s5 *",
        "    4      |       |-- sigmoid -> s6 *",
    ]
    assert lines[-1] == ZOO["DARTS_V2"].genotype.to_text()


def test_text_of_an_image_cell_is_a_sum_for_every_state():
    text = as_text(darts_v2_cnn(), "DARTS_V2")
    assert "normal cell: 4 nodes, 2 levels, c_k = concat(s2, s3, s4, s5)" in text
    assert "    2  s5 = skip_connect(c_{k-2}) + dil_conv_3x3(s2) *" in text
    assert "    1  s2 = max_pool_3x3(c_{k-2}) + max_pool_3x3(c_{k-1}) *" in text
    assert text.count("sep_conv_3x3") == 5 and max(map(len, text.splitlines())) <= 80
    assert not as_text(twins()).splitlines()[3].endswith("*")


def test_subscripts_are_split_and_narrower():
    assert runs("h_{t-1}") == [("h", False), ("t-1", True)]
    assert runs("h_{t} = mean") == [("h", False), ("t", True), (" = mean", False)]
    assert runs("max_pool_3x3") == [("max_pool_3x3", False)]
    assert text_width([("nnn", True)], 12) < text_width([("nnn", False)], 12)
    assert text_width([("mm", False)], 12) > text_width([("ll", False)], 12)


def test_a_label_stands_right_before_the_state_it_leads_to():
    drawing = arrange_all(darts_v2_cnn()).cells[0]
    boxes = {box.name: box for box in drawing.boxes}
    at = {(link.source, link.target): link.label.x for link in drawing.links if link.label}
    assert boxes["s2"].x < at["c_{k-2}", "s5"] < boxes["s5"].x
    assert at["c_{k-2}", "s5"] == at["s2", "s5"]


def test_an_edge_that_passes_other_states_is_straight_between_its_bends():
    for link in arrange_all(ZOO["ENAS"].genotype).cells[0].links:
        if link.kind == "concat":
            heights = {round(curve[0][1], 6) for curve in link.curves}
            assert len(heights | {round(link.curves[-1][3][1], 6)}) <= 3


@each
def test_drawing_is_deterministic(genotype):
    assert as_svg(genotype, "t") == as_svg(genotype, "t")


def test_drawing_needs_neither_torch_nor_numpy():
    code = (
        "import sys, rnnnas.draw.text_svg_dot; "
        "print({'torch', 'numpy', 'PIL'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

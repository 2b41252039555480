"""Images for TensorBoard: their shapes, their colours, and that they say what was given."""

import subprocess
import sys

import numpy as np
import pytest
from test_draw import SAMPLES, darts_v2_cnn

from rnnnas.draw.images import _at, _known, cell_image, ramp, table_image
from rnnnas.draw.layout import FILLS, arrange_all, colour
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO


def rgb(text):
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


def has(image, wanted):
    return bool((image == np.array(wanted)).all(axis=-1).any())


@pytest.mark.parametrize("genotype", SAMPLES.values(), ids=SAMPLES.keys())
def test_every_cell_can_be_drawn_with_its_colours(genotype):
    image = cell_image(genotype)
    picture = arrange_all(genotype)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert image.shape[:2] == (round(2 * picture.height), round(2 * picture.width))
    for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
        assert (edge == 255).all()
    ops = {link.op for drawing in picture.cells for link in drawing.links if link.op}
    assert all(has(image, rgb(colour(op))) for op in ops)


@pytest.mark.parametrize("name", ["DARTS_V2", "ENAS"])
def test_boxes_lines_and_labels_lie_where_the_layout_says(name):
    genotype = ZOO[name].genotype
    image = cell_image(genotype, scale=2).astype(int)
    drawing = arrange_all(genotype).cells[0]
    for box in drawing.boxes:
        corner = image[round(2 * (box.y - box.h / 2 + 4)), round(2 * (box.x - box.w / 2 + 4))]
        assert tuple(corner) == rgb(FILLS[box.kind])
        inside = image[
            round(2 * (box.y - 7)) : round(2 * (box.y + 7)),
            round(2 * (box.x - 12)) : round(2 * (box.x + 12)),
        ]
        assert inside.min() < 80  # there is text
    for link in drawing.links:
        for curve in link.curves[1:]:
            x, y = curve[0]
            near = image[round(2 * y) - 2 : round(2 * y) + 3, round(2 * x) - 1 : round(2 * x) + 2]
            assert np.abs(near - np.array(rgb(link.colour))).sum(axis=-1).min() < 60
        if link.op:
            box = link.label
            top = image[
                round(2 * (box.y - box.h / 2)) - 1 : round(2 * (box.y - box.h / 2)) + 3,
                round(2 * box.x),
            ]
            assert has(top, rgb(colour(link.op)))


def test_scale_enlarges():
    small, large = (cell_image(ZOO["GDAS"].genotype, scale=s) for s in (1, 2))
    assert abs(large.shape[0] - 2 * small.shape[0]) <= 1
    assert abs(large.shape[1] - 2 * small.shape[1]) <= 1
    with pytest.raises(UsageError, match="scale"):
        cell_image(ZOO["GDAS"].genotype, scale=0)


def test_images_are_deterministic_and_differ_between_cells():
    a, b = Genotype.from_text("tanh0 relu1"), Genotype.from_text("tanh0 relu0")
    assert np.array_equal(cell_image(a), cell_image(a))
    first, second = cell_image(a), cell_image(b)
    assert first.shape != second.shape or (first != second).any()
    assert cell_image(darts_v2_cnn()).shape[0] > 400


def test_a_curve_starts_ends_and_bends_as_bezier_says():
    curve = ((0.0, 0.0), (10.0, 0.0), (10.0, 20.0), (20.0, 20.0))
    assert _at(curve, 0.0) == (0.0, 0.0) and _at(curve, 1.0) == (20.0, 20.0)
    assert _at(curve, 0.5) == pytest.approx((10.0, 10.0))
    assert _at(curve, 0.25) == pytest.approx((5.9375, 3.125))  # by de Casteljau, by hand


def test_ramp_grows_darker_in_even_steps_between_the_ends_it_is_given():
    values = np.linspace(0, 1, 41)
    light = [np.dot((0.2126, 0.7152, 0.0722), ramp(v)) for v in values]
    assert all(b < a for a, b in zip(light, light[1:], strict=False))
    fifths = -np.diff(light[::8])
    assert fifths.max() < 1.6 * fifths.min()
    assert len({ramp(v) for v in values}) == 41
    assert ramp(-1) == ramp(0) and ramp(2) == ramp(1)
    assert ramp(0.2, 0.2, 0.3) == ramp(0) and ramp(0.3, 0.2, 0.3) == ramp(1)
    assert ramp(0.25, 0.2, 0.3) == ramp(0.5) == ramp(7.0, 7.0, 7.0)
    assert ramp(float("nan")) == (255, 196, 160) == ramp(float("inf"))


EDGES = ["s0 > s1", "s0 > s2", "s1 > s2"]


def middle(image, colour):
    """(y, x) of the pixels of a colour."""
    found = np.argwhere((image == np.array(colour)).all(axis=-1))
    assert len(found), colour
    return found.mean(axis=0)


def test_a_map_has_a_row_a_source_and_a_column_a_target():
    image = table_image([[0.1], [0.2], [0.4]], EDGES, ["tanh"])
    assert image.dtype == np.uint8 and image.shape[2] == 3
    left = image[:, : image.shape[1] // 2]  # the scale stands to the right
    first, beside, below = (middle(left, ramp(v, 0.1, 0.4)) for v in (0.1, 0.2, 0.4))
    assert abs(first[0] - beside[0]) < 2 and beside[1] > first[1] + 100
    assert abs(below[1] - beside[1]) < 2 and below[0] > beside[0] + 100


def test_colours_span_the_values_that_there_are():
    narrow = table_image([[0.20, 0.21]], ["s0 > s1"], ["a", "b"])
    assert has(narrow, ramp(0.0)) and has(narrow, ramp(1.0))
    equal = table_image([[0.2, 0.2]], ["s0 > s1"], ["a", "b"])
    assert has(equal, ramp(0.5)) and not has(equal[:, :500], ramp(1.0))
    assert has(table_image([[float("nan"), 0.3]], ["s0 > s1"], ["a", "b"]), ramp(float("nan")))


def test_every_operation_has_its_map_and_its_name():
    space = recurrent_space()
    table = np.arange(36.0 * 5).reshape(36, 5) / 180  # no value twice
    image = table_image(table, space.labels, space.ops)
    span = float(table.min()), float(table.max())
    centres = np.array([[middle(image, ramp(v, *span)) for v in row] for row in table[[0, 35]]])
    assert np.ptp(centres[0, :3, 0]) < 60 and (np.diff(centres[0, :3, 1]) > 240).all()
    assert (centres[0, 3:, 0] > centres[0, 0, 0] + 240).all()  # three abreast
    assert (centres[1] > centres[0] + 150).all()  # s7 > s8 is the lower right corner
    # Shrunk to a card of 335 pixels, a name is as high as the letters of the page around it.
    assert 16 * 2 * 335 / image.shape[1] > 10
    other = table_image(table, space.labels, [*space.ops[:4], "identitz"])
    assert (image != other).any()


def test_choices_that_are_no_edges_fill_a_square():
    image = table_image([[0.1], [0.2], [0.3], [0.4]], ["a", "b", "c", "d"], ["x"])
    left = image[:, : image.shape[1] // 2]
    (top, other, below, last) = (middle(left, ramp(v, 0.1, 0.4)) for v in (0.1, 0.2, 0.3, 0.4))
    assert abs(top[0] - other[0]) < 2 and abs(top[1] - below[1]) < 2
    assert abs(last[0] - below[0]) < 2 and abs(last[1] - other[1]) < 2


@pytest.mark.parametrize("table", [[[0.1]], [], [[0.1, 0.2]], [0.1, 0.2]])
def test_a_table_of_another_shape_is_refused(table):
    with pytest.raises(UsageError, match="shape"):
        table_image(table, ["s0 > s1", "s0 > s2"], ["tanh"])


def test_letters_that_the_font_lacks_are_replaced():
    assert _known("s0→s1 é") == "s0>s1 ?"


def test_pil_is_imported_only_to_draw():
    code = "import sys, rnnnas.draw.images; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

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

WHITE = (255, 255, 255)


def rgb(text):
    return tuple(int(text[i : i + 2], 16) for i in (1, 3, 5))


def has(image, wanted):
    return bool((image == np.array(wanted)).all(axis=-1).any())


@pytest.mark.parametrize("genotype", SAMPLES.values(), ids=SAMPLES.keys())
def test_every_cell_can_be_drawn_with_its_colours(genotype):
    image = cell_image(genotype)
    picture = arrange_all(genotype)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert image.shape[:2] == (round(picture.height), round(picture.width))
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


def test_ramp_grows_lighter_in_even_steps():
    values = np.linspace(0, 1, 41)
    light = [np.dot((0.2126, 0.7152, 0.0722), ramp(v)) for v in values]
    assert all(b > a for a, b in zip(light, light[1:], strict=False))
    fifths = np.diff(light[::8])
    assert fifths.max() < 1.6 * fifths.min()
    assert len({ramp(v) for v in values}) == 41
    assert ramp(-1) == ramp(0) and ramp(2) == ramp(1)
    assert ramp(float("nan")) == (200, 200, 200) == ramp(float("inf"))


ROWS = ["s0→s1", "s0→s2", "s1→s2"]
COLUMNS = ["none", "tanh"]


def test_table_shows_every_value_in_its_colour_and_place():
    table = [[0.0, 1.0], [0.25, 0.75], [0.5, 0.1]]
    image = table_image(table, ROWS, COLUMNS)
    assert image.dtype == np.uint8 and image.shape[2] == 3
    centres = np.array(
        [
            [
                np.argwhere((image == np.array(ramp(value))).all(axis=-1)).mean(axis=0)
                for value in row
            ]
            for row in table
        ]
    )  # (E, O, 2): y and x
    assert np.isfinite(centres).all()
    assert np.ptp(centres[:, :, 0], axis=1).max() < 1 and np.ptp(centres[:, :, 1], axis=0).max() < 2
    down = np.diff(centres[:, 0, 0])
    assert down[0] > down[1] + 4  # a new destination stands apart ...
    between = image[round(centres[0, 0, 0]) : round(centres[1, 0, 0]), round(centres[0, 0, 1])]
    assert has(between, rgb("#1f2430"))  # ... behind a line
    assert centres[0, 1, 1] > centres[0, 0, 1] + 40


def test_table_prints_its_numbers():
    def image(value):
        return table_image([[value]], ["0>1"], ["op"])

    # Two numbers of one colour but other digits differ; those that round alike do not.
    assert (image(0.50) != image(0.51)).any()
    for value, letters in ((0.0, WHITE), (1.0, rgb("#1f2430"))):
        found = image(value)
        places = np.argwhere((found == np.array(ramp(value))).all(axis=-1))
        (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0)
        cell = found[top : bottom + 1, left : right + 1].astype(int)
        assert np.abs(cell - np.array(letters)).max(axis=-1).min() < 40


def test_table_with_the_real_search_space_and_a_title():
    space = recurrent_space()
    table = np.full((len(space.edges), len(space.ops)), 0.2)
    rows = [f"s{source}→s{target}" for source, target in space.edges]
    plain = table_image(table, rows, space.ops)
    titled = table_image(table, rows, space.ops, title="alphas")
    assert titled.shape[0] > plain.shape[0] > 36 * 20 and titled.shape[1] == plain.shape[1]
    assert np.array_equal(titled, table_image(table.tolist(), rows, space.ops, title="alphas"))
    assert table_image(table, rows, space.ops, title="very " * 40).shape[1] > plain.shape[1]


def test_table_shows_what_is_not_a_number_in_grey():
    image = table_image([[float("nan"), 0.3]], ["0>1"], ["a", "b"])
    assert has(image, (200, 200, 200)) and has(image, ramp(0.3))


@pytest.mark.parametrize("table", [[[0.1]], [], [[0.1, 0.2]], [0.1, 0.2]])
def test_a_table_of_another_shape_is_refused(table):
    with pytest.raises(UsageError, match="shape"):
        table_image(table, ["0>1", "0>2"], ["tanh"])


def test_letters_that_the_font_lacks_are_replaced():
    assert _known("s0→s1 é") == "s0>s1 ?"


def test_pil_is_imported_only_to_draw():
    code = "import sys, rnnnas.draw.images; print({'torch', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

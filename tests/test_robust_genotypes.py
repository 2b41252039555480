"""The field's own form of a genotype is read without running it; absurd sizes are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rnnnas.cnn import zoo as images
from rnnnas.cnn.model import CnnConfig
from rnnnas.config.plain import from_plain
from rnnnas.errors import UsageError
from rnnnas.lm.model import ModelConfig
from rnnnas.nas.field_form import from_field_form
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.zoo import ZOO, read_genotype

# As the authors of DARTS print their second cells (arXiv 1806.09055).
DARTS = (
    "Genotype(recurrent=[('sigmoid', 0), ('relu', 1), ('relu', 1), ('identity', 1), ('tanh', 2), "
    "('sigmoid', 5), ('tanh', 3), ('relu', 5)], concat=range(1, 9))"
)
IMAGE = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), "
    "('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), "
    "('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize(
    "text",
    [
        DARTS,
        f"DARTS_V2 = {DARTS}\n",
        f"genotypes.{DARTS}",
        f"# epoch 50\n\nbest: Genotype = {DARTS}  # best\n",
        "from collections import namedtuple\n"
        f"Genotype = namedtuple('Genotype', 'recurrent concat')\nX = {DARTS}\n",
    ],
)
def test_the_published_form_is_read_as_argument_and_file(text: str, tmp_path: Path) -> None:
    assert read_genotype(text) == ZOO["DARTS_V2"].genotype
    (tmp_path / "cell.txt").write_text("\ufeff" + text, encoding="utf-8")
    assert read_genotype(str(tmp_path / "cell.txt")) == ZOO["DARTS_V2"].genotype


def test_the_published_form_of_image_cells_is_read(tmp_path: Path) -> None:
    expected = images.ZOO["DARTS_V2"].genotype
    (tmp_path / "cell.txt").write_text(IMAGE)
    assert images.genotype_of(IMAGE, 1) == expected
    assert images.genotype_of(str(tmp_path / "cell.txt"), 1) == expected


def test_darts_means_its_second_cell() -> None:
    assert read_genotype("darts") == ZOO["DARTS_V2"].genotype
    assert images.genotype_of("image:DARTS", 1) == images.ZOO["DARTS_V2"].genotype


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(recurrent=[(__import__('os').getcwd(), 0)], concat=range(1, 2))",
        "Genotype(recurrent=[('tanh', True)])",
        "Genotype(recurrent=[('tanh', 0)], concat=range(1, 10**9))",
        "Genotype(recurrent=[('tanh', 0)], concat=range(1, 1000000000))",
        "Genotype(recurrent=[('tanh', 0)], concat=range(1, 2, 0))",
        "Genotype(recurrent=[('tanh', 0)]); print(1)",
        "Genotype([('tanh', 0)], range(1, 2))",
        "Genotype(recurrent=[('tanh', 0)], concat=range(1, 2), more=1)",
        "Genotype(**{'recurrent': []})",
        "Genotype(normal=[('max_pool_3x3', 0)], reduce=[])",
        "Genotype(recurrent=" + "[" * 15_000,
        "Genotype(recurrent=" + "-" * 15_000 + "1)",
        "Genotype(recurrent=[" + "('tanh', 0)," * 5_000 + "])",
        "Genotype(recurrent=[" + "('tanh', 0)," * 300 + "])",
        "Genotype(",
    ],
)
def test_anything_else_is_refused_and_nothing_is_run(text: str) -> None:
    with pytest.raises(UsageError):
        from_field_form(text)


def test_a_genotype_that_its_result_contradicts_is_refused(tmp_path: Path) -> None:
    plain = Genotype.from_text("tanh0 relu1").to_plain()
    (tmp_path / "genotype.json").write_text(json.dumps(plain))
    assert read_genotype(str(tmp_path)).to_text() == "tanh0 relu1"
    (tmp_path / "result.json").write_text(json.dumps({"genotype": plain}))
    assert read_genotype(str(tmp_path)).to_text() == "tanh0 relu1"
    (tmp_path / "genotype.json").write_text(json.dumps(plain).replace('"relu", 1', '"relu", 0'))
    with pytest.raises(UsageError, match="one of them was changed"):
        read_genotype(str(tmp_path))


def test_sizes_that_cannot_be_meant_are_refused_with_the_limit() -> None:
    with pytest.raises(UsageError, match="1,500 nodes is more than the 256"):
        read_genotype(" ".join(["tanh0"] * 1_500))
    with pytest.raises(UsageError, match=r"layers.* 1000000 .*at most 100"):
        from_plain(ModelConfig, {"layers": 1_000_000})
    with pytest.raises(UsageError, match=r"layers.* 1000000 .*at most 1000"):
        from_plain(CnnConfig, {"layers": 1_000_000})


@pytest.mark.parametrize("text", ["s1", "my runs/s 1", "checkpoints/tanh0 relu1/x"])
def test_what_may_be_a_path_is_said_to_be_none(text: str) -> None:
    with pytest.raises(UsageError, match="nor is there a file or folder|neither a file"):
        read_genotype(text)


def test_errors_about_long_genotypes_stay_short() -> None:
    for text in ("x" * 100_000, "tanh" + "9" * 5_000, "tanh0 " * 20_000):
        with pytest.raises(UsageError) as caught:
            read_genotype(text)
        assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("op", ["\ud800", "\x1b[2J", "tanh\n", "\x9b"])
def test_an_operation_whose_name_cannot_be_printed_is_refused(op: str, tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    path.write_text(json.dumps({"recurrent": {"nodes": [[[op, 0]]], "concat": [1]}}))
    for text in (str(path), f"Genotype(recurrent=[({ascii(op)}, 0)], concat=[1])"):
        with pytest.raises(UsageError, match="cannot be the name of an operation"):
            read_genotype(text)

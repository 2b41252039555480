"""Genotypes: the published table, round trips, and every malformed input refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnnnas.errors import UsageError
from rnnnas.nas.genotype import RECURRENT, CellGene, Gene, Genotype
from rnnnas.nas.zoo import ZOO, read_genotype

T, R, S, I = "tanh", "relu", "sigmoid", "identity"  # noqa: E741

# The published cells, written a second time: (operation, predecessor) of every node, and the
# states of the output where they are not simply all nodes.
TABLE: dict[str, list[tuple[str, int]]] = {
    "DARTS_V1": [(R, 0), (R, 1), (T, 2), (R, 3), (R, 4), (I, 1), (R, 5), (R, 1)],
    "DARTS_V2": [(S, 0), (R, 1), (R, 1), (I, 1), (T, 2), (S, 5), (T, 3), (R, 5)],
    "ENAS": [
        (T, 0), (T, 1), (R, 1), (T, 3), (T, 3), (R, 3), (R, 4), (R, 7), (R, 8), (R, 8), (R, 8),
    ],
    "ENAS_LM": [(S, 0), (T, 1), (R, 2), (S, 2), (T, 4), (T, 5), (S, 3), (S, 6)],
    "GDAS": [(R, 0), (R, 0), (I, 1), (R, 1), (T, 0), (R, 2), (I, 4), (I, 2)],
    "SDARTS_RS": [(S, 0), (S, 1), (I, 2), (S, 1), (T, 2), (T, 2), (S, 0), (S, 3)],
    "SDARTS_ADV": [(R, 0), (R, 1), (T, 2), (R, 3), (I, 2), (R, 1), (T, 2), (R, 7)],
    "NAO": [
        (R, 0), (R, 0), (R, 1), (T, 3), (R, 4), (R, 4), (R, 5), (R, 1), (R, 7), (R, 1), (I, 1),
    ],
    "NAO_WS": [
        (R, 0), (R, 1), (S, 2), (S, 1), (R, 4), (R, 4), (R, 4), (R, 7), (S, 8), (T, 1), (R, 4),
    ],
}  # fmt: skip
CONCAT = {"ENAS": (2, 5, 6, 9, 10, 11)}


def cell(*genes: tuple[str, int], concat: tuple[int, ...] = ()) -> CellGene:
    nodes = tuple((Gene(op, source),) for op, source in genes)
    return CellGene(nodes=nodes, concat=concat or tuple(range(1, len(nodes) + 1)))


@st.composite
def recurrent_genotypes(draw: st.DrawFn) -> Genotype:
    count = draw(st.integers(1, 12))
    genes = [(draw(st.sampled_from([T, R, S, I])), draw(st.integers(0, i))) for i in range(count)]
    states = st.lists(st.integers(1, count), min_size=1, unique=True)
    return Genotype(cells={RECURRENT: cell(*genes, concat=tuple(draw(states)))})


@st.composite
def image_genotypes(draw: st.DrawFn) -> Genotype:
    ops = st.sampled_from(["sep_conv_3x3", "skip_connect", "max_pool_3x3", "conv_7x1_1x7"])
    cells = {}
    for name in ("normal", "reduce"):
        count = draw(st.integers(1, 5))
        nodes = tuple(
            tuple(Gene(draw(ops), draw(st.integers(0, i + 1))) for _ in range(2))
            for i in range(count)
        )
        cells[name] = CellGene(nodes=nodes, concat=tuple(range(2, count + 2)))
    return Genotype(cells=cells)


@pytest.mark.parametrize("name", TABLE)
def test_the_zoo_is_the_published_table(name: str) -> None:
    published = ZOO[name].genotype.recurrent
    assert [tuple(gene) for (gene,) in published.nodes] == TABLE[name]
    assert published.concat == CONCAT.get(name, tuple(range(1, len(TABLE[name]) + 1)))
    assert ZOO[name].source and ZOO[name].results
    assert published.inputs == 1


def test_the_table_names_the_whole_zoo() -> None:
    assert set(ZOO) == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_round_trips_of_the_zoo(name: str) -> None:
    genotype = ZOO[name].genotype
    assert Genotype.from_text(genotype.to_text()) == genotype
    assert Genotype.from_plain(json.loads(json.dumps(genotype.to_plain()))) == genotype
    assert ("concat" in genotype.to_text()) == (name in CONCAT)


@given(recurrent_genotypes())
def test_round_trips_of_any_recurrent_cell(genotype: Genotype) -> None:
    assert Genotype.from_text(genotype.to_text()) == genotype
    assert Genotype.from_plain(json.loads(json.dumps(genotype.to_plain()))) == genotype


@given(image_genotypes())
def test_round_trips_of_any_pair_of_cells(genotype: Genotype) -> None:
    again = Genotype.from_plain(json.loads(json.dumps(genotype.to_plain())))
    assert again == genotype and all(c.inputs == 2 for c in again.cells.values())
    with pytest.raises(UsageError, match="normal"):
        assert again.recurrent


def test_the_plain_form_is_the_one_that_others_read() -> None:
    genotype = Genotype(cells={RECURRENT: cell((T, 0), (R, 1), concat=(2,))})
    plain = {"recurrent": {"nodes": [[["tanh", 0]], [["relu", 1]]], "concat": [2]}}
    assert genotype.to_plain() == plain and genotype.to_text() == "tanh0 relu1 concat 2"


def test_spelling_of_the_text_form() -> None:
    expected = Genotype(cells={RECURRENT: cell((T, 0), (R, 1), concat=(1, 2))})
    for text in ("tanh0 relu1", "  tanh0\n relu1 ", "tanh0 relu1 concat 1,2",
                 "tanh0 relu1 concat 1 2", "tanh0 relu1 concat 1, 2"):  # fmt: skip
        assert Genotype.from_text(text) == expected


def test_the_text_form_of_several_edges_a_node() -> None:
    """A second edge must not be dropped without a word."""
    nodes = ((Gene(T, 0),), (Gene(T, 0), Gene(R, 1)))
    for join, text in (("mean", "tanh0 tanh0+relu1"), ("sum", "tanh0 tanh0+relu1 join sum")):
        made = CellGene(nodes=nodes, concat=(1, 2), inputs=1, join=join)
        genotype = Genotype(cells={RECURRENT: made})
        assert genotype.to_text() == text
        assert Genotype.from_text(text) == Genotype.from_plain(genotype.to_plain()) == genotype
    ends = Genotype.from_text("tanh0 tanh0+relu1 concat 2 join sum")
    assert ends.recurrent.concat == (2,) and ends.recurrent.join == "sum"
    assert Genotype.from_text(ends.to_text()) == ends


def test_the_text_form_is_for_one_input() -> None:
    pair = (Gene(T, 0), Gene(R, 1))
    genotype = Genotype(cells={RECURRENT: CellGene(nodes=(pair, pair), concat=(2, 3))})
    with pytest.raises(UsageError, match="one input state"):
        genotype.to_text()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "at least one node"),
        ("concat 1", "at least one node"),
        ("tanh0 relu", "'relu' is not an operation with its predecessor"),
        ("tanh0 1", "'1' is not an operation"),
        ("tanh0 relu-1", "'relu-1'"),
        ("tanh0 Relu1", "'Relu1'"),
        ("tanh0, relu1", "'tanh0,'"),
        ("tanh1", "node 1 takes tanh of state 1, but only states 0 to 0"),
        ("tanh0 relu2", "node 2 takes relu of state 2, but only states 0 to 1"),
        ("tanh0 relu1 concat 1,x", "concat '1,x' is not a list"),
        ("tanh0 relu1 concat 1,1", "each once"),
        ("tanh0 relu1 concat 3", "concat names state 3"),
        ("tanh0 relu1 concat 0", "concat names state 0"),
        ("tanh0 relu1 concat -1", "concat names state -1"),
        ("tanh0 relu1 concat", "concat"),
        ("tanh0 relu1+ concat 1", "'' is not an operation"),
        ("tanh0 relu0+tanh2", "node 2 takes tanh of state 2, but only states 0 to 1"),
        ("tanh0 relu0+tanh1 join most", "join 'most' must be one of mean, sum"),
    ],
)
def test_malformed_text_is_refused_by_name(text: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        Genotype.from_text(text)
    assert named in caught.value.cause


GOOD: dict[str, Any] = {"nodes": [[["tanh", 0]], [["relu", 1]]], "concat": [1, 2]}


@pytest.mark.parametrize(
    ("plain", "named"),
    [
        (None, "one entry a cell"),
        ([], "one entry a cell"),
        ({}, "one entry a cell"),
        ("tanh0", "one entry a cell"),
        ({"recurrent": None}, "'recurrent'"),
        ({"recurrent": "tanh0"}, "'recurrent'"),
        ({"recurrent": [GOOD]}, "'recurrent'"),
        ({"recurrent": {"concat": [1]}}, "nodes"),
        ({"recurrent": {"nodes": GOOD["nodes"]}}, "concat"),
        ({"recurrent": {**GOOD, "nodes": 3}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "nodes": "tanh"}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "nodes": [["tanh", 0]]}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh"]]]}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", 0, 1]]]}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "nodes": [[[0, "tanh"]]]}}, "not an operation's name"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", "0"]]]}}, "'0' is not a whole number"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", 0.0]]]}}, "0.0 is not a whole number"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", False]]]}}, "False is not a whole number"),
        ({"recurrent": {**GOOD, "concat": [True, 2]}}, "True is not a whole number"),
        ({"recurrent": {**GOOD, "concat": 2}}, "'recurrent'"),
        ({"recurrent": {**GOOD, "concat": []}}, "at least one state"),
        ({"recurrent": {**GOOD, "concat": [2, 2]}}, "each once"),
        ({"recurrent": {**GOOD, "concat": [3]}}, "state 3"),
        ({"recurrent": {**GOOD, "nodes": []}}, "at least one node"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", 0]], []]}}, "no incoming edge"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", 0]], [["relu", 2]]]}}, "state 2"),
        ({"recurrent": {**GOOD, "nodes": [[["tanh", -1]], [["relu", 1]]]}}, "state -1"),
        ({"recurrent": GOOD, "other": 1}, "'other'"),
    ],
)
def test_malformed_plain_values_are_refused_by_name(plain: object, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        Genotype.from_plain(plain)
    assert named in caught.value.cause


def test_inputs_are_told_by_the_edges() -> None:
    assert cell((T, 0)).inputs == 1
    pair = (Gene(T, 0), Gene(R, 1))
    assert CellGene(nodes=(pair,), concat=(2,)).inputs == 2
    assert CellGene(nodes=((Gene(T, 1),), pair), concat=(2, 3)).inputs == 2


# Where a genotype is read from


@pytest.mark.parametrize("name", TABLE)
def test_a_published_name(name: str) -> None:
    assert read_genotype(name) is ZOO[name].genotype


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'DARTS_V2'\?") as caught:
        read_genotype("DARTSV2")
    assert all(name in caught.value.remedy for name in ZOO)
    with pytest.raises(UsageError) as caught:
        read_genotype("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_file_and_a_run_folder(tmp_path: Path) -> None:
    genotype = ZOO["ENAS"].genotype
    path = tmp_path / "genotype.json"
    path.write_text(json.dumps(genotype.to_plain()), encoding="utf-8")
    assert read_genotype(str(path)) == genotype
    assert read_genotype(str(tmp_path)) == genotype
    path.unlink()
    with pytest.raises(UsageError, match="holds no genotype.json"):
        read_genotype(str(tmp_path))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"tanh0 relu1", b"[" + b"9" * 5000 + b"]"]
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "cell.json"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="cell.json is not a genotype in JSON"):
        read_genotype(str(path))


def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cell.json"
    path.write_text("{}", encoding="utf-8")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UsageError, match="cell.json cannot be read: Permission denied"):
        read_genotype(str(path))


def test_the_text_form_itself() -> None:
    assert read_genotype("tanh0 relu1").to_text() == "tanh0 relu1"
    assert read_genotype("tanh0").to_text() == "tanh0"
    with pytest.raises(UsageError, match="'rolu'"):
        read_genotype("tanh0 rolu")


def test_a_cell_too_long_for_a_file_name_is_read_all_the_same() -> None:
    text = " ".join(["tanh0"] * 60)
    assert len(text) > 255 and read_genotype(text).to_text() == text
    with pytest.raises(UsageError, match="neither a file"):
        read_genotype("x" * 5000)


@pytest.mark.parametrize("reference", ["", " ", "\0"])
def test_nothing_is_no_genotype(reference: str) -> None:
    with pytest.raises(UsageError):
        read_genotype(reference)

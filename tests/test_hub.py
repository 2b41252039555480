"""Datasets in the hub's layouts, local folders through the code that fetches. No network."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rnnnas.data import hub
from rnnnas.data.corpus import VocabOptions, add_corpus, corpora_folder, corpus_info, fetch_corpus
from rnnnas.data.hub import HubId, load, source_of
from rnnnas.errors import DataError, UsageError

DATA = Path(__file__).parents[2] / "shared" / "data"
ROWS = ["", " = A title = \n", "", " some words of a line , <unk> \n", " two\n lines\n"]
SHARDS = {"train": "train", "validation": "validation", "test": "test"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RNNNAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def parquet(folder: Path, splits: dict[str, Any], where: str = "data", **columns: Any) -> Path:
    (folder / where).mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        table = rows if isinstance(rows, dict) else {"text": rows}
        path = folder / where / f"{split}-00000-of-00001.parquet"
        pq.write_table(pa.table(table | columns), path)
    return folder


def everywhere(rows: Any) -> dict[str, Any]:
    return dict.fromkeys(("train", "validation", "test"), rows)


def lines(folder: Path, tmp_path: Path, column: str | None = None) -> dict[str, list[str]]:
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    source = source_of(load(HubId(path=str(folder)), cache), "x", column)
    return {split: list(text.lines()) for split, text in source.splits.items()}


def test_rows_are_lines(tmp_path: Path) -> None:
    found = lines(parquet(tmp_path / "d", everywhere(ROWS)), tmp_path)
    expected = ["", " = A title = ", "", " some words of a line , <unk> ", " two", " lines"]
    assert found == dict.fromkeys(("train", "valid", "test"), expected)


def test_a_text_layout_gives_the_same_lines(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for split in SHARDS:
        (folder / f"{split}.txt").write_text("one line\n\nanother\n", encoding="utf-8")
    assert lines(folder, tmp_path)["valid"] == ["one line", "", "another"]


@pytest.mark.parametrize("name", ["validation", "valid", "dev"])
def test_names_of_the_validation_split(name: str) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a line"]})
    source = source_of({"train": rows, name: rows, "test": rows}, "x")
    assert list(source.splits["valid"].lines()) == ["a line"]


def test_missing_splits_are_held_out_of_train(tmp_path: Path) -> None:
    rows = [f"row {i} of words , here and there" for i in range(400)]
    for absent, expected in (
        (["test"], {"train": 380, "valid": 400, "test": 20}),
        (["validation"], {"train": 380, "valid": 20, "test": 400}),
        (["validation", "test"], {"train": 360, "valid": 20, "test": 20}),
    ):
        splits = {s: rows for s in everywhere(ROWS) if s not in absent}
        corpus = add_corpus("x", parquet(tmp_path / str(absent), splits), VocabOptions(),
                            replace=True)  # fmt: skip
        lines = {split: corpus.units(split).lines for split in ("train", "valid", "test")}
        assert lines == expected
        loaded = {s: datasets.Dataset.from_dict({"text": r}) for s, r in splits.items()}
        assert {s: len(list(t.lines())) for s, t in source_of(loaded, "x").splits.items()} == lines
    splits = {"validation": ROWS, "test": ROWS}
    with pytest.raises(DataError, match=r"no train split \(present: valid, test"):
        add_corpus("y", parquet(tmp_path / "d", splits), VocabOptions())
    rows_ = datasets.Dataset.from_dict({"text": ["a line"]})
    with pytest.raises(DataError, match=r"no train split \(present: validation, test"):
        source_of({"validation": rows_, "test": rows_}, "x")


def test_the_text_column_is_found_or_asked_for(tmp_path: Path) -> None:
    cases = [
        ({"label": [1], "sentence": ["s"]}, None, "s"),
        ({"text": ["t"], "sentence": ["s"]}, None, "t"),
        ({"label": [1], "review": ["r"]}, None, "r"),
        ({"a": ["x"], "b": ["y"]}, "b", "y"),
        ({"a": ["x"], "b": ["y"]}, None, "columns: a \\(text\\), b \\(text\\)"),
        ({"label": [1]}, None, "columns: label"),
        ({"a": ["x"], "label": [1]}, "label", "no text column 'label'"),
        ({"a": ["x"]}, "b", "no text column 'b'; columns: a"),
    ]
    for table, column, expected in cases:
        rows = datasets.Dataset.from_dict(table)
        splits = everywhere(rows)
        if len(expected) == 1:
            assert list(source_of(splits, "x", column).splits["test"].lines()) == [expected]
        else:
            with pytest.raises(DataError, match=expected) as caught:
                source_of(splits, "x", column)
            assert "--column" in caught.value.remedy
    print(f"{len(cases)} sets of columns")


def test_bad_rows_are_refused_with_split_and_row() -> None:
    good = datasets.Dataset.from_dict({"text": ["a line"] * 3})
    cases = {
        "x \\(test\\): line 2, column 3: a NUL": ["fine", "no\0t"],
        "x \\(test\\): row 2: no text": ["fine", None],
        "x \\(test\\): line 1 is longer": ["y" * 1_000_001],
        "x \\(test\\): holds white space only": ["", " \n"],
        "x \\(test\\): has no rows": pa.array([], pa.string()),
    }
    for says, rows in cases.items():
        table = datasets.Dataset(pa.table({"text": rows}))
        with pytest.raises(DataError, match=says) as caught:
            splits = source_of({"train": good, "validation": good, "test": table}, "x").splits
            list(splits["test"].lines())
        assert caught.value.remedy
    print(f"{len(cases)} kinds of bad rows refused")


def test_damaged_parquet_is_refused_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = parquet(tmp_path / "d", everywhere(["some text"] * 100))
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a parquet file that can be read") as caught:
        add_corpus("x", folder, VocabOptions())
    assert "train-00000-of-00001.parquet" in caught.value.cause
    assert not corpora_folder().exists()
    assert capfd.readouterr() == ("", "")


def test_a_parquet_folder_becomes_a_corpus(tmp_path: Path) -> None:
    rows = ["a line of seven words , here"] * 30
    corpus = add_corpus("x", parquet(tmp_path / "d", everywhere(rows)), VocabOptions())
    assert {split: len(ids) for split, ids in corpus.splits.items()} == dict.fromkeys(
        ("train", "valid", "test"), 240
    )
    assert [path.name for path in corpora_folder().iterdir()] == ["x"]
    with pytest.raises(DataError, match="no column 'text'"):
        add_corpus("y", Path(__file__), VocabOptions(), column="text")


def test_benchmarks_name_the_hub_ids_that_work() -> None:
    ptb = hub.BENCHMARKS["ptb"]
    assert (ptb.path, ptb.revision) == ("ptb-text-only/ptb_text_only", "refs/convert/parquet")
    assert ptb.config in ("penn_treebank", "default") and ptb.column == "sentence"
    for name in ("wikitext-2", "wikitext-103"):
        where = hub.BENCHMARKS[name]
        assert (where.path, where.config) == ("Salesforce/wikitext", f"{name}-v1")


def layout(folder: Path, name: str) -> None:
    """The archive's text as the hub has it: PTB's rows stripped, WikiText's blank rows empty."""
    archive, pattern, column, config = {
        "ptb": ("ptb.zip", "ptb.{}.txt", "sentence", "penn_treebank"),
        "wikitext-2": ("wikitext-2-v1.zip", "wikitext-2/wiki.{}.tokens", "text", "wikitext-2-v1"),
    }[name]
    if not (DATA / archive).exists():
        pytest.skip(f"{archive} is not there")
    splits = {}
    with zipfile.ZipFile(DATA / archive) as opened:
        for split in SHARDS:
            member = pattern.format("valid" if split == "validation" else split)
            rows = opened.read(member).decode().split("\n")[:-1]
            if name == "ptb":
                splits[split] = {column: [row.strip() for row in rows]}
            else:
                splits[split] = {column: [f"{row}\n" if row.strip() else "" for row in rows]}
    parquet(folder, splits, where=config)
    listed = [{"split": s, "path": f"{config}/{s}-*.parquet"} for s in SHARDS]
    card = {"configs": [{"config_name": config, "data_files": listed}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "archive", "counts"),
    [
        ("ptb", "ptb.zip", (929589, 73760, 82430, 10000)),
        pytest.param(
            "wikitext-2", "wikitext-2-v1.zip", (2088628, 217646, 245569, 33278),
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_fetching_gives_what_the_archive_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    archive: str,
    counts: tuple[int, ...],
) -> None:
    folder = tmp_path / "mirror"
    layout(folder, name)
    known = hub.BENCHMARKS[name]
    local = HubId(path=str(folder), config=known.config, column=known.column)
    monkeypatch.setattr(hub, "BENCHMARKS", {**hub.BENCHMARKS, name: local})
    fetched = fetch_corpus(name, VocabOptions())
    info = corpus_info(fetched)
    assert tuple(info[key] for key in ("train", "valid", "test", "vocabulary")) == counts
    assert info["canonical"] is True
    assert add_corpus(name, DATA / archive, VocabOptions()).sha256 == fetched.sha256
    assert [path.name for path in corpora_folder().iterdir()] == [name]


def test_without_network_the_remedy_is_to_add_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, folder in (("ptb", "ptb"), ("wikitext-2", "wikitext-2"), ("some/set", "some--set")):
        with pytest.raises(DataError, match="cannot be fetched") as caught:
            fetch_corpus(name, VocabOptions())
        assert f"rnnnas corpus add {folder} --from FILE" in caught.value.remedy
        assert list(corpora_folder().iterdir()) == []


def test_errors_of_the_library_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[Exception] = [
        ConnectionError("no route"),
        TimeoutError(),
        RuntimeError("Dataset scripts are no longer supported"),
        KeyError("odd"),
        ValueError("Config name is missing. Pick one among: ['a', 'b']"),
    ]
    for error in raised:

        def fail(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(DataError) as caught:
            fetch_corpus("some/set", VocabOptions())
        assert ("--config" if isinstance(error, ValueError) else "--from") in caught.value.remedy


def test_interrupts_pass_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(datasets, "load_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_corpus("ptb", VocabOptions())
    assert list(corpora_folder().iterdir()) == []


def test_ids_and_overrides_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def record(path: str, config: str | None, **options: Any) -> None:
        seen.append((path, config, options["revision"]))
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", record)
    for name, options in (("ptb", {}), ("ptb", {"config": "default"}), ("o/n", {"revision": "v1"})):
        with pytest.raises(DataError):
            fetch_corpus(name, VocabOptions(), **options)
    assert seen == [
        ("ptb-text-only/ptb_text_only", "penn_treebank", "refs/convert/parquet"),
        ("ptb-text-only/ptb_text_only", "default", "refs/convert/parquet"),
        ("o/n", None, "v1"),
    ]
    for bad in ("../etc", "a/b/c", "", "a b", "-x", "/abs"):
        with pytest.raises(UsageError):
            fetch_corpus(bad, VocabOptions())


def test_a_folder_of_a_datasets_name_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "some" / "set", everywhere(ROWS))
    with pytest.raises(UsageError, match="some/set lies here"):
        fetch_corpus("some/set", VocabOptions())

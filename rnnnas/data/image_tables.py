"""Images in columns: parquet files, and datasets that the `datasets` library has loaded."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from rnnnas.data.image_sources import SEPARATE, ImageSource, Labelled, files_in
from rnnnas.data.text_files import shown
from rnnnas.data.text_sources import SPLITS, split_of
from rnnnas.errors import DataError

_ROWS = 256  # rows read at a time
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A parquet file, or a split of a loaded dataset.

    names: the classes that the label column declares. batches: the columns asked for, some rows
    at a time, as Arrow record batches or tables.
    """

    name: str
    rows: int
    schema: Any
    names: Callable[[str], tuple[str, ...]]
    batches: Callable[[list[str]], Iterator[Any]]


def image_parquet(path: Path, files: list[Path], label: str | None = None) -> ImageSource | None:
    """The images of the parquet `files` under `path`, or None where none has a column of images.

    A file belongs to the split that its name or folder says (`cifar10-train.parquet`,
    `train/0000.parquet`); where none says any, all are train.

    Raises:
        DataError: images and text mixed, no clear image or label column, files that differ.
    """
    import pyarrow.parquet

    tables, broken = {}, None
    for file in files:
        try:
            tables[file] = _parquet(path, file)
        except (pyarrow.ArrowException, OSError) as error:
            broken = broken or _broken(file, error)
    holds = {file: bool(_images(table.schema)) for file, table in tables.items()}
    if not any(holds.values()):
        return None
    if broken:
        raise broken
    if not all(holds.values()) or any("/" in name for name in files_in(path)[0]):
        other = next((file.name for file, images in holds.items() if not images), "image files")
        raise DataError(
            f"{shown(path)}: holds parquet of images and something else ({shown(other)})",
            SEPARATE,
        )
    splits: dict[str, list[_Table]] = {}
    for file, table in tables.items():
        split = split_of(file.relative_to(path).as_posix())
        splits.setdefault(split or "", []).append(table)
    if set(splits) == {""}:
        splits = {"train": splits[""]}
    elif "" in splits:
        raise DataError(
            f"{splits[''][0].name}: is of no split, others are",
            "Name every file for its split (train, validation, test), or none.",
        )
    return _source(path.resolve().name, {s: splits[s] for s in SPLITS if s in splits}, label)


def _parquet(path: Path, file: Path) -> _Table:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as opened:
        schema, rows = opened.schema_arrow, opened.metadata.num_rows

    def names(column: str) -> tuple[str, ...]:
        try:
            told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            listed = told["info"]["features"][column]["names"]
            return tuple(map(str, listed))
        except (ValueError, KeyError, TypeError):
            return ()

    def batches(columns: list[str]) -> Iterator[Any]:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                yield from opened.iter_batches(_ROWS, columns=columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise _broken(file, error) from error

    called = f"{shown(path)}/{shown(file.relative_to(path).as_posix())}"
    return _Table(name=called, rows=rows, schema=schema, names=names, batches=batches)


def _broken(file: Path, error: Exception) -> DataError:
    return DataError(
        f"{shown(file)}: not a parquet file that can be read ({' '.join(str(error).split())})",
        "Check or repeat the download.",
    )


def image_dataset(
    loaded: Mapping[str, Any], name: str, label: str | None = None
) -> ImageSource | None:
    """The images of a dataset that `hub.load` returned, or None where it has no image column.

    Raises DataError as `image_parquet` does.
    """
    tables = {split: _loaded(rows, f"{name} ({split})") for split, rows in loaded.items()}
    if not any(_images(table.schema) for table in tables.values()):
        return None
    splits: dict[str, list[_Table]] = {}
    for called, table in tables.items():
        if split := split_of(called):
            splits.setdefault(split, []).append(table)
    return _source(name, {s: splits[s] for s in SPLITS if s in splits}, label)


def _loaded(rows: Any, name: str) -> _Table:
    def names(column: str) -> tuple[str, ...]:
        return tuple(getattr(rows.features[column], "names", None) or ())

    def batches(columns: list[str]) -> Iterator[Any]:
        yield from rows.select_columns(columns).with_format("arrow").iter(_ROWS)

    schema = rows.features.arrow_schema
    return _Table(name=name, rows=len(rows), schema=schema, names=names, batches=batches)


def _images(schema: Any) -> list[str]:
    """The columns of encoded images: a struct with bytes, or plain bytes under a usual name."""
    import pyarrow

    found = []
    for field in schema:
        kind = getattr(field.type, "storage_type", field.type)
        inner = [kind.field(i).name for i in range(kind.num_fields)]
        struct = pyarrow.types.is_struct(kind) and "bytes" in inner
        plain = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)
        if struct or (plain and field.name in _IMAGE_COLUMNS):
            found.append(field.name)
    return found


def _source(name: str, splits: Mapping[str, list[_Table]], wanted: str | None) -> ImageSource:
    columns: set[tuple[str, str]] = set()
    classes: set[tuple[str, ...]] = set()
    for table in (table for tables in splits.values() for table in tables):
        image, label = _columns(table, wanted)
        columns.add((image, label))
        classes.add(table.names(label))
    if len(columns) > 1 or len(classes) > 1:
        raise DataError(
            f"{name}: the files differ in their {'columns' if len(columns) > 1 else 'classes'}",
            "Add files of one dataset only.",
        )
    image, label = columns.pop() if columns else ("", "")
    found = {split: _labelled(tables, image, label) for split, tables in splits.items()}
    return ImageSource(
        name=name,
        splits=found,
        classes=classes.pop() if classes else (),
        note=f"images in column {shown(image)!r}",
    )


def _columns(table: _Table, wanted: str | None) -> tuple[str, str]:
    """The column of the images and the one of the labels."""
    images, names = _images(table.schema), list(table.schema.names)
    listed = f"columns: {', '.join(map(shown, names))}"
    usual = [name for name in images if name in _IMAGE_COLUMNS] or images
    if len(usual) != 1:
        raise DataError(
            f"{table.name}: {len(usual)} columns of images; {listed}",
            "Keep one of them, named img or image.",
        )
    usual_labels = _LABEL_COLUMNS if wanted is None else (wanted,)
    labels = [name for name in usual_labels if name in names]
    if not labels:
        # CIFAR-100 has a fine and a coarse label: which one is meant is the user's to say.
        told = [name for name in names if "label" in name.lower() or name in ("target", "class")]
        raise DataError(
            f"{table.name}: no label column{'' if wanted is None else f' {shown(wanted)!r}'}; "
            f"{listed}",
            f"Name the column of the classes: --label {shown(told[0]) if told else 'COLUMN'}",
        )
    return usual[0], labels[0]


def _labelled(tables: list[_Table], image: str, label: str) -> Labelled:
    ends = list(accumulate(table.rows for table in tables))

    def place(row: int) -> str:
        which = bisect_right(ends, row)
        return f"{tables[which].name}, row {row - (ends[which] - tables[which].rows) + 1:,}"

    def values(column: str) -> Iterator[Any]:
        for table in tables:
            for batch in table.batches([column]):
                yield from batch.column(0).to_pylist()

    def encoded() -> Iterator[bytes]:
        for row, value in enumerate(values(image)):
            data = value.get("bytes") if isinstance(value, dict) else value
            if not data:
                raise DataError(
                    f"{place(row)}: no image bytes in column {image!r}",
                    "Store the image itself, not its path, or leave the row out.",
                )
            yield data

    labels = list(values(label))
    for row, value in enumerate(labels):
        if type(value) not in (int, str) or type(value) is not type(labels[0]):
            raise DataError(
                f"{place(row)}: label {value!r} is neither the number nor the name of a class",
                "Give every row an integer, or every row a text.",
            )
    return Labelled(name=tables[0].name, labels=labels, place=place, encoded=encoded)

"""Datasets of the hub, and local folders in its layouts, read through the `datasets` library.

What is downloaded stays in the hub's own cache (`HF_HOME`), so that a second fetch is cheap. The
Arrow copy that `datasets` builds beside it is read once and as large as the text: it goes into a
temporary folder of ours and away with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnnas.data.text_files import Text, check_line, shown
from rnnnas.data.text_sources import SPLITS, Source, missing_split
from rnnnas.errors import DataError

_ROWS = 1000  # rows read at a time
_COLUMNS = ("text", "sentence")
_NAMES = {"train": ("train",), "valid": ("validation", "valid", "dev", "val"), "test": ("test",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class HubId:
    """A dataset of the hub: its id, configuration, revision (git branch, tag or commit)."""

    path: str
    config: str | None = None
    revision: str | None = None
    column: str | None = None


# PTB's id is a script, which `datasets` >= 4 does not run; the hub's converted branch has its rows.
# WikiText-103 is fetched only; the raw configurations of WikiText have no <unk>.
BENCHMARKS: Mapping[str, HubId] = {
    "ptb": HubId(
        path="ptb-text-only/ptb_text_only",
        config="penn_treebank",
        revision="refs/convert/parquet",
        column="sentence",
    ),
    "wikitext-2": HubId(path="Salesforce/wikitext", config="wikitext-2-v1", column="text"),
    "wikitext-103": HubId(path="Salesforce/wikitext", config="wikitext-103-v1", column="text"),
}

IMAGES: Mapping[str, HubId] = {"cifar10": HubId(path="uoft-cs/cifar10")}


def known() -> Mapping[str, HubId]:
    """Every dataset that is known by a name of its own."""
    return {**BENCHMARKS, **IMAGES}


def load(where: HubId, cache: Path, *, add_name: str = "NAME") -> Mapping[str, Any]:
    """The splits of a dataset of the hub, or of a local folder in one of the hub's layouts.

    Args:
        where: `path` is an id or a local folder.
        cache: an existing folder for the Arrow files; they must live as long as the splits do.
        add_name: the corpus name in the remedy.

    Raises:
        DataError: unknown, unreachable, or not a dataset that can be read.
    """
    import datasets

    local = Path(where.path).is_dir()
    # Errors come back as exceptions; the library's bars and log lines would only repeat them.
    silent, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        loaded = datasets.load_dataset(
            os.path.abspath(where.path) if local else where.path,
            where.config,
            revision=None if local else where.revision,
            cache_dir=str(cache),
        )
    # The library lets exceptions of its HTTP, file system, parquet and YAML layers through, and
    # which ones changes with its version; each of them means that there are no rows to read.
    except Exception as error:
        raise _refusal(where, local, error, add_name) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not silent:
            datasets.enable_progress_bars()
    if not isinstance(loaded, Mapping):
        raise DataError(
            f"{shown(where.path)}: not a dataset with splits", "Choose another dataset."
        )
    return loaded


def _refusal(where: HubId, local: bool, error: Exception, add_name: str) -> DataError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if local:
        return DataError(
            f"{shown(where.path)}: cannot be read as a dataset ({reason})",
            "Check the files; the layout is data/train-00000-of-00001.parquet, "
            "data/validation-... and data/test-....",
        )
    if isinstance(error, ValueError) and "onfig" in reason:
        return DataError(f"{where.path}: {reason}", "Choose one of these with --config.")
    what, copy = ("images", "FOLDER") if add_name in IMAGES else ("text", "FILE")
    return DataError(
        f"{where.path}: cannot be fetched from the hub ({reason})",
        f"Check the id and the network, or obtain the {what} elsewhere and give it with: "
        f"rnnnas corpus add {add_name} --from {copy}",
    )


def source_of(loaded: Mapping[str, Any], name: str, column: str | None = None) -> Source:
    """The texts of a loaded dataset's splits. Rows are lines; a row may hold several.

    Args:
        loaded: splits by name, each a `datasets.Dataset`.
        name: what messages and the description call it.
        column: the column with the text; by default `text`, `sentence`, or the only text column.

    Raises:
        DataError: a split or the column is missing; the message names those present.
    """
    names = {split: next((n for n in _NAMES[split] if n in loaded), "") for split in SPLITS}
    missing = [split for split in SPLITS if not names[split]]
    if missing:
        raise missing_split(name, list(loaded), missing, "files")
    chosen = _column(loaded[names["train"]], name, column)
    splits = {}
    for split in SPLITS:
        rows = loaded[names[split]]
        if chosen not in rows.column_names:
            raise DataError(
                f"{name}: split {names[split]} has no column {chosen!r} "
                f"(columns: {', '.join(rows.column_names)})",
                "Choose a column that every split has.",
            )
        splits[split] = _text(rows.select_columns([chosen]), f"{name} ({names[split]})", chosen)
    return Source(name=name, splits=splits)


def _column(rows: Any, name: str, wanted: str | None) -> str:
    """The column that holds the text."""
    features = rows.features
    strings: list[str] = [c for c in rows.column_names if _is_string(features[c])]
    if wanted is not None:
        if wanted in strings:
            return wanted
    else:
        for column in _COLUMNS:
            if column in strings:
                return column
        if len(strings) == 1:
            return strings[0]
    which = "no column that is clearly the text" if wanted is None else f"no text column {wanted!r}"
    listed = ", ".join(f"{c} (text)" if c in strings else c for c in rows.column_names)
    raise DataError(f"{name}: {which}; columns: {listed}", "Choose one with --column.")


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _text(rows: Any, name: str, column: str) -> Text:
    def lines() -> Iterator[str]:
        blank, number = True, 0
        for row in _values(rows, column):
            number += 1
            if row is None:
                raise DataError(
                    f"{name}: row {number}: no text (null) in column {column!r}",
                    "Remove such rows, or choose another column.",
                )
            # A final line end belongs to the row; what it ends is one line, not two.
            for line in row.removesuffix("\n").split("\n"):
                blank = blank and not line.strip()
                yield check_line(line.removesuffix("\r"), name, number)
        if blank:
            raise DataError(
                f"{name}: {'holds white space only' if number else 'has no rows'}",
                "Give a dataset that holds text in every split.",
            )

    return Text(name, lines)


def _values(rows: Any, column: str) -> Iterable[str | None]:
    for batch in rows.iter(_ROWS):
        yield from batch[column]

"""Datasets of the hub, read through the `datasets` library: the only code that asks the network.

What is downloaded stays in the hub's own cache (`HF_HOME`), so that a second fetch is cheap. The
Arrow copy that `datasets` builds beside it is read once and as large as the text: it goes into a
temporary folder of ours and away with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rnnnas.data.columns import choose_column, value_lines
from rnnnas.data.text_files import Text, shown
from rnnnas.data.text_sources import SPLITS, Source, assembled, missing_train
from rnnnas.errors import DataError, UsageError

_ROWS = 1000  # rows read at a time
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
    """The splits of a dataset of the hub, or of a mirror of it.

    Args:
        where: `path` is an id, or the absolute path of a mirror.
        cache: an existing folder for the Arrow files; they must live as long as the splits do.
        add_name: the corpus name in the remedy.

    Raises:
        DataError: unknown, unreachable, or not a dataset that can be read.
        UsageError: a file or folder of that name lies in the current directory.
    """
    import datasets

    local = os.path.isabs(where.path)
    if not local and os.path.lexists(where.path):
        # The library would read that instead, and what a card in it leads to.
        raise UsageError(
            f"a file or folder called {shown(where.path)} lies here, and would be read instead",
            "Run this in another directory, or add that folder with `rnnnas corpus add`.",
        )
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
        loaded: splits by name, each a `datasets.Dataset`; what is missing of valid and test is
            held out of train.
        name: what messages and the description call it.
        column: the column with the text; by default `text`, `sentence`, or the only text column.

    Raises:
        DataError: train or the column is missing; the message names what is present.
    """
    names = {split: next((n for n in _NAMES[split] if n in loaded), "") for split in SPLITS}
    if not names["train"]:
        raise missing_train(name, list(loaded))
    train = loaded[names["train"]]
    texts = {c for c in train.column_names if _is_string(train.features[c])}
    chosen = choose_column(train.column_names, texts, name, column)
    given = {}
    for split in filter(names.get, SPLITS):
        rows = loaded[names[split]]
        if chosen not in rows.column_names:
            raise DataError(
                f"{name}: split {names[split]} has no column {chosen!r} "
                f"(columns: {', '.join(rows.column_names)})",
                "Choose a column that every split has.",
            )
        called = f"{name} ({names[split]})"
        given[split] = _text(rows.select_columns([chosen]), called, chosen)
    splits, notes = assembled(name, given)
    return Source(name=name, splits=splits, notes=tuple(notes))


def _is_string(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _text(rows: Any, name: str, column: str) -> Text:
    return Text(name, lambda: value_lines(iter(_values(rows, column)), name, column))


def _values(rows: Any, column: str) -> Iterable[str | None]:
    for batch in rows.iter(_ROWS):
        yield from batch[column]

"""An evaluation as Python asks for it: a corpus by name or object, settings by their names."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from rnnnas.data.corpus import as_corpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.data.text_corpus import Corpus
from rnnnas.errors import UsageError
from rnnnas.evaluation.result import Evaluation
from rnnnas.evaluation.run import evaluate_checkpoint


def evaluate_from_python(
    path: Path,
    split: str = "test",
    *,
    device: torch.device,
    text: str | PathLike[str] | None = None,
    dynamic: bool = False,
    cache: bool = False,
    corpus: Corpus | ImageCorpus | str | None = None,
    encoding: str | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Evaluation:
    """Arguments and errors of `rnnnas.evaluate`; path: of a best.pt."""
    given = _dynamic_settings(settings, dynamic)
    opened = None if corpus is None else as_corpus(corpus)
    result = evaluate_checkpoint(
        path, split, text=text, corpus=opened, encoding=encoding, given=given, device=device,
        dynamic=dynamic, cache=cache, quiet=quiet,
    )  # fmt: skip
    return Evaluation.of(result)


def _dynamic_settings(settings: Mapping[str, Any], dynamic: bool) -> dict[str, Any]:
    """By name, of `dynamic.name`. Raises UsageError for another, or without dynamic evaluation."""
    for key in settings:
        group, _, name = key.partition(".")
        if group != "dynamic" or not name:
            raise UsageError(
                f"{key} is no argument of an evaluation", "a setting is **{'dynamic.KEY': VALUE}"
            )
        if not dynamic:
            raise UsageError(f"{key} is for dynamic evaluation", "add dynamic=True")
    return {key.partition(".")[2]: value for key, value in settings.items()}

"""Published recurrent cells by name, and the genotype that a name, a file or a text stands for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rnnnas.errors import UsageError, nearest
from rnnnas.nas.field_form import from_field_form, is_field_form
from rnnnas.nas.genotype import _GENE, RECURRENT, Genotype, cell_text
from rnnnas.nas.space import recurrent_space


class Published(NamedTuple):
    """A genotype of the literature with the numbers its authors, or a re-run, gave."""

    genotype: Genotype
    source: str
    results: str


def _published(text: str, source: str, results: str) -> Published:
    return Published(Genotype.from_text(text), source, results)


# The published recurrent cells. Perplexities are validation/test after full retraining.
ZOO: dict[str, Published] = {
    "DARTS_V1": _published(
        "relu0 relu1 tanh2 relu3 relu4 identity1 relu5 relu1",
        "Liu, Simonyan, Yang 2018, first release (arXiv 1806.09055v1)",
        "superseded by DARTS_V2",
    ),
    "DARTS_V2": _published(
        "sigmoid0 relu1 relu1 identity1 tanh2 sigmoid5 tanh3 relu5",
        "Liu, Simonyan, Yang, ICLR 2019 (arXiv 1806.09055)",
        "PTB 58.1/55.7 (23M), WikiText-2 71.2/69.6 (33M)",
    ),
    "ENAS": _published(
        "tanh0 tanh1 relu1 tanh3 tanh3 relu3 relu4 relu7 relu8 relu8 relu8 concat 2,5,6,9,10,11",
        "Pham et al. 2018, figure 6, in the DARTS set-up",
        "PTB 60.8/58.6 (24M)",
    ),
    "ENAS_LM": _published(
        "sigmoid0 tanh1 relu2 sigmoid2 tanh4 tanh5 sigmoid3 sigmoid6",
        "google-research/enas_lm",
        "PTB test 56.1 to 57.3 in its own recipe",
    ),
    "GDAS": _published(
        "relu0 relu0 identity1 relu1 tanh0 relu2 identity4 identity2",
        "Dong, Yang, CVPR 2019",
        "PTB 59.8/57.5 (23M), WikiText-2 71.0/69.4 (33M)",
    ),
    "SDARTS_RS": _published(
        "sigmoid0 sigmoid1 identity2 sigmoid1 tanh2 tanh2 sigmoid0 sigmoid3",
        "Chen, Hsieh, ICML 2020, random smoothing",
        "PTB 58.7/56.4 (23M)",
    ),
    "SDARTS_ADV": _published(
        "relu0 relu1 tanh2 relu3 identity2 relu1 tanh2 relu7",
        "Chen, Hsieh, ICML 2020, adversarial",
        "PTB 58.3/56.1 (23M)",
    ),
    "NAO": _published(
        "relu0 relu0 relu1 tanh3 relu4 relu4 relu5 relu1 relu7 relu1 identity1",
        "Luo et al., NeurIPS 2018",
        "PTB test 56.02 (27M), WikiText-2 test 67.10, in its own recipe",
    ),
    "NAO_WS": _published(
        "relu0 relu1 sigmoid2 sigmoid1 relu4 relu4 relu4 relu7 sigmoid8 tanh1 relu4",
        "Luo et al., NeurIPS 2018, with weight sharing",
        "PTB test 56.7",
    ),
}


# Names that the field uses for one of these.
ALIASES = {"DARTS": "DARTS_V2"}

# Cells that `--genotype` understands beside these but that no genotype describes: torch's own.
BASELINES: dict[str, str] = {
    "LSTM": "LSTM: torch's own cell, not a genotype. With weight drop it is the AWD-LSTM (Merity "
    "et al. 2018): PTB 60.0/57.3 (24M, 3 layers, finetuned), WikiText-2 68.6/65.8 (33M)",
    "GRU": "GRU: torch's own cell, not a genotype (Cho et al. 2014)",
}


def read_genotype(reference: str) -> Genotype:
    """A genotype from a zoo name, a JSON file, a run folder or the short text form itself.

    Raises:
        UsageError: where the reference is none of these, with the nearest zoo name.
    """
    if is_field_form(reference):
        return from_field_form(reference)
    name = ALIASES.get(reference.upper(), reference.upper())
    if name in ZOO and not Path(reference).exists():
        return ZOO[name].genotype
    path = Path(reference)
    if reference.strip() and _is(path.is_dir):
        path = path / "genotype.json"
        if not path.is_file():
            raise UsageError(
                f"{reference} holds no genotype.json",
                "give the folder of a search that has run, e.g. checkpoints/search-ptb-darts-s1",
            )
    if _is(path.is_file):
        try:
            text = path.read_text(encoding="utf-8-sig")
            found = from_field_form(text) if is_field_form(text) else _from_json(text)
            _check_run(path, found)
            return found
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
        except RecursionError as error:
            raise UsageError(f"{path} is not a genotype in JSON: nested too deeply") from error
        except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
            raise UsageError(f"{path} is not a genotype in JSON: {error}") from error
    if " " in reference.strip() or all(map(_GENE.fullmatch, reference.split("+"))):
        try:
            return Genotype.from_text(reference)
        except UsageError as error:  # perhaps a path was meant
            called = _brief(reference)
            cause = f"{error.cause}; nor is there a file or folder {called}"
            raise UsageError(cause, error.remedy) from error
    raise UsageError(
        f"genotype {_brief(reference)} is neither a file, a run folder nor a published cell"
        + nearest(reference, [*ZOO, *BASELINES]),
        f"published cells: {', '.join(ZOO)}; or write one: 'sigmoid0 relu1 tanh1'",
    )


def _brief(reference: str) -> str:
    return repr(reference) if len(reference) <= 100 else f"{reference[:100]!r}..."


def _from_json(text: str) -> Genotype:
    return Genotype.from_plain(json.loads(text))


def _check_run(path: Path, found: Genotype) -> None:
    """Refuse a run's genotype.json that is not the cell which the files beside it tell: a search's
    result, a training's settings.

    Raises:
        UsageError: where both can be read and differ.
    """
    if path.name != "genotype.json":
        return
    for name, keys in (("result.json", ("genotype",)), ("config.json", ("config", "genotype"))):
        try:
            plain = json.loads((path.parent / name).read_text(encoding="utf-8"))
            for key in keys:
                plain = plain[key]
            told = Genotype.from_plain(plain)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, UsageError):
            continue  # nothing to compare with
        if told != found:
            raise UsageError(
                f"{path} is not the cell that {name} beside it tells: one of them was changed",
                f"restore it from a copy, or give the cell itself: {cell_text(told)!r}",
            )


def _is(test: Callable[[], bool]) -> bool:
    """What `Path.is_dir` or `Path.is_file` says, and no where the text cannot be a path."""
    try:
        return test()
    except OSError:  # a cell's short form can be longer than any file name
        return False


def genotype_of(reference: str, seed: int) -> Genotype:
    """As `read_genotype`, and 'random' or 'random:SEED': a cell drawn from the recurrent space.

    Args:
        seed: what 'random' without a seed of its own is drawn by.

    Raises:
        UsageError: where the reference is not understood.
    """
    word, _, own = reference.partition(":")
    if word != "random":
        return read_genotype(reference)
    if own and not own.isdecimal():
        raise UsageError(f"genotype {reference!r} must be 'random' or 'random:SEED'")
    rng = random.Random(f"{own or seed}/cell")
    return Genotype(cells={RECURRENT: recurrent_space().sample(rng)})

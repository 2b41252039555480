"""rnnnas: search, train, compare and use recurrent language-model cells.

    import rnnnas

    corpus = rnnnas.open_corpus("pydocs")
    found = rnnnas.search(corpus, preset="smoke", seed=1)
    model = rnnnas.train(corpus, found, preset="smoke")
    model.evaluate("test").perplexity

Importing this costs little and starts nothing: torch is imported by the first call that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Where the names of the door come from: a module, which is imported when one of them is asked for.
_DOOR = {
    "rnnnas.door": (
        "add_corpus", "evaluate", "genotype", "list_runs", "load", "load_plugin", "open_corpus",
        "sample", "score", "search", "show", "study", "train",
    ),
    "rnnnas.errors": (
        "CheckpointError", "DataError", "DiskError", "DivergedError", "RnnnasError", "UsageError",
    ),
    "rnnnas.nas.genotype": ("Genotype",),
}  # fmt: skip
_FROM = {name: module for module, names in _DOOR.items() for name in names}
_ROOMS = {"operations": "rnnnas.nas.operations"}  # modules that are names of the door themselves

if TYPE_CHECKING:
    from rnnnas.door import add_corpus as add_corpus
    from rnnnas.door import evaluate as evaluate
    from rnnnas.door import genotype as genotype
    from rnnnas.door import list_runs as list_runs
    from rnnnas.door import load as load
    from rnnnas.door import load_plugin as load_plugin
    from rnnnas.door import open_corpus as open_corpus
    from rnnnas.door import sample as sample
    from rnnnas.door import score as score
    from rnnnas.door import search as search
    from rnnnas.door import show as show
    from rnnnas.door import study as study
    from rnnnas.door import train as train
    from rnnnas.errors import CheckpointError as CheckpointError
    from rnnnas.errors import DataError as DataError
    from rnnnas.errors import DiskError as DiskError
    from rnnnas.errors import DivergedError as DivergedError
    from rnnnas.errors import RnnnasError as RnnnasError
    from rnnnas.errors import UsageError as UsageError
    from rnnnas.nas import operations as operations
    from rnnnas.nas.genotype import Genotype as Genotype


if not TYPE_CHECKING:  # a type checker knows the names above, and no others

    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            value: Any = import_module(_ROOMS[name])
        elif name in _FROM:
            value = getattr(import_module(_FROM[name]), name)
        else:
            raise AttributeError(f"module 'rnnnas' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM, *_ROOMS})

"""The cell of a checkpoint: what `show` draws of a best.pt, or says where there is none to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rnnnas.errors import CheckpointError, RnnnasError
from rnnnas.nas.genotype import Genotype
from rnnnas.runs.hub_folder import model_path, trained_content


def trained_in(reference: str) -> Path | None:
    """The checkpoint that a reference to a cell names: a .pt file, a folder with no genotype, or
    a hub folder.
    """
    path = Path(reference)
    try:
        if path.suffix == ".pt" and path.is_file():
            return path
        if path.is_dir() and not (path / "genotype.json").exists():
            best = model_path(path)
            return best if best.exists() else None
    except OSError:  # a cell's short form can be longer than any file name
        pass
    return None


def checkpoint_cell(path: Path) -> Genotype | str:
    """The genotype of a checkpoint, or a sentence on a trained LSTM or GRU.

    Raises:
        CheckpointError: where the file is damaged, or holds the state of a run and no model.
    """
    content = trained_content(path)
    try:
        if content["genotype"]:
            return Genotype.from_plain(content["genotype"])
        config = content["config"]
        return _baseline(config, content["corpus"]["name"], content.get("metrics", {}))
    except (KeyError, TypeError, AttributeError, RnnnasError) as error:
        raise CheckpointError(
            f"{path} is intact but holds no trained cell",
            "give the best.pt of a run of `rnnnas train`, or a run folder",
        ) from error


def _baseline(config: dict[str, Any], corpus: str, metrics: dict[str, Any]) -> str:
    model = {"layers": 1, **config["model"]}
    layers = f"{model['layers']} layers" if model["layers"] > 1 else "one layer"
    found = metrics.get("valid_perplexity")
    reached = f", validation perplexity {found:.2f}" if isinstance(found, int | float) else ""
    return (
        f"{config['cell'].upper()} of {layers} of {model['hidden']} units, trained on {corpus}"
        f"{reached}: it is no genotype, and has no cell to draw"
    )

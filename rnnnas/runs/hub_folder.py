"""The layout of the Hugging Face hub: a trained model as a folder of settings, weights and a card.

`config.json` holds all of a checkpoint but its weights, and the SHA-256 of these; the weights are
in `model.safetensors`, `README.md` is the card. What is read back has the checkpoint's own digest.
`exporting.hub` writes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from rnnnas.errors import CheckpointError
from rnnnas.runs.checkpoint import content_digest, load_content
from rnnnas.runs.sealed import open_sealed

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "rnnnas"
FORMAT = 1
_RESTORE = "export it again, or fetch it anew"


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder in this layout; a name that the system will not take is none."""
    return os.path.isfile(path / WEIGHTS) and os.path.isfile(path / CONFIG)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's: a hub folder has a config.json, too."""
    return os.path.isfile(path / CONFIG) and not is_folder(path)


def is_export(path: Path) -> bool:
    """Whether a folder holds an export of this library and nothing else: it may be replaced."""
    try:
        if not {entry.name for entry in path.iterdir()} <= {CONFIG, WEIGHTS, CARD}:
            return False
        described = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and described.get("library_name") == LIBRARY


def model_path(path: Path) -> Path:
    """Of a run folder its best.pt; a best.pt, or a folder in this layout, as it is."""
    whole = not os.path.isdir(path) or is_folder(path) and not os.path.isfile(path / "best.pt")
    return path if whole else path / "best.pt"


def trained_content(path: Path) -> dict[str, Any]:
    """The content of a trained model: of a best.pt, or of a folder in this layout.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    return read_folder(path) if is_folder(path) else load_content(path)


def read_folder(path: Path) -> dict[str, Any]:
    """The content of the checkpoint that a hub folder was made of, as `load_content` gives it.

    Weights in float16 come back as float32.

    Raises:
        CheckpointError: where a file is missing, unreadable or altered.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    described, seal = open_sealed(path / CONFIG, _RESTORE)
    if described.get("library_name") != LIBRARY:
        raise CheckpointError(f"{path} holds no model of rnnnas", "give a folder of `export`")
    if described.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {described.get('format')!r}; this version reads format {FORMAT}",
            "use the version of rnnnas that wrote it",
        )
    if seal is None:  # what it says of the weights decides what they mean
        raise CheckpointError(f"{path / CONFIG} is damaged: its seal is gone", _RESTORE)
    try:
        data = (path / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path / WEIGHTS} cannot be read: {error.strerror or error}", _RESTORE
        ) from error
    if hashlib.sha256(data).hexdigest() != described.get("weights_sha256"):
        raise CheckpointError(f"{path / WEIGHTS} is damaged: its bytes have changed", _RESTORE)
    try:
        weights = load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path / WEIGHTS} cannot be decoded: {error}", _RESTORE) from error
    own = ("library_name", "model_type", "format", "digest", "weights_sha256", "torch_dtype")
    content: dict[str, Any] = {key: v for key, v in described.items() if key not in own}
    half = described.get("torch_dtype") == "float16"
    content["weights"] = {
        name: value.float() if value.dtype == torch.float16 else value
        for name, value in weights.items()
    }
    # float16 is another model than the one it was made of: it has a digest of its own.
    if not half and content_digest(content) != described.get("digest"):
        raise CheckpointError(f"{path} is damaged: its content has another digest", _RESTORE)
    return content

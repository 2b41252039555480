"""A model as a folder in the layout of the Hugging Face hub: settings, weights, a model card.

`config.json` holds all of a checkpoint but its weights, and the SHA-256 of these; the weights are
in `model.safetensors`, `README.md` is the card. What is read back has the checkpoint's own digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.errors import CheckpointError
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import write_atomic
from rnnnas.runs.sealed import open_sealed, write_sealed

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "rnnnas"
FORMAT = 1
_RESTORE = "export it again, or fetch it anew"


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder in this layout; a name that the system will not take is none."""
    return os.path.isfile(path / WEIGHTS) and os.path.isfile(path / CONFIG)


def write_folder(
    folder: Path, content: Mapping[str, Any], weights: Mapping[str, Tensor], card: str
) -> None:
    """Write a checkpoint's content as a hub folder, every file atomically, the settings last.

    Args:
        weights: those of the content, or a float16 form of them.

    Raises:
        DiskError: where a file cannot be written.
    """
    from safetensors.torch import save

    from rnnnas.runs.files import disk_errors

    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    stored = {name: value.detach().contiguous().clone() for name, value in weights.items()}
    data = save(stored, metadata={"format": "pt"})
    plain = {key: value for key, value in content.items() if key != "weights"}
    described = {
        "library_name": LIBRARY,
        "model_type": f"{LIBRARY}-{content['kind']}",
        "format": FORMAT,
        "digest": content_digest(content),
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "torch_dtype": _dtype(stored),
        **plain,
    }
    write_atomic(folder / WEIGHTS, lambda file: file.write(data))
    write_atomic(folder / CARD, lambda file: file.write(card.encode()))
    write_sealed(folder / CONFIG, described)


def _dtype(weights: Mapping[str, Tensor]) -> str:
    kinds = {str(value.dtype).removeprefix("torch.") for value in weights.values()}
    return "float16" if "float16" in kinds else "float32"


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


def model_card(about: Mapping[str, Any], figures: Mapping[str, Any], drawing: str) -> str:
    """The README.md of a hub folder.

    Args:
        about: as `source.read_source` gives it. figures: what the verification found, by name.
        drawing: the cell in plain characters, "" where there is none.
    """
    image = "images" in figures
    metrics = {**about["metrics"]}
    rows = [(key.replace("_", " "), _shown(value)) for key, value in metrics.items()]
    rows += [("parameters", f"{about['parameters']:,}")]
    head = {
        "library_name": LIBRARY,
        "pipeline_tag": "image-classification" if image else "text-generation",
        "tags": [LIBRARY, "neural-architecture-search", "image" if image else "recurrent"],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {about['cell']} on {about['corpus']}", ""]
    what = "An image classifier" if image else "A recurrent language model"
    lines += [
        f"{what} trained by rnnnas {about['version']}. Its digest, a SHA-256 over settings,"
        f"{' classes' if image else ' vocabulary'} and weights, is `{about['digest']}`.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in rows),
        "",
        "Trained by",
        "",
        "```",
        about["command"],
        "```",
        "",
        f"on a corpus whose SHA-256 is `{about['corpus_sha256']}`.",
        "",
    ]
    if drawing:
        lines += ["## The cell", "", "```", drawing.rstrip("\n"), "```", ""]
    lines += [
        "## Use",
        "",
        "```python",
        "from rnnnas.exporting.hub_model import HubModel",
        "",
        'model = HubModel.from_pretrained("FOLDER or OWNER/NAME")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

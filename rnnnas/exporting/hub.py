"""Writing a model as a folder in the layout of the Hugging Face hub, and its model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import write_atomic
from rnnnas.runs.hub_folder import CARD, CONFIG, FORMAT, LIBRARY, WEIGHTS
from rnnnas.runs.sealed import write_sealed

if TYPE_CHECKING:
    from torch import Tensor


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
        *(["Trained by", "", "```", about["command"], "```", ""] if about["command"] else []),
        f"{'' if about['command'] else 'Trained '}on a corpus whose SHA-256 is "
        f"`{about['corpus_sha256']}`.",
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

"""Whether a model in memory is still that of its file, which evaluations and exports read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from rnnnas.errors import UsageError
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.hub_folder import trained_content


def weights_digest(net: nn.Module) -> str:
    """SHA-256 over all weights and statistics of a network, wherever they lie."""
    whole = hashlib.sha256()
    for name, value in net.state_dict().items():
        whole.update(name.encode())
        data = value.detach().cpu().contiguous().reshape(-1)
        whole.update(data.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def check_as_loaded(net: nn.Module, loaded: str, path: Path, digest: str, instead: str) -> None:
    """Refuse what would take a file's weights for those of a model in memory.

    Args:
        loaded: `weights_digest` of the network when it was loaded. digest: of the content of the
            file then. instead: "`perplexity` takes", for the remedy.

    Raises:
        UsageError: where either has changed since.
        CheckpointError: where the file is gone or damaged.
    """
    if weights_digest(net) != loaded:
        raise UsageError(
            f"the model's weights were changed since it was loaded; this takes those of {path}",
            f"{instead} the weights as they are",
        )
    if content_digest(trained_content(path)) != digest:
        raise UsageError(f"{path} was replaced since the model was loaded from it", "load it again")

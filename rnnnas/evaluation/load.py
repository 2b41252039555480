"""A trained model from the content of its best.pt, whatever kind it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rnnnas.evaluation.image_model import ImageModel
from rnnnas.evaluation.images import is_classifier, rebuild
from rnnnas.evaluation.language_model import LanguageModel
from rnnnas.evaluation.run import rebuild_language_model, refuse_search
from rnnnas.runs.checkpoint import load_content


def load_model(path: Path, device: torch.device) -> LanguageModel | ImageModel:
    """The model of a best.pt, with its vocabulary or its classes.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    refuse_search(path)
    return model_of(load_content(path), path, device)


def model_of(
    content: dict[str, Any], path: Path, device: torch.device
) -> LanguageModel | ImageModel:
    """The model of a checkpoint's content; path: where it was read, for messages."""
    if is_classifier(content):
        return ImageModel(rebuild(content, path, device), path).to(device)
    return LanguageModel(rebuild_language_model(content, path, device), path)

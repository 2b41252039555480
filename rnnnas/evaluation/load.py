"""A trained model from its best.pt or hub folder, whatever kind it is."""

from __future__ import annotations

from pathlib import Path

import torch

from rnnnas.evaluation.image_model import ImageModel
from rnnnas.evaluation.images import is_classifier, rebuild
from rnnnas.evaluation.language_model import LanguageModel
from rnnnas.evaluation.run import rebuild_language_model, refuse_search
from rnnnas.runs.hub_folder import trained_content


def load_model(path: Path, device: torch.device) -> LanguageModel | ImageModel:
    """The model of a best.pt or a hub folder, with its vocabulary or its classes.

    Raises:
        CheckpointError: where there is none, or it is damaged.
    """
    refuse_search(path)
    content = trained_content(path)
    if is_classifier(content):
        return ImageModel(rebuild(content, path, device), path).to(device)
    return LanguageModel(rebuild_language_model(content, path, device), path)

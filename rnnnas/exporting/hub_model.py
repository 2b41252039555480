"""A hub folder as a module, with the hub's own `from_pretrained`, `save_pretrained`, `push_to_hub`.

Legend: T steps, B streams or images, V vocabulary, K classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from rnnnas.evaluation.images import is_classifier
from rnnnas.evaluation.images import rebuild as rebuild_images
from rnnnas.evaluation.run import rebuild_language_model as rebuild_text
from rnnnas.exporting.hub import model_card, write_folder
from rnnnas.exporting.source import about_content
from rnnnas.runs.hub_folder import CARD, CONFIG, WEIGHTS, read_folder
from rnnnas.types import HiddenState


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="rnnnas"):
    """A trained model whose weights, vocabulary or classes come from a hub folder.

    Args:
        content: as `read_folder` and `load_content` give it.

    net: the network. vocab: of a language model, else None. classes: of an image network.

    Raises:
        CheckpointError: where the content holds no trained model.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        where, device = Path(CONFIG), torch.device("cpu")
        self.content = content
        self.net: nn.Module
        self.vocab = None
        self.classes: tuple[str, ...] = ()
        if is_classifier(content):
            images = rebuild_images(content, where, device)
            self.net, self.classes = images.net, images.classes
        else:
            text = rebuild_text(content, where, device)
            self.net, self.vocab = text.net, text.vocab

    def forward(self, inputs: Tensor, state: HiddenState = None) -> tuple[Tensor, HiddenState]:
        """Scores and the next state: word ids (T, B) int64 → (T, B, V), a softmax's logits.

        Of an image network: normalised images (B, 3, h, w) → (B, K), and None.
        """
        net: Any = self.net
        if self.vocab is None:
            return net.logits(inputs), None
        scores: tuple[Tensor, HiddenState] = net.logits(inputs, state)
        return scores

    def _save_pretrained(self, save_directory: Path) -> None:
        content = {**self.content, "weights": dict(self.net.state_dict())}
        about = about_content(content, save_directory / WEIGHTS)
        figures = {"images": True} if self.vocab is None else {}
        card = model_card(about, figures, "")
        write_folder(save_directory, content, content["weights"], card)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> HubModel:
        folder = Path(model_id)
        if not os.path.isdir(folder):
            folder = Path(
                snapshot_download(
                    model_id, revision=revision, cache_dir=cache_dir, token=token,
                    force_download=force_download, local_files_only=local_files_only,
                    allow_patterns=[CONFIG, WEIGHTS, CARD],
                )
            )  # fmt: skip
        return cls(read_folder(folder))

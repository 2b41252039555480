"""Weights that a training starts from: those of a checkpoint, for its own text or another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rnnnas.config.plain import to_plain
from rnnnas.config.text import TrainConfig
from rnnnas.data.text_corpus import Corpus
from rnnnas.errors import DataError, UsageError
from rnnnas.evaluation.run import load_checkpoint
from rnnnas.runs.differences import differences
from rnnnas.runs.hub_folder import model_path

# Settings of a checkpoint that a training from it does not take over: its length and its text.
OWN = ("corpus", "epochs", "least_steps", "seconds", "start", "seed", "save_seconds", "capture")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """weights: by name, on the CPU. config: of the training they come from; corpus: its text's
    name. vocabulary: as plain values. digest: SHA-256 of the checkpoint.
    """

    weights: dict[str, Tensor]
    config: TrainConfig
    corpus: str
    vocabulary: dict[str, Any]
    digest: str

    def settings(self) -> dict[str, Any]:
        """What a training that starts here has where nothing else is said, as nested plain
        values; the number of epochs too, the text aside.
        """
        plain = to_plain(self.config)
        if self.config.seconds:
            del plain["epochs"]
        for key in OWN:
            if key != "epochs":
                plain.pop(key, None)
        plain["weights"].pop("finetune_epochs", None)  # a part of its length
        return plain


def read_start(path: Path) -> Start:
    """The start that a best.pt, the folder of a finished training or a hub folder gives.

    Raises:
        CheckpointError: where it is missing, damaged, or of anything else.
    """
    loaded = load_checkpoint(model_path(path), torch.device("cpu"))
    return Start(
        weights={name: p.detach() for name, p in loaded.net.named_parameters()},
        config=loaded.config,
        corpus=loaded.corpus,
        vocabulary=loaded.vocab.to_plain(),
        digest=loaded.digest,
    )


def check_start(start: Start, config: TrainConfig, corpus: Corpus) -> None:
    """Refuse a start whose weights mean something else in this training.

    Raises:
        UsageError: for another network. DataError: for another vocabulary.
    """
    there, here = to_plain(start.config), to_plain(config)
    keys = ("cell", "genotype", "model")
    free = {"model.path", "model.precision", "model.nodes", "model.partial"}
    theirs, ours = ({key: plain[key] for key in keys} for plain in (there, here))
    if changes := differences(theirs, ours, free):
        raise UsageError(
            f"the weights to start from are those of another network: {'; '.join(changes)}",
            "leave out --genotype, --hidden and --layers, or train from scratch without --from",
        )
    if start.vocabulary != corpus.vocab.to_plain():
        raise DataError(
            f"corpus {corpus.name} has another vocabulary than {start.corpus!r}, which the weights "
            "to start from were trained on: every row of them stands for another word",
            "prepare the text with its vocabulary, rnnnas corpus add NAME --from TEXT --vocab-of "
            f"{start.corpus}, or train from scratch without --from",
        )

"""Evaluating a checkpoint of an image network on a split of its corpus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rnnnas.cnn.dense.network import DenseNet, derived_network
from rnnnas.cnn.model import TOP, ConvNet
from rnnnas.config.images import ImageTrainConfig
from rnnnas.config.plain import from_plain
from rnnnas.data.corpus import check_unchanged, open_images
from rnnnas.data.image_batches import InOrder
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.engine.image_task import ImageTraining, images_of
from rnnnas.engine.steps import evaluate
from rnnnas.errors import CheckpointError, DataError, RnnnasError, UsageError
from rnnnas.runs.checkpoint import content_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """What a best.pt of an image network holds, rebuilt; the network carries the saved weights and
    running statistics. classes: names in the order of the scores; mean, std: a value a channel;
    size: (h, w) of the images of its corpus, None where they differ or an earlier version wrote it.
    """

    net: ConvNet | DenseNet
    config: ImageTrainConfig
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None
    corpus: str
    corpus_sha256: str
    metrics: dict[str, Any]
    digest: str


def is_classifier(content: Mapping[str, Any]) -> bool:
    """Whether this content of a best.pt is that of an image network."""
    return content.get("kind") == ImageTraining.kind


def rebuild(content: Mapping[str, Any], path: Path, device: torch.device) -> Classifier:
    """The classifier of a best.pt with this content; path: for messages.

    Raises:
        CheckpointError: where something is missing or does not fit together.
    """
    try:
        config = from_plain(ImageTrainConfig, content["config"])
        if content["genotype"] != config.genotype:
            raise UsageError("its genotype is not the one of its settings")
        classes = tuple(content["classes"])
        net = derived_network(config.model, config.network, len(classes), torch.Generator())
        net.load_state_dict(content["weights"])
        if bad := [n for n, w in net.named_parameters() if not bool(w.isfinite().all())]:
            raise CheckpointError(f"its weights are not finite ({bad[0]}): its training diverged")
        return Classifier(
            net=net.to(device),
            config=config,
            classes=classes,
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            size=_size(content.get("size")),
            corpus=content["corpus"]["name"],
            corpus_sha256=content["corpus"]["sha256"],
            metrics=content["metrics"],
            digest=content_digest(content),
        )
    except (KeyError, TypeError, RuntimeError, RnnnasError) as error:
        raise CheckpointError(
            f"{path} is intact but does not hold a trained image network: {error}",
            "give the best.pt of a run of `rnnnas train`",
        ) from error


def _size(plain: Any) -> tuple[int, int] | None:
    if plain is None:
        return None
    height, width = plain
    return int(height), int(width)


def accuracy(
    content: Mapping[str, Any],
    path: Path,
    split: str,
    *,
    corpus: ImageCorpus | None,
    device: torch.device,
) -> dict[str, Any]:
    """How many images of a split a checkpoint classifies right.

    Args:
        content, path: of a best.pt. corpus: where the caller has it open.

    Returns:
        split, accuracy in percent, nats (mean an image), images, digest (of the checkpoint), and
        where there are more than five classes top5, the percent of images whose class is among
        the best five.

    Raises:
        CheckpointError, DataError: as their causes say.
    """
    loaded = rebuild(content, path, device)
    corpus = corpus or open_images(loaded.corpus)
    if corpus.sha256 != loaded.corpus_sha256:
        raise DataError(
            f"the corpus {loaded.corpus!r} here is not the one this model was trained on",
            "add the original images again",
        )
    check_unchanged(corpus)
    side = loaded.config.augment.size
    batches = images_of(corpus, split, loaded.config.batches.evaluated, side, device)
    score = evaluate(loaded.net, InOrder(batches, side), {})
    result = {
        "split": split,
        "accuracy": score.accuracy,
        "nats": score.loss,
        "images": score.tokens,
        "digest": loaded.digest,
    }
    return result if len(loaded.classes) <= TOP else {**result, "top5": score.top5}

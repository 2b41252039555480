"""A trained image network as an object: an `nn.Module` that remembers classes and normalisation.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from rnnnas.data.image_augment import centre_box, normalised, resized
from rnnnas.data.image_decode import decode, quiet
from rnnnas.draw.text_svg_dot import as_svg
from rnnnas.engine.device import exact_float32
from rnnnas.errors import DataError, UsageError
from rnnnas.evaluation.as_loaded import check_as_loaded, weights_digest
from rnnnas.evaluation.from_python import evaluate_from_python
from rnnnas.evaluation.images import Classifier, rebuild
from rnnnas.evaluation.result import Evaluation
from rnnnas.runs.hub_folder import trained_content


class Prediction(NamedTuple):
    """A class and its probability, in [0, 1]."""

    label: str
    probability: float


@final
class ImageModel(nn.Module):
    """An image network with its classes, as `rnnnas.load` returns it.

    path: of its best.pt; classes: names in the order of the scores; genotype: of its cells;
    corpus: the images it was trained on; metrics: of its training; digest: SHA-256 of its content.
    """

    def __init__(self, loaded: Classifier, path: Path) -> None:
        super().__init__()
        self.net = loaded.net
        self.path = path
        self.classes = loaded.classes
        self.config = loaded.config
        self.genotype = loaded.config.network
        self.corpus = loaded.corpus
        self.metrics = dict(loaded.metrics)
        self.digest = loaded.digest
        self.register_buffer("mean", torch.tensor(loaded.mean), persistent=False)
        self.register_buffer("std", torch.tensor(loaded.std), persistent=False)
        self.exporter: Callable[..., Any] | None = None  # set by whoever loads it
        self._loaded = weights_digest(self.net)
        self.eval()

    def check_as_loaded(self) -> None:
        """Raises UsageError where the weights, or the file they are from, were changed since."""
        check_as_loaded(self.net, self._loaded, self.path, self.digest, "`predict` takes")

    @exact_float32()
    def forward(self, pixels: Tensor) -> Tensor:
        """Scores (B, K) of images (B, 3, h, w), uint8 or float in [0, 255].

        Raises:
            UsageError: for images of another shape.
        """
        if pixels.dim() != 4 or pixels.shape[1] != 3:
            raise UsageError(f"images of shape {tuple(pixels.shape)}", "give (B, 3, h, w)")
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return self.net.logits(normalised(pixels.to(mean.device), mean, std))

    @torch.no_grad()
    def predict(self, images: Any, top: int = 5) -> list[list[Prediction]] | list[Prediction]:
        """The likeliest classes of an image, or of each of several, the likeliest first.

        Args:
            images: a path, a Pillow image, an array of pixels uint8 (h, w, 3) or (3, h, w); or a
                list of such. Where the network was trained on images scaled to a size, so are
                these.
            top: how many classes to name.

        Raises:
            DataError: for a file that is no image. UsageError: for what is none of these.
        """
        several = isinstance(images, Sequence) and not isinstance(images, str)
        rows = list(images) if several else [images]
        found = []
        for row in rows:
            chances = self(self._pixels(row)[None]).double().softmax(-1)[0]
            best = chances.topk(min(top, len(self.classes)))
            found.append(
                [
                    Prediction(self.classes[int(k)], float(p))
                    for p, k in zip(best.values, best.indices, strict=True)
                ]
            )
        return found if several else found[0]

    def _pixels(self, image: Any) -> Tensor:
        """(3, h, w) uint8, scaled as in training."""
        if isinstance(image, str | Path):
            path = Path(image)
            try:
                data = path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"{path} cannot be read: {error.strerror}", "check the path"
                ) from error
            with quiet():
                pixels = torch.from_numpy(decode(data, str(path))[0].copy())
        else:
            array = np.array(image.convert("RGB") if hasattr(image, "convert") else image)
            if array.ndim != 3 or 3 not in (array.shape[0], array.shape[-1]):
                raise UsageError(
                    f"an image of shape {array.shape}",
                    "give a path, a Pillow image, or pixels of shape (h, w, 3)",
                )
            pixels = torch.from_numpy(np.ascontiguousarray(array))
            if array.shape[-1] == 3:
                pixels = pixels.permute(2, 0, 1)
        side = self.config.augment.size
        if side:
            height, width = pixels.shape[1:]
            pixels = resized(pixels.contiguous(), centre_box(int(height), int(width)), side)
        return pixels

    def evaluate(self, split: str = "test", **options: Any) -> Evaluation:
        """Its accuracy on a split of its corpus; options as of `rnnnas.evaluate`,
        but for the device: it is evaluated where it is.

        Raises:
            UsageError: where its weights were changed since it was loaded.
        """
        self.check_as_loaded()
        device = self.get_buffer("mean").device
        return evaluate_from_python(self.path, split, device=device, **options)

    def export(self, format: str, **options: Any) -> Any:
        """Write the model as "onnx", "html", "hf" or "pt2"; options as of `rnnnas export`.

        Raises:
            UsageError: for a model that `rnnnas.load` has not made, or whose weights were changed.
        """
        self.check_as_loaded()
        if self.exporter is None:
            raise UsageError("this model was made without an exporter", "load it by rnnnas.load")
        return self.exporter(self.path, format=format, **options)

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"ImageModel({count:,} parameters, {len(self.classes)} classes of {self.corpus!r})"

    def _repr_svg_(self) -> str:
        return as_svg(self.genotype)


def load_image_model(path: Path, device: torch.device) -> ImageModel:
    """The image network of a best.pt.

    Raises:
        CheckpointError: where the file is missing, damaged, or no image network.
    """
    return ImageModel(rebuild(trained_content(path), path, device), path).to(device)

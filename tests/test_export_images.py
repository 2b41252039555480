"""Exports of image networks against torch: ONNX, the hub's layout, the page's operations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from browser import AVAILABLE, Browser, browser
from sample_models import IMAGE, image_network
from squares import squares
from test_export import needs_onnx

from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.errors import DataError, UsageError
from rnnnas.exporting import onnx_file, verify
from rnnnas.exporting.run import export
from rnnnas.exporting.source import read_source
from rnnnas.exporting.verify import real_images
from rnnnas.runs import hub_folder
from rnnnas.runs.checkpoint import content_digest, load_content, save_content

__all__ = ["browser", "squares"]  # fixtures


@needs_onnx
@pytest.mark.parametrize("kind", ["dense", pytest.param("DARTS_V2", marks=pytest.mark.slow)])
def test_onnx_classifies_images_as_torch_does(
    kind: str, squares: ImageCorpus, tmp_path: Path
) -> None:
    path = image_network(kind, squares, tmp_path / "best.pt")
    result = export(path, format="onnx")
    source = read_source(path)
    assert source.images is not None
    images = np.random.RandomState(0).randint(0, 256, (5, 3, *squares.size), np.uint8)
    (found,) = onnx_file.OnnxRunner(result.path)(images)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in (squares.mean, squares.std))
    inputs = (torch.from_numpy(images).double() / 255 - mean) / std
    expected = source.images.net.double().logits(inputs).softmax(-1).detach()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert result.verified["same_class"] == 100


def test_without_its_corpus_a_network_keeps_the_size_of_its_images(
    squares: ImageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = image_network("dense", squares, tmp_path / "best.pt")

    def gone(name: str) -> ImageCorpus:
        raise DataError(f"there is no corpus {name}", "")

    monkeypatch.setattr(verify, "open_images", gone)
    assert squares.size != (32, 32)
    assert real_images(read_source(path))[0].shape[1:] == (3, *squares.size)
    content = load_content(path)
    del content["size"]  # as earlier versions wrote it
    save_content(path, content)
    with pytest.raises(UsageError, match="how large"):
        real_images(read_source(path))


def test_the_hubs_own_class_reads_and_writes_it(squares: ImageCorpus, tmp_path: Path) -> None:
    from rnnnas.exporting.hub_model import HubModel

    path = image_network("dense", squares, tmp_path / "best.pt")
    result = export(path, format="hf")
    model = HubModel.from_pretrained(str(result.path))
    images = torch.randn(2, 3, *squares.size)
    source = read_source(path)
    assert source.images is not None and model.classes == squares.classes
    torch.testing.assert_close(model(images)[0], source.images.net.logits(images))
    model.save_pretrained(tmp_path / "saved")
    assert content_digest(hub_folder.read_folder(tmp_path / "saved")) == result.digest


@pytest.mark.parametrize(
    "kind",
    [kind if n < 2 else pytest.param(kind, marks=pytest.mark.slow) for n, kind in enumerate(IMAGE)],
)
def test_the_pages_steps_are_the_network(
    kind: str, squares: ImageCorpus, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = image_network(kind, squares, tmp_path / "best.pt")
    result = export(path, format="html", dtype="float32")
    assert result.verified["probability_error"] < 1e-4 and result.verified["same_class"] == 100
    if not AVAILABLE:
        return  # the scripts are tested where there is a browser
    opened: Browser = request.getfixturevalue("browser")
    opened.console(), opened.requests()
    opened.open(result.path)
    assert opened.run("return rnnnas.check.good")
    image = np.random.RandomState(4).randint(0, 256, (3, *squares.size), np.uint8)
    found = opened.run("return rnnnas.classify(arguments[0])", image.flatten().tolist())
    source = read_source(path)
    assert source.images is not None
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (squares.mean, squares.std))
    inputs = (torch.from_numpy(image)[None] / 255 - mean) / std
    expected = source.images.net.logits(inputs)[0].softmax(-1).tolist()
    assert found == pytest.approx(expected, abs=1e-4)
    assert opened.console() == []
    assert opened.requests() == [result.path.resolve().as_uri()]

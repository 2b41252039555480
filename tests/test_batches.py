"""Batches of images: orders, resuming, and what an evaluation sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sample_images import encoded, pixels, small_set, table

from rnnnas.data import image_batches as module
from rnnnas.data.corpus import ImageCorpus, VocabOptions, add_corpus
from rnnnas.data.image_augment import AugmentConfig, augment, centre_box, draw, normalised, resized
from rnnnas.data.image_batches import Batches
from rnnnas.errors import UsageError

CPU = torch.device("cpu")
CONFIG = AugmentConfig(crop_padding=2, cutout=3, jitter=0.3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield add_corpus("x", small_set(folder / "s"), VocabOptions())


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pictures of differing size, kept encoded."""
    folder = tmp_path_factory.mktemp("large")
    for split, count in (("train", 20), ("test", 5)):
        data = [encoded(pixels(i, 100 + i, 120 - i), "JPEG") for i in range(count)]
        columns = {"img": [{"bytes": one} for one in data], "label": [i % 2 for i in range(count)]}
        table(folder / "s" / f"{split}.parquet", columns, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        yield add_corpus("large", folder / "s", VocabOptions())


def made(corpus: ImageCorpus, split: str = "train", size: int = 8) -> Batches:
    return Batches(corpus.splits[split], size, CPU, mean=corpus.mean, std=corpus.std)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_epoch_reads_every_image_once_in_an_order_of_its_own(corpus: ImageCorpus) -> None:
    batches = made(corpus)
    assert len(batches) == 7  # 54 images: six batches of 8 and one of 6
    first = batches.order(0, 5)
    assert sorted(first.tolist()) == list(range(54))
    others = [batches.order(1, 5), batches.order(0, 6), batches.order(5, 0)]
    assert all(not torch.equal(first, other) for other in others)
    assert torch.equal(made(corpus).order(0, 5), first)


def test_a_batch_holds_the_images_of_its_rows(corpus: ImageCorpus) -> None:
    batches, images = made(corpus), corpus.splits["train"]
    mean, std = torch.tensor(corpus.mean), torch.tensor(corpus.std)
    seen = []
    for k in range(7):
        inputs, targets = batches.batch(k, 2, 9, None, seeded(0))
        rows = batches.order(2, 9)[8 * k : 8 * k + 8]
        expected = torch.from_numpy(np.stack([images.decoded(row) for row in rows.tolist()]))
        assert torch.equal(inputs, normalised(expected, mean, std))
        assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert targets.tolist() == [int(images.labels[row]) for row in rows]
        varied = batches.batch(k, 2, 9, CONFIG, seeded(k))
        drawn = draw(CONFIG, expected, seeded(k))
        assert torch.equal(varied.inputs, augment(expected, drawn, CONFIG, mean, std))
        assert torch.equal(varied.targets, targets)
        seen.append(len(targets))
    assert seen == [8] * 6 + [6]
    for k in (-1, 7):
        with pytest.raises(IndexError, match=f"batch {k} of 7"):
            batches.batch(k, 2, 9, None, seeded(0))


def test_a_batch_does_not_depend_on_what_went_before(
    corpus: ImageCorpus, large: ImageCorpus
) -> None:
    scaled = AugmentConfig(resized_crop=True, size=24, jitter=0.2)
    for given, config in ((corpus, CONFIG), (corpus, scaled), (large, scaled)):
        used, fresh = made(given, size=4), made(given, size=4)
        straight = {
            (epoch, k): used.batch(k, epoch, 3, config, seeded(100 * epoch + k))
            for epoch in range(2) for k in range(len(used))
        }  # fmt: skip
        for epoch, k in reversed(straight):
            fresh.in_order(0, side=24)
            again = fresh.batch(k, epoch, 3, config, seeded(100 * epoch + k))
            assert torch.equal(again.inputs, straight[epoch, k].inputs)
            assert torch.equal(again.targets, straight[epoch, k].targets)
        other = fresh.batch(0, 0, 3, config, seeded(77))
        assert not torch.equal(other.inputs, straight[0, 0].inputs)
        print(f"{len(straight)} batches of {given.name} found again")


def test_evaluation_is_in_order_and_plain(corpus: ImageCorpus) -> None:
    batches, images = made(corpus, "test", 5), corpus.splits["test"]
    parts = [batches.in_order(k) for k in range(len(batches))]
    assert [len(part.targets) for part in parts] == [5, 5, 2]
    inputs = torch.cat([part.inputs for part in parts])
    mean, std = torch.tensor(corpus.mean), torch.tensor(corpus.std)
    assert torch.equal(inputs, normalised(torch.from_numpy(np.array(images.data)), mean, std))
    assert torch.cat([part.targets for part in parts]).tolist() == images.labels.tolist()


def test_training_images_are_normal(corpus: ImageCorpus) -> None:
    inputs = torch.cat([made(corpus).in_order(k).inputs for k in range(7)]).double()
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-6)
    assert torch.allclose(inputs.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-6)


def test_what_is_too_large_for_memory_is_read_from_the_map(
    corpus: ImageCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = made(corpus)
    monkeypatch.setattr(module, "RESIDENT", 0)
    mapped = made(corpus)
    assert resident._resident is not None and mapped._resident is None
    for k in range(7):
        for config in (None, CONFIG):
            a, b = (x.batch(k, 1, 4, config, seeded(k)) for x in (resident, mapped))
            assert torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


def test_pictures_are_scaled(large: ImageCorpus, corpus: ImageCorpus) -> None:
    for given in (large, corpus):
        batches, images = made(given, "test", 3), given.splits["test"]
        mean, std = torch.tensor(given.mean), torch.tensor(given.std)
        for k in range(len(batches)):
            inputs, targets = batches.in_order(k, side=32)
            pictures = [images.decoded(row).copy() for row in range(3 * k, 3 * k + len(targets))]
            expected = [
                resized(torch.from_numpy(p), centre_box(*p.shape[1:]), 32) for p in pictures
            ]
            assert torch.equal(inputs, normalised(torch.stack(expected), mean, std))
        config = AugmentConfig(crop_padding=0, flip=False, size=32)
        order = batches.order(0, 0)[:3].tolist()
        middle = batches.batch(0, 0, 0, config, seeded(0)).inputs
        plain = torch.cat([batches.in_order(k, side=32).inputs for k in range(len(batches))])
        assert torch.equal(middle, plain[order])
        anywhere = AugmentConfig(flip=False, resized_crop=True, size=32)
        assert not torch.equal(batches.batch(0, 0, 0, anywhere, seeded(0)).inputs, middle)


def test_what_cannot_be_a_batch_is_refused(large: ImageCorpus) -> None:
    with pytest.raises(UsageError, match="large .train.: images of differing size") as caught:
        made(large).batch(0, 0, 0, AugmentConfig(), seeded(0))
    assert "augment.size" in caught.value.remedy
    with pytest.raises(UsageError, match="0 images a batch"):
        made(large, size=0)


def test_a_part_is_read_as_a_whole(corpus: ImageCorpus) -> None:
    part = corpus.splits["train"].part(10, 30)
    batches = Batches(part, 8, CPU, mean=corpus.mean, std=corpus.std)
    assert len(batches) == 3 and sorted(batches.order(0, 0).tolist()) == list(range(20))
    whole = torch.cat([made(corpus).in_order(k).inputs for k in range(7)])
    found = torch.cat([batches.in_order(k).inputs for k in range(3)])
    assert torch.equal(found, whole[10:30])


@pytest.mark.gpu
def test_batches_are_made_on_the_device(corpus: ImageCorpus) -> None:
    device = torch.device("cuda")
    there = Batches(corpus.splits["train"], 8, device, mean=corpus.mean, std=corpus.std)
    here = made(corpus)
    for config in (None, CONFIG, AugmentConfig(resized_crop=True, size=24)):
        a = there.batch(1, 0, 0, config, seeded(5))
        b = here.batch(1, 0, 0, config, seeded(5))
        assert a.inputs.device.type == "cuda" and a.targets.device.type == "cuda"
        assert torch.allclose(a.inputs.cpu(), b.inputs, rtol=0, atol=1e-5)
        own = torch.Generator(device).manual_seed(1)
        again = torch.Generator(device).manual_seed(1)
        first, second = (there.batch(1, 0, 0, config, g).inputs for g in (own, again))
        assert torch.equal(first, second)

"""What a task of images gives to the jobs: batches, halves, step sizes, masks, scores, presets."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from squares import CPU, search_config, squares, train_config

from rnnnas.cnn.model import ConvNet
from rnnnas.cnn.space import image_spaces
from rnnnas.config.presets import KINDS, preset_names, preset_tables, resolve
from rnnnas.data.corpus import holds_images, open_corpus
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.distributed import Ranks
from rnnnas.engine.job import Position
from rnnnas.engine.pick_task import search_task, train_task
from rnnnas.engine.steps import evaluate
from rnnnas.errors import UsageError
from rnnnas.nas.genotype import Genotype
from rnnnas.optim import ImageAlphaConfig, ImageWeightConfig, WeightConfig, scheduled
from rnnnas.searching.run import SearchJob
from rnnnas.training.run import TrainJob
from rnnnas.types import Batch

__all__ = ["squares"]  # a fixture


def rows_of(images: Any) -> set[bytes]:
    return {images.decoded(row).tobytes() for row in range(len(images))}


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_weights_and_alphas_see_other_images(share: float, squares: ImageCorpus) -> None:
    job = SearchJob(search_config(f"alphas.held_out={share}"), squares, CPU)
    weights, alphas = rows_of(job.train.images), rows_of(job.alpha.images)
    total = len(squares.splits["train"])
    assert len(job.train.images) == int(total * (1 - share))
    assert not weights & alphas and len(weights | alphas) == total
    counts = np.bincount(job.alpha.images.labels, minlength=6)
    assert counts.max() - counts.min() <= 2, "classes in proportion"


def test_a_search_is_measured_on_all_classes_at_once(squares: ImageCorpus) -> None:
    """Also where the validation split came class by class: batches normalise themselves."""
    valid = squares.splits["valid"]
    sorted_rows = valid.rows(np.argsort(valid.labels, kind="stable"))
    corpus = replace(squares, splits={**squares.splits, "valid": sorted_rows})
    job = SearchJob(search_config("valid_images=12", "batches.evaluated=6"), corpus, CPU)
    batches = list(job.valid.read(1))
    assert [sorted(batch.targets.tolist()) for batch in batches] == [list(range(6))] * 2
    whole = SearchJob(search_config("valid_images=0"), corpus, CPU)
    assert rows_of(whole.valid.batches.images) == rows_of(valid)


def test_alphas_by_the_validation_split_and_single_level(squares: ImageCorpus) -> None:
    paper = SearchJob(search_config("alphas.text=valid"), squares, CPU)
    assert rows_of(paper.alpha.images) == rows_of(squares.splits["valid"])
    assert len(paper.train.images) == len(squares.splits["train"])
    single = SearchJob(search_config(method="snas"), squares, CPU)
    assert len(single.train.images) == len(squares.splits["train"])


def test_alpha_batches_go_through_all_their_images_in_orders_of_their_own(
    squares: ImageCorpus,
) -> None:
    job = SearchJob(search_config("batches.size=8", "augment.crop_padding=0", "augment.flip=false"),
                    squares, CPU)  # fmt: skip
    count = len(job.alpha.images) // 8
    labels, inputs = [], []
    for step in range(2 * count):
        batch, start, fresh = job.task.alpha_batch(Position(step=step), 0)
        assert (start, fresh, len(batch.targets)) == (0, True, 8)
        labels.append(batch.targets)
        inputs += [bytes(image.numpy().tobytes()) for image in batch.inputs]
    assert len(set(inputs[: 8 * count])) == 8 * count, "no image twice in a pass"
    assert not torch.equal(torch.cat(labels[:count]), torch.cat(labels[count:]))
    first = job.task.batch(Position(), 1)
    assert not torch.equal(first.targets, labels[0]), "not the order of the weights' half"


def test_a_batch_is_a_function_of_its_place(squares: ImageCorpus) -> None:
    task = train_task(train_config(), squares, CPU, Ranks())
    at = Position(epoch=1, window=2, start=2, step=5)
    one, two = task.batch(at, 1), task.batch(at, 1)
    assert torch.equal(one.inputs, two.inputs) and torch.equal(one.targets, two.targets)
    other = task.batch(replace(at, step=6), 1)  # the same images, varied otherwise
    assert torch.equal(one.targets, other.targets) and not torch.equal(one.inputs, other.inputs)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [(16, 0, 9), (16, 4, 4), (16, 40, 9), (13, 0, 10), (43, 0, 3), (129, 0, 1)],
)
def test_lengths_of_an_epoch(size: int, limit: int, expected: int, squares: ImageCorpus) -> None:
    """130 images: of 43, and of 129, the last batch of one image is left out."""
    assert len(squares.splits["train"]) == 130
    settings = train_config(f"batches.size={size}", f"batches.limit={limit}")
    task = train_task(settings, squares, CPU, Ranks())
    assert task.lengths(0) == task.lengths(3) == [1] * expected


@pytest.mark.parametrize(("images", "batch", "expected"), [(9, 4, 8), (8, 4, 8), (7, 4, 7)])
def test_no_image_of_a_search_is_evaluated_alone(
    images: int, batch: int, expected: int, squares: ImageCorpus
) -> None:
    """It would be normalised by itself, and at one pixel could not be."""
    settings = search_config(f"valid_images={images}", f"batches.evaluated={batch}")
    sizes = [len(b.targets) for b in search_task(settings, squares, CPU, Ranks()).valid.read(1)]
    assert sum(sizes) == expected and min(sizes) > 1


def test_the_step_size_is_that_of_the_schedule(squares: ImageCorpus) -> None:
    """No share of a window's length is in it."""
    job = TrainJob(train_config("weights.lr=0.1", "weights.lr_end=0.01"), squares, CPU)
    for progress in (0.0, 0.5):
        report = job.step(Position(progress=progress), 1, 0.5)
        expected = 0.01 + 0.09 * (1 + math.cos(math.pi * progress)) / 2
        assert report.lr == pytest.approx(0.5 * expected, rel=1e-12)
        assert report.correct is not None and 0 <= int(report.correct[0]) <= report.count == 16


def test_drop_path_grows_with_progress(squares: ImageCorpus) -> None:
    task = train_task(train_config("model.drop_path=0.5"), squares, CPU, Ranks())
    net: Any = task.network(torch.Generator())
    batch = Batch(torch.zeros(2000, 3, 16, 16), torch.zeros(2000, dtype=torch.int64))
    shares = []
    for progress in (0.2, 1.0):
        noise = task.noise(net, batch, torch.Generator().manual_seed(1), progress)
        shares.append(float((noise.paths == 0).float().mean()))
    assert shares == pytest.approx([0.1, 0.5], abs=0.01)


def test_dropout_on_skips_fades_within_a_stage(squares: ImageCorpus) -> None:
    """1 - p while the alphas are frozen, e^-5(p - w) from then on, w the warm-up."""
    config = search_config(
        "stages.ops=[8, 3]", "stages.layers=[2, 3]", "stages.skip_dropout=[0.0, 0.6]",
        "alphas.warmup=0.4", method="p-darts",
    )  # fmt: skip
    job = SearchJob(config, squares, CPU)
    net: Any = job.net
    assert len(net.cells) == 2 and job.task.at(net, 0, 0.1) is net, "no dropout in this stage"
    for progress, left in ((0.0, 1.0), (0.2, 0.8), (0.4, 1.0), (0.8, math.exp(-2))):
        twin: Any = job.task.at(net, 1, progress)
        assert twin.config.skip_dropout == pytest.approx(0.6 * left)
        assert twin.classifier.weight is net.classifier.weight
    seen = []
    forward = ConvNet.forward

    def eigenvalue_stop(self: Any, batch: Batch, *rest: Any) -> Any:
        seen.append((self.config.skip_dropout, len(self.cells), rest[2].skips is not None))
        return forward(self, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConvNet, "forward", eigenvalue_stop)
        job.step(Position(step=3, progress=0.75), 1, 1.0)  # in the middle of the second stage
    expected = 0.6 * math.exp(-5 * 0.1)
    # The alphas' step and the weights' are both masked so.
    assert seen == [(pytest.approx(expected), 3, True)] * 2


def test_scores_count_what_is_right(squares: ImageCorpus) -> None:
    job = TrainJob(train_config(), squares, CPU)
    net: Any = job.net
    score = evaluate(net, job.valid, {})
    right = near = 0
    nats = 0.0
    with torch.no_grad():
        for batch in job.valid.read(1):
            table = net.logits(batch.inputs).double().log_softmax(1)
            nats -= float(table.gather(1, batch.targets[:, None]).sum())
            right += int((table.argmax(1) == batch.targets).sum())
            best = table.topk(5).indices
            near += int((best == batch.targets[:, None]).any(1).sum())
    whole = len(squares.splits["valid"])
    assert (score.correct, score.in_top5, score.tokens) == (right, near, whole)
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.accuracy == pytest.approx(100 * right / score.tokens)
    assert score.measured == {"accuracy": score.accuracy, "loss": score.loss}
    assert score.regret == pytest.approx(1 - score.accuracy / 100)


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_network_that_tells_nothing_apart_is_never_right(
    value: float, squares: ImageCorpus
) -> None:
    job = TrainJob(train_config(), squares, CPU)
    net: Any = job.net
    with torch.no_grad():
        net.classifier.weight.zero_()
        net.classifier.bias.fill_(value)
    score = evaluate(net, job.valid, {})
    assert (score.correct, score.top5) == (0, 0)


# Refusals


def test_settings_and_corpus_must_be_of_a_kind(squares: ImageCorpus) -> None:
    text = open_corpus("tiny")
    for_text: Any = resolve(
        "search", preset="smoke", file=None, settings=[], flags={"corpus": "tiny"}
    )
    with pytest.raises(UsageError, match="for images, and the corpus tiny holds a text"):
        search_task(search_config(), text, CPU, Ranks())
    with pytest.raises(UsageError, match="for text, and the corpus squares holds images"):
        search_task(for_text, squares, CPU, Ranks())
    with pytest.raises(UsageError, match="has one process"):
        search_task(search_config(), squares, CPU, Ranks(0, 2))


def test_pictures_of_any_size_need_one_to_be_scaled_to(squares: ImageCorpus) -> None:
    with pytest.raises(UsageError, match="differ in size"):
        train_task(train_config(), replace(squares, size=None), CPU, Ranks())


def test_which_corpora_hold_images(squares: ImageCorpus) -> None:
    assert holds_images("squares") and holds_images("cifar10")  # the latter not prepared
    assert not any(map(holds_images, ("tiny", "ptb", "hmm", "nosuch", "../x", "")))


# Schedules


def test_schedules_that_end_above_nothing() -> None:
    """The published factor, .97 an epoch for 250 epochs, against a product of factors."""
    steps = ImageWeightConfig(lr=0.1, lr_end=0.1 * 0.97**250, schedule="exponential")
    for epoch in (0, 1, 100, 250):
        assert scheduled(steps, epoch / 250) == pytest.approx(0.1 * 0.97**epoch, rel=1e-9)
    line = ImageWeightConfig(lr=0.3, lr_end=0.1, schedule="linear")
    assert [scheduled(line, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.2, 0.1])
    wave = ImageWeightConfig(lr=0.025, lr_end=0.001)
    assert [scheduled(wave, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.025, 0.013, 0.001])
    text = WeightConfig(lr=20.0, schedule="cosine")
    assert scheduled(text, 0.3) == 20.0 * 0.5 * (1.0 + math.cos(math.pi * 0.3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightConfig(schedule="exponential"), "above 0"),
        (lambda: ImageWeightConfig(schedule="exponential"), "above 0"),
        (lambda: ImageWeightConfig(lr=0.1, lr_end=0.2), "between 0 and weights.lr"),
        (lambda: ImageWeightConfig(schedule="constant", lr_end=0.01), "constant"),
        (lambda: ImageWeightConfig(lr=0), "must be positive"),
    ],
)
def test_schedules_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


# Presets


def of(preset: str, kind: str, *settings: str) -> Any:
    flags = {"corpus": "cifar10", **({"genotype": "DARTS_V2"} if kind == "image-train" else {})}
    return resolve(kind, preset=preset, file=None, settings=settings, flags=flags)


IMAGES = [
    (name, kind) for name in preset_names() for kind in KINDS
    if kind.startswith("image") and kind in preset_tables(name)
]  # fmt: skip
# Of facts and README: searched 1,930,618 weights; DARTS_V2 3.349M without its auxiliary head and
# on ImageNet 4.719M.
SIZES = {
    ("cifar10-darts", "image-search"): 1_930_618, ("cifar10-darts", "image-train"): 3_349_342,
    ("imagenet", "image-train"): 4_718_752,
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), IMAGES)
def test_every_preset_builds_its_network(name: str, kind: str) -> None:
    config = of(name, kind)
    cells = image_spaces(config.model.nodes)
    if kind == "image-train":
        cells = Genotype.from_plain(config.genotype)  # type: ignore[assignment]
    classes = 1000 if name == "imagenet" else 10
    net = ConvNet(config.model, cells, classes, generator=torch.Generator().manual_seed(0))
    beside = net.auxiliary
    own = sum(p.numel() for p in net.parameters())
    own -= 0 if beside is None else sum(p.numel() for p in beside.parameters())
    if (name, kind) in SIZES:
        assert own == SIZES[name, kind]
    assert (beside is not None) == config.model.auxiliary


def test_the_recipes_of_the_paper_for_images() -> None:
    """The published networks, number by number."""
    search = of("cifar10-darts", "image-search")
    assert (search.method, search.epochs, search.batches.size) == ("darts", 50, 64)
    assert (search.model.channels, search.model.layers, search.model.nodes) == (16, 8, 4)
    w = search.weights
    assert (w.lr, w.lr_end, w.schedule) == (0.025, 0.001, "cosine")
    assert (w.momentum, w.weight_decay, w.clip) == (0.9, 3e-4, 5.0)
    assert search.alphas == ImageAlphaConfig(
        lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, held_out=0.5, second_order="exact"
    )
    assert search.order == "exact" and search.augment.cutout == 0
    train = of("cifar10-darts", "image-train")
    m, a = train.model, train.augment
    assert (train.epochs, train.batches.size, m.channels, m.layers) == (600, 96, 36, 20)
    assert (m.auxiliary, m.auxiliary_weight, m.drop_path) == (True, 0.4, 0.2)
    assert (a.cutout, a.crop_padding, a.flip) == (16, 4, True)
    w = train.weights
    assert (w.lr, w.lr_end, w.schedule) == (0.025, 0, "cosine")
    assert (w.momentum, w.weight_decay, w.clip) == (0.9, 3e-4, 5.0)
    large = of("imagenet", "image-train")
    assert (large.epochs, large.batches.size, large.model.channels) == (250, 128, 48)
    assert (large.model.layers, large.model.stem, large.model.label_smoothing) == (
        14, "imagenet", 0.1,
    )  # fmt: skip
    m, w = large.model, large.weights
    assert (m.auxiliary, m.auxiliary_weight, m.drop_path) == (True, 0.4, 0.0)
    assert (w.lr, w.schedule) == (0.1, "exponential")
    assert w.lr_end == pytest.approx(0.1 * 0.97**250, rel=1e-3)
    assert (w.momentum, w.weight_decay, w.clip) == (0.9, 3e-5, 5.0)


def test_the_recipes_of_other_methods_for_images() -> None:
    """P-DARTS, PC-DARTS, GDAS and ProxylessNAS, as their papers and code have them."""
    deep = of("cifar10-p-darts", "image-search")
    assert [(s.ops, s.layers, s.skip_dropout) for s in deep.plan] == [
        (8, 5, 0.1), (5, 11, 0.4), (3, 17, 0.7),
    ]  # fmt: skip
    assert (deep.method, deep.epochs, deep.batches.size) == ("p-darts", 3 * 25, 96)
    assert deep.model.channels == 16
    assert deep.derive.limits == {"normal": {"skip_connect": 2}}
    partial = of("cifar10-pc-darts", "image-search")
    assert (partial.method, partial.epochs, partial.batches.size) == ("pc-darts", 50, 256)
    assert (partial.model.channels, partial.model.layers, partial.model.partial) == (16, 8, 4)
    for config, lr, warmup in ((deep, 0.025, 10 / 25), (partial, 0.1, 15 / 50)):
        w = config.weights
        assert (w.lr, w.lr_end, w.schedule) == (lr, 0, "cosine")
        assert (w.momentum, w.weight_decay, w.clip) == (0.9, 3e-4, 5.0)
        assert config.alphas == ImageAlphaConfig(
            lr=6e-4, betas=(0.5, 0.999), weight_decay=1e-3, held_out=0.5, warmup=warmup
        )
    one = of("cifar10-gdas", "image-search")
    gates = of("cifar10-proxyless", "image-search")
    for config, method, epochs, decay in (
        (one, "gdas", 250, 5e-4), (gates, "proxyless", 50, 3e-4)
    ):  # fmt: skip
        assert (config.method, config.epochs, config.batches.size) == (method, epochs, 64)
        assert (config.model.channels, config.model.layers) == (16, 8)
        w = config.weights
        assert (w.lr, w.lr_end, w.schedule) == (0.025, 0.001, "cosine")
        assert (w.momentum, w.weight_decay, w.clip) == (0.9, decay, 5.0)
    assert one.relax == {"tau_start": 10.0, "tau_end": 0.1, "reach": "sampled"}
    assert one.alphas == ImageAlphaConfig(
        lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3, held_out=0.5
    )
    assert gates.alphas == ImageAlphaConfig(
        lr=1e-3, betas=(0.0, 0.999), weight_decay=0.0, held_out=0.5, warmup=40 / 160
    )
    assert gates.latency.weight == 0


def test_defaults_are_those_of_images(tmp_path: Path) -> None:
    """Also where a file gives a part of a group: not the text's step sizes."""
    file = tmp_path / "own.toml"
    file.write_text("[weights]\nclip = 1.0\n[alphas]\nlr = 0.1\n", encoding="utf-8")
    config: Any = resolve(
        "image-search", preset=None, file=file, settings=[], flags={"corpus": "cifar10"}
    )
    assert (config.weights.lr, config.weights.momentum, config.weights.clip) == (0.025, 0.9, 1.0)
    assert (config.alphas.betas, config.alphas.held_out, config.alphas.lr) == (
        (0.5, 0.999), 0.5, 0.1,
    )  # fmt: skip

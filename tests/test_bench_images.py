"""The benchmark on images: the promised keys, real iterations, and what its limit counts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from rnnnas.bench import images as bench
from rnnnas.cli import main
from rnnnas.data.image_batches import BatchConfig

CPU = torch.device("cpu")
TINY = ("model.channels=4", "model.layers=2", "model.nodes=2", "batches.size=2", "augment.size=8")


def test_the_promised_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["bench", "cnn", "--json"]
    for setting in TINY:
        words += ["--set", setting]
    # In this process: six fresh ones would take longer than all else here.
    monkeypatch.setattr(bench, "apart", lambda run, *args, smaller: run(*args))
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report) == ["first_order"]
    values = report["first_order"]
    assert set(values) == {
        "reference_seconds", "fast_seconds", "ratio", "limit_seconds", "limit_ratio",
        "peak_memory_gb", "reference_peak_memory_gb", "images_per_second",
        *(f"{name}_{what}" for name in bench.VARIANTS for what in ("seconds", "peak_memory_gb")),
    }  # fmt: skip
    assert all(value > 0 for value in values.values())
    assert values["fast_seconds"] == min(
        values["fast_float32_seconds"], values["fast_bfloat16_seconds"]
    )
    assert "2 images of 8 x 8 pixels" in result.stderr


def test_a_process_of_its_own_measures() -> None:
    seconds, gigabytes = bench.apart(bench.measure, bench.Form("fast"), TINY, "cpu", 1)
    assert seconds > 0 and 0.05 < gigabytes < 10


def test_the_defaults_are_the_papers_on_fewer_images() -> None:
    config = bench.config_of(bench.CLASSIC, ())
    assert (config.model.channels, config.model.layers, config.model.nodes) == (16, 8, 4)
    assert config.batches == BatchConfig(size=bench.IMAGES) and config.order == "first"
    assert (config.model.path, config.model.precision) == ("reference", "float32")


def test_all_forms_do_the_same_iteration() -> None:
    """From the same weights the weight step sees the same loss and gradients."""
    ends = {}
    for form in (bench.CLASSIC, *bench.VARIANTS.values()):
        run: Any = bench.iteration(bench.config_of(form, TINY), CPU, form.channels_last)
        loss, norm = run()
        ends[form] = (float(loss.value), float(norm))
    for form, end in ends.items():
        close = 0.1 if form.precision == "bfloat16" else 1e-4
        assert end == pytest.approx(ends[bench.CLASSIC], rel=close), form


def test_the_limit_counts_every_convolution_and_its_gradients() -> None:
    """Against a small network, whose calls can be counted by hand."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    images = torch.randn(2, 3, 6, 6)

    def run() -> None:
        net(images).sum().backward()
        torch.mm(torch.ones(2, 3), torch.ones(3, 5)).relu()

    calls = bench.products(run)
    found = sorted((str(f), args[1].shape, n) for (f, args), n in calls.items())
    assert found == [
        ("aten.convolution.default", (2, 4, 1, 1), 1),
        ("aten.convolution.default", (4, 3, 3, 3), 1),
        ("aten.convolution_backward.default", (2, 3, 6, 6), 1),
        ("aten.convolution_backward.default", (2, 4, 4, 4), 1),
        ("aten.mm.default", (3, 5), 1),
    ]
    masks = {args[1].shape: args[-1] for (f, args), _ in calls.items() if "backward" in str(f)}
    assert masks == {(2, 3, 6, 6): (False, True, False), (2, 4, 4, 4): (True, True, False)}
    assert bench.limit(calls, CPU) > 0


def test_what_is_timed_has_the_layout_of_what_was_called() -> None:
    images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for tensor in (images, images.bfloat16(), images[:, :2], torch.ones(1).expand(4, 4)):
        made = bench._plain(tensor).make(CPU)
        assert made.shape == tensor.shape and made.dtype == tensor.dtype
        assert made.stride() == tensor.stride() or 0 in tensor.stride()

"""The benchmark measures what it says: real iterations, real products, the promised keys."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from click.testing import CliRunner

from rnnnas.bench import recurrent
from rnnnas.cli import main
from rnnnas.errors import UsageError

CPU = torch.device("cpu")
TINY = ("model.hidden=8", "windows.streams=4", "windows.bptt=3", "model.precision=auto")
KEYS = {
    "reference_seconds", "fast_seconds", "ratio", "limit_seconds", "limit_ratio", "peak_memory_gb",
    "reference_peak_memory_gb", "tokens_per_second",
}  # fmt: skip


@pytest.mark.parametrize("what", recurrent.KINDS)
def test_the_promised_keys(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process and of few words: fresh processes take longer than all else here."""
    monkeypatch.setattr(recurrent, "apart", lambda measure, *args: measure(*args))
    for name in ("VOCABULARY", "WIKITEXT"):
        monkeypatch.setattr(recurrent, name, 40)
    monkeypatch.setattr(recurrent, "EVALUATED", 5)
    words = ["bench", what, "--json"]
    for setting in TINY:
        words += ["--set", setting]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report) == list(recurrent.KINDS[what])
    for values in report.values():
        assert set(values) == KEYS
        assert all(value > 0 for value in values.values())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--set", "genotype=GRU"],
        ["search", "--set", "method=gdas"],
        ["growth", "--set", "seed=2"],
    ],
)
def test_what_bench_sets_itself_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(main, ["bench", *words])
    assert result.exit_code == 2 and "bench sets itself" in result.output


def flops(shapes: Counter[recurrent.Product]) -> int:
    return sum(2 * m * k * n * count for (m, k, n, *_), count in shapes.items())


def test_products_of_the_papers_settings() -> None:
    """Against the arithmetic of the paper's setting: 170 GFLOP forward, three times with back."""
    config = recurrent._config("first_order", "fast", ())
    rows, hidden = 35 * 256, 300
    forward = 2 * rows * hidden * (2 * hidden * (2 + 36) + recurrent.VOCABULARY)
    assert flops(recurrent.products("first_order", config, CPU)) == 5 * forward
    for order, passes in (("finite", 13), ("exact", 15)):
        config = recurrent._config("second_order", "fast", (f"alphas.second_order={order}",))
        assert flops(recurrent.products("second_order", config, CPU)) == passes * forward
    config = recurrent._config("train", "fast", ())
    rows, hidden = 35 * 64, 850
    forward = 2 * rows * hidden * (2 * hidden * 10 + recurrent.VOCABULARY)
    assert flops(recurrent.products("train", config, CPU)) == 3 * forward
    rows = recurrent.EVALUATED
    forward = 2 * rows * hidden * (2 * hidden * 10 + recurrent.VOCABULARY)
    assert flops(recurrent.products("eval", config, CPU)) == forward
    config = recurrent._config("loss", "fast", ())
    assert flops(recurrent.products("loss", config, CPU)) == 3 * 2 * 35 * 64 * 700 * 33_278


def test_both_paths_do_the_same_iteration() -> None:
    """The reference and the fast path start from the same weights and end with the same ones."""
    ends = []
    for path in ("reference", "fast"):
        config = recurrent._config("train", path, (*TINY[:3], "model.precision=float32"))
        run = recurrent._iteration("train", config, CPU)
        loss, norm = run()  # type: ignore[misc]
        ends.append((float(loss.value), float(norm)))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


def test_bench_compares_both_paths_whatever_the_precision() -> None:
    for path, precision in (("fast", "bfloat16"), ("reference", "float32")):
        config = recurrent._config("train", path, (*TINY[:3], "model.precision=bfloat16"))
        assert (config.model.path, config.model.precision) == (path, precision)
    with pytest.raises(UsageError, match="model.path is what bench compares"):
        recurrent.bench("train", CPU, settings=("model.path=eager",))


def test_products_of_layers_and_softmaxes() -> None:
    """Two layers have two cells, and two softmaxes two decoders and what mixes them."""
    one = flops(recurrent.products("eval", recurrent._config("eval", "fast", ()), CPU))
    more = ("model.layers=2", "model.softmaxes=2")
    two = flops(recurrent.products("eval", recurrent._config("eval", "fast", more), CPU))
    assert two == 2 * one + 2 * recurrent.EVALUATED * 850 * (2 * 850 + 2)


def test_the_weights_gradients_are_one_product_a_window() -> None:
    shapes = recurrent.products("train", recurrent._config("train", "fast", ()), CPU)
    assert sum(shapes[recurrent.Product(850, 35 * 64, 1700, low)] for low in (False, True)) == 10


def test_products_of_a_step_read_all_its_matrices_in_turn() -> None:
    """One matrix alone would lie in the cache, where those of a whole cell do not."""
    shapes = recurrent.products("eval", recurrent._config("eval", "fast", ("model.layers=2",)), CPU)
    assert shapes[recurrent.Product(1, 850, 1700, False, 2 * 9)] == 2 * 9 * recurrent.EVALUATED

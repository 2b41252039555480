"""Early stopping: the eigenvalue against torch's own Hessian, the rule by hand, whole searches."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_spaces import alphas_of, seeded
from test_blackbox import outcome
from test_runs import CPU, Crash, crashing, metrics, run_through
from tiny_home import corpus as corpus
from tiny_home import find, search_config
from tiny_home import home as home
from torch import Tensor

from rnnnas.config.text import SearchConfig
from rnnnas.data.corpus import Corpus
from rnnnas.errors import UsageError
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.model import ModelConfig, RecurrentLM
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.derive import derive
from rnnnas.nas.early_stopping import EarlyStop, StopConfig, goes_back_to
from rnnnas.nas.hessian import alpha_eigenvalue, largest_eigenvalue
from rnnnas.nas.methods import METHODS
from rnnnas.nas.relax.base import Mixture
from rnnnas.nas.space import recurrent_space
from rnnnas.runs.folder import Run
from rnnnas.searching import eigenvalue_watch
from rnnnas.searching.run import search
from rnnnas.searching.supernet import SearchJob
from rnnnas.types import Batch

pytestmark = pytest.mark.usefixtures("undrawn")  # test_alphas_log looks at images

DOUBLE = torch.float64
V, H, B, T = 11, 4, 4, 3

# The eigenvalue


def network(path: Any) -> tuple[RecurrentLM, Batch, Any]:
    noise = NoiseConfig(dropout=0.3, dropouti=0.2, dropoutx=0.2, dropouth=0.2, dropoute=0.1)
    net = RecurrentLM(
        ModelConfig(hidden=H, nodes=2, path=path), V, recurrent_space(2), noise=noise,
        penalty=PenaltyConfig(ar=1.0, tar=1.0), generator=seeded(0),
    ).to(DOUBLE)  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, dtype=DOUBLE, generator=seeded(p.numel())))
    words = torch.randint(V, (T + 1, B), generator=seeded(1))
    batch = Batch(words[:-1], words[1:])
    return net, batch, net.noise(batch, seeded(2))


@pytest.mark.parametrize("path", ["fast", "eager", "reference"])
@pytest.mark.parametrize("method", ["darts", "pc-darts", "gdas", "drnas", "fair-darts"])
def test_the_eigenvalue_is_that_of_the_whole_hessian(method: str, path: str) -> None:
    """Of all alphas, PC-DARTS' shares of edges too; the penalty of a weight step is no part."""
    net, batch, noise = network(path)
    relaxation = METHODS[method].relaxation()
    alphas = alphas_of(method, net.space)
    sizes = [a.numel() for a in alphas.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split(sizes)
        moved = {n: p.view_as(a) for (n, a), p in zip(alphas.items(), parts, strict=True)}
        table = relaxation.scores(moved, net.space)["recurrent"]
        oracle = network("reference")[0]
        value: Tensor = oracle(batch, None, {"recurrent": Mixture(table)}, noise).value
        return value

    flat = torch.cat([a.detach().reshape(-1) for a in alphas.values()])
    hessian = torch.autograd.functional.hessian(loss, flat)
    exact = torch.linalg.eigvalsh(hessian)
    assert float(exact[-1]) > 1e-4 and float(exact[0]) < -1e-6
    found = alpha_eigenvalue(net.twice(), relaxation, alphas, batch, noise)
    assert found == pytest.approx(float(exact[-1]), rel=1e-6)
    assert all(a.grad is None for a in alphas.values())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert net.config.path == path


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalue_of_a_quadratic_form(seed: int) -> None:
    """The largest, not the largest in magnitude; among equal ones and down to one alpha too."""
    rng = random.Random(seed)
    size = rng.randint(2, 30)
    turn = torch.linalg.qr(torch.randn(size, size, dtype=DOUBLE, generator=seeded(seed)))[0]
    values = torch.tensor([rng.uniform(-9, 2) for _ in range(size)], dtype=DOUBLE)
    values[0] = values[1] = values.max() + 0.1
    matrix = turn @ torch.diag(values) @ turn.T

    def loss(alphas: Any) -> Tensor:
        flat = torch.cat([alphas["a"], alphas["b"].reshape(-1)])
        form: Tensor = 0.5 * flat @ matrix @ flat
        return form

    point = torch.randn(size, dtype=DOUBLE, generator=seeded(9))
    found = largest_eigenvalue(loss, {"a": point[:1], "b": point[1:].view(-1, 1)})
    assert found == pytest.approx(float(values.max()), rel=1e-6, abs=1e-6)
    one = largest_eigenvalue(lambda a: -2 * a["x"].square().sum(), {"x": point[:1]})
    assert one == pytest.approx(-4)


def test_a_loss_without_curvature_and_one_without_a_number() -> None:
    point = {"x": torch.ones(3), "idle": torch.ones(2)}
    assert largest_eigenvalue(lambda a: a["x"].sum(), point) == 0
    assert largest_eigenvalue(lambda a: a["x"].pow(3).sum(), point) == pytest.approx(6)
    assert math.isnan(largest_eigenvalue(lambda a: (a["x"] - 1).abs().sqrt().sum(), point))


def test_the_eager_twin_shares_weights() -> None:
    net, batch, noise = network("fast")
    twin = net.twice()
    assert twin.config.path == "eager" and net.config.path == "fast"
    assert (
        twin.first is net.first
        and dict(twin.named_parameters()).keys() == dict(net.named_parameters()).keys()
    )
    mixture = {"recurrent": Mixture(torch.full((3, 5), 0.2, dtype=DOUBLE))}
    values = [n(batch, None, mixture, noise).value.detach() for n in (net, twin)]
    torch.testing.assert_close(*values)


# The rule


def test_the_rule_by_hand() -> None:
    """f = 2, window 5: after epoch 22 the averages of epochs 18 (14 to 22) and 10 (6 to 14)."""
    config = StopConfig(eigenvalue=True)
    flat = [9.0, 9.0] + [1.0] * 7  # of epochs 2 and 4, and 6 to 18
    assert goes_back_to(config, [*flat, 3.0]) is None  # the older would be epoch 8: too early
    assert goes_back_to(config, [*flat, 1.0, 3.0]) == 10  # 1.4 over 1
    assert goes_back_to(config, [*flat, 1.0, 2.4]) is None  # 1.28
    assert goes_back_to(config, [*flat, 1.0, 1.0, 3.0]) == 12
    early = dataclasses.replace(config, earliest=8)
    assert goes_back_to(early, [*flat, 3.0]) is None  # 1.4 over 2.6: the oldest counts, at epoch 4
    assert goes_back_to(early, [9.0, *flat[2:], 1.0, 3.0]) == 8
    assert goes_back_to(dataclasses.replace(early, ratio=0.5), [*flat, 3.0]) == 8
    every = dataclasses.replace(config, every=5)
    assert goes_back_to(every, [1.0] * 8 + [9.0]) == 15  # 45 - 30
    assert goes_back_to(every, [1.0] * 7 + [9.0]) is None  # too few reports


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_as_the_paper_has_it(seed: int) -> None:
    rng = random.Random(seed)
    f, window = rng.randint(1, 4), rng.choice([1, 3, 5, 7])
    config = StopConfig(every=f, window=window, earliest=rng.randint(0, 12), ratio=1.1)
    at: dict[int, float] = {}
    values: list[float] = []
    ends = []
    for epoch in range(f, 30 * f, f):
        at[epoch] = rng.uniform(0.1, 2)
        values.append(at[epoch])

        def mean(centre: int) -> float | None:
            around = [at.get(centre + k * f) for k in range(-(window // 2), window // 2 + 1)]
            known = [value for value in around if value is not None]
            return sum(known) / window if len(known) == window else None

        centre = epoch - f * (window // 2)
        now, then = mean(centre), mean(centre - 4 * f)
        stops = (
            now is not None and then is not None
            and centre - 4 * f >= config.earliest and now / then > 1.1
        )  # fmt: skip
        assert goes_back_to(config, values) == (centre - 4 * f if stops else None)
        ends.append(stops)
    assert any(ends) and not all(ends)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_no_ratio_to_speak_of_stops_nothing(bad: float) -> None:
    config = StopConfig(window=1, every=1, earliest=0)
    assert goes_back_to(config, [1.0, 1.0, 1.0, 1.0, 2.0]) == 1
    assert goes_back_to(config, [bad, 1.0, 1.0, 1.0, 2.0]) is None
    assert goes_back_to(config, [1.0, 1.0, 1.0, 1.0, bad]) is None
    assert goes_back_to(config, [1.0, 1.0, 1.0, 1.0, math.inf]) is None


def test_a_stop_knows_its_cell_and_its_state_is_plain() -> None:
    rule = EarlyStop(StopConfig(window=1, every=3, earliest=0))
    assert [epoch for epoch in range(1, 10) if rule.due(epoch)] == [3, 6, 9]
    stops = []
    for number, value in enumerate([1.0, 1.0, 1.0, 1.0, 1.0, 2.0], start=1):
        fresh = EarlyStop(rule.config)
        fresh.restore(json.loads(json.dumps(rule.state())))
        assert fresh.told() == {} and fresh.genotype is None
        rule = fresh
        stops.append(rule.report(3 * number, value, {"number": number}))
    assert stops == [False] * 5 + [True]
    assert rule.told() == {"stopped_at_epoch": 18, "genotype_epoch": 6}
    assert rule.genotype == {"number": 2}


# Whole searches

SMALL = ["model.hidden=6", "model.nodes=2", "windows.streams=6", "valid_streams=6", "epochs=6"]
SMALL += ["windows.limit=2", "model.precision=float32", "stop.eigenvalue=true", "stop.every=1"]
SMALL += ["alphas.lr=0.5", "stop.window=1", "stop.earliest=0"]  # 5 reports, back by 4
SMALL += ["stop.steps=5"]


def config(*settings: str) -> SearchConfig:
    return search_config(*SMALL, *settings, method="darts-1st")


def test_a_search_ends_early_with_the_cell_of_then_and_resumes_exactly(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, cells = SearchJob.end_epoch, {}

    def spy(self: Any, at: Any, run: Any) -> dict[str, float]:
        values = original(self, at, run)
        if at.epoch + 1 < 5:
            cells[at.epoch + 1] = derive(self.relaxation, self.alphas, self.net.space).to_plain()
        return values

    always = "stop.ratio=0.0001"
    with monkeypatch.context() as patch:
        patch.setattr(SearchJob, "end_epoch", spy)
        whole = find(config(always, "save_seconds=1000"), corpus, tmp_path / "whole")
    assert whole["stopped_at_epoch"] == 5 and whole["genotype_epoch"] == 1
    assert whole["genotype"] == cells[1] and cells[1] != cells[4], "the case must tell them apart"
    assert json.loads((tmp_path / "whole/genotype.json").read_text()) == cells[1]
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["stopped_at_epoch"] == 5 and result["genotype_epoch"] == 1
    epochs = [line for line in metrics(tmp_path / "whole") if line["kind"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5]
    assert all(line["alpha_eigenvalue"] is not None for line in epochs)
    for seconds in ("0", "1000"):
        with monkeypatch.context() as patch:
            crashing(patch, SearchJob, [0, 5, 8])
            finish, left = Run.finish, [1]

            def dying(self: Run, *given: Any, finish: Any = finish, left: Any = left) -> None:
                if left:
                    left.pop()
                    raise Crash
                finish(self, *given)

            patch.setattr(Run, "finish", dying)  # the search itself is over then
            settings = config(always, f"save_seconds={seconds}")
            again, crashes = run_through(search, settings, corpus, tmp_path / seconds)
        assert crashes == 4
        for key in ("digest", "valid_perplexity", "stopped_at_epoch", "genotype_epoch", "cell"):
            assert again[key] == whole[key]
        assert outcome(tmp_path / seconds) == outcome(tmp_path / "whole")


def test_looking_changes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    """Reports without a stop: the search ends as it would have without them."""
    without = find(config("stop.eigenvalue=false", "epochs=5"), corpus, tmp_path / "without")
    lines = [line for line in metrics(tmp_path / "without") if line["kind"] == "epoch"]
    assert len(lines) == 5 and not any("alpha_eigenvalue" in line for line in lines)
    sparse = find(config("stop.every=2", "epochs=5"), corpus, tmp_path / "sparse")
    assert sparse["digest"] == without["digest"]
    assert set(sparse) == set(without) and "stopped_at_epoch" not in without
    lines = [line for line in metrics(tmp_path / "sparse") if line["kind"] == "epoch"]
    assert [line["epoch"] for line in lines if "alpha_eigenvalue" in line] == [2, 4]


def test_every_report_sees_the_same_window_and_masks(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = SearchJob(config("stop.streams=4", "stop.steps=5", "noise.dropout=0.5"), corpus, CPU)
    assert job.eigenvalue_stop is not None
    original, seen = eigenvalue_watch.alpha_eigenvalue, []

    def spy(net: Any, relaxation: Any, alphas: Any, batch: Batch, noise: Any) -> float:
        seen.append((batch, noise))
        assert net.config.path == "eager" and net.config.precision == "float32"
        return original(net, relaxation, alphas, batch, noise)

    monkeypatch.setattr(eigenvalue_watch, "alpha_eigenvalue", spy)
    first, second = (
        job.eigenvalue_stop.look(epoch, job.net, job.alphas, job.genotype(), job.ranks)
        for epoch in (1, 2)
    )
    assert first == second and first["alpha_eigenvalue"] > 0
    (batch, noise), (_, other) = seen
    assert batch.inputs.shape == (5, 4) and torch.equal(noise.outputs, other.outputs)
    train = corpus.splits["train"]
    assert batch.inputs[:, 0].tolist() == train[int(len(train) * 0.9) :][:5].tolist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=proxyless-reinforce"], "needs alphas that gradients move"),
        (["method=p-darts"], "one stage"),
        (["stop.every=10"], "there would be no report"),
        (["stop.every=0"], "stop.every = 0"),
        (["stop.window=4"], "must be odd"),
        (["stop.ratio=0"], "stop.ratio = 0"),
        (["stop.streams=1"], "at least 2"),
        (["stop.earliest=-1"], "stop.earliest = -1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        search_config(*SMALL, *settings)


def test_a_time_budget_has_no_epochs_to_count() -> None:
    with pytest.raises(UsageError, match="a time budget has none"):
        search_config("stop.eigenvalue=true", "seconds=60", method="darts-1st")

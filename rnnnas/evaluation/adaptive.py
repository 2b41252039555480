"""Evaluation that learns from the text as it goes by: dynamic evaluation, the cache, or both.

Their parameters are chosen on validation text and on nothing else, and kept beside the checkpoint.
All of it reads a text as one stream: the texts of several streams would share one set of weights,
and a step that suits one stream does not suit ten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from rnnnas.config.plain import from_plain, to_plain
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.metrics import Score
from rnnnas.engine.steps import EVALUATION_STEPS
from rnnnas.errors import CheckpointError, DiskError, DivergedError, UsageError
from rnnnas.evaluation.dynamic import Dynamic, DynamicConfig, gradient_rms
from rnnnas.evaluation.log_probs import Scores, score
from rnnnas.evaluation.neural_cache import Cache, CacheConfig, mixed, with_cache
from rnnnas.lm.model import RecurrentLM
from rnnnas.runs.files import json_plain
from rnnnas.runs.progress import Progress
from rnnnas.runs.sealed import digest_of, open_sealed, write_sealed
from rnnnas.types import HiddenState

T = TypeVar("T")

# What is tried. Dynamic evaluation goes downhill from its defaults, in lr, then in epsilon, then in
# decay; the cache tries every combination, which costs little: the outputs are computed once.
TARGETS = 10_000  # of the validation text, from its beginning: enough to tell neighbours apart
LRS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
EPSILONS = (2e-5, 6e-5, 2e-4, 6e-4, 2e-3)
DECAYS = (0.0, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SIZES = (100, 500, 2000)
THETAS = (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)
DEFAULT = DynamicConfig()


def evaluate_adapting(
    net: RecurrentLM,
    text: Streams,
    corpus: Callable[[], Corpus],
    *,
    dynamic: bool,
    cache: bool,
    saved: Path,
    digest: str,
    quiet: bool = False,
    given: Mapping[str, Any] | None = None,
) -> tuple[Score, dict[str, Any]]:
    """The loss over `text`, one stream, and the parameters that were used.

    Args:
        corpus: opens the corpus the network was trained on, where it is needed: its training text
            for the gradient statistics, its validation text to choose parameters by.
        saved: where chosen parameters are kept; those of another `digest` are not used.
        given: settings of dynamic evaluation that are taken as they are; the others are chosen.

    Returns:
        The score, and `dynamic` and `cache`, for those that are on: their parameters with
        valid_perplexity, valid_plain_perplexity and valid_tokens. With both on, the cache's are
        chosen on top of the dynamic evaluation.

    Raises:
        DivergedError: where the loss is not finite. UsageError: for a setting that makes no sense.
    """
    kept = _Kept(saved, digest, quiet, given)
    work = Adapting(net, corpus, text.device, quiet, kept, given)
    report: dict[str, Any] = {}
    moving: DynamicConfig | None = None
    if dynamic:
        moving, report["dynamic"] = kept.get("dynamic", DynamicConfig, work.tune_dynamic)
    memory: CacheConfig | None = None
    if cache:
        name = "both" if dynamic else "cache"
        memory, report["cache"] = kept.get(name, CacheConfig, lambda: work.tune_cache(moving))
    scores = work.scores(text, moving, "evaluate")
    if memory is not None and memory.share:
        scores = cached(scores, memory)
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for window in scores:
        total -= window.log_probs.sum(dtype=torch.float64).cpu()
        tokens += window.targets.numel()
    result = Score(nats=float(total), tokens=tokens)
    if not math.isfinite(result.loss):
        raise DivergedError(
            "the loss became non-finite on this text",
            "evaluate it without --dynamic: steps that suit the validation text are too long here"
            if dynamic
            else "",
        )
    return result, report


def cached(scores: Iterable[Scores], config: CacheConfig) -> Iterator[Scores]:
    """The same scores with the cache's part mixed in, in longer windows."""
    cache = Cache(config.size, config.theta)
    for window in joined(scores, EVALUATION_STEPS):
        yield with_cache(window, cache, config.share)


def joined(scores: Iterable[Scores], steps: int) -> Iterator[Scores]:
    """The same scores in windows of `steps` or a few more: the cache runs faster on long ones."""
    waiting: list[Scores] = []
    for window in scores:
        waiting.append(window)
        if sum(len(s.targets) for s in waiting) >= steps:
            yield Scores(*map(torch.cat, zip(*waiting, strict=True)))
            waiting = []
    if waiting:
        yield Scores(*map(torch.cat, zip(*waiting, strict=True)))


def climb(values: Sequence[T], start: T, loss: Callable[[T], float]) -> T:
    """The value that is reached from `start` by going to a neighbour as long as that is better."""
    at = values.index(start)
    for step in (1, -1):
        while 0 <= at + step < len(values) and loss(values[at + step]) < loss(values[at]):
            at += step
    return values[at]


@final
class Adapting:
    """A network with what its adapting evaluations need, computed at first use."""

    def __init__(
        self, net: RecurrentLM, corpus: Callable[[], Corpus], device: torch.device, quiet: bool,
        kept: _Kept | None = None, given: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._net, self._open, self._device, self._quiet = net, corpus, device, quiet
        self._kept = kept
        self._given = dict(given or {})
        self._start = _start(self._given)

    @cached_property
    def _corpus(self) -> Corpus:
        return self._open()

    @cached_property
    def valid(self) -> Streams:
        """The text that parameters are chosen by."""
        return Streams(self._corpus.splits["valid"][: TARGETS + 1], 1, self._device, "")

    @cached_property
    def valid_plain(self) -> list[Scores]:
        """The validation text under the network as it is."""
        return list(self.scores(self.valid, None, "validation text"))

    @cached_property
    def rms(self) -> dict[str, Tensor]:
        """The gradient statistics of the training text."""
        tokens = self._corpus.splits["train"]
        start = self._start
        side = max(1, min(start.streams, len(tokens) // (start.steps + 1)))
        streams = Streams(tokens, side, self._device, "")
        windows = streams.windows(start.steps)[: start.windows]
        with Progress("gradient statistics", len(windows), quiet=self._quiet) as bar:

            def batches() -> Iterator[Any]:
                for done, window in enumerate(windows):
                    yield streams.window(*window)
                    bar.update(done + 1)

            return gradient_rms(self._net, batches())

    def scores(
        self, streams: Streams, config: DynamicConfig | None, title: str
    ) -> Iterator[Scores]:
        """The windows of a text, scored by the network, or as its weights follow the text."""
        # With a step of 0 the weights stay where they are.
        moving = Dynamic(self._net, self.rms, config) if config and config.lr else None
        hidden_state: HiddenState = None
        nats, done = 0.0, 0
        total = streams.streams * (streams.length - 1)
        with Progress(title, total, unit="tokens", quiet=self._quiet) as bar:
            for window in streams.windows(moving.config.steps if moving else EVALUATION_STEPS):
                batch = streams.window(*window)
                if moving:
                    result, hidden_state = moving.score(batch, hidden_state)
                else:
                    result, hidden_state = score(self._net, batch, hidden_state)
                yield result
                nats -= float(result.log_probs.sum())
                done += batch.targets.numel()
                bar.update(done, perplexity=Score(nats=nats, tokens=done).perplexity)

    def tune_dynamic(self) -> dict[str, Any]:
        """The parameters of least loss on the validation text, as plain values."""
        losses: dict[DynamicConfig, float] = {}
        if "lr" not in self._given:  # no better than without: then without
            still = replace(self._start, lr=0.0, decay=0.0)
            losses[still] = _loss(self.valid_plain)

        def loss(config: DynamicConfig) -> float:
            known = self._kept.trial(config) if self._kept else None
            if config not in losses and known is not None:
                losses[config] = known
            if config not in losses:
                values = (f"{name} {getattr(config, name):g}" for name in grids)
                title = f"choose dynamic: {', '.join(values)}"
                losses[config] = _loss(self.scores(self.valid, config, title))
                if self._kept:
                    self._kept.note(config, losses[config])
            return losses[config]

        grids = {"lr": LRS, "epsilon": EPSILONS, "decay": DECAYS}
        at = self._start
        for name, values in grids.items():
            if name in self._given:
                continue
            row = [from_plain(DynamicConfig, {**asdict(at), name: value}) for value in values]
            at = climb(row, at, loss)
        loss(at)  # where nothing is left to choose
        best = min(losses, key=losses.__getitem__)  # the first of equals
        return self._report(best, losses[best])

    def tune_cache(self, dynamic: DynamicConfig | None) -> dict[str, Any]:
        """The cache's parameters of least loss on the validation text, as plain values.

        dynamic: how the weights follow the text below the cache; None: not at all.
        """
        still = dynamic is None or not dynamic.lr
        scored = self.valid_plain if still else self.scores(self.valid, dynamic, "validation text")
        windows = list(joined(scored, EVALUATION_STEPS))
        log_probs = torch.cat([s.log_probs for s in windows]).double()
        best = CacheConfig(share=0.0)  # no better than without: then without
        least = -float(log_probs.mean())
        trials = [(size, theta) for size in SIZES for theta in THETAS]
        with Progress("choose cache", len(trials), unit="trials", quiet=self._quiet) as bar:
            for done, (size, theta) in enumerate(trials):
                cache = Cache(size, theta)
                parts = [cache.log_probs(s.outputs, s.targets) for s in windows]
                table = torch.cat(parts).double()
                for share in SHARES:
                    loss = -float(mixed(log_probs, table, share).mean())
                    if loss < least:
                        best, least = CacheConfig(size=size, theta=theta, share=share), loss
                bar.update(done + 1, perplexity=_perplexity(least))
        return self._report(best, least)

    def _report(self, config: DynamicConfig | CacheConfig, loss: float) -> dict[str, Any]:
        return {
            **asdict(config),
            "valid_perplexity": _perplexity(loss),
            "valid_plain_perplexity": _perplexity(_loss(self.valid_plain)),
            "valid_tokens": sum(s.targets.numel() for s in self.valid_plain),
        }


def _start(given: Mapping[str, Any]) -> DynamicConfig:
    """Where the choice begins: the defaults, and what was given."""
    return from_plain(DynamicConfig, {**asdict(DEFAULT), **given}, "dynamic.")


def _loss(scores: Iterable[Scores]) -> float:
    """Mean nats a target; infinite, without reading on, once it is no number."""
    nats, tokens = 0.0, 0
    for window in scores:
        nats -= float(window.log_probs.sum(dtype=torch.float64))
        tokens += window.targets.numel()
        if not math.isfinite(nats):
            return math.inf
    return nats / tokens


def _perplexity(loss: float) -> float:
    return Score(nats=loss, tokens=1).perplexity


@final
class _Kept:
    """Chosen parameters on disk: {"digest", "tried", "trials", "dynamic", "cache", "both"}.

    trials: the losses of dynamic evaluation on the validation text, so that what is stopped goes
    on. What is another checkpoint's, or chosen among other values, is chosen anew; so is what
    cannot be read. What is chosen beside given settings has a file of its own.
    """

    def __init__(
        self, path: Path, digest: str, quiet: bool, given: Mapping[str, Any] | None = None
    ) -> None:
        self._path, self._quiet = path, quiet
        self._unkept = False  # whether it was said that nothing can be written
        tried: list[Any] = [TARGETS, LRS, EPSILONS, DECAYS, SIZES, THETAS, SHARES]
        tried += [asdict(_start(given or {})), sorted(given or {})]
        self._content: dict[str, Any] = {"digest": digest, "tried": json_plain(tried)}
        if given:
            of = digest_of(json_plain(dict(given)))[:8]
            self._path = path = path.with_name(f"{path.stem}-{of}{path.suffix}")
        if path.exists():
            try:
                content, sealed = open_sealed(path, "")
                if sealed is None:
                    self._say(f"{path} has no seal: its parameters are chosen anew")
                elif self._content.items() <= content.items():
                    self._content = content
            except CheckpointError as error:
                self._say(f"{error.cause}: its parameters are chosen anew")

    def _say(self, text: str) -> None:
        Progress("dynamic", 0, quiet=self._quiet).line(text)

    def get(
        self, name: str, cls: type[T], tune: Callable[[], dict[str, Any]]
    ) -> tuple[T, dict[str, Any]]:
        """What was chosen for `name`, or what `tune` chooses now, which is then kept: the
        configuration, and the report that holds its values.
        """
        with suppress(UsageError, KeyError):
            return self._parsed(name, cls)
        self._content[name] = tune()
        self._write(name)
        return self._parsed(name, cls)

    def trial(self, config: DynamicConfig) -> float | None:
        """The loss that `note` was told for this configuration; None where there is none."""
        trials = self._content.get("trials")
        found = trials.get(_key(config)) if isinstance(trials, dict) else None
        return float(found) if isinstance(found, int | float) else None

    def note(self, config: DynamicConfig, loss: float) -> None:
        """Keep a trial; one that was no number is made again."""
        if not math.isfinite(loss):
            return
        trials = self._content.get("trials")
        self._content["trials"] = {**(trials if isinstance(trials, dict) else {})}
        self._content["trials"][_key(config)] = loss
        self._write("trials")

    def _write(self, name: str) -> None:
        try:
            write_sealed(self._path, self._content)
        except DiskError as error:  # the evaluation is not lost for that
            if not self._unkept:
                bar = Progress(name, 0, quiet=self._quiet)
                bar.line(f"the chosen parameters are not kept: {error.cause}")
            self._unkept = True

    def _parsed(self, name: str, cls: type[T]) -> tuple[T, dict[str, Any]]:
        report = self._content[name]
        settings = _settings(report)
        config = from_plain(cls, settings)
        if to_plain(config) != settings:
            raise UsageError(f"settings of {name!r} are missing")
        return config, report


def _key(config: DynamicConfig) -> str:
    return " ".join(f"{name}={value!r}" for name, value in asdict(config).items())


def _settings(report: Any) -> Any:
    """The settings of a report: all but what says how they did on validation text."""
    if not isinstance(report, dict):
        return report
    return {key: value for key, value in report.items() if not key.startswith("valid_")}

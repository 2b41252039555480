"""The settings of a search and of a training on text, composed of the components' own."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rnnnas.config.method import MethodChoice
from rnnnas.config.plain import at_least as _at_least
from rnnnas.config.plain import fixed
from rnnnas.config.plain import from_plain as from_plain
from rnnnas.config.plain import merge as merge
from rnnnas.config.plain import to_plain as to_plain
from rnnnas.config.plain import to_toml as to_toml
from rnnnas.data.text_streams import WindowConfig
from rnnnas.errors import UsageError
from rnnnas.lm.cell import check_cell
from rnnnas.lm.fast.known import reason_against
from rnnnas.lm.loss import PenaltyConfig
from rnnnas.lm.lstm_gru import Baseline
from rnnnas.lm.model import ModelConfig
from rnnnas.lm.noise import NoiseConfig
from rnnnas.nas.derive import DeriveConfig
from rnnnas.nas.early_stopping import StopConfig
from rnnnas.nas.genotype import CellGene, Genotype
from rnnnas.nas.halving import SelectConfig
from rnnnas.nas.latency_price import LatencyConfig
from rnnnas.nas.methods import method_of
from rnnnas.nas.space import RECURRENT_OPS, CellSpace, Output, recurrent_space
from rnnnas.nas.stages import Stage, StageConfig, plan
from rnnnas.nas.strategies import BlackboxConfig
from rnnnas.optim import AlphaConfig, WeightConfig

NO_CELL = "say which cell is trained, as --genotype DARTS_V2, LSTM, or a search's run folder"
WITHOUT_RESULT = ("save_seconds", "capture")  # settings that act, though on no result

BY_BUDGET = {"epochs", "least_steps"}  # settings that a time budget takes the place of


def check_length(config: SearchConfig | TrainConfig) -> None:
    """Refuse a length of a run that is none, or said twice."""
    _at_least(
        least_steps=(config.least_steps, 0), seed=(config.seed, 0),
        save_seconds=(config.save_seconds, 0),
    )  # fmt: skip
    if config.seconds < 0:
        raise UsageError(f"seconds = {config.seconds} must not be negative")
    if config.seconds and config.weights.finetune_epochs:
        raise UsageError(
            f"seconds = {config.seconds:g} plans no weights.finetune_epochs",
            "leave them out, or give --epochs instead of a time",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """Which recurrent cells a search may find; by default those of DARTS.

    ops: operations of an edge, of those that are registered, where `none` leaves the edge out; -;
        names, each once; those of the DARTS paper
    nodes: N, another name of `model.nodes`, which holds the number; nodes; 1 or more, 0 to leave
        it; 0, so that one place holds it
    edges_per_node: k, edges that a node keeps, or all where it has fewer; edges; 1 or more; 1 as
        in the DARTS paper
    join: what a node takes of its k edges, "mean" or "sum"; a mean keeps the size of a state
    output: what a cell gives, the "mean" of its nodes, the "last" one, or the mean of the
        "loose_ends", which no node takes (ENAS); the mean as in the DARTS paper
    """

    ops: tuple[str, ...] = RECURRENT_OPS
    nodes: int = 0
    edges_per_node: int = 1
    join: Literal["mean", "sum"] = "mean"
    output: Output = "mean"

    def __post_init__(self) -> None:
        if self.nodes < 0:
            raise UsageError(f"space.nodes = {self.nodes} must be at least 1")
        if self.edges_per_node < 1:
            raise UsageError(f"space.edges_per_node = {self.edges_per_node} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(MethodChoice):
    """One search of a recurrent cell on a text.

    corpus: name of the text that is searched on; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    method: how the cell is searched; -; a name that `rnnnas search --help` lists; darts is what
        other methods are compared with
    seed: decides every random draw; -; 0 or more; one number as good as another
    epochs: passes over the text that the weights are trained on, each at most `windows.limit`
        windows long; passes; 1 or more; 50 as in the DARTS paper
    least_steps: where so many epochs have fewer steps, there are more epochs; steps; 0 or more, 0
        for no more; what a preset means on PTB, so that a small text is not left untrained
    seconds: a time budget that decides on the steps instead of epochs; seconds; 0 or more, 0 for
        none; epochs are what papers state
    valid_streams: texts read side by side when validation is measured; streams; 2 or more, since a
        search normalises over streams; fast, and short texts still have enough of them
    output_bias: what the bias of the output begins with, "zeros", or the log "frequencies" of the
        training text, so that a network begins as good as a unigram model; zeros as in the DARTS
        paper, though short searches gain by the other
    save_seconds: time between two saved states; seconds; 0 or more, 0 after every step; a crash
        then costs a minute at most
    capture: whether a window's kernels run as one CUDA graph, "auto" where that pays; it is slower
        nowhere
    space: which cells may be found
    model: sizes of the network, and how it is computed
    noise: dropout
    penalty: activation regularisation
    windows: how the training text is cut
    weights: the optimiser of the weights
    alphas: the optimiser of the alphas, and the data they are trained on
    stages: stages in which the space shrinks and the network grows
    relax: the method's own settings
    blackbox: how methods that try cells one by one go about it
    latency: the price of latency
    derive: how cells are read off the alphas
    stop: early stopping by the eigenvalue of the alphas' Hessian
    select: what decides which cell is returned
    """

    corpus: str
    method: str = "darts"
    seed: int = 1
    epochs: int = 50
    least_steps: int = 0
    seconds: float = 0.0
    output_bias: Literal["zeros", "frequencies"] = "zeros"
    valid_streams: int = 64
    save_seconds: float = 60.0
    capture: Literal["auto", "on", "off"] = "auto"
    space: SpaceConfig = field(default_factory=SpaceConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)
    alphas: AlphaConfig = field(default_factory=AlphaConfig)
    stages: StageConfig = field(default_factory=StageConfig)
    relax: dict[str, Any] = field(default_factory=dict)
    blackbox: BlackboxConfig = field(default_factory=BlackboxConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    derive: DeriveConfig = field(default_factory=DeriveConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    select: SelectConfig = field(default_factory=SelectConfig)

    def __post_init__(self) -> None:
        if self.space.nodes:  # one place holds the number, under the name that it always had
            model = dataclasses.replace(self.model, nodes=self.space.nodes)
            object.__setattr__(self, "model", model)
            object.__setattr__(self, "space", dataclasses.replace(self.space, nodes=0))
        _ = self.cell_space  # refuses unknown operations
        _ = self.relaxation  # refuses an unknown method or setting of one
        # Settings that the components share with a training but that a search has no place for.
        fixed(
            "search",
            model__layers=(self.model.layers, 1),
            noise__weightdrop=(self.noise.weightdrop, 0.0),
            weights__finetune_epochs=(self.weights.finetune_epochs, 0),
            weights__nonmono=(self.weights.nonmono, 0),
        )
        _at_least(epochs=(self.epochs, 1), valid_streams=(self.valid_streams, 2))
        check_length(self)
        if len(self.plan) == 1 and (self.stages.hidden or self.stages.dropouth):
            raise UsageError(
                "stages.hidden and stages.dropouth are for several stages, and this search has one",
                "say model.hidden and noise.dropouth, or add stages with --set stages.ops=[5,3]",
            )
        if self.windows.streams < 2:
            raise UsageError("windows.streams must be at least 2: search normalises over streams")
        if self.blackbox.weights == "shared" and method_of(self.method).weights == "scratch":
            raise UsageError(
                f"method {self.method!r} trains every cell from scratch: "
                "it has no blackbox.weights = 'shared'",
                "take --method random-ws",
            )
        self._check_alphas_use()

    def _check_alphas_use(self) -> None:
        """Refuse what needs alphas that gradients move, and what does not go together."""
        if self.latency.weight and method_of(self.method).alphas == "none":
            raise UsageError(
                f"method {self.method!r} has no alphas: latency.weight = {self.latency.weight} "
                "has no place in it",
                "take a method with alphas, e.g. --method darts-1st",
            )
        if self.latency.weight and (self.races or self.derives_by_perturbation):
            what, key = ("race", "select.by=alphas") if self.races else (
                "derivation by perturbation", "derive.by=scores"
            )  # fmt: skip
            raise UsageError(
                f"a {what} decides by the loss alone: latency.weight = {self.latency.weight} "
                "would change little in the cell that is returned",
                f"let the alphas decide, with --set {key}",
            )
        reason = reason_against(self.cell_space)
        if reason and self.order == "exact" and self.model.path == "fast":
            raise UsageError(
                f"alphas.second_order = 'exact' has no fast path in this space: {reason}",
                "add --set model.path=eager",
            )
        foreign = sorted(set(self.space.ops) - set(RECURRENT_OPS))
        if self.latency.weight and (foreign or self.space.edges_per_node > 1):
            what = f"operation {foreign[0]!r}" if foreign else "cells of several edges a node"
            raise UsageError(
                f"a table of latencies has no {what}: latency.weight = {self.latency.weight} has "
                "no place in this space",
                "leave it out, or search a space of one edge a node and the default operations",
            )
        method = method_of(self.method)
        if self.alphas.published_lookahead and self.order != "finite":
            raise UsageError(
                f"method {self.method!r} does not look ahead of a weight step: "
                "alphas.published_lookahead has no place in it",
                "leave it out, or take --method darts",
            )
        if len(self.plan) > 1 and (method.alphas == "none" or method.derive != "scores"):
            raise UsageError(
                f"stages prune operations by the scores of alphas: method {self.method!r} has none "
                "for each operation of every edge",
                "leave stages.ops out, or take another method, e.g. --method darts-1st",
            )
        perturbs, stops = self.derive.by == "perturbation", self.stop.eigenvalue
        for asked, key in ((perturbs, "derive.by = 'perturbation'"), (stops, "stop.eigenvalue")):
            if asked and method_of(self.method).alphas != "gradient":
                raise UsageError(f"{key} needs alphas that gradients move: not {self.method!r}")
        streams = self.windows.streams
        if perturbs and 0 < self.derive.targets < streams:
            raise UsageError(
                f"derive.targets = {self.derive.targets} is less than one for each of the "
                f"{streams} streams",
                f"give {streams} or more, or 0",
            )
        if stops and perturbs:
            raise UsageError(
                "stop.eigenvalue goes back to the cell of an earlier epoch, which "
                "derive.by = 'perturbation' cannot derive: its weights are gone",
                "leave one of them out",
            )
        if stops and len(self.plan) > 1:
            raise UsageError("stop.eigenvalue compares epochs of one stage: the search has several")
        if stops and self.seconds:
            raise UsageError(
                "stop.eigenvalue counts epochs, and a time budget has none",
                "give --epochs in place of a time, or leave stop.eigenvalue out",
            )
        if stops and self.stop.every > self.epochs:
            raise UsageError(
                f"stop.every = {self.stop.every} is more than all {self.epochs} epochs: "
                "there would be no report"
            )

    @property
    def from_scratch(self) -> bool:
        weights = method_of(self.method).weights
        return (self.blackbox.weights if weights == "either" else weights) == "scratch"

    @property
    def holds_out(self) -> bool:
        """Whether a part of the training text is kept from the weights, for the alphas."""
        # A single-level method has no use for a text of the alphas' own.
        return self.alphas.text == "held-out" and self.relaxation.level == "valid"

    @property
    def stops_by_eigenvalue(self) -> bool:  # type: ignore[override]  # a setting here
        return self.stop.eigenvalue

    @property
    def derives_by_perturbation(self) -> bool:  # type: ignore[override]  # a setting here
        return self.derive.by == "perturbation"

    @property
    def cells(self) -> int:
        """How many cells are tried one by one."""
        return self.blackbox.cells or method_of(self.method).cells

    def _idle(self) -> set[str]:
        keys = MethodChoice._idle(self) | {*WITHOUT_RESULT}
        if self.space.edges_per_node == 1:
            keys.add("space.join")
        if self.derive.by == "scores":
            keys |= {f"derive.{f.name}" for f in dataclasses.fields(DeriveConfig)} - {"derive.by"}
        elif not self.derive.tune_windows:
            keys.add("derive.lr")
        if self.seconds:
            keys |= BY_BUDGET
        if not self.stop.eigenvalue:
            keys |= {f"stop.{f.name}" for f in dataclasses.fields(StopConfig)}
            keys.remove("stop.eigenvalue")
        method = method_of(self.method)
        halving = method.derive == "halving"
        if method.derive == "scores":  # no cell is tried by itself, but in the race
            keys |= {"blackbox.cells", "blackbox.windows"}
            if not self.races:
                keys.add("blackbox.targets")
        if method.derive != "evolution":
            keys |= {"blackbox.weights", "blackbox.population", "blackbox.sample"}
        elif not self.from_scratch:
            keys.add("blackbox.windows")
        if self.seconds and self.from_scratch and not halving:  # the time decides
            keys.add("blackbox.windows")
        if method.derive in ("random", "samples") and not self.from_scratch:
            keys.add("blackbox.windows")
        if method.alphas == "none":
            keys.add("select.points")
        if not self.windows.jitter:
            keys |= {"windows.shortest", "windows.longer"}
        if self.stages.hidden and not (self.races or self.latency.weight):
            keys.add("model.hidden")
        if self.stages.dropouth and not self.races:
            keys.add("noise.dropouth")
        if self.from_scratch:
            keys.add("model.partial")
        if self.races:  # it holds out a part of the training text, whatever the alphas learn on
            keys.discard("alphas.held_out")
        else:
            keys |= {f"select.{f.name}" for f in dataclasses.fields(SelectConfig)}
            if not self.from_scratch:
                keys.remove("select.by")
        if self.from_scratch and self.blackbox.windows:  # how long each cell's training is
            keys |= BY_BUDGET
        if halving:
            keys |= {"alphas.text", "blackbox.cells", "blackbox.weights"}
            keys |= {"blackbox.population", "blackbox.sample"}
            keys.discard("alphas.held_out")
        else:
            keys |= {"blackbox.budget", "blackbox.rung"}
            if not self.races:
                keys.add("blackbox.draws")
        return keys

    @property
    def races(self) -> bool:  # type: ignore[override]  # a setting here
        """Whether a race stands behind the search: one from scratch is decided by trainings."""
        return self.select.by == "race" and not self.from_scratch

    @property
    def cell_space(self) -> CellSpace:
        """The cells that the search may find.

        Raises:
            UsageError: for operations that are not registered, or are named twice.
        """
        own = self.space
        return recurrent_space(
            self.model.nodes, ops=own.ops, edges_per_node=own.edges_per_node, join=own.join,
            output=own.output,
        )  # fmt: skip

    @property
    def plan(self) -> tuple[Stage, ...]:
        """The stages; one, unless `stages.ops` or the method ask for more."""
        return plan(
            self.stages,
            staged=method_of(self.method).staged,
            operations=len(self.space.ops),
            keep=self.space.edges_per_node,
            hidden=self.model.hidden,
            partial=self.model.partial,
            dropouth=self.noise.dropouth,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """One training of a recurrent cell on a text.

    corpus: name of the text that is trained on; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    cell: whether `genotype` describes the cell, or it is a baseline that has none; set by
        --genotype
    genotype: the derived cell; -; a published name, a file, a run folder, `random`, a cell's text,
        or its nodes as plain values; no default, since only you know
    seed: decides every random draw; -; 0 or more; one number as good as another
    epochs: passes over the training text, each at most `windows.limit` windows long; passes; 1 or
        more; enough for a small text, the paper takes 3,600 on PTB
    least_steps: where so many epochs have fewer steps, there are more epochs; steps; 0 or more, 0
        for no more; what a preset means on PTB, so that a small text is not left untrained
    seconds: a time budget that decides on the steps instead of epochs; seconds; 0 or more, 0 for
        none; epochs are what papers state
    valid_streams: texts read side by side when validation is measured; streams; 1 or more; 10 as in
        the literature
    test_streams: texts read side by side in the test at the end; streams; 1 or more; 1 as in the
        literature, where no stream starts without context
    start: digest of the checkpoint whose weights the training begins with; -; set by --from; empty,
        a training begins with drawn weights
    output_bias: what the bias of the output begins with, "zeros", or the log "frequencies" of the
        training text, so that a network begins as good as a unigram model; zeros as in the DARTS
        paper, though a time budget takes the other
    save_seconds: time between two saved states; seconds; 0 or more, 0 after every step; a crash
        then costs a minute at most
    capture: whether a window's kernels run as one CUDA graph, "auto" where that pays; it is slower
        nowhere
    model: sizes of the network, and how it is computed
    noise: dropout
    penalty: activation regularisation
    windows: how the training text is cut
    weights: the optimiser of the weights
    """

    starts_from_weights: ClassVar[bool] = True  # `start`

    corpus: str
    cell: Literal["derived", "lstm", "gru"] = "derived"
    genotype: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    start: str = ""
    output_bias: Literal["zeros", "frequencies"] = "zeros"
    epochs: int = 50
    least_steps: int = 0
    seconds: float = 0.0
    valid_streams: int = 10
    test_streams: int = 1
    save_seconds: float = 60.0
    capture: Literal["auto", "on", "off"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    windows: WindowConfig = field(default_factory=WindowConfig)
    weights: WeightConfig = field(default_factory=WeightConfig)

    def __post_init__(self) -> None:
        if self.cell != "derived" and self.genotype:
            raise UsageError(f"cell = {self.cell!r} takes no genotype", "leave one of them out")
        if self.cell == "derived":
            if not self.genotype:
                raise UsageError("the setting 'genotype' is missing", NO_CELL)
            check_cell(Genotype.from_plain(self.genotype).recurrent)
            if self.noise.weightdrop:
                raise UsageError(
                    f"noise.weightdrop = {self.noise.weightdrop} is for LSTM and GRU: a derived "
                    "cell has noise.dropouth and noise.dropoutx"
                )
        fixed("training", model__partial=(self.model.partial, 1))
        _at_least(
            epochs=(self.epochs, 1),
            valid_streams=(self.valid_streams, 1),
            test_streams=(self.test_streams, 1),
        )
        check_length(self)

    @property
    def network(self) -> CellGene | Baseline:
        """What `RecurrentLM` runs."""
        if self.cell == "derived":
            return Genotype.from_plain(self.genotype).recurrent
        return self.cell

    @property
    def idle(self) -> frozenset[str]:
        """Dotted keys of settings that change nothing in the result of this training."""
        keys = {*WITHOUT_RESULT, "model.nodes"}
        if not self.windows.jitter:
            keys |= {"windows.shortest", "windows.longer"}
        if self.start:
            keys.add("output_bias")
        if self.seconds:
            keys |= BY_BUDGET
        if self.cell != "derived":
            keys.add("noise.dropoutx")
            if self.model.layers == 1:
                keys.add("noise.dropouth")
        return frozenset(keys)

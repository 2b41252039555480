"""What a run on images is: the components' own configurations, composed and validated.

As in `config`, which reads them from presets; here an image corpus takes the place of a text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

from rnnnas.cnn.dense.genotype import is_dense
from rnnnas.cnn.dense.network import check_settings
from rnnnas.cnn.dense.space import DenseConfig
from rnnnas.cnn.model import CnnConfig
from rnnnas.cnn.space import EDGES, NORMAL, OPERATIONS, REDUCE, check_genotype
from rnnnas.config.method import MethodChoice
from rnnnas.config.plain import at_least, fixed
from rnnnas.data.image_augment import AugmentConfig
from rnnnas.data.image_batches import BatchConfig
from rnnnas.errors import UsageError
from rnnnas.nas.derive import LimitConfig
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.latency_price import LatencyConfig
from rnnnas.nas.methods import METHODS, method_of
from rnnnas.nas.stages import ImageStage, ImageStageConfig, image_plan
from rnnnas.optim import ImageAlphaConfig, ImageWeightConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSearchConfig(MethodChoice):
    """One search of the cells of an image network, or of densely connected blocks.

    corpus: name of the images that are searched on; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    method: how the cells are searched; -; a name that `rnnnas search --help` lists, of a method
        that moves alphas; darts is what other methods are compared with
    space: the normal and the reduction cell of DARTS, or densely connected blocks; most methods
        search cells
    seed: decides every random draw; -; 0 or more; one number as good as another
    epochs: passes over the images that weights are trained on, or `batches.limit` batches each;
        passes; 1 or more; 50 as in the DARTS paper
    valid_images: images of the validation split that are measured after an epoch; images; 0 or
        more, 0 for all; what is measured in full needs no caveat
    save_seconds: time between two saved states; seconds; 0 or more, 0 after every step; a crash
        then costs a minute at most
    model: sizes of the network, and how it is computed
    batches: how images are taken
    augment: how training images are varied
    weights: the optimiser of the weights
    alphas: the optimiser of the alphas, and the data they are trained on
    stages: stages in which the space shrinks and the network grows
    relax: the method's own settings
    derive: how cells are read off the alphas
    dense: sizes of the densely connected blocks, of `space = "dense"`
    latency: the price of latency
    """

    second: ClassVar[Literal["finite", "exact"]] = "exact"
    capture: ClassVar[Literal["off"]] = "off"  # windows of images are never captured
    seconds: ClassVar[float] = 0.0  # a search on images has no time budget

    corpus: str
    method: str = "darts"
    space: Literal["cells", "dense"] = "cells"
    seed: int = 1
    epochs: int = 50
    valid_images: int = 0
    save_seconds: float = 60.0
    model: CnnConfig = field(default_factory=CnnConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    weights: ImageWeightConfig = field(default_factory=ImageWeightConfig)
    alphas: ImageAlphaConfig = field(default_factory=ImageAlphaConfig)
    stages: ImageStageConfig = field(default_factory=ImageStageConfig)
    relax: dict[str, Any] = field(default_factory=dict)
    derive: LimitConfig = field(default_factory=LimitConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)

    def __post_init__(self) -> None:
        _ = self.relaxation  # refuses an unknown method or setting of one
        method = method_of(self.method)
        if method.derive != "scores":
            able = [name for name, other in METHODS.items() if other.derive == "scores"]
            raise UsageError(
                f"method {self.method!r} tries cells one by one, which is for searches on text",
                f"methods for images: {', '.join(able)}",
            )
        fixed(
            "search",
            model__auxiliary=(self.model.auxiliary, False),
            model__drop_path=(self.model.drop_path, 0.0),
            model__label_smoothing=(self.model.label_smoothing, 0.0),
            weights__nonmono=(self.weights.nonmono, 0),
            weights__finetune_epochs=(self.weights.finetune_epochs, 0),
        )
        if self.alphas.published_lookahead:
            raise UsageError(
                "alphas.published_lookahead is the look-ahead of the published search on text",
                "leave it out: a search on images has alphas.second_order",
            )
        at_least(epochs=(self.epochs, 1), valid_images=(self.valid_images, 0))
        at_least(seed=(self.seed, 0), save_seconds=(self.save_seconds, 0))
        self._check_space()
        _ = self.plan  # refuses stages that do not fit

    def _check_space(self) -> None:
        """Refuse what the other space alone has."""
        if self.space == "cells":
            self.derive.check((NORMAL, REDUCE), OPERATIONS[1:])
            if self.latency.weight and len(self.plan) > 1:
                raise UsageError(
                    f"latency.weight = {self.latency.weight} is the price of one network, and this "
                    f"search has {len(self.plan)} of them, one a stage",
                    "take a method of one stage, as --method proxyless, without stages.ops",
                )
            return
        check_settings(self.model)
        if self.derive.limits:
            raise UsageError("derive.limits is for cells: dense blocks have none")
        if method_of(self.method).alphas != "gradient":
            raise UsageError(f"method {self.method!r} draws cells, and dense blocks make none")
        if method_of(self.method).staged or self.stages != ImageStageConfig():
            raise UsageError(
                "stages prune cells: a search of dense blocks has one stage",
                "take --method densenas, without settings of stages",
            )

    def _idle(self) -> set[str]:
        keys = MethodChoice._idle(self) | {"model.auxiliary_weight", "model.auxiliary_norm"}
        if self.space == "dense":
            keys |= {"model.channels", "model.layers", "model.nodes"}
        else:
            keys |= {f"dense.{f.name}" for f in fields(DenseConfig)}
        if self.stages.layers:
            keys.add("model.layers")
        if self.stages.skip_dropout:
            keys.add("model.skip_dropout")
        if self.augment.resized_crop:
            keys.add("augment.crop_padding")
        return keys

    @property
    def plan(self) -> tuple[ImageStage, ...]:
        """The stages; one, unless `stages.ops` or the method ask for more."""
        return image_plan(
            self.stages,
            staged=method_of(self.method).staged,
            operations=len(OPERATIONS),
            keep=EDGES,
            layers=self.model.layers,
            skip_dropout=self.model.skip_dropout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTrainConfig:
    """One training of a pair of cells, or of dense blocks, on images.

    corpus: name of the images that are trained on; -; a prepared corpus (`rnnnas corpus list`); no
        default, since only you know
    genotype: the cells; -; a published name, a file, a run folder, `random`, or their nodes as
        plain values; no default, since only you know
    seed: decides every random draw; -; 0 or more; one number as good as another
    epochs: passes over the training images, or `batches.limit` batches each; passes; 1 or more; 600
        as in the DARTS paper
    save_seconds: time between two saved states; seconds; 0 or more, 0 after every step; a crash
        then costs a minute at most
    model: sizes of the network, and how it is computed
    batches: how images are taken
    augment: how training images are varied
    weights: the optimiser of the weights
    """

    capture: ClassVar[Literal["off"]] = "off"  # as of a search
    seconds: ClassVar[float] = 0.0  # as of a search
    starts_from_weights: ClassVar[bool] = False  # a training on images begins from scratch

    corpus: str
    genotype: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    epochs: int = 600
    save_seconds: float = 60.0
    model: CnnConfig = field(default_factory=CnnConfig)
    batches: BatchConfig = field(default_factory=BatchConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    weights: ImageWeightConfig = field(default_factory=ImageWeightConfig)

    def __post_init__(self) -> None:
        if not self.genotype:
            raise UsageError(
                "the setting 'genotype' is missing",
                "say which cells are trained, as --genotype DARTS_V2, or a search's run folder",
            )
        check_genotype(Genotype.from_plain(self.genotype))
        if is_dense(self.genotype):
            check_settings(self.model)
        fixed(
            "training",
            model__partial=(self.model.partial, 1),
            model__skip_dropout=(self.model.skip_dropout, 0.0),
        )
        at_least(epochs=(self.epochs, 1), seed=(self.seed, 0))
        at_least(save_seconds=(self.save_seconds, 0))

    @property
    def network(self) -> Genotype:
        """What the network is built of."""
        return Genotype.from_plain(self.genotype)

    @property
    def idle(self) -> frozenset[str]:
        """Dotted keys of settings that change nothing in the result of this training."""
        keys = {"save_seconds", "model.nodes"}
        if is_dense(self.genotype):
            keys |= {"model.channels", "model.layers"}
        if not self.model.auxiliary:
            keys |= {"model.auxiliary_weight", "model.auxiliary_norm"}
        if self.augment.resized_crop:
            keys.add("augment.crop_padding")
        return frozenset(keys)

"""What a training came to, as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnnas.engine.device import pick_device
from rnnnas.errors import UsageError
from rnnnas.evaluation.from_python import evaluate_from_python
from rnnnas.evaluation.image_model import ImageModel
from rnnnas.evaluation.language_model import LanguageModel
from rnnnas.evaluation.load import load_model
from rnnnas.evaluation.result import Evaluation

if TYPE_CHECKING:
    from rnnnas.data.corpus import AnyCorpus


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The result of a training, and the way to its model.

    run: the run folder. checkpoint: its best.pt, self-contained.
    parameters: how many weights the network has.
    seconds: that the training took.
    valid_perplexity, test_perplexity: of best.pt, a token; of images None.
    valid_accuracy, test_accuracy: of images, in percent; of text None.
    digest: SHA-256 of the content of best.pt.
    figures: everything that was measured, by the names of `rnnnas train --json`.
    corpus: that it was trained on, which need not lie where corpora are looked for by name.
    """

    run: Path
    checkpoint: Path
    parameters: int
    seconds: float
    valid_perplexity: float | None
    test_perplexity: float | None
    valid_accuracy: float | None
    test_accuracy: float | None
    digest: str
    figures: Mapping[str, Any] = field(repr=False)
    corpus: AnyCorpus | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, result: Mapping[str, Any], corpus: AnyCorpus | None = None) -> TrainResult:
        """From what `training.run.train` returns."""
        measures = ("valid_perplexity", "test_perplexity", "valid_accuracy", "test_accuracy")
        return cls(
            run=Path(result["run"]),
            checkpoint=Path(result["checkpoint"]),
            parameters=result["parameters"],
            seconds=result["seconds"],
            **{name: result.get(name) for name in measures},
            digest=result["digest"],
            figures=dict(result),
            corpus=corpus,
        )

    def __repr__(self) -> str:
        if self.test_perplexity is None:
            figures = f"test_accuracy={self.test_accuracy:.2f}"
        else:
            figures = f"test_perplexity={self.test_perplexity:.2f}"
        return (
            f"TrainResult({figures}, parameters={self.parameters}, seconds={self.seconds:.0f}, "
            f"run={str(self.run)!r})"
        )

    def load(self, device: str = "auto") -> LanguageModel | ImageModel:
        """The trained model; `rnnnas.load` gives it the means of exporting itself, too."""
        return load_model(self.checkpoint, pick_device(device))

    def evaluate(self, split: str = "test", **options: Any) -> Evaluation:
        """The perplexity or accuracy on a split; options as of `rnnnas.evaluate`."""
        device = pick_device(options.pop("device", "auto"))
        options.setdefault("corpus", self.corpus)
        return evaluate_from_python(self.checkpoint, split, device=device, **options)

    def sample(self, prompt: str = "", tokens: int = 100, **options: Any) -> str:
        """Text that the model writes after a prompt; options as of `LanguageModel.stream`.

        Raises:
            UsageError: for an image network.
        """
        model = self.load()
        if not isinstance(model, LanguageModel):
            raise UsageError("an image network writes no text", "its `predict` names classes")
        return model.sample(prompt, tokens, **options)

    def __getitem__(self, name: str) -> Any:
        """A figure by its name, e.g. `trained["arithmetic"]`."""
        return self.figures[name]

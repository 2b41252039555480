"""A trained language model as an object: an `nn.Module` that remembers its vocabulary.

Legend: T steps, B streams, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from rnnnas.draw.text_svg_dot import as_svg
from rnnnas.engine.device import exact_float32
from rnnnas.engine.steps import generator
from rnnnas.errors import UsageError
from rnnnas.evaluation.as_loaded import check_as_loaded, weights_digest
from rnnnas.evaluation.from_python import evaluate_from_python
from rnnnas.evaluation.result import Evaluation
from rnnnas.evaluation.run import Loaded, load_checkpoint
from rnnnas.types import HiddenState

if TYPE_CHECKING:
    from rnnnas.nas.genotype import Genotype

_UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # how bytes are decoded that are no character (yet)
_CHUNK = 512  # steps that log-probabilities are computed for at a time: their V scores fill memory


@final
class LanguageModel(nn.Module):
    """A recurrent language model with its vocabulary, as `rnnnas.load` returns it.

    path: of its best.pt; vocab: encodes and decodes text; genotype: of a derived cell, None for an
    LSTM or GRU; corpus: the name of the text it was trained on; metrics: of its training; digest:
    SHA-256 of its content.
    """

    def __init__(self, loaded: Loaded, path: Path) -> None:
        super().__init__()
        self.net = loaded.net
        self.path = path
        self.vocab = loaded.vocab
        self.genotype: Genotype | None = loaded.genotype
        self.config = loaded.config
        self.corpus = loaded.corpus
        self.metrics = dict(loaded.metrics)
        self.digest = loaded.digest
        self.exporter: Callable[..., Any] | None = None  # set by whoever loads it
        self._loaded = weights_digest(self.net)
        self.eval()

    @property
    def device(self) -> torch.device:
        """The device that the weights lie on."""
        return next(self.parameters()).device

    def check_as_loaded(self) -> None:
        """Raises UsageError where the weights, or the file they are from, were changed since."""
        instead = "`perplexity` and `log_probs` take"
        check_as_loaded(self.net, self._loaded, self.path, self.digest, instead)

    @exact_float32()
    def forward(self, ids: Tensor, state: HiddenState = None) -> tuple[Tensor, HiddenState]:
        """Scores of the next word after every word, without dropout, and the state after the last.

        Args:
            ids: word ids (T, B) int64, time first, or (T,) for one stream.
            state: the state that a call before returned; None at the start of a text.

        Returns:
            logits (T, B, V), or (T, V) for one stream; and the state, to be handed to the next
            call. `logits.log_softmax(-1)` are log-probabilities in nats.

        Raises:
            UsageError: for ids of another shape or outside the vocabulary.
        """
        ids = torch.as_tensor(ids, device=self.device)
        if (
            ids.dtype not in (torch.int64, torch.int32)
            or ids.dim() not in (1, 2)
            or not ids.numel()
        ):
            raise UsageError(
                f"word ids are {str(ids.dtype).removeprefix('torch.')} of shape {tuple(ids.shape)}",
                "give integers of shape (T, B) or (T,), e.g. model.encode('a line')",
            )
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab.size:
            raise UsageError(
                f"word ids reach from {int(ids.min())} to {int(ids.max())}",
                f"the vocabulary has 0 to {self.vocab.size - 1}",
            )
        whole = ids.long() if ids.dim() == 2 else ids.long().unsqueeze(1)
        logits, after = self.net.logits(whole, state)
        return (logits if ids.dim() == 2 else logits[:, 0]), after

    def step(self, ids: Tensor, state: HiddenState = None) -> tuple[Tensor, HiddenState]:
        """One step of every stream: ids (B,) → logits (B, V) and the next state."""
        ids = torch.as_tensor(ids, device=self.device)
        logits, after = self(ids.reshape(1, -1), state)
        return logits[0], after

    # Text

    def encode(self, text: str) -> Tensor:
        """The ids (T,) int64 of a text, an end-of-line token after each of its lines."""
        ids = self.vocab.encode(text.split("\n")).tokens
        return torch.from_numpy(ids.astype("int64")).to(self.device)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of some ids."""
        return self.vocab.decode([int(i) for i in ids])

    @torch.no_grad()
    def log_probs(self, text: str) -> Tensor:
        """The log-probability, in nats, of each token of a text given those before it.

        The text's first token follows an end of line, as in training. Returns (T,) float64 on the
        CPU, in the order of `encode(text)`: the end of each line has one, too. A line end at the
        end of the text ends its last line, as in a file, and begins no other (`encode` takes it for
        the beginning of an empty line, which has an end as well).
        """
        ids = self.encode(text.removesuffix("\n"))
        before = torch.cat([self._line_end(), ids[:-1]])
        found, state = [], None
        for at in range(0, len(ids), _CHUNK):
            logits, state = self(before[at : at + _CHUNK], state)
            rows = logits.double().log_softmax(-1)
            found.append(rows.gather(-1, ids[at : at + _CHUNK, None])[:, 0].cpu())
        return torch.cat(found)

    def perplexity(self, text: str) -> float:
        """The perplexity per token of a text: exp of minus the mean of `log_probs`."""
        mean = -float(self.log_probs(text).mean())
        return math.exp(mean) if mean < 700 else math.inf

    def sample(self, prompt: str = "", tokens: int = 100, **options: Any) -> str:
        """The prompt, then `tokens` tokens drawn one after another; options as of `stream`."""
        return prompt + "".join(self.stream(prompt, tokens, **options))

    def stream(
        self,
        prompt: str = "",
        tokens: int = 100,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        unknown: bool = False,
        lines: int = 0,
        seed: int = 1,
    ) -> Iterator[str]:
        """Pieces of text that go on from the prompt, as they are drawn.

        Args:
            temperature: scores are divided by it: below 1 safer, above 1 wilder, 0 the likeliest.
            top_k: draw from the k likeliest tokens alone; 0: from all.
            top_p: draw from the likeliest tokens that have this probability together (nucleus
                sampling, Holtzman et al. 2020); 1: from all.
            unknown: whether `<unk>` may be drawn.
            lines: stop after so many ended lines; 0: after `tokens` tokens only.

        Raises:
            UsageError: for an option out of its range.
        """
        _check_options(temperature, top_k, top_p, tokens, lines)
        return self._stream(prompt, tokens, temperature, top_k, top_p, unknown, lines, seed)

    def _stream(
        self,
        prompt: str,
        tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        unknown: bool,
        lines: int,
        seed: int,
    ) -> Iterator[str]:
        draws = generator(seed, "sample", 0, torch.device("cpu"))
        given = self.encode(prompt)[:-1] if prompt else self._line_end()[:0]
        with torch.no_grad():
            logits, state = self(torch.cat([self._line_end(), given]))
        last = logits[-1]
        # What was drawn is decoded from the last line end on: a token's text may depend on those
        # before it, never on a line before.
        line = [int(i) for i in given]
        if self.vocab.eos in line:
            line = line[len(line) - line[::-1].index(self.vocab.eos) :]
        said = self.vocab.decode(line) if line else ""
        ended = 0
        for _ in range(tokens):
            scores = last.double().cpu()
            if not unknown and self.vocab.unk is not None:
                scores[self.vocab.unk] = -math.inf
            choice = draw_token(scores, draws, temperature=temperature, top_k=top_k, top_p=top_p)
            line.append(choice)
            text = self.vocab.decode(line)
            # Of a character that is spelled in several tokens only the first are there.
            whole = text.rstrip(_UNREADABLE)
            yield whole[len(said) :]
            said = whole
            if choice == self.vocab.eos:
                line, said = [], ""
                ended += 1
                if ended == lines:
                    return
            with torch.no_grad():
                last, state = self.step(torch.tensor([choice]), state)
                last = last[0]
        if line and (rest := self.vocab.decode(line)[len(said) :]):
            yield rest

    # Evaluation

    def evaluate(
        self, split: str = "test", *, text: Path | str | None = None, **options: Any
    ) -> Evaluation:
        """Its perplexity on a split of its corpus, or on a text file, where it is; options as of
        `rnnnas.evaluate`, but for the device.

        Raises:
            UsageError: where its weights were changed since it was loaded.
        """
        self.check_as_loaded()
        return evaluate_from_python(self.path, split, text=text, device=self.device, **options)

    def _line_end(self) -> Tensor:
        return torch.tensor([self.vocab.eos], device=self.device)

    def export(self, format: str, **options: Any) -> Any:
        """Write the model as "onnx", "html", "hf" or "pt2"; options as of `rnnnas export`.

        Raises:
            UsageError: for a model that `rnnnas.load` has not made, or whose weights were changed.
        """
        self.check_as_loaded()
        if self.exporter is None:
            raise UsageError("this model was made without an exporter", "load it by rnnnas.load")
        return self.exporter(self.path, format=format, **options)

    def __repr__(self) -> str:
        cell = self.config.cell.upper() if self.genotype is None else self.genotype.to_text()
        count = sum(p.numel() for p in self.parameters())
        model = self.config.model
        return (
            f"LanguageModel({cell!r}, {count:,} parameters, {model.hidden} units, "
            f"vocabulary of {self.vocab.size:,} {self.vocab.kind}, trained on {self.corpus!r})"
        )

    def _repr_svg_(self) -> str | None:
        return None if self.genotype is None else as_svg(self.genotype)


def load_language_model(path: Path, device: torch.device) -> LanguageModel:
    """The language model of a best.pt.

    Raises:
        CheckpointError: where the file is missing, damaged, or no trained recurrent network.
    """
    return LanguageModel(load_checkpoint(path, device), path)


def draw_token(
    scores: Tensor, draws: torch.Generator, *, temperature: float, top_k: int = 0, top_p: float = 1
) -> int:
    """A token drawn from scores (V,) float64; options as of `LanguageModel.stream`."""
    if temperature == 0:
        return int(scores.argmax())
    chances = ((scores - scores.max()) / temperature).softmax(-1)
    if top_k and top_k < len(chances):
        chances = torch.where(chances >= chances.topk(top_k).values[-1], chances, 0.0)
    if top_p < 1:
        ranked, order = (chances / chances.sum()).sort(descending=True)
        kept = ranked.cumsum(0) - ranked < top_p  # up to and with the token that reaches it
        chances = torch.zeros_like(chances).scatter(0, order[kept], ranked[kept])
    return int(torch.multinomial(chances, 1, generator=draws))


def _check_options(
    temperature: float, top_k: int, top_p: float, tokens: int, lines: int
) -> None:  # fmt: skip
    """Raises UsageError for the first option that is of a wrong kind or out of its range."""
    for name, value, kind, low, allowed in (
        ("temperature", temperature, (int, float), 0, "a number that is not negative"),
        ("top_k", top_k, int, 0, "a whole number, 0 for all tokens"),
        ("top_p", top_p, (int, float), 0, "above 0 and at most 1"),
        ("tokens", tokens, int, 1, "a whole number, at least 1"),
        ("lines", lines, int, 0, "a whole number, 0 for no limit"),
    ):
        fits = isinstance(value, kind) and not isinstance(value, bool) and low <= value < math.inf
        if not fits or (name == "top_p" and not 0 < value <= 1):
            raise UsageError(f"{name} = {value!r} must be {allowed}")

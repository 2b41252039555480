"""An exported file against torch: log-probabilities and perplexity of a text, classes of images.

Legend: T steps, B streams or images, V vocabulary, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rnnnas.data.corpus import open_corpus, open_images
from rnnnas.data.image_augment import centre_box, resized
from rnnnas.data.image_corpus import ImageCorpus
from rnnnas.data.text_corpus import Corpus
from rnnnas.data.text_streams import Streams
from rnnnas.engine.steps import evaluate, generator
from rnnnas.errors import DataError, UsageError
from rnnnas.exporting.graphs import state_names
from rnnnas.exporting.packing import Dtype, rounded
from rnnnas.exporting.source import CPU, ExportError, Source
from rnnnas.lm.model import RecurrentLM

Array = npt.NDArray[Any]
# Inputs in the file's order → outputs in its order.
Runner = Callable[..., list[Array]]

TOKENS = 1_000  # scored
IMAGES = 100
BATCHES = (1, 3)

# The export against the same (packed) weights in torch: rounding of float32 sums alone. Measured
# over all kinds of models at most 2e-5 in log p.
EXACT = 2e-4
# Packed weights against the model's own: how much worse a perplexity may become, relative, and how
# many of the images may change their class.
WORSE = {"float32": 1e-4, "float16": 2e-3, "int8": 0.02}
OTHER = {"float32": 0.01, "float16": 0.02, "int8": 0.05}


def real_text(source: Source) -> tuple[npt.NDArray[np.int64], str]:
    """At most TOKENS + 1 tokens to score, and what they are.

    The test split of the corpus the model was trained on, where that is here; or else a text that
    the model writes itself.
    """
    assert source.text is not None
    loaded = source.text
    corpus: Corpus | None
    try:
        corpus = open_corpus(loaded.corpus)
    except DataError:
        corpus = None
    if corpus is not None and corpus.sha256 == loaded.corpus_sha256:
        tokens = np.asarray(corpus.splits["test"][: TOKENS + 1], np.int64)
        return tokens, f"the test split of {loaded.corpus}"
    return own_text(source.language_model(), loaded.vocab.eos, TOKENS), (
        f"a text that the model wrote itself: its corpus {loaded.corpus} is not here"
    )


@torch.no_grad()
def own_text(
    net: RecurrentLM, eos: int, count: int, temperature: float = 1.0
) -> npt.NDArray[np.int64]:
    """A line end, then `count` tokens drawn from the model, always the same ones. (count + 1,)"""
    draws = generator(1, "export", 0, CPU)
    ids, hidden_state = [eos], None
    for _ in range(count):
        logits, hidden_state = net.logits(torch.tensor([[ids[-1]]]), hidden_state)
        chances = (logits[0, 0].double() / temperature).softmax(-1)
        ids.append(int(torch.multinomial(chances, 1, generator=draws)))
    return np.array(ids, np.int64)


def verify_text(
    source: Source, run: Runner, dtype: Dtype, *, chunk: int = 0,
    batches: tuple[int, ...] = BATCHES, exact: float = EXACT,
) -> dict[str, Any]:  # fmt: skip
    """Score a text by an exported file and by torch.

    Args:
        run: token (B,) or tokens (T, B), and the states → log p, and the next states.
        chunk: T of a file that takes several steps; 0: one step.
        exact: the largest difference in log p that rounding explains.

    Returns:
        text, tokens, batches, log_prob_error (the largest difference to torch with the same packed
        weights, over whole distributions), perplexity (of the file), torch_perplexity (of the
        model's own float32 weights) and perplexity_change (relative).

    Raises:
        ExportError: where a difference is above its tolerance.
    """
    assert source.text is not None
    tokens, what = real_text(source)
    if (least := max(batches) * max(chunk, 1) + 1) > len(tokens):
        tokens = np.resize(tokens, least)  # as often as it takes to fill a chunk of every stream
    if chunk:  # both sides are asked for the same targets, in whole chunks
        tokens = tokens[: 1 + (len(tokens) - 1) // chunk * chunk]
    net = source.language_model()
    own = evaluate(net, Streams(tokens.astype(np.int32), 1, CPU, ""), {}).perplexity
    net.load_state_dict(rounded(net.state_dict(), dtype))
    error, nats, scored = 0.0, 0.0, 0
    for streams in batches:
        length = (len(tokens) - 1) // streams
        if streams > 1:  # the distributions are compared, not all of the text
            length = min(length, 2 * chunk or 50)
        table = np.stack([tokens[k * length : (k + 1) * length + 1] for k in range(streams)], 1)
        found, difference = _compare(net, run, table, chunk)
        error = max(error, difference)
        if streams == 1:
            nats, scored = -float(found.sum()), found.size
    perplexity = math.exp(min(nats / scored, 700.0)) if scored else math.nan
    figures: dict[str, Any] = {
        "text": what,
        "tokens": scored,
        "batches": list(batches),
        "log_prob_error": error,
        "perplexity": perplexity,
        "torch_perplexity": own,
        "perplexity_change": perplexity / own - 1,
    }
    if not error <= exact:
        raise ExportError(
            f"the exported file differs from torch by {error:.2g} in log p, more than {exact:g}",
            "no file was left; please report it with the checkpoint's settings",
        )
    if not perplexity / own - 1 <= WORSE[dtype]:
        raise ExportError(
            f"{dtype} changes the perplexity from {own:.2f} to {perplexity:.2f}, by more than "
            f"{100 * WORSE[dtype]:g} %",
            "no file was left; export with a --dtype of more bits",
        )
    return figures


@torch.no_grad()
def _compare(
    net: RecurrentLM, run: Runner, table: npt.NDArray[np.int64], chunk: int
) -> tuple[Array, float]:
    """Targets' log p (T, B) by the file over token ids (T + 1, B), and the largest difference of
    any log p to torch's.
    """
    hidden, count = net.config.hidden, len(state_names(net))
    states = [np.zeros((table.shape[1], hidden), np.float32) for _ in range(count)]
    hidden_state = None
    worst, hits = 0.0, []
    width = chunk or 1
    for start in range(0, (len(table) - 1) // width * width, width):
        part, targets = table[start : start + width], table[start + 1 : start + width + 1]
        scores, hidden_state = net.logits(torch.from_numpy(part), hidden_state)
        theirs = scores.log_softmax(-1).numpy()  # (width, B, V)
        log_probs, *states = run(part if chunk else part[0], *states)
        ours = log_probs if chunk else log_probs[None]
        if ours.shape != theirs.shape:
            raise ExportError(f"the exported file gives log p of shape {ours.shape}")
        difference = np.abs(ours - theirs).max()
        worst = float(difference) if not difference <= worst else worst  # also NaN
        hits.append(np.take_along_axis(ours, targets[..., None], -1)[..., 0].astype(np.float64))
    return np.concatenate(hits), worst


def real_images(source: Source) -> tuple[Array, npt.NDArray[np.int64] | None, str]:
    """At most IMAGES images (n, 3, h, w) uint8, their classes, and what they are.

    Of the test split of the corpus the network was trained on; where that is not here, random
    pixels of its images' size, without classes.

    Raises:
        UsageError: where that is not here, and the checkpoint does not say how large images are.
    """
    assert source.images is not None
    loaded = source.images
    side = loaded.config.augment.size
    corpus: ImageCorpus | None
    try:
        corpus = open_images(loaded.corpus)
    except DataError:
        corpus = None
    if corpus is not None and corpus.sha256 == loaded.corpus_sha256:
        split = corpus.splits["test"]
        rows = np.unique(np.linspace(0, len(split) - 1, IMAGES).astype(np.int64))
        images = [torch.from_numpy(np.array(split.decoded(row))) for row in rows.tolist()]
        if side:
            images = [resized(i, centre_box(i.shape[1], i.shape[2]), side) for i in images]
        return (
            torch.stack(images).numpy(), split.labels[rows], f"the test split of {loaded.corpus}"
        )  # fmt: skip
    size = (side, side) if side else loaded.size
    if size is None:
        raise UsageError(
            f"its corpus {loaded.corpus} is not here, and the checkpoint does not say how large "
            "images are",
            "prepare that corpus again, or train with --set augment.size=N",
        )
    pixels = np.random.RandomState(1).randint(0, 256, (IMAGES, 3, *size))
    what = f"random pixels: its corpus {loaded.corpus} is not here"
    return pixels.astype(np.uint8), None, what


@torch.no_grad()
def verify_images(
    source: Source, run: Runner, dtype: Dtype, *, batches: tuple[int, ...] = BATCHES,
    exact: float = EXACT,
) -> dict[str, Any]:  # fmt: skip
    """Classify images by an exported file and by torch.

    Args:
        run: images (B, 3, h, w) uint8 → probabilities (B, K).

    Returns:
        images, text (what they are), batches, probability_error (the largest difference to torch
        with the same packed weights), same_class (percent, against the network's own weights), and
        where classes are known accuracy and torch_accuracy in percent.

    Raises:
        ExportError: where a difference is above its tolerance.
    """
    assert source.images is not None
    loaded = source.images
    images, labels, what = real_images(source)
    inputs = torch.from_numpy(images).float()
    shift, scale = (255 * torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    inputs = (inputs - shift) / scale
    net = source.image_network()
    own = _in_parts(net, inputs)
    net.load_state_dict(rounded(net.state_dict(), dtype))
    packed = _in_parts(net, inputs)
    error = 0.0
    ours: Array = np.zeros(0)
    for size in batches:
        count = len(images) if size == batches[0] else 4 * size
        parts = [run(images[k : min(k + size, count)])[0] for k in range(0, count, size)]
        given = np.concatenate(parts)
        difference = np.abs(given - packed[: len(given)].numpy()).max()
        error = float(difference) if not difference <= error else error
        ours = given if len(given) > len(ours) else ours
    chosen, theirs = ours.argmax(1), own.argmax(1).numpy()
    figures: dict[str, Any] = {
        "text": what,
        "images": len(images),
        "batches": list(batches),
        "probability_error": error,
        "same_class": 100 * float((chosen == theirs).mean()),
    }
    if labels is not None:
        figures["accuracy"] = 100 * float((chosen == labels).mean())
        figures["torch_accuracy"] = 100 * float((theirs == labels).mean())
    if not error <= exact:
        raise ExportError(
            f"the exported file differs from torch by {error:.2g} in a probability, more than "
            f"{exact:g}",
            "no file was left; please report it with the checkpoint's settings",
        )
    if figures["same_class"] < 100 * (1 - OTHER[dtype]):
        raise ExportError(
            f"{dtype} leaves {figures['same_class']:.0f} % of the images in their class",
            "no file was left; export with a --dtype of more bits",
        )
    return figures


def _in_parts(net: Any, inputs: Tensor) -> Tensor:
    """Probabilities (n, K) of normalised images, a few at a time."""
    return torch.cat([net.logits(part).softmax(-1) for part in torch.split(inputs, 25)])

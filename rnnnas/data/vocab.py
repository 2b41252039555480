"""Vocabularies: from lines of text to token ids and back.

Word level: the words of `str.split`, then `<eos>` after every line, blank lines too. Sentencepiece:
its pieces, then `<eos>`. Perplexity per word counts words and one `<eos>` a line in both cases.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from rnnnas.errors import DataError

EOS = "<eos>"
UNK = "<unk>"

# Defaults for text that is no benchmark. A word seen once in training text teaches a model nothing
# but costs a row of weights, and gives <unk> its training examples instead.
MIN_COUNT = 2
MAX_WORDS = 30_000
PIECES = 8_000

CHUNK = 1 << 16  # lines encoded at a time
_TRAIN_CHARACTERS = 50_000_000  # sentencepiece's trainer needs tens of bytes a character
_TOO_MANY = re.compile(r"size too high.*?<= *(\d+)", re.S)  # how the trainer says what would fit
_TRAIN_LINE = 1_000  # characters; the trainer drops lines above its limit of 4,192 bytes


class Encoded(NamedTuple):
    """tokens: (n,) int32; unknown: tokens that stand for a word the vocabulary lacks;
    words: words plus one `<eos>` a line, the denominator of a perplexity per word."""

    tokens: npt.NDArray[np.int32]
    unknown: int
    words: int


@final
class Vocab:
    """A vocabulary, word level (`words`) or sentencepiece (`model`, its serialised bytes)."""

    __slots__ = ("_index", "_processor", "eos", "kind", "lower", "model", "size", "unk", "words")

    def __init__(
        self, *, words: Sequence[str] = (), model: bytes = b"", lower: bool = False
    ) -> None:
        """Raises DataError where the words repeat or lack `<eos>`, or the model does not load."""
        self.lower = lower
        self.words = tuple(words)
        self.model = model
        self._index: dict[str, int] = {word: i for i, word in enumerate(self.words)}
        self._processor: Any = None
        if model:
            self.kind = "sentencepiece"
            self._processor = _load(model)
            self.size = int(self._processor.get_piece_size())
            self.eos = int(self._processor.eos_id())
            self.unk: int | None = int(self._processor.unk_id())
            return
        self.kind = "words"
        self.size = len(self.words)
        if len(self._index) != self.size or EOS not in self._index:
            raise DataError(f"a vocabulary needs {EOS} and may not repeat a word")
        self.eos = self._index[EOS]
        self.unk = self._index.get(UNK)

    def __len__(self) -> int:
        return self.size

    def encode_line(self, line: str) -> list[int]:
        """The ids of one line, `<eos>` at its end."""
        return [int(i) for i in self.encode((line,)).tokens]

    def encode(self, lines: Iterable[str]) -> Encoded:
        """The ids of all lines, one stream."""
        chunks = list(self.encode_chunks(lines))
        if not chunks:
            return Encoded(np.zeros(0, np.int32), 0, 0)
        tokens, unknown, words = zip(*chunks, strict=True)
        return Encoded(np.concatenate(tokens), sum(unknown), sum(words))

    def encode_chunks(self, lines: Iterable[str]) -> Iterator[Encoded]:
        """As `encode`, in chunks of at most `CHUNK` lines, for texts larger than memory."""
        chunk: list[str] = []
        for line in lines:
            chunk.append(line.lower() if self.lower else line)
            if len(chunk) == CHUNK:
                yield self._encode(chunk)
                chunk = []
        if chunk:
            yield self._encode(chunk)

    def _encode(self, lines: list[str]) -> Encoded:
        if self.kind == "sentencepiece":
            ids = self._processor.encode(lines)
            words = sum(len(line.split()) + 1 for line in lines)
            flat = (i for row in ids for i in (*row, self.eos))
            tokens = np.fromiter(flat, np.int32, sum(map(len, ids)) + len(ids))
            return Encoded(tokens, int(np.count_nonzero(tokens == self.unk)), words)
        # One C-level loop over all words; about 10 million words a second.
        tokens = np.fromiter(map(self._index.get, _words_and_ends(lines), repeat(-1)), np.int32)
        missing = tokens < 0
        unknown = int(np.count_nonzero(missing))
        if unknown:
            if self.unk is None:
                word = next(w for w in _words_and_ends(lines) if w not in self._index)
                raise DataError(
                    f"the word {word!r} is not in the vocabulary, which has no {UNK}",
                    "Give text made of the corpus's own words.",
                )
            tokens[missing] = self.unk
        return Encoded(tokens, unknown, len(tokens))

    def decode(self, ids: Sequence[int]) -> str:
        """Text; `<eos>` becomes a newline. Raises DataError where an id is out of range."""
        plain = [int(i) for i in ids]
        if any(not 0 <= i < self.size for i in plain):
            raise DataError(f"a token id outside 0..{self.size - 1}")
        lines: list[list[int]] = [[]]
        for i in plain:
            if i == self.eos:
                lines.append([])
            else:
                lines[-1].append(i)
        if self.kind == "sentencepiece":
            return "\n".join(self._processor.decode(line) if line else "" for line in lines)
        return "\n".join(" ".join(self.words[i] for i in line) for line in lines)

    def to_plain(self) -> dict[str, Any]:
        """Strings, lists and booleans only: fit for JSON and for a checkpoint."""
        plain: dict[str, Any] = {"kind": self.kind, "lower": self.lower}
        if self.kind == "sentencepiece":
            return plain | {"model": base64.b64encode(self.model).decode("ascii")}
        return plain | {"words": list(self.words)}

    @classmethod
    def from_plain(cls, plain: object) -> Vocab:
        """The vocabulary that `to_plain` gave. Raises DataError where it is malformed."""
        if not isinstance(plain, Mapping) or not isinstance(plain.get("lower"), bool):
            raise DataError("a vocabulary that is not understood")
        words, model = plain.get("words"), plain.get("model")
        if plain.get("kind") == "words" and isinstance(words, list):
            if not all(isinstance(word, str) for word in words):
                raise DataError("a vocabulary whose words are not all text")
            return cls(words=words, lower=plain["lower"])
        if plain.get("kind") == "sentencepiece" and isinstance(model, str) and model:
            try:
                return cls(model=base64.b64decode(model, validate=True), lower=plain["lower"])
            except (binascii.Error, ValueError) as error:
                raise DataError("a sentencepiece model that is not base64") from error
        raise DataError(f"a vocabulary of unknown kind {plain.get('kind')!r}")


def _words_and_ends(lines: Iterable[str]) -> Iterator[str]:
    end = (EOS,)
    return chain.from_iterable(chain(line.split(), end) for line in lines)


def _lowered(lines: Iterable[str], lower: bool) -> Iterable[str]:
    return (line.lower() for line in lines) if lower else lines


def benchmark_words(splits: Iterable[Iterable[str]], *, lower: bool = False) -> Vocab:
    """Every word of every split, `<eos>` too, in order of first appearance.

    The convention of PTB and WikiText: the vocabulary is part of the benchmark.
    """
    lines = chain.from_iterable(splits)
    return Vocab(words=tuple(dict.fromkeys(_words_and_ends(_lowered(lines, lower)))), lower=lower)


def frequent_words(train: Iterable[str], *, size: int = 0, lower: bool = False) -> Vocab:
    """`<eos>`, `<unk>`, then the words of the training text by falling count (ties: first seen).

    Args:
        size: at most so many entries, whatever their counts; 0: words seen at least `MIN_COUNT`
            times, at most `MAX_WORDS` entries.
    """
    counts = Counter(_words_and_ends(_lowered(train, lower)))
    least, most = (1, size) if size else (MIN_COUNT, MAX_WORDS)
    specials = (EOS, UNK)
    kept = [w for w, n in counts.most_common() if n >= least and w not in specials]
    return Vocab(words=(*specials, *kept[: most - len(specials)]), lower=lower)


def sentence_pieces(train: Iterable[str], *, size: int = 0, lower: bool = False) -> Vocab:
    """A sentencepiece unigram model trained on the training text; any text round-trips through it.

    Args:
        size: pieces; 0: `PIECES`, or as many as the text supports where these are fewer.

    The model changes with the number of threads, so one thread is pinned. At most 50 million
    characters are used: above that every k-th line.

    Raises:
        DataError: where the text does not support so many pieces, or needs more for its characters
            and the 256 bytes; the remedy says how many would fit.
    """
    lines = list(_lowered(train, lower))
    characters = sum(map(len, lines))
    lines = lines[:: 1 + characters // _TRAIN_CHARACTERS]
    try:
        return Vocab(model=_train_pieces(lines, size or PIECES), lower=lower)
    except (RuntimeError, OSError) as error:
        most = _TOO_MANY.search(str(error))
        if size or not most:
            raise _refusal(str(error), size or PIECES) from error
    try:
        return Vocab(model=_train_pieces(lines, int(most[1])), lower=lower)
    except (RuntimeError, OSError) as error:
        raise _refusal(str(error), int(most[1])) from error


def _train_pieces(lines: list[str], size: int) -> bytes:
    """The serialised model. Raises RuntimeError or OSError where the trainer refuses."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=chain.from_iterable(map(_short, lines)),
        model_writer=model,
        vocab_size=size,
        model_type="unigram",
        num_threads=1,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        character_coverage=0.9995,
        unk_id=0,
        unk_piece=UNK,
        bos_id=-1,
        eos_id=1,
        eos_piece=EOS,
        pad_id=-1,
        minloglevel=3,
    )
    return model.getvalue()


def _short(line: str) -> Iterator[str]:
    """A line in parts of at most `_TRAIN_LINE` characters, cut at spaces where there are any.

    For training only. Space around a line is left out: with it the trainer of 0.2 finds far fewer
    pieces (5,964 instead of 8,000 in PTB, whose lines begin and end with a space).
    """
    line = line.strip()
    while len(line) > _TRAIN_LINE:
        cut = line.rfind(" ", 1, _TRAIN_LINE)
        cut = cut if cut > 0 else _TRAIN_LINE
        yield line[:cut]
        line = line[cut:].strip()
    if line:
        yield line


def _refusal(message: str, size: int) -> DataError:
    """What sentencepiece's trainer says, as an error with a remedy."""
    if high := _TOO_MANY.search(message):
        return DataError(
            f"the training text is too small for {size:,} sentencepiece pieces",
            f"Ask for a vocabulary of at most {high[1]} pieces, or use word level.",
        )
    if low := re.search(r"smaller than required_chars\D*(\d+)\D+(\d+)", message):
        return DataError(
            f"{size:,} sentencepiece pieces are too few: characters and bytes need {low[2]}",
            f"Ask for a vocabulary of more than {low[2]} pieces.",
        )
    reason = message.strip().splitlines()[-1] if message.strip() else "no reason given"
    return DataError(
        f"sentencepiece cannot be trained on this text: {reason}", "Use word level, or more text."
    )


def _load(model: bytes) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(model)
    except (RuntimeError, ValueError) as error:
        raise DataError("a sentencepiece model that does not load") from error
    if not loaded or processor.eos_id() < 0:
        raise DataError(f"a sentencepiece model without {EOS}")
    return processor

"""Vocabularies: from lines of text to token ids and back.

- words: those of `str.split`, or of the rules in `tokenizer`, then `<eos>` after every line.
- sentencepiece: its pieces, then `<eos>`.
- characters: those of the training text, then `<eos>`.
- bytes: those of UTF-8; the line end is byte 10, so that the tokens are the text.

Whatever the vocabulary, words are counted as white space separates them, and one `<eos>` a line;
bytes are those of UTF-8, and one a line end. Perplexity per word and bits per byte divide by these.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, repeat
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from rnnnas.data.tokenizer import detokenize, tokenize
from rnnnas.errors import DataError

EOS = "<eos>"
UNK = "<unk>"

# Defaults for text that is no benchmark. A word seen once in training text teaches a model nothing
# but costs a row of weights, and gives <unk> its training examples instead.
MIN_COUNT = 2
MAX_WORDS = 30_000
# Pieces by the characters of the training text: below the first number, so many pieces.
PIECES = ((100_000, 1_000), (1_000_000, 2_000), (5_000_000, 4_000), (50_000_000, 8_000))
MOST_PIECES = 16_000
RULES = "rules"  # the name of `tokenizer`'s rules in a vocabulary's plain form

CHUNK = 1 << 16  # lines encoded at a time
_TRAIN_CHARACTERS = 50_000_000  # sentencepiece's trainer needs tens of bytes a character
_TOO_MANY = re.compile(r"size too high.*?<= *(\d+)", re.S)  # how the trainer says what would fit
_TOO_FEW = re.compile(r"smaller than required_chars\D*(\d+)\D+(\d+)")
_SPACE_MARK = "\u2581"  # what sentencepiece writes for a space
_TRAIN_LINE = 1_000  # characters; the trainer drops lines above its limit of 4,192 bytes


class Encoded(NamedTuple):
    """tokens: (n,) int32; unknown: tokens that stand for what the vocabulary lacks;
    words: words plus one `<eos>` a line, the denominator of a perplexity per word;
    bytes: of the lines in UTF-8 plus one a line end, the denominator of bits per byte."""

    tokens: npt.NDArray[np.int32]
    unknown: int
    words: int
    bytes: int


@final
class Vocab:
    """A vocabulary of one kind: words, characters, bytes, or sentencepiece.

    words: the entries, of words and characters. model: sentencepiece's, serialised.
    tokenizer: `rules` where words are split by them, else empty. unk: the id of what is not in the
    vocabulary; None where there is no such thing.
    """

    __slots__ = ("_index", "_mark", "_processor", "eos", "kind", "lower", "model", "size",
                 "tokenizer", "unk", "words")  # fmt: skip

    def __init__(
        self,
        *,
        words: Sequence[str] = (),
        model: bytes = b"",
        lower: bool = False,
        kind: str = "",
        tokenizer: str = "",
    ) -> None:
        """Raises DataError where the words repeat or lack `<eos>`, or the model does not load."""
        self.kind = kind or ("sentencepiece" if model else "words")
        self.lower = lower
        self.words = tuple(words)
        self.model = model
        self.tokenizer = tokenizer
        self._index: dict[str, int] = {word: i for i, word in enumerate(self.words)}
        self._processor: Any = None
        self.unk: int | None = None
        if self.kind == "sentencepiece":
            self._processor = _load(model)
            self.size = int(self._processor.get_piece_size())
            self.eos = int(self._processor.eos_id())
            self.unk = int(self._processor.unk_id())
            pieces = [f"<0x{byte:02X}>" for byte in _SPACE_MARK.encode()]
            self._mark = [int(self._processor.piece_to_id(piece)) for piece in pieces]
            return
        if self.kind == "bytes":
            self.size, self.eos = 256, ord("\n")
            return
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
            return Encoded(np.zeros(0, np.int32), 0, 0, 0)
        tokens, unknown, words, size = zip(*chunks, strict=True)
        return Encoded(np.concatenate(tokens), sum(unknown), sum(words), sum(size))

    def encode_chunks(self, lines: Iterable[str]) -> Iterator[Encoded]:
        """As `encode`, in chunks of at most `CHUNK` lines, for texts larger than memory."""
        remaining = iter(lines)
        while chunk := list(islice(remaining, CHUNK)):
            if self.lower:
                chunk = [line.lower() for line in chunk]
            try:
                size = sum(map(_byte_length, self._kept(chunk))) + len(chunk)
            except UnicodeEncodeError as error:
                half = error.object[error.start]
                raise DataError(
                    f"the text holds {half!a}, half a character, which no text can",
                    "Give it in UTF-8.",
                ) from error
            tokens, words = self._encode(chunk)
            if words < 0:
                words = sum(len(line.split()) + 1 for line in chunk)
            missing = tokens < 0
            unknown = int(np.count_nonzero(missing))
            if self.kind == "sentencepiece":
                unknown = int(np.count_nonzero(tokens == self.unk))
            elif unknown:
                if self.unk is None:
                    entry = next(e for e in self._entries(chunk) if e not in self._index)
                    raise DataError(
                        f"the word {entry!r} is not in the vocabulary, which has no {UNK}",
                        "Give text made of the corpus's own words.",
                    )
                tokens[missing] = self.unk
            yield Encoded(tokens, unknown, words, size)

    def _kept(self, lines: list[str]) -> Iterable[str]:
        """What of lines the tokens stand for: words do not tell how much white space parts them."""
        return (" ".join(line.split()) for line in lines) if self.kind == "words" else lines

    def _encode(self, lines: list[str]) -> tuple[npt.NDArray[np.int32], int]:
        """The tokens of lines, -1 for what is not known, and the words, -1 where not counted."""
        if self.kind == "bytes":
            whole = "".join(f"{line}\n" for line in lines).encode("utf-8")
            return np.frombuffer(whole, np.uint8).astype(np.int32), -1
        if self.kind == "sentencepiece":
            ids = self._processor.encode(lines)
            for row, line in enumerate(lines):
                if _SPACE_MARK in line:
                    ids[row] = self._marked(line)
            flat = (i for row in ids for i in (*row, self.eos))
            return np.fromiter(flat, np.int32, sum(map(len, ids)) + len(ids)), -1
        # One C-level loop over all words; about 10 million words a second.
        found = np.fromiter(map(self._index.get, self._entries(lines), repeat(-1)), np.int32)
        return found, len(found) if self.kind == "words" and not self.tokenizer else -1

    def _marked(self, line: str) -> list[int]:
        """The ids of a line that holds sentencepiece's own mark, which is spelt by its bytes."""
        first, *others = (self._processor.encode(part) for part in line.split(_SPACE_MARK))
        return list(chain(first, *(chain(self._mark, part) for part in others)))

    def _entries(self, lines: Iterable[str]) -> Iterator[str]:
        return entries(lines, self.kind, self.tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        """Text; `<eos>` becomes a newline. Raises DataError where an id is out of range."""
        plain = [int(i) for i in ids]
        if any(not 0 <= i < self.size for i in plain):
            raise DataError(f"a token id outside 0..{self.size - 1}")
        if self.kind == "bytes":
            return bytes(plain).decode("utf-8", "replace")
        lines: list[list[int]] = [[]]
        for i in plain:
            if i == self.eos:
                lines.append([])
            else:
                lines[-1].append(i)
        return "\n".join(self._joined(line) if line else "" for line in lines)

    def _joined(self, ids: list[int]) -> str:
        """The text of one line."""
        if self.kind == "sentencepiece":
            return str(self._processor.decode(ids))
        found = [self.words[i] for i in ids]
        if self.kind == "characters":
            return "".join(found)
        if self.tokenizer:
            return detokenize(found)
        return " ".join(word[1:] if _looks_like_end(word) else word for word in found)

    def to_plain(self) -> dict[str, Any]:
        """Strings, lists and booleans only: fit for JSON and for a checkpoint."""
        plain: dict[str, Any] = {"kind": self.kind, "lower": self.lower}
        if self.kind == "sentencepiece":
            return plain | {"model": base64.b64encode(self.model).decode("ascii")}
        if self.kind == "bytes":
            return plain
        if self.tokenizer:
            plain["tokenizer"] = self.tokenizer
        return plain | {"words": list(self.words)}

    @classmethod
    def from_plain(cls, plain: object) -> Vocab:
        """The vocabulary that `to_plain` gave. Raises DataError where it is malformed."""
        if not isinstance(plain, Mapping) or not isinstance(plain.get("lower"), bool):
            raise DataError("a vocabulary that is not understood")
        lower = bool(plain["lower"])
        kind, words, model = (plain.get(k) for k in ("kind", "words", "model"))
        tokenizer = plain.get("tokenizer", "")
        if tokenizer not in ("", RULES) or (tokenizer and kind != "words"):
            raise DataError(f"a vocabulary of unknown tokenizer {tokenizer!r}")
        if kind in ("words", "characters") and isinstance(words, list):
            if not all(isinstance(word, str) for word in words):
                raise DataError("a vocabulary whose words are not all text")
            return cls(words=words, lower=lower, kind=kind, tokenizer=tokenizer)
        if kind == "bytes":
            return cls(kind="bytes", lower=lower)
        if kind == "sentencepiece" and isinstance(model, str) and model:
            try:
                return cls(model=base64.b64decode(model, validate=True), lower=lower)
            except (binascii.Error, ValueError) as error:
                raise DataError("a sentencepiece model that is not base64") from error
        raise DataError(f"a vocabulary of unknown kind {kind!r}")


def _byte_length(line: str) -> int:
    return len(line) if line.isascii() else len(line.encode("utf-8"))


def _looks_like_end(word: str) -> bool:
    """Whether a word is `<eos>` itself, or stands for such a one of the text."""
    return word.endswith(EOS) and word.startswith("\\") and not word[: -len(EOS)].strip("\\")


def _escaped(words: list[str]) -> list[str]:
    """Words of which those that read `<eos>` get a backslash: the end of a line is ours to say."""
    return [f"\\{word}" if word == EOS or _looks_like_end(word) else word for word in words]


def entries(lines: Iterable[str], kind: str = "words", tokenizer: str = "") -> Iterator[str]:
    """The words or characters of lines, in order, `<eos>` after every line."""
    end = (EOS,)
    if kind == "characters":
        return chain.from_iterable(chain(line, end) for line in lines)
    if tokenizer:
        return chain.from_iterable(chain(tokenize(line), end) for line in lines)
    return chain.from_iterable(
        chain(_escaped(line.split()) if EOS in line else line.split(), end) for line in lines
    )


def _lowered(lines: Iterable[str], lower: bool) -> Iterable[str]:
    return (line.lower() for line in lines) if lower else lines


def benchmark_words(splits: Iterable[Iterable[str]], *, lower: bool = False) -> Vocab:
    """Every word of every split, `<eos>` too, in order of first appearance.

    The convention of PTB and WikiText: the vocabulary is part of the benchmark.
    """
    lines = chain.from_iterable(splits)
    return Vocab(words=tuple(dict.fromkeys(entries(_lowered(lines, lower)))), lower=lower)


def frequent_words(
    train: Iterable[str],
    *,
    size: int = 0,
    lower: bool = False,
    kind: str = "words",
    tokenizer: str = "",
) -> Vocab:
    """`<eos>`, `<unk>`, then the words of the training text by falling count (ties: first seen).

    Args:
        size: at most so many entries, whatever their counts; 0: those seen at least `MIN_COUNT`
            times, at most `MAX_WORDS` entries.
        kind: `words` or `characters`.
        tokenizer: `rules`, by which words are split; empty: at white space.
    """
    counts = Counter(entries(_lowered(train, lower), kind, tokenizer))
    least, most = (1, size) if size else (MIN_COUNT, MAX_WORDS)
    specials = (EOS, UNK)
    kept = [w for w, n in counts.most_common() if n >= least and w not in specials]
    words = (*specials, *kept[: most - len(specials)])
    return Vocab(words=words, lower=lower, kind=kind, tokenizer=tokenizer)


def pieces_for(characters: int) -> int:
    """The sentencepieces that suit a training text of so many characters."""
    return next((size for limit, size in PIECES if characters < limit), MOST_PIECES)


def sentence_pieces(train: Iterable[str], *, size: int = 0, lower: bool = False) -> Vocab:
    """A sentencepiece unigram model trained on the training text; any text round-trips through it.

    Args:
        size: pieces; 0: by `pieces_for`, more where the characters alone need as many, or as
            many as the text supports where these are fewer.

    The model changes with the number of threads, so one thread is pinned. At most 50 million
    characters are used: above that every k-th line.

    Raises:
        DataError: where the text does not support so many pieces, or needs more for its characters
            and the 256 bytes; the remedy says how many would fit.
    """
    lines = [line.replace(_SPACE_MARK, " ") for line in _lowered(train, lower)]
    characters = sum(map(len, lines))
    lines = lines[:: 1 + characters // _TRAIN_CHARACTERS]
    wanted = size or pieces_for(characters)
    tries = 1 if size else 3
    while True:
        try:
            return Vocab(model=_train_pieces(lines, wanted), lower=lower)
        except (RuntimeError, OSError) as error:
            most, least = _TOO_MANY.search(str(error)), _TOO_FEW.search(str(error))
            tries -= 1
            if not tries or not (most or least):
                raise _refusal(str(error), wanted) from error
            # Chinese needs a piece for each of some thousand characters before there is any choice.
            wanted = int(most[1]) if most else int(least[2]) * 3 // 2 if least else wanted


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
    if low := _TOO_FEW.search(message):
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

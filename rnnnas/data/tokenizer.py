"""Rules that split punctuation from words, with marks by which the text can be put together again.

White space separates chunks; a chunk is split into words, numbers and punctuation. Where two pieces
stood together, one of them carries a joiner on that side, the punctuation rather than the word:
`"Well-known,"` becomes `"￭ Well ￭-￭ known ￭, ￭"`. Joining is therefore exact, in any language, but
for the amount of white space. (Joiner marks follow OpenNMT's tokenizer; the rules are ours.)

- A number keeps its inner marks (`1,234.5`, `10:30`), an abbreviation its stops (`U.S.`, `e.g.`).
- English clitics are split off (`Anna ￭'s`, `don ￭'t`), and so are elisions (`l'￭ homme`).
- Punctuation is everything of Unicode's categories P and S but `_`; equal marks stay one (`...`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache

JOINER = "￭"
_SHORT = 32  # characters; longer chunks are rarely seen twice, and are not kept in memory
_ESCAPE = "￬"  # so that a joiner in the text itself is not taken for ours
_PLANES = 0x20000  # the planes above these hold letters and private characters only
_CLITIC = re.compile(r"(?i)(.*[^\W\d_])(['’](?:s|ll|re|ve|d|m|t))")
_ELISION = re.compile(r"(?i)([^\W\d_]{1,2}['’])([^\W\d_].*)")


@cache
def _marks() -> str:
    """The inside of a character class: every code point of the categories P and S but `_`."""
    ranges: list[str] = []
    start = -1
    for code in range(_PLANES + 1):
        mark = code < _PLANES and unicodedata.category(chr(code))[0] in "PS" and code != ord("_")
        if mark and start < 0:
            start = code
        elif not mark and start >= 0:
            ranges.append(f"\\U{start:08x}-\\U{code - 1:08x}")
            start = -1
    return "".join(ranges)


@cache
def _pieces() -> re.Pattern[str]:
    """The pieces of a chunk: number, abbreviation, word, or a run of one mark."""
    mark = _marks()
    letter = f"[^{mark}\\s]"
    return re.compile(
        rf"\d+(?:[.,:/]\d+)+(?!{letter})"
        rf"|(?:[^\W\d_]\.){{2,}}(?!{letter})"
        rf"|{letter}+(?:['’]{letter}+)*"
        rf"|(?P<mark>[{mark}])(?P=mark)*"
    )


def _parts(chunk: str) -> list[tuple[str, bool]]:
    """The pieces of a chunk, each with whether it takes the joiners of its sides."""
    parts: list[tuple[str, bool]] = []
    for found in _pieces().finditer(chunk):
        piece = found[0]
        if found["mark"] is not None:
            parts.append((piece, True))
        elif clitic := _CLITIC.fullmatch(piece):
            parts += [(clitic[1], False), (clitic[2], True)]
        elif elision := _ELISION.fullmatch(piece):
            parts += [(elision[1], True), (elision[2], False)]
        else:
            parts.append((piece, False))
    return parts


@lru_cache(1 << 18)
def _split(chunk: str) -> tuple[str, ...]:
    parts = _parts(chunk)
    tokens = [piece.replace(_ESCAPE, f"{_ESCAPE}0").replace(JOINER, f"{_ESCAPE}1")
              for piece, _ in parts]  # fmt: skip
    for right in range(1, len(parts)):
        if parts[right][1] or not parts[right - 1][1]:
            tokens[right] = JOINER + tokens[right]
        else:
            tokens[right - 1] += JOINER
    return tuple(tokens)


def tokenize(line: str) -> list[str]:
    """The tokens of a line, none of which is empty or holds white space."""
    tokens: list[str] = []
    for chunk in line.split():
        if chunk.isascii() and chunk.isalpha():
            tokens.append(chunk)
        else:
            tokens.extend(_split(chunk) if len(chunk) <= _SHORT else _split.__wrapped__(chunk))
    return tokens


def detokenize(tokens: Iterable[str]) -> str:
    """The line that `tokenize` split, with single spaces between its chunks."""
    line: list[str] = []
    glue = True
    for token in tokens:
        left = len(token) > 1 and token.startswith(JOINER)
        right = len(token) > 1 + left and token.endswith(JOINER)
        if not (glue or left):
            line.append(" ")
        piece = token[left : len(token) - right]
        line.append(piece.replace(f"{_ESCAPE}1", JOINER).replace(f"{_ESCAPE}0", _ESCAPE))
        glue = right
    return "".join(line)

"""What kind of text it is: pre-tokenised or raw, and whether its script has spaces between words.

A text is pre-tokenised where punctuation stands apart from the words: of every 200 words at most
one has a comma, semicolon, colon, exclamation or question mark, quotation mark or bracket glued to
it, or ends its line with a full stop. Penn Treebank and WikiText are such, and so is text without
any punctuation; prose is not.

A script without spaces is told by its letters (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
Tibetan): they are half of all letters or more, and the stretches between spaces are long.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rnnnas.data.vocab import EOS, UNK

SAMPLE = 500_000  # characters looked at: a text does not change its kind further on
GLUED = 0.005  # of the words
SHARE = 0.5  # of the letters
STRETCH = 6.0  # characters between spaces; segmented Chinese has about 2

_GLUED = re.compile(
    r"""(?:^|\s)(?:[,;:!?"()\[\]“”„«»‘‚¿¡،؛؟।、。，；：！？「」]+\w\S*|\S*\w[,;:!?"()\[\]“”„«»،؛؟।、。，；：！？「」]+\S*"""
    r"""|\S*\w\.["”»)]*$)"""
)
_SCRIPTS = {
    "Japanese": "\u3040-\u30ff",
    "Chinese": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Thai": "\u0e01-\u0e30\u0e32-\u0e33\u0e40-\u0e46",
    "Lao": "\u0e81-\u0eaf\u0ec0-\u0ec6",
    "Khmer": "\u1780-\u17b3",
    "Burmese": "\u1000-\u102a",
    "Tibetan": "\u0f40-\u0f6c",
}
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}
_SPACELESS = re.compile(f"[{''.join(_SCRIPTS.values())}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextKind:
    """words: between white space, of the sample; glued: those with punctuation glued to them;
    script: the name of a script without spaces, or empty where words have spaces between them;
    marks: which of our own marks are words of the text."""

    words: int
    glued: int
    script: str
    marks: tuple[str, ...] = ()

    @property
    def pretokenised(self) -> bool:
        """Whether words are to be taken as white space separates them."""
        return not self.script and self.glued <= GLUED * self.words


def kind_of(lines: Iterable[str]) -> TextKind:
    """The kind of a text, from its first `SAMPLE` characters. Raises as `lines` does."""
    words = glued = letters = spaceless = characters = stretched = 0
    found = dict.fromkeys(_SCRIPTS, 0)
    marks: set[str] = set()
    for line in lines:
        characters += len(line)
        chunks = line.split()
        words += len(chunks)
        if "<" in line:
            marks |= {EOS, UNK}.intersection(chunks)
        glued += sum(1 for _ in _GLUED.finditer(line.rstrip()))
        letters += sum(map(str.isalpha, line))
        if not line.isascii() and _SPACELESS.search(line):
            spaceless += len(_SPACELESS.findall(line))
            own = [chunk for chunk in chunks if _SPACELESS.search(chunk)]
            stretched += len(own)
            for name, pattern in _LETTERS.items():
                found[name] += len(pattern.findall(line))
        if characters > SAMPLE:
            break
    script = ""
    if spaceless and spaceless >= SHARE * letters and spaceless > STRETCH * stretched:
        # Japanese is written with Chinese characters as well; a tenth of kana tells it.
        script = max(found, key=lambda name: found[name])
        if script == "Chinese" and found["Japanese"] * 10 > found["Chinese"]:
            script = "Japanese"
    return TextKind(words=words, glued=glued, script=script, marks=tuple(sorted(marks)))

"""Where a text is cut into train, valid and test: between documents or paragraphs, else lines.

A document is a file of several; a paragraph ends at a blank line. The border nearest to 90 and 95
percent of the lines is taken: a document's within 2 percent of all lines, else a paragraph's within
1 percent, else the line itself. A text of a few gigantic lines is broken at sentence ends first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice, pairwise

from rnnnas.data.text_files import Text, joined, sliced

SPLITS = ("train", "valid", "test")
SHARES = (90, 5, 5)  # percent of the lines
FEW_LINES = 100  # below these, and of LONG characters on average, a text lacks its line structure
LONG = 1_000
GIGANTIC = 20_000  # characters a line, on average, that are no lines however many there are
# Where a sentence ends: behind its mark, and the quotes and brackets that close there.
_END = re.compile(r"[.!?…؟।][\"'”’»)\]]*(?=\s)|[。！？][”」』）。！？]*")


def cut(texts: Sequence[Text], called: str) -> tuple[dict[str, Text], str]:
    """One text, given as its documents, as three contiguous blocks; and what to tell the user.

    Raises DataError as the texts' lines do.
    """
    mended = [broken(text) for text in texts]
    note = "; ".join(said for _, said in mended if said)
    whole = joined([text for text, _ in mended], called)
    ends = list(accumulate(sum(1 for _ in text.lines()) for text, _ in mended))
    lines = ends[-1]
    bounds = [_border(whole, ends, lines, share) for share in (SHARES[0], SHARES[0] + SHARES[1])]
    places = ((0, bounds[0]), (bounds[0], bounds[1]), (bounds[1], lines))
    splits = {split: sliced(whole, *place) for split, place in zip(SPLITS, places, strict=True)}
    return splits, note


def hold_out(train: Text, missing: Sequence[str]) -> dict[str, Text]:
    """Train without its end, and the missing splits cut out of that, a share each."""
    lines = sum(1 for _ in train.lines())
    stop, splits = lines, {}
    for rank, split in enumerate(reversed(missing), 1):
        share = 100 - rank * SHARES[1]
        start = min(_border(train, [lines], lines, share), stop)
        splits[split] = sliced(train, start, stop)
        stop = start
    splits["train"] = sliced(train, 0, stop)
    return splits


def _border(text: Text, ends: Sequence[int], lines: int, share: int) -> int:
    """The line before which to cut: near `share` percent of the lines."""
    target = lines * share // 100
    near = [end for end in ends if 0 < end < lines and abs(end - target) * 50 <= lines]
    if near:
        return min(near, key=lambda end: (abs(end - target), end))
    reach = lines // 100
    start, found = max(target - reach - 1, 0), []
    blank = False
    for number, line in enumerate(islice(text.lines(), start, target + reach + 1), start):
        if blank and line.strip() and number > start:
            found.append(number)
        blank = not line.strip()
    return min(found, key=lambda at: (abs(at - target), at)) if found else target


def broken(text: Text) -> tuple[Text, str]:
    """A text, broken at sentence ends where it has few gigantic lines; and what to say."""
    lines = characters = 0
    for line in islice(text.lines(), FEW_LINES):
        lines += 1
        characters += len(line)
    if characters < (LONG if lines < FEW_LINES else GIGANTIC) * max(lines, 1):
        return text, ""

    def sentences() -> Iterator[str]:
        for line in text.lines():
            ends = [match.end() for match in _END.finditer(line)]
            for start, stop in pairwise((0, *ends, len(line))):
                if part := line[start:stop].strip():
                    yield part

    lines = sum(1 for _ in text.lines())
    count = sum(1 for _ in sentences())
    if count <= 2 * lines:
        return text, ""
    note = f"lines too long to be such were broken into sentences: {lines:,} became {count:,}"
    return Text(text.name, sentences), note


def all_broken(splits: Mapping[str, Text]) -> tuple[dict[str, Text], list[str]]:
    """The splits that a source names, each `broken` where need be."""
    found, notes = {}, []
    for split, text in splits.items():
        found[split], note = broken(text)
        if note:
            notes.append(f"{split}: {note}")
    return found, notes

"""Which texts are the canonical Penn Treebank and WikiText-2: by SHA-256, split by split.

The hub's copies hold the same words with other spaces around them, so their bytes never match. For
them the words are hashed: lines of words joined by single spaces, each ended by `\\n`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from rnnnas.data.text_files import Text
from rnnnas.data.text_sources import SPLITS


class Digests(NamedTuple):
    """SHA-256 of a text's bytes, and of its words."""

    text: str
    words: str


CANONICAL: Mapping[str, Mapping[str, Digests]] = {
    "ptb": {
        "train": Digests(
            "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "5145926136ee9aef6f359b267ac09cc8a920879cd71725de17c490dd111d2998",
        ),
        "valid": Digests(
            "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "fadf6277290823f881b7bf39b84e88536c87a859cd629dcfd1d2dfdef06097cf",
        ),
        "test": Digests(
            "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
            "c2f8c16a611595d31da5acdb7a61d50e7d5e95f6b9c05fceda5f5ddc4383e791",
        ),
    },
    "wikitext-2": {
        "train": Digests(
            "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "f7ee69acf5cc3fd2321929d3e32dd6defd8199abe0cb95063b2b9f092584f96f",
        ),
        "valid": Digests(
            "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "4427e8fc24d5ceaaff4f1d9ee42f4e82172572b107d6a4e1f32d84fa7913c3ff",
        ),
        "test": Digests(
            "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            "f68796e87c3250872a5a82da5027c4f75494ca617fbad67e36acce8a057ff3e8",
        ),
    },
}


class Recognition(NamedTuple):
    """benchmark: which text it is, None where none; canonical: None where nothing is claimed;
    note: what to tell the user, empty where there is nothing to tell."""

    benchmark: str | None
    canonical: bool | None
    note: str


def words_digest(text: Text) -> str:
    """The SHA-256 of a text's words and line ends, whatever its spaces."""
    whole = hashlib.sha256()
    for line in text.lines():
        whole.update(f"{' '.join(line.split())}\n".encode("utf-8", "surrogatepass"))
    return whole.hexdigest()


def recognise(name: str, splits: Mapping[str, Text]) -> Recognition:
    """What the texts are: by content whatever the name, and against the name where it claims one.

    Raises DataError where a text cannot be read.
    """
    found = {split: text.digest() for split in SPLITS if (text := splits[split]).digest}
    for benchmark, known in CANONICAL.items():
        if all(found.get(split) == known[split].text for split in SPLITS):
            return Recognition(benchmark, True, f"the canonical {benchmark}")
    if name not in CANONICAL:
        return Recognition(None, None, "")
    known = CANONICAL[name]
    other = [split for split in SPLITS if found.get(split) != known[split].text]
    differing = [split for split in other if words_digest(splits[split]) != known[split].words]
    if differing:
        return Recognition(name, False, f"differs from the canonical text: {', '.join(differing)}")
    return Recognition(
        name, True, f"the canonical words with other spacing or byte-order mark: {', '.join(other)}"
    )

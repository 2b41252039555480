"""Writes what documentation takes from the code: the file map of docs/architecture.md.

python docs/generate.py            # writes
python docs/generate.py --check    # exits with 1 where something is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "## Every file\n"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".").removesuffix(":")


def file_map() -> str:
    """A line a module, room by room."""
    lines = [MARK]
    room = None
    for path in sorted((ROOT / "rnnnas").rglob("*.py")):
        if path.name == "__init__.py" and path.parent.name != "rnnnas":
            continue
        here = path.parent.relative_to(ROOT)
        if here != room:
            lines.append(f"\n**{here.as_posix()}/**\n")
            room = here
        lines.append(f"- `{path.name}`: {summary(path)}")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """What every generated page should hold."""
    architecture = ROOT / "docs/architecture.md"
    before = architecture.read_text(encoding="utf-8").partition(MARK)[0]
    return {architecture: before + file_map()}


def main() -> int:
    stale = [path for path, text in pages().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        return bool(stale)
    for path in stale:
        path.write_text(pages()[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

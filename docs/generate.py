"""Writes what documentation takes from the code: the map of all files, and every setting.

python docs/generate.py            # writes
python docs/generate.py --check    # exits with 1 where something is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package beside this page, installed or not
MARK = "## Every file\n"
SETTINGS = """# Settings

Every setting of a search, a training, their forms on images, and a study. A setting is given as
`--set KEY=VALUE`, as a keyword of `rnnnas.search` and `rnnnas.train`, or in a TOML file for
`--config`; `--print-config` prints those of a run with their meanings. A flag overrides `--set`,
which overrides `--config`, which overrides the preset. `rnnnas settings KEY` prints what stands
here. This page is generated from the docstrings of the classes that declare the settings:
`python docs/generate.py`.

A preset or a file may extend another, and says only what it changes:

```toml
extends = "quick"          # a preset, or a TOML file beside this one
corpus = "ptb"             # a file for --config may name corpus, method and genotype, too

[search.windows]           # of searches only; what stands outside of such tables is for all runs
limit = 300
```

## Presets

| preset | what |
|---|---|
PRESETS
## Settings of a run
"""


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


def settings_page() -> str:
    """docs/settings.md: a table for each group of settings."""
    from rnnnas.config.catalogue import Setting, catalogue
    from rnnnas.config.preset_files import preset_names, preset_tables
    from rnnnas.studies.plan import ALL_KINDS

    presets = [f"| `{name}` | {preset_tables(name)['about']} |\n" for name in preset_names()]

    def row(one: Setting) -> str:
        about = one.field.about
        methods = f" ({', '.join(f'`{name}`' for name in one.methods)})" if one.methods else ""
        default = f"`{one.default_text()}`; {about.why}" if about.why else one.default_text()
        if one.field.required:
            default = "required"
        cells = (
            f"`{one.key}`", ", ".join(one.kinds) + methods, about.meaning,
            "; ".join(part for part in (about.unit, about.range) if part), default,
            "; ".join(one.changes_text()),
        )  # fmt: skip
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    head = "| setting | of | meaning | unit; range | default; why | presets that change it |"
    lines = [SETTINGS.replace("PRESETS", "".join(presets)), head, "|---|---|---|---|---|---|"]
    listed = catalogue(ALL_KINDS)
    for number, one in enumerate(listed):
        if not one.field.group:
            lines.append(row(one))
        elif not any(o.field.group and o.key == one.key for o in listed[:number]):
            meanings = {o.field.about.meaning for o in listed if o.field.group and o.key == one.key}
            lines += [f"\n## {one.key}", f"\n{'; '.join(sorted(meanings))}\n", head]
            lines.append("|---|---|---|---|---|---|")
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """What every generated page should hold."""
    architecture = ROOT / "docs/architecture.md"
    before = architecture.read_text(encoding="utf-8").partition(MARK)[0]
    return {architecture: before + file_map(), ROOT / "docs/settings.md": settings_page()}


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def main() -> int:
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.exists() or read(path) != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is out of date: run python docs/generate.py")
        return bool(stale)
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The rules of the house, kept: floors, sizes, forbidden calls, help, and the documents."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest
from house_rules import FLOORS, INNER, LIBRARIES

from rnnnas.cli import main
from rnnnas.config.presets import preset_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rnnnas"
LINES = 600
LOOSE = 8  # modules in the package's root
HEAVY = ["torch", "datasets", "tensorboard", "sentencepiece", "numpy", "PIL", "rich", "pyarrow"]


def module_name(path: Path) -> str:
    """'nas.space' for rnnnas/nas/space.py, '' for rnnnas/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = sorted(
    path
    for folder in ("rnnnas", "tests", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
)


@cache
def tree_of(path: Path) -> ast.Module:
    """A file's syntax tree, parsed when a test first asks."""
    return ast.parse(path.read_text(encoding="utf-8"))


def trees() -> Iterator[tuple[str, ast.Module]]:
    """All modules with their trees."""
    return ((name, tree_of(path)) for name, path in MODULES.items())


def full_imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import anywhere in a file; name is '' for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The package's modules that module `name` imports, at the top or in a function."""
    found = set()
    for module, what in full_imports(tree_of(MODULES[name])):
        first, _, rest = module.partition(".")
        if first == "rnnnas":
            deeper = f"{rest}.{what}" if rest else what
            found.add(deeper if deeper in MODULES else rest)
    return found


def room(name: str) -> str:
    """'lm' for 'lm.fast.matmul'; a loose module is a room of its own."""
    return name.partition(".")[0]


# Imports


def test_nothing_imports_upwards() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    rooms = {room(name) for name in MODULES} - {""}
    assert rooms == set(floor), "every room has its floor in house_rules.py, and no other"
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        for other in sorted(own_imports(name) - {""})
        if name and room(other) != room(name) and floor[room(other)] >= floor[room(name)]
    ]
    assert not wrong, wrong


def test_few_modules_are_loose() -> None:
    loose = [name for name in MODULES if name and PACKAGE / f"{name}.py" == MODULES[name]]
    assert len(loose) <= LOOSE, loose


def test_packages_hold_no_code() -> None:
    """All but the door, and the command line's, which assembles the commands."""
    for name, path in MODULES.items():
        if path.name == "__init__.py" and name not in {"", "cli"}:
            kinds = {type(node) for node in tree_of(path).body}
            assert kinds <= {ast.Expr, ast.Assign}, name


def test_networks_know_mixtures_and_nothing_else_of_relaxations() -> None:
    for name, tree in trees():
        if room(name) in {"lm", "cnn"} or name == "engine.steps":
            taken = {
                what for module, what in full_imports(tree) if module == "rnnnas.nas.relax.base"
            }
            assert taken <= {"Mixture"}, name


def test_no_cycles() -> None:
    graph = {name: own_imports(name) - {""} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    assert done == set(MODULES)


def test_rooms_use_the_libraries_they_may() -> None:
    """nas, the search itself, knows nothing of text or images, nor lm of how text is stored."""
    own = {"rnnnas", *sys.stdlib_module_names}
    for name, tree in trees():
        rule = next((pattern for pattern in LIBRARIES if fnmatch(name, pattern)), None)
        if rule is not None:
            used = {module.partition(".")[0] for module, _ in full_imports(tree)} - own
            assert used <= LIBRARIES[rule], f"{name} imports {sorted(used - LIBRARIES[rule])}"


# Sizes and places


def test_no_file_is_long() -> None:
    counts = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCES
    }
    long = {name: count for name, count in counts.items() if count > LINES}
    assert counts and not long, long


def test_the_house_is_two_folders_deep() -> None:
    """And three for families that have a file a variant."""
    inner = [["rnnnas", *name.split(".")] for name in sorted(INNER)]
    for path in SOURCES:
        *folders, _ = path.relative_to(ROOT).parts
        assert len(folders) <= 2 or folders in inner, path


def test_every_module_says_what_it_is() -> None:
    for name, tree in trees():
        text = ast.get_docstring(tree)
        assert text and text.split("\n")[0].endswith((".", ":")), name


# Forbidden


def called(node: ast.AST) -> str:
    """'pickle.load' for a call of it, '' for what is no call of a plain name."""
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


def wrongs(tree: ast.AST) -> Iterator[str]:
    """What a file does that no file of ours may do, with its line."""
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}"
        name = called(node)
        if name in {"eval", "exec", "os.system"} or name.endswith((".extractall", ".extract")):
            yield f"{line}: {name}()"
        if re.fullmatch(r"c?[pP]ickle\.(load|loads|Unpickler)", name):
            yield f"{line}: {name}() runs what a file says"
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                yield f"{line}: torch.load without weights_only=True"
            if given.get("shell", "False") != "False":
                yield f"{line}: a shell"
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"{line}: a bare except takes Ctrl-C too"
            elif ast.unparse(node.type) in {"Exception", "BaseException"} and all(
                isinstance(inner, ast.Pass) for inner in node.body
            ):
                yield f"{line}: an error is swallowed"


def test_forbidden_calls() -> None:
    for path in SOURCES:
        assert not list(wrongs(tree_of(path))), path


@pytest.mark.parametrize(
    "code",
    ["eval('1')", "exec('1')", "pickle.load(f)", "pickle.loads(b)", "z.extractall()",
     "torch.load(f)", "torch.load(f, weights_only=False)", "subprocess.run('a', shell=True)",
     "try: pass\nexcept: raise", "try: pass\nexcept Exception: pass"],
)  # fmt: skip
def test_forbidden_calls_would_show(code: str) -> None:
    assert list(wrongs(ast.parse(code)))


def test_ordinary_calls_pass() -> None:
    code = "net.eval()\nre.compile('x')\ntorch.load(f, weights_only=True)\npickle.dumps(1)"
    assert not list(wrongs(ast.parse(code)))


def test_the_forbidden_words_stand_nowhere_in_the_package() -> None:
    words = ["pickle" + ".load", "weights_only" + "=False", "extract" + "all"]
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        assert not [word for word in words if word in text], path


# The command line


def commands(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


COMMANDS = dict(commands())
NAMES = [" ".join(path) for path in COMMANDS]


def python(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment,
        cwd=ROOT, timeout=600,
    )  # fmt: skip
    return done.stdout


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = f"""
import sys
from rnnnas.cli import main
for path in {[path for path in COMMANDS]!r}:
    try:
        main([*path, "--help"])
    except SystemExit as stop:
        assert stop.code == 0, (path, stop.code)
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    out = python("-c", code)
    assert out.count("Usage:") == len(COMMANDS) and out.splitlines()[-1] == "HEAVY []"


def parse_check(words: list[str]) -> None:
    """Parse 'rnnnas ...' as the command line would, without running it."""
    assert words.pop(0) == "rnnnas"
    command: click.Command = main
    parent = click.Context(main, info_name="rnnnas")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
    if not isinstance(command, click.Group):
        command.make_context(command.name, words, parent=parent)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_an_example_that_parses(name: str) -> None:
    text = COMMANDS[tuple(name.split())].help or ""
    lines = [line.strip() for line in text.splitlines()]
    assert lines and lines[0].endswith("."), "help begins with a sentence"
    examples = [line for line in lines if line.startswith("rnnnas ")]
    assert any(f"{line} ".startswith(f"rnnnas {name}".strip() + " ") for line in examples), text
    for line in examples:
        parse_check(shlex.split(line))


def test_an_example_that_does_not_parse_would_show() -> None:
    for bad in ("rnnnas search --corpus", "rnnnas search --corpsu a", "rnnnas serach",
                "rnnnas show", "rnnnas show a --format png"):  # fmt: skip
        with pytest.raises((AssertionError, click.UsageError)):
            parse_check(shlex.split(bad))


# The documents

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md",
        *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md")),
    ]
}  # fmt: skip
HOW_TO = {name: text for name, text in PAGES.items() if not name.startswith("benchmarks")}


def shown(text: str, language: str) -> Iterator[str]:
    """The code blocks of a page: of one language, or "" for commands."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def test_the_readme_is_two_screens() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_command_is_documented() -> None:
    everything = "\n".join(HOW_TO.values())
    for name in filter(None, NAMES):
        group, _, inner = name.rpartition(" ")
        listed = any(
            f"rnnnas {group}" in line and f"`{inner}`" in line for line in everything.splitlines()
        )
        assert f"rnnnas {name}" in everything or (group and listed), name


def test_commands_in_the_documents_parse() -> None:
    count = 0
    for page, text in HOW_TO.items():
        for block in shown(text, ""):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix(".venv/bin/")
                if line.startswith("rnnnas "):
                    try:
                        parse_check(shlex.split(line, comments=True))
                    except (AssertionError, click.UsageError) as error:
                        pytest.fail(f"{page}: {line}: {error}")
                    count += 1
    assert count > 30


def test_python_in_the_documents_is_python() -> None:
    blocks = [block for text in HOW_TO.values() for block in shown(text, "python")]
    assert blocks
    for block in blocks:
        ast.parse(block)


def test_every_preset_is_documented() -> None:
    everything = "\n".join(HOW_TO.values())
    assert not [name for name in preset_names() if f"`{name}`" not in everything]


def test_every_link_leads_somewhere() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_walks_through_the_code_name_what_there_is() -> None:
    """A batch, an alpha, a setting: at most ten stops each, and all that they name exists."""
    text = PAGES["docs/architecture.md"]
    walks = re.findall(r"^## The life of (.*?)$(.*?)(?=^## )", text, re.S | re.M)
    assert [name for name, _ in walks] == ["a batch", "an alpha", "a setting"]
    for name, walk in walks:
        stops = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", walk, re.S | re.M)
        assert 5 <= len(stops) <= 10 and [int(n) for n, _ in stops] == [*range(1, len(stops) + 1)]
        for _, stop in stops:
            defined: set[str] = set()
            for word in re.findall(r"`([^`]+)`", stop):
                if re.fullmatch(r"[\w/.]+\.(py|toml)", word):
                    path = PACKAGE / word
                    assert path.is_file(), f"{name}: {word}"
                    defined |= definitions(path) if path.suffix == ".py" else set()
                elif re.fullmatch(r"\w+|[A-Z]\w*\.\w+", word) and defined:
                    assert word in defined, f"{name}: {word}"


def definitions(path: Path) -> set[str]:
    """Functions and classes of a file, and methods as Class.method and alone."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = [n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef)]
            found |= {*inner, *(f"{node.name}.{name}" for name in inner)}
    return found


def test_generated_pages_are_up_to_date() -> None:
    generate = runpy.run_path(str(ROOT / "docs/generate.py"))
    for path, text in generate["pages"]().items():
        assert path.read_text(encoding="utf-8") == text, "run python docs/generate.py"


# Words of our own that the field has better ones for, in code, tests, and documents. A few have a
# second meaning in one place.
BANNED = {
    r"slopes?": "gradient", r"forth": "forward", r"hushed": "rank-zero error",
    r"led": "done by rank zero", r"go_back": "roll back", r"\w+_carry": "hidden state",
    r"lost": "diverged, or gone",
}  # fmt: skip
ALLOWED = {
    r"\w+_carry": ["supernet.py"],  # keys of files
    "lost": [
        "kernels_rows.cpp",
        "local_jobs.py",
        "test_jobs.py",
        "slurm.py",
        "steps.py",
        "adaptive.py",
        "blackbox.py",
        "strategies.py",
        "stages.py",
        "mixture_cpu.py",
        "text_files.py",
        # Runs and files that an attack has lost.
        "attack.py",
        "attack.md",
        "bad_corpora.py",
        "harness.py",
        "interruptions.py",
        "mutations.py",
    ],
}


def test_words_are_the_fields() -> None:
    kinds = {"rnnnas": ("py", "cpp", "h", "toml"), "tests": ("py",), "examples": ("py", "ipynb")}
    kinds["benchmarks"] = ("py",)
    files = [f for top, ends in kinds.items() for e in ends for f in (ROOT / top).rglob(f"*.{e}")]
    files.remove(Path(__file__))
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    found = [
        f"{name}: {word!r} (say: {better})"
        for name, text in {**texts, **PAGES}.items()
        for word, better in BANNED.items()
        if re.search(rf"\b{word}\b", text, re.I)
        and not any(name.endswith(place) for place in ALLOWED.get(word, []))
    ]
    assert not found, found

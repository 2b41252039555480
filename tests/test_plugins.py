"""Plug-ins: operations and methods of the user's own, by file and by installed package."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_relax
import torch
from click.testing import CliRunner

import rnnnas
from rnnnas.cli import main
from rnnnas.config.presets import resolve
from rnnnas.data.corpus import VocabOptions, add_corpus
from rnnnas.draw.layout import colour
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.nas import methods, operations
from rnnnas.nas.methods import METHODS
from rnnnas.nas.operations import OPERATIONS
from rnnnas.plugins import load as plugins

EXAMPLE = Path(__file__).parents[1] / "examples/my_method.py"
PLUGIN = ["--plugin", str(EXAMPLE)]
TINY = ["--corpus", "tiny", "--preset", "smoke", "--device", "cpu", "--json",
        "--set", "model.hidden=6", "--set", "windows.streams=4", "--set", "windows.bptt=4",
        "--set", "windows.limit=2", "--set", "valid_streams=8", "--set", "epochs=1"]  # fmt: skip
SPACE = ["--method", "cool", "--set", "relax.tau_end=0.2", "--set", "space.nodes=3",
         "--set", 'space.ops=["none", "bump"]', "--set", "space.edges_per_node=2"]  # fmt: skip


def forget() -> None:
    """As in a process that has just begun."""
    for name in set(OPERATIONS) - set(operations._SHIPPED):
        del OPERATIONS[name]
    for name in [name for name, method in METHODS.items() if not isinstance(method.where, str)]:
        del METHODS[name]
    operations._FUNCTIONS.clear()
    plugins._LOADED.clear()
    plugins._SEARCHED[0] = False


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins and ends without plug-ins, installed ones included."""
    monkeypatch.setattr(plugins, "entry_points", lambda group: [])
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    text = folder / "text.txt"
    lines = [" ".join(rng.choices("abcdefgh", k=9)) for _ in range(600)]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RNNNAS_HOME", str(folder))
        add_corpus("tiny", text, VocabOptions())
    return folder


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a command as a new process would take it."""
    monkeypatch.setenv("RNNNAS_HOME", str(home))

    def command(*words: str | Path) -> Any:
        forget()
        return CliRunner().invoke(main, [str(word) for word in words])

    return command


def test_processes_of_a_race_and_of_a_table_know_plug_ins_that_print(
    run: Any, tmp_path: Path
) -> None:
    file = tmp_path / "talks.py"
    file.write_text(
        "import rnnnas, torch\nprint('hello from a plug-in')\n"
        "rnnnas.operations.register('twice', lambda z: torch.tanh(2 * z))\n"
    )
    race = ["--method", "halving", "--set", "blackbox.windows=10", "--set", "blackbox.rung=3",
            "--set", "blackbox.budget=2", "--set", "space.nodes=2",
            "--set", 'space.ops=["none","tanh","twice"]']  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)  # torch itself keeps its one
        done = run("search", *TINY, *race, "--plugin", file, "--out", tmp_path / "s")
    assert done.exit_code == 0, done.output
    sets = ["nodes=1", "seeds=[1]", 'ops=["tanh","twice"]', "train.model.hidden=6", "stretches=2",
            "train.windows.streams=4", "train.windows.limit=4", "train.valid_streams=4",
            "train.test_streams=4"]  # fmt: skip
    words = [word for text in sets for word in ("--set", text)]
    done = run("study", "--corpus", "tiny", "--preset", "table", *words, "--plugin", file,
               "--out", tmp_path / "t", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout[done.stdout.index("{") :])["trainings"] == 2


def test_a_longer_run_still_says_what_it_was_made_with(run: Any, tmp_path: Path) -> None:
    words = ["train", *TINY[:-2], "--genotype", "tanh0 relu1", *PLUGIN, "--out", tmp_path / "r"]
    for epochs in ("1", "2"):
        done = run(*words, "--epochs", epochs)
        assert done.exit_code == 0, done.output
        about = json.loads((tmp_path / "r/config.json").read_text())
        assert about["config"]["epochs"] == int(epochs)
        assert [plugin["name"] for plugin in about["plugins"]] == ["my_method.py"]


# The example: searched, trained, drawn, saved, loaded


def test_the_example_from_search_to_sample(run: Any, tmp_path: Path) -> None:
    search, train = tmp_path / "search", tmp_path / "train"
    done = run("search", *TINY, *SPACE, *PLUGIN, "--out", search)
    assert done.exit_code == 0, done.output
    assert "torch's operations, hence slower: the kernels do not know bump" in done.stderr
    found = json.loads(done.stdout)
    assert found["cell"].startswith("bump0 bump") and "+" in found["cell"]
    about = json.loads((search / "config.json").read_text())
    assert [plugin["name"] for plugin in about["plugins"]] == ["my_method.py"]
    assert about["config"]["relax"] == {"tau_end": 0.2}

    # A new process that is not told of the plug-in says which, wherever it is missing.
    for words in (
        ["search", *TINY, *SPACE, "--out", search],
        ["train", *TINY, "--genotype", search, "--out", train],
    ):
        refused = run(*words)
        assert refused.exit_code == CheckpointError.exit_code
        assert "name it again: --plugin my_method.py" in refused.stderr
    again = run("search", *TINY, *SPACE, *PLUGIN, "--out", search)
    assert json.loads(again.stdout)["digest"] == found["digest"]

    few = ("--set", "test_streams=4")
    done = run("train", *TINY, *few, "--genotype", search, *PLUGIN, "--out", train)
    assert done.exit_code == 0, done.output
    trained = json.loads(done.stdout)
    done = run("eval", "--checkpoint", train, "--device", "cpu", "--json", *PLUGIN)
    assert json.loads(done.stdout)["perplexity"] == pytest.approx(trained["test_perplexity"])
    for command in ("eval", "sample"):
        refused = run(command, "--checkpoint", train, "--device", "cpu")
        assert refused.exit_code == CheckpointError.exit_code
        assert "with operation bump, was made with plug-in my_method.py" in refused.stderr
        assert "Traceback" not in refused.output
    assert run("sample", "--checkpoint", train, "--device", "cpu", *PLUGIN).exit_code == 0

    drawn = run("show", search, "--format", "svg", *PLUGIN).stdout
    assert "#b3446c" in drawn and "bump" in drawn
    text = run("show", search, *PLUGIN).stdout
    assert "mean(bump(" in text and found["cell"] in text


def test_a_plug_in_that_has_changed_is_another_run(run: Any, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    words = ["search", *TINY, *SPACE, "--plugin", mine, "--out", tmp_path / "run"]
    assert run(*words).exit_code == 0
    mine.write_text(mine.read_text(encoding="utf-8") + "\n# other\n", encoding="utf-8")
    refused = run(*words)
    assert refused.exit_code == UsageError.exit_code
    assert "plug-in mine.py is not the one" in refused.stderr and "--fresh" in refused.stderr
    assert run(*words, "--fresh").exit_code == 0


def test_a_search_without_plug_ins_notes_none(run: Any, tmp_path: Path) -> None:
    assert run("search", *TINY, "--method", "darts-1st", "--out", tmp_path / "a").exit_code == 0
    assert "plugins" not in json.loads((tmp_path / "a/config.json").read_text())


def test_a_study_hands_its_plug_ins_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import rnnnas.studies.execute

    given: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def study(*_: Any, **options: Any) -> None:
        given.update(options)
        raise Stop

    monkeypatch.setattr(rnnnas.studies.execute, "study", study)
    words = ["study", "--corpus", "tiny", "--preset", "study-smoke", "--methods", "cool"]
    assert isinstance(run(*words, "--jobs", "1", *PLUGIN).exception, Stop)
    assert given["more"] == ("--plugin", str(EXAMPLE.resolve()))
    assert run(*words).exit_code == UsageError.exit_code  # 'cool' is unknown without it


def test_the_example_keeps_the_promises_of_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the conformance suite, in the space of DARTS and in others."""
    plugins.load(EXAMPLE)
    monkeypatch.setitem(test_relax.PROMISES, "cool", "edge")
    ran = 0
    for name, test in vars(test_relax.TestEveryMethod).items():
        if name.startswith("test_"):
            axes = [mark.args for mark in getattr(test, "pytestmark", [])]
            for values in itertools.product(*(choice for _, choice in axes)):
                given = dict(zip((key for key, _ in axes), values, strict=True))
                for kind in ("whole", "two cells", "two edges"):
                    test(test_relax.TestEveryMethod(), method="cool", kind=kind, **given)
                    ran += 1
    assert ran >= 30
    test_relax.test_settings_are_checked("cool", "tau_end")


# How a plug-in is named


def test_a_settings_file_names_plug_ins_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    file = tmp_path / "cold.toml"
    tables = '[plugins]\nfiles = ["mine.py"]\n[search]\nmethod = "cool"\n'
    file.write_text(tables + "[search.relax]\ntau_end = 0.05\n", encoding="utf-8")
    config = resolve("search", preset="smoke", file=file, settings=[], flags={"corpus": "tiny"})
    assert config.relaxation.tau_end == 0.05
    assert [path.name for path in plugins.files()] == ["mine.py"]
    file.write_text('[plugins]\nfile = "mine.py"\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"must be files = \["):
        resolve("search", preset=None, file=file, settings=[], flags={"corpus": "tiny"})


def test_a_file_is_run_once(tmp_path: Path) -> None:
    file = tmp_path / "count.py"
    code = f"with open({str(tmp_path / 'ran')!r}, 'a') as ran:\n    ran.write('x')\n"
    file.write_text(code, encoding="utf-8")
    rnnnas.load_plugin(file)
    rnnnas.load_plugin(str(file), file)
    assert (tmp_path / "ran").read_text() == "x"


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("x = 1\n\nraise KeyError('a')\n", "fails in line 3: KeyError: 'a'"),
        ("x = 1\nx = = 2\n", "fails in line 2: SyntaxError"),
        ("import no_such_module\n", "fails in line 1: ModuleNotFoundError"),
        ("import rnnnas\nrnnnas.operations.register('tanh', abs)\n", "fails in line 2: UsageError"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_plug_in_that_fails_says_where(code: str | None, named: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    if code is not None:
        file.write_text(code, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        plugins.load(file)
    assert f"plug-in {file}" in caught.value.cause and named in caught.value.cause
    assert plugins.loaded() == []


class Point:
    """An entry point of an installed package."""

    name, value, dist = "theirs", "theirs:register", None

    def load(self) -> None:
        operations.register("cube", lambda z: z**3)


def test_an_installed_package_is_asked_when_a_name_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def points(group: str) -> list[Any]:
        asked.append(group)
        return [Point()]

    monkeypatch.setattr(plugins, "entry_points", points)
    operations.function_of("tanh")
    assert asked == []  # what is known costs no look
    assert operations.function_of("cube")(torch.tensor(2.0)) == 8
    assert asked == ["rnnnas.plugins"] and plugins.loaded()[0]["name"] == "theirs"
    with pytest.raises(UsageError, match="'cool' is unknown"):
        methods.method_of("cool")
    assert len(asked) == 1


# Operations of one's own


def test_an_operation_of_ones_own_in_python(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any plug-in: registered, searched, trained, saved; loaded where it is registered."""
    monkeypatch.setenv("RNNNAS_HOME", str(home))
    own: dict[str, Any] = {
        "device": "cpu", "quiet": True, "epochs": 1, "hidden": 6, "preset": "smoke",
        "windows": {"streams": 4, "bptt": 4, "limit": 2}, "valid_streams": 8,
    }  # fmt: skip
    rnnnas.operations.register("cube", lambda z: 0.1 * z**3, colour="#123456")
    space = {"ops": ["cube", "tanh"], "nodes": 2}
    found = rnnnas.search("tiny", out=tmp_path / "s", method="gdas", space=space, **own)
    assert len(found.genotype.recurrent.nodes) == 2
    rnnnas.train("tiny", "cube0 tanh1", out=tmp_path / "t", test_streams=4, **own)
    assert colour("cube") == "#123456"
    model = rnnnas.load(tmp_path / "t", device="cpu")
    perplexity = rnnnas.evaluate(model, "valid").perplexity
    forget()
    with pytest.raises(CheckpointError, match="has operation cube, which is not registered"):
        rnnnas.load(tmp_path / "t", device="cpu")
    rnnnas.operations.register("cube", lambda z: 0.1 * z**3)
    again = rnnnas.evaluate(rnnnas.load(tmp_path / "t", device="cpu"), "valid").perplexity
    assert again == perplexity


@pytest.mark.parametrize(
    ("name", "function", "named"),
    [
        ("tanh", torch.tanh, "there is an operation 'tanh' already"),
        ("none", torch.tanh, "'none' cannot be the name"),
        ("relu6", torch.tanh, "'relu6' cannot be the name"),
        ("Cube", torch.tanh, "'Cube' cannot be the name"),
        ("join", torch.tanh, "'join' cannot be the name"),
        ("mine", 3, "no function of a tensor"),
        ("mine", lambda z: z.sum(), "makes torch.Size"),
        ("mine", lambda z: z.double(), "makes torch.Size"),
        ("mine", lambda z: z.softmax(-1), "depends on more than the element itself"),
        ("mine", lambda z: z @ z, "fails on a tensor"),
    ],
)
def test_what_is_no_operation_is_refused(name: str, function: Any, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        operations.register(name, function)
    assert named in caught.value.cause and "mine" not in OPERATIONS


def test_a_notebooks_cell_may_register_again() -> None:
    def cell() -> None:
        def mine(z: torch.Tensor) -> torch.Tensor:
            return z * 2

        operations.register("mine", mine)

    cell()
    cell()
    with pytest.raises(UsageError, match="already"):
        operations.register("mine", torch.relu)


def test_an_unknown_operation_is_told_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'gelu'\?") as caught:
        operations.check("gelo", "node 1")
    assert "--plugin FILE" in caught.value.remedy and "softsign" in caught.value.remedy

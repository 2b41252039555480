"""The examples run as they stand, and the README's lines of Python."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What a script prints, run in a folder of its own, where a warning is an error."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("RNNNAS_HOME", raising=False)

    def run(code: str) -> str:
        (home / "script.py").write_text(code, encoding="utf-8")
        runpy.run_path("script.py", run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the built-in corpus is prepared once for all."""
    return tmp_path_factory.mktemp("home")


def test_the_readme_runs(run: Callable[[str], str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    perplexity, *_ = run(block).splitlines()
    assert 1 < float(perplexity) < 8113  # a model that is better than a uniform guess


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_runs(path: Path, run: Callable[[str], str]) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    run("\n\n".join(code))
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_jupyter_executes_a_notebook(path: Path, home: Path) -> None:
    """By a kernel, whose results draw themselves: `pip install 'rnnnas[notebooks]'`."""
    pytest.importorskip("nbconvert")
    pytest.importorskip("ipykernel")
    there = shutil.copy(path, home)  # a kernel runs where its notebook lies
    words = ["-m", "nbconvert", "--to", "notebook", "--execute", there, "--output", "executed"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"IPYTHONDIR": str(home / "ipython")}
    environment.pop("RNNNAS_HOME", None)
    subprocess.run([sys.executable, *words], env=environment, check=True, timeout=600)
    executed = json.loads((home / "executed.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in executed["cells"] for output in cell.get("outputs", [])]
    assert outputs and not [one for one in outputs if one["output_type"] == "error"]
    assert any("image/svg+xml" in one.get("data", {}) for one in outputs), "a cell draws itself"

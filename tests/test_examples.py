"""The examples run as they stand, and the README's lines of Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str, home: Path) -> str:
    """What a script prints, run as a user would, in a folder of its own."""
    script = home / "script.py"
    script.write_text(code, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RNNNAS_HOME", None)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], cwd=home, env=environment, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the built-in corpus is prepared once for all."""
    return tmp_path_factory.mktemp("home")


def test_the_readme_runs(home: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    perplexity, *_ = run(block, home).splitlines()
    assert 1 < float(perplexity) < 8113  # a model that is better than a uniform guess


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_a_notebook_runs(path: Path, home: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 3
    run("\n\n".join(code), home)
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

"""A compiled library is loaded only from the user's own folder, as it was written."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rnnnas.lm.fast import cpu_library
from rnnnas.lm.fast.cpu_library import check_own, intact


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a compiler that writes what stands for a library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(command: list[str]) -> str:
        if "-o" in command:
            Path(command[command.index("-o") + 1]).write_bytes(b"library" * 100)
        return "compiler 1.0"

    monkeypatch.setattr(cpu_library, "_run", run)
    return tmp_path / "rnnnas"


def test_a_library_is_compiled_again_where_a_bit_was_flipped_or_it_was_cut(cache: Path) -> None:
    path = cpu_library._compiled(["c++"])
    whole = path.read_bytes()
    assert intact(path) and path.parent == cache
    for other in (whole[:-1], b"L" + whole[1:], b""):
        path.write_bytes(other)
        assert not intact(path)
        assert cpu_library._compiled(["c++"]) == path and path.read_bytes() == whole


def test_a_link_in_place_of_a_library_is_not_loaded(cache: Path) -> None:
    path = cpu_library._compiled(["c++"])
    path.rename(cache / "elsewhere.so")
    path.symlink_to(cache / "elsewhere.so")
    assert not intact(path)


def test_a_folder_that_others_may_write_to_is_not_used(cache: Path) -> None:
    cache.mkdir()
    check_own(cache)
    cache.chmod(0o777)
    with pytest.raises(OSError, match="others may write"):
        cpu_library._compiled(["c++"])


def test_a_folder_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    with pytest.raises(OSError, match="another user"):
        cpu_library._compiled(["c++"])


def test_a_compiler_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_library, "COMPILE_SECONDS", 0.3)
    with pytest.raises(subprocess.TimeoutExpired):
        cpu_library._run(["sh", "-c", f"echo $$ > {tmp_path / 'pid'}; sleep 60; true"])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_where_one_file_does_not_compile_the_other_compilers_end(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    first = cpu_library.SOURCES[0].name
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$2" in */{first}) while [ ! -e {tmp_path}/there ]; do sleep 0.05; done\n'
        "  echo no >&2; exit 1;; esac\n"
        f"echo $$ > {tmp_path}/pid.$$; touch {tmp_path}/there; sleep 1000; true\n"
    )
    compiler.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        cpu_library._build([str(compiler)], tmp_path, tmp_path / "library.so")
    assert failed.value.stderr == "no\n"
    pids = [int(path.read_text()) for path in tmp_path.glob("pid.*") if path.read_text()]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_compiler_that_cannot_be_split_is_gone_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'unclosed")
    monkeypatch.delenv(cpu_library.SWITCH, raising=False)
    built = cpu_library.built.__wrapped__()
    assert built.library is None and "CXX cannot be split" in built.reason

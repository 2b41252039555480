"""Processes that train the cells of a table, each with one thread.

A worker is `python -m rnnnas.tabular.workers`. It reads one JSON object a line from standard
input, first what the table is, then a cell and a seed at a time, and answers each with a row. It
ends with its input, which ends, too, where the process that started it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, final

import rnnnas
from rnnnas.errors import RnnnasError
from rnnnas.processes import answers
from rnnnas.runs.files import json_plain
from rnnnas.tabular.rows import Row, curve_of

Task = tuple[str, int]  # a cell and a seed


@final
class Workers:
    """`count` processes that train cells until `close`, which ends them at once.

    Args:
        about: what a worker must know: config, corpus (its folder) and name, as plain values.
    """

    def __init__(self, about: dict[str, Any], count: int) -> None:
        self._about, self._count = about, count
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._answers: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()

    def _begin(self, count: int) -> None:
        root = str(Path(rnnnas.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        for number in range(len(self._processes), min(count, self._count)):
            process = subprocess.Popen(
                [sys.executable, "-m", "rnnnas.tabular.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                # Ctrl-C in a terminal reaches a whole group: it should come once, from here.
                start_new_session=True,
            )
            self._processes.append(process)
            self._send(number, self._about)
            thread = threading.Thread(target=self._listen, args=(number, process), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _listen(self, number: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                self._answers.put((number, json.loads(line)))
        finally:  # or `train` waits for ever
            self._answers.put((number, None))

    def _send(self, number: int, message: dict[str, Any]) -> None:
        pipe = self._processes[number].stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: its output says so
            pipe.write(json.dumps(message).encode() + b"\n")
            pipe.flush()

    def train(self, tasks: Sequence[Task]) -> Iterator[Row | None]:
        """Train all; yields each row as it comes, and None while none does.

        Raises:
            RnnnasError: what a worker raised, or that one ended.
        """
        left, busy = deque(tasks), 0
        self._begin(len(left))
        for number in range(len(self._processes)):
            if left:
                self._give(number, left.popleft())
                busy += 1
        while busy:
            try:
                number, answer = self._answers.get(timeout=0.2)
            except queue.Empty:
                yield None
                continue
            if answer is None:
                code = self._processes[number].wait()
                raise RnnnasError(
                    f"a process that trained cells ended with code {code}",
                    "the same command goes on from the last row",
                )
            if "error" in answer:
                error = RnnnasError(answer["error"], answer["remedy"])
                error.exit_code = answer["exit_code"]
                raise error
            if left:
                self._give(number, left.popleft())
            else:
                busy -= 1
            yield Row.from_plain(answer)

    def _give(self, number: int, task: Task) -> None:
        self._send(number, {"cell": task[0], "seed": task[1]})

    def close(self) -> None:
        """End all processes; what they are at is done anew another time."""
        for process in self._processes:
            process.kill()
            process.wait()
        for thread in self._threads:  # their pipes have ended
            thread.join()
        for process in self._processes:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.stdout.close()
        self._processes.clear()
        self._threads.clear()


def train_row(config: Any, corpus: Any, cell: str, seed: int) -> Row:
    """The row of one training; config: the table's."""
    import torch

    from rnnnas.tabular.plan import train_config
    from rnnnas.training.in_memory import train_in_memory

    began = time.perf_counter()
    own = train_config(config, cell, seed)
    trained = train_in_memory(own, corpus, torch.device("cpu"))
    return Row(
        cell=cell, seed=seed, curve=curve_of(trained.nats, trained.steps, config.stretches),
        valid=trained.valid_perplexity, test=trained.test_perplexity, diverged=trained.diverged,
        seconds=round(time.perf_counter() - began, 3),
    )  # fmt: skip


def _work(out: BinaryIO) -> None:
    """What a worker does until its input ends."""
    lines = sys.stdin.buffer
    about = json.loads(lines.readline() or b"null")
    if about is None:
        return
    import torch

    from rnnnas.config.plain import from_plain
    from rnnnas.config.table import TableConfig
    from rnnnas.data.text_corpus import read_corpus
    from rnnnas.plugins.load import load

    load(*about["plugins"])
    torch.set_num_threads(1)
    config = from_plain(TableConfig, about["config"])
    corpus = read_corpus(Path(about["corpus"]), about["name"])
    for line in iter(lines.readline, b""):
        task = json.loads(line)
        _tell(out, asdict(train_row(config, corpus, task["cell"], task["seed"])))


def _tell(out: BinaryIO, message: dict[str, Any]) -> None:
    out.write(json.dumps(json_plain(message)).encode() + b"\n")
    out.flush()


def main() -> None:
    """A worker: see the module."""
    # A terminal's Ctrl-C and a study's stop reach the process that started this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    out = answers()
    try:
        with contextlib.suppress(BrokenPipeError):
            _work(out)
    except RnnnasError as error:
        _tell(out, {"error": error.cause, "remedy": error.remedy, "exit_code": error.exit_code})


if __name__ == "__main__":
    main()

"""Run folders and a study made by hand: what a report reads, without a step of training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from rnnnas.config.plain import to_plain
from rnnnas.config.presets import resolve
from rnnnas.nas.genotype import RECURRENT, Genotype
from rnnnas.nas.space import recurrent_space
from rnnnas.runs.files import json_plain
from rnnnas.studies.plan import RANDOM, Sizes, StudyConfig, final_jobs, first_jobs, resolve_study
from rnnnas.studies.record import Record
from rnnnas.studies.report import choose
from rnnnas.studies.report import report as summary

SHA = "0" * 64


def written(folder: Path, kind: str, config: Any, lines: list[Any], result: Any = None) -> Path:
    """A run folder of these contents."""
    folder.mkdir(parents=True)
    about = {"kind": kind, "config": {**json_plain(to_plain(config)), "corpus_sha256": SHA},
             "version": "0.1.0", "run": "ab"}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def shares(epoch: int, seed: int = 0) -> list[list[float]]:
    """An (E, O) table of shares that grow more decided with the epoch."""
    rng = random.Random(seed)
    table = []
    for _ in recurrent_space(8).edges:
        powers = [math.exp(0.3 * epoch * rng.gauss(0, 1)) for _ in range(5)]
        table.append([round(p / sum(powers), 4) for p in powers])
    return table


def search_run(folder: Path, *, epochs: int = 4, seed: int = 3, done: bool = True) -> Path:
    """A search that logged everything; where it is not `done`, its last epoch is missing."""
    config = resolve("search", preset="smoke", file=None, settings=[f"epochs={epochs}"],
                             flags={"corpus": "nowhere", "seed": seed})  # fmt: skip
    lines: list[Any] = []
    cell = ""
    for epoch in range(1, epochs + done):
        for k in (1, 2):
            lines.append({"kind": "search", "step": 10 * epoch - 10 + 5 * k, "lr": 20.0,
                          "perplexity": 900.0 / epoch + k})  # fmt: skip
        table = shares(epoch, seed)
        cell = Genotype(cells={RECURRENT: recurrent_space(8).discretise(table)}).to_text()
        lines.append({"kind": "alphas", "step": 10 * epoch, "epoch": epoch, "cell": cell,
                      "recurrent": table})  # fmt: skip
        values = {"train_perplexity": 950.0 / epoch, "valid_perplexity": 800.0 / epoch}
        lines.append({"kind": "epoch", "step": 10 * epoch, "epoch": epoch, **values})
    genotype = Genotype.from_text(cell).to_plain()
    result = {"genotype": genotype, "cell": cell, "valid_perplexity": 800.0 / epochs,
              "seconds": 61.0, "digest": "d1" * 32}  # fmt: skip
    return written(folder, "search", config, lines, result if done else None)


def train_run(
    folder: Path, cell: Any = "tanh0 relu1", *, seed: int = 1, valid: float = 120.0
) -> Path:
    genotype = Genotype.from_text(cell).to_plain()
    flags = {"corpus": "nowhere", "seed": seed, "genotype": genotype}
    config = resolve("train", preset="smoke", file=None, settings=["epochs=3"], flags=flags)
    lines: list[Any] = [{"kind": "train", "step": k, "perplexity": 900.0 / k} for k in (5, 10, 15)]
    lines += [{"kind": "epoch", "step": 10 * e, "epoch": e, "train_perplexity": 300.0 / e,
              "valid_perplexity": valid * 3 / e} for e in (1, 2, 3)]  # fmt: skip
    result = {"valid_perplexity": valid, "test_perplexity": valid - 3, "parameters": 12345,
              "seconds": 31.0, "digest": "e2" * 32}  # fmt: skip
    return written(folder, "train", config, lines, result)


def study_folder(folder: Path, *, done: bool = True) -> Path:
    """A study of two methods and two seeds; where it is not `done`, half of its jobs are."""
    flags = {"corpus": "nowhere", "methods": ["darts-1st", "gdas"], "seeds": [1, 2]}
    config: StudyConfig = resolve_study(preset="study-quick", settings=(), flags=flags)
    folder.mkdir(parents=True)
    sizes = Sizes({"train": range(100_000)})
    jobs = first_jobs(config, sizes)
    results: dict[str, Any] = {}
    rng = random.Random(1)
    for i, job in enumerate(jobs):
        place = folder / job.name
        if job.kind == "search":
            search_run(place, seed=i + 1)
        elif done or i < 6:
            text = f"tanh0 relu1 sigmoid{i % 3}" if job.method == RANDOM else "relu0 identity1"
            train_run(place, text, seed=job.seed, valid=200 + rng.gauss(0, 10))
        if (place / "result.json").is_file():
            results[job.name] = json.loads((place / "result.json").read_text())
    if done:
        for job in final_jobs(config, choose(jobs, results), sizes):
            train_run(folder / job.name, "relu0 identity1", seed=job.seed, valid=150.0)
            results[job.name] = json.loads((folder / job.name / "result.json").read_text())
            jobs.append(job)
    record = Record(folder, config, SHA)
    for job in jobs:
        record.job(job.name)["state"] = "done" if job.name in results else "waiting"
    record.result = summary(record, jobs, results) if done else None
    record.save()
    return folder


def rung_lines() -> list[dict[str, Any]]:
    """A halving: four cells, of which two go on and one wins, and a child that comes in later."""
    cells = {f"tanh0 relu{i % 2}{' tanh1' * (i // 2)}": 6.0 + i / 10 for i in range(4)}
    lines = []
    for i, (cell, loss) in enumerate(cells.items()):
        lines.append({"kind": "rung", "step": 100 * i, "rung": 0, "cell": cell, "train_loss": loss,
                      "heldout_loss": None, "kept": i < 2, "parent": None})  # fmt: skip
    first, second, *_ = cells
    for i, (cell, loss, parent) in enumerate(
        ((first, 5.7, None), (second, 5.5, None), ("sigmoid0 relu0", 5.4, first))
    ):
        lines.append({"kind": "rung", "step": 400 + 100 * i, "rung": 1, "cell": cell,
                      "train_loss": 1.0, "heldout_loss": loss, "kept": cell.startswith("sigmoid"),
                      "parent": parent})  # fmt: skip
    return lines

"""study.json: the plan of a study and how far each of its jobs is.

What a finished job gave stands in its own run folder; here stand the plan, so that a study is not
mixed with another, how often a job failed and why, and in the end the report.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import rnnnas
from rnnnas.config.plain import from_plain, leaves, to_plain
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.runs.files import json_plain
from rnnnas.runs.folder import first_free, is_empty
from rnnnas.runs.sealed import read_sealed, write_sealed
from rnnnas.studies.plan import FREE, GROWS, StudyConfig, resolved_runs

NAME = "study.json"
DAMAGED = "restore it from a copy, or begin the study anew with --fresh"
_NEW = "give --fresh for a new study, or another folder with --out"


@final
class Record:
    """The study.json of `folder`.

    config: the plan, grown where the study was extended. jobs: by name, {"state": "waiting",
    "running", "done", "failed" or "skipped", "failures", and then "exit_code", "message",
    "cluster_job"}. result: the report, or None. budget: of a study with one, how it stands.
    """

    def __init__(self, folder: Path, config: StudyConfig, corpus_sha256: str) -> None:
        self.folder = folder
        self.config = config
        self.jobs: dict[str, dict[str, Any]] = {}
        self.result: dict[str, Any] | None = None
        self.budget: dict[str, Any] | None = None
        self._corpus = corpus_sha256

    @classmethod
    def open(cls, folder: Path, config: StudyConfig, corpus_sha256: str) -> Record:
        """Read the study in `folder`, extended to `config`, or begin one.

        More methods, seeds or random cells extend a study; fewer leave it as it is. Nothing is
        written before `save`.

        Raises:
            UsageError: where the folder holds other files or a study with other settings.
            CheckpointError: where its study.json is damaged.
        """
        path = folder / NAME
        if not path.exists():
            if folder.exists() and not is_empty(folder):
                raise UsageError(f"{folder} holds files but no study (no {NAME})", _NEW)
            return cls(folder, config, corpus_sha256)
        stored = read_sealed(path, DAMAGED)
        try:
            plan, jobs, result = stored["plan"], stored["jobs"], stored["result"]
            there = from_plain(StudyConfig, plan["config"])
            known = {"corpus_sha256": plan["corpus_sha256"], **plan["runs"]}
            jobs = {name: dict(job) for name, job in jobs.items()}
        except (KeyError, TypeError, AttributeError, UsageError) as error:
            raise CheckpointError(f"{path} is damaged: {error!r}", _NEW) from error
        grown = _grown(there, config)
        asked = {"corpus_sha256": corpus_sha256, **json_plain(resolved_runs(grown))}
        _check(folder, there, grown, known, asked)
        record = cls(folder, grown, corpus_sha256)
        record.jobs, record.result, record.budget = jobs, result, stored.get("budget")
        return record

    def job(self, name: str) -> dict[str, Any]:
        """The entry of a job, made where there is none."""
        return self.jobs.setdefault(name, {"state": "waiting", "failures": 0})

    def save(self) -> None:
        """Write study.json. Raises DiskError where that fails; the older one stays."""
        write_sealed(
            self.folder / NAME,
            {
                "kind": "study",
                "version": rnnnas.__version__,
                "plan": {
                    "config": to_plain(self.config),
                    "runs": resolved_runs(self.config),
                    "corpus_sha256": self._corpus,
                },
                "jobs": self.jobs,
                "result": self.result,
                **({} if self.budget is None else {"budget": self.budget}),
            },
        )


def free_folder(folder: Path) -> Path:
    """The first of folder, folder-2, folder-3, ... that holds nothing."""
    return first_free(folder)


def _grown(there: StudyConfig, asked: StudyConfig) -> StudyConfig:
    """`asked`, with the methods and seeds that the study has already in front, and no fewer random
    cells.
    """
    union: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(there, name), *getattr(asked, name)))) for name in GROWS
    }
    grown = dataclasses.replace(asked, **union)
    if grown.randoms < there.randoms:
        grown = dataclasses.replace(grown, random_cells=there.randoms)
    return grown


def _check(
    folder: Path, there: StudyConfig, asked: StudyConfig,
    known: Mapping[str, Any], now: Mapping[str, Any],
) -> None:  # fmt: skip
    """Refuse other settings, naming them; what is new in an extension has no older settings."""
    plain, wanted = (to_plain(config) for config in (there, asked))
    changes = [
        _change(name, plain[name], wanted[name])
        for name in plain
        if name not in (*FREE, "search", "short", "final", "own") and plain[name] != wanted[name]
    ]
    for run in known:
        old, new = (dict(leaves({run: table[run]})) for table in (known, now))
        changes += [
            _change(key, old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    if changes:
        raise UsageError(
            f"{folder} holds a study with other settings: {'; '.join(changes[:8])}", _NEW
        )


def _change(key: str, old: object, new: object) -> str:
    return f"{key} is {json.dumps(old)} there and {json.dumps(new)} here"

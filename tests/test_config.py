"""Configurations: precedence, errors that name everything, round trips, and every preset."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from rnnnas.config.plain import from_plain, to_plain, to_toml
from rnnnas.config.presets import (
    DEFAULT_PRESET,
    KINDS,
    TABLES,
    preset_names,
    preset_table,
    preset_tables,
    preset_text,
    resolve,
)
from rnnnas.config.recipes import Reading
from rnnnas.config.text import SearchConfig, TrainConfig
from rnnnas.errors import UsageError
from rnnnas.lm.model import RecurrentLM
from rnnnas.nas.genotype import Genotype
from rnnnas.nas.space import recurrent_space
from rnnnas.nas.zoo import ZOO

CELL = ZOO["DARTS_V2"].genotype.to_plain()
FLAGS: dict[str, dict[str, Any]] = {
    "search": {"corpus": "ptb"},
    "train": {"corpus": "ptb", "genotype": CELL},
    "image-search": {"corpus": "cifar10"},
    "image-train": {"corpus": "cifar10", "genotype": "DARTS_V2"},
}
BOTH = [(name, kind) for name in preset_names() for kind in KINDS if kind in preset_tables(name)]


def resolved(
    kind: str = "search", *settings: str, preset: str | None = None, file: Path | None = None,
    **flags: Any,
) -> Any:  # fmt: skip
    return resolve(
        kind, preset=preset, file=file, settings=settings, flags={**FLAGS[kind], **flags}
    )


def refused(kind: str, *settings: str, **more: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        resolved(kind, *settings, **more)
    return caught.value


# Precedence


def test_flag_over_set_over_file_over_preset(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("seed = 3\nepochs = 3\n[weights]\nlr = 3.0\nclip = 3.0\n", encoding="utf-8")
    config = resolved(
        "search", "seed=4", "epochs=4", "weights.lr=4.0", preset="ptb-darts", file=file, seed=5
    )
    assert config.seed == 5  # the flag
    assert (config.epochs, config.weights.lr) == (4, 4.0)  # --set
    assert config.weights.clip == 3.0  # the file
    assert config.weights.weight_decay == 5e-7  # the preset
    assert config.windows.streams == 256 and config.noise.dropout == 0.75


def test_a_flag_that_was_not_given_leaves_the_setting() -> None:
    assert resolved("search", "seed=4", seed=None).seed == 4


def test_the_last_set_wins_and_neighbours_stay() -> None:
    config = resolved("search", "weights.lr=1.0", "weights.clip=0.5", "weights.lr=2.0")
    assert (config.weights.lr, config.weights.clip) == (2.0, 0.5)


def test_the_default_preset_and_a_file_without_one(tmp_path: Path) -> None:
    assert resolved() == resolved(preset=DEFAULT_PRESET) != resolved(preset="smoke")
    file = tmp_path / "own.toml"
    file.write_text("epochs = 7\n", encoding="utf-8")
    # A file alone stands on the components' own defaults, not on a preset.
    assert resolved(file=file) == SearchConfig(corpus="ptb", epochs=7)


def test_a_resolution_leaves_no_trace_in_the_next() -> None:
    before = to_plain(resolved())
    resolved("search", "weights.lr=1.0", "noise.dropout=0.9")
    assert to_plain(resolved()) == before


def test_values_are_toml_or_plain_words() -> None:
    config = resolved(
        "search", "corpus=mine", "alphas.text=valid", 'method="darts"', "alphas.betas=[0.5, 0.9]",
        "weights.lr = 1e-1", "windows.streams= 8",
    )  # fmt: skip
    assert config.corpus == "ptb"  # the flag
    assert (config.alphas.text, config.method) == ("valid", "darts")
    assert config.alphas.betas == (0.5, 0.9)
    assert (config.weights.lr, config.windows.streams) == (0.1, 8)


# Errors


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("epochz=3", ["'epochz'", "did you mean 'epochs'?"]),
        ("weights.rl=3", ["'weights.rl'", "did you mean 'lr'?"]),
        ("weigths.lr=3", ["'weigths'", "did you mean 'weights'?"]),
        ("weights.lr.x=3", ["weights.lr", "float"]),
        ("weights=3", ["weights is a group of settings", "3"]),
        ("a..b=1", ["'a'"]),
        ("epochs=many", ["epochs = 'many'", "int"]),
        ("epochs=3.0", ["epochs = 3.0", "int"]),
        ("epochs=true", ["epochs = True", "int"]),
        ("epochs=0", ["epochs = 0", "at least 1"]),
        ("weights.lr=true", ["weights.lr = True", "float"]),
        ("weights.lr=fast", ["weights.lr = 'fast'", "float"]),
        ("weights.lr=inf", ["weights.lr = inf", "finite"]),
        ("windows.jitter=1e39", ["windows.jitter = 1e+39", "3.4e+38"]),
        ("weights.lr=nan", ["weights.lr = nan", "finite"]),
        ("weights.lr=" + "9" * 400, ["weights.lr = '999", "999... must be", "float"]),
        ("weights.lr=0", ["weights.lr = 0.0", "positive"]),
        ("weights.schedule=step", ["weights.schedule = 'step'", "'constant', 'cosine', 'linear'"]),
        ("alphas.betas=0.9", ["alphas.betas = 0.9", "2 numbers"]),
        ("alphas.betas=[0.9]", ["alphas.betas = [0.9]", "2 numbers"]),
        ('alphas.betas=[0.9, "x"]', ["alphas.betas = 'x'", "float"]),
        ("noise.dropout=1", ["noise.dropout = 1.0", "[0, 1)"]),
        ("model.hidden=0", ["model.hidden = 0", "at least 1"]),
        ("model.path=slow", ["model.path = 'slow'", "'fast', 'eager', 'reference'"]),
        ("model.layers=0", ["model.layers = 0", "at least 1"]),
        ("model.layers=2", ["model.layers = 2", "for trainings"]),
        ("model.softmaxes=0", ["model.softmaxes = 0", "at least 1"]),
        ("noise.weightdrop=0.5", ["noise.weightdrop = 0.5", "for trainings"]),
        ("weights.finetune_epochs=1", ["weights.finetune_epochs = 1", "for trainings"]),
        ("weights.finetune_epochs=-1", ["weights.finetune_epochs = -1", "not be negative"]),
        ("penalty.tar=-1", ["penalty.tar = -1.0"]),
        ("windows.streams=1", ["windows.streams", "at least 2"]),
        ("windows.bptt=9999999999", ["windows.bptt", "cannot be meant", "100,000"]),
        ("seed=-1", ["seed = -1", "at least 0"]),
        ("save_seconds=-1", ["save_seconds = -1.0", "at least 0"]),
        ("valid_streams=1", ["valid_streams = 1", "at least 2"]),
        ("method=dart", ["'dart'", "did you mean 'darts'?"]),
        ("corpus=3", ["corpus = 3", "str"]),
        ("weights.lr", ["'weights.lr' is not key=value"]),
        ("=3", ["'=3' is not key=value"]),
        ("", ["is not key=value"]),
    ],
)
def test_errors_name_key_value_and_what_is_allowed(setting: str, named: list[str]) -> None:
    settings = [setting] if "method" in setting else ["method=darts", setting]
    with pytest.raises(UsageError) as caught:
        resolve("search", preset=None, file=None, settings=settings,
                flags={} if "corpus" in setting else FLAGS["search"])  # fmt: skip
    assert all(part in caught.value.cause for part in named), caught.value.cause


def test_an_unknown_key_lists_its_neighbours() -> None:
    error = refused("search", "weights.zzz=1")
    assert "did you mean" not in error.cause
    assert all(f"weights.{name}" in error.remedy for name in ("lr", "clip", "schedule"))


def test_settings_of_the_other_kind_are_refused() -> None:
    assert "'alphas'" in refused("train", "alphas.lr=1").cause
    assert "'test_streams'" in refused("search", "test_streams=1").cause


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(UsageError, match="'corpus' is missing"):
        resolve("search", preset=None, file=None, settings=[], flags={})
    with pytest.raises(UsageError, match="'genotype' is missing"):
        resolve("train", preset=None, file=None, settings=["corpus=a"], flags={})


def test_presets_are_refused_by_name() -> None:
    assert "did you mean 'quick'?" in refused("search", preset="quik").cause
    error = refused("search", preset="wikitext-2")
    assert "no settings for search" in error.cause
    assert "ptb-darts" in error.remedy and "wikitext-2" not in error.remedy


@pytest.mark.parametrize("data", [b"epochs = ", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "own.toml"
    file.write_bytes(data)
    assert "own.toml cannot be read as TOML" in refused("search", file=file).cause


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "none.toml cannot be read" in refused("search", file=tmp_path / "none.toml").cause
    assert "cannot be read" in refused("search", file=tmp_path).cause


@pytest.mark.parametrize("plain", [None, 3, [], "x"])
def test_plain_values_that_are_no_table_are_refused(plain: Any) -> None:
    with pytest.raises(UsageError, match="settings"):
        from_plain(SearchConfig, plain)


def test_ints_are_floats_but_bools_are_no_ints() -> None:
    config = from_plain(SearchConfig, {"corpus": "a", "weights": {"lr": 3, "clip": 0}})
    assert (config.weights.lr, config.weights.clip) == (3.0, 0.0)
    assert type(config.weights.lr) is float and type(config.weights.clip) is float
    for key in ("seed", "epochs", "save_seconds"):
        with pytest.raises(UsageError, match=f"{key} = True"):
            from_plain(SearchConfig, {"corpus": "a", key: True})


def test_a_genotype_in_the_settings_is_checked() -> None:
    with pytest.raises(UsageError, match="'recurrent'"):
        resolved("train", genotype={"recurrent": {}})
    with pytest.raises(UsageError, match="genotype = 3 must be an object"):
        resolved("train", genotype=3)


def test_a_cell_that_cannot_run_is_refused_before_a_run_begins() -> None:
    with pytest.raises(UsageError, match="node 2 uses 'swish'"):
        resolved("train", genotype=Genotype.from_text("tanh0 swish1").to_plain())
    with pytest.raises(UsageError, match="not a recurrent one"):
        resolved("train", genotype={"normal": CELL["recurrent"]})


def test_a_genotype_is_one_value(tmp_path: Path) -> None:
    """Another genotype takes its place; the two are not merged."""
    file = tmp_path / "own.toml"
    table = {"recurrent": {"nodes": [[["tanh", 0]]], "concat": [1]}, "other": {}}
    file.write_text(to_toml({"genotype": table}), encoding="utf-8")
    assert resolved("train", file=file).genotype == CELL


@pytest.mark.parametrize("name", ["LSTM", "lstm", "GRU"])
def test_a_baseline_has_no_genotype(name: str, tmp_path: Path) -> None:
    config = resolved("train", "noise.weightdrop=0.5", genotype=name)
    assert (config.cell, config.genotype, config.network) == (name.lower(), {}, name.lower())
    file = tmp_path / "own.toml"
    file.write_text(to_toml(to_plain(config)), encoding="utf-8")
    assert resolved("train", file=file, genotype=name) == config
    # The flag decides, whatever cell the file has.
    derived = resolved("train", "noise.weightdrop=0", file=file, genotype="DARTS_V2")
    assert (derived.cell, derived.genotype) == ("derived", CELL)
    assert derived.network == Genotype.from_plain(CELL).recurrent
    plain = to_plain(derived)
    del plain["cell"]  # settings from before there were baselines
    assert from_plain(TrainConfig, plain) == derived


def test_settings_that_do_not_go_together_are_named() -> None:
    assert "cell = 'lstm' takes no genotype" in refused("train", "cell=lstm").cause
    assert "cell = 'rnn'" in refused("train", "cell=rnn").cause
    error = refused("train", "noise.weightdrop=0.5")
    assert "noise.weightdrop = 0.5" in error.cause and "LSTM and GRU" in error.cause


def test_orders_follow_the_method() -> None:
    assert resolved("search", method="darts").order == "finite"
    assert resolved("search", method="darts-1st").order == "first"
    for path in ("fast", "reference"):
        more = ("alphas.second_order=exact", f"model.path={path}")
        assert resolved("search", *more, method="darts").order == "exact"
    # The first order never looks ahead, so what it would look ahead by does not matter.
    assert resolved("search", "alphas.second_order=exact", method="darts-1st").order == "first"


@pytest.mark.parametrize(("kind", "auto"), [("search", "finite"), ("image-search", "exact")])
def test_the_second_order_is_what_was_measured_to_be_cheap_and_right(kind: str, auto: str) -> None:
    given = resolved(kind, method="darts")
    assert given.alphas.second_order == "auto" and given.order == auto
    assert resolved(kind, method="darts-1st").order == "first"
    finite = resolved(kind, "alphas.second_order=finite", method="darts")
    assert finite.order == "finite"


# Round trips and presets


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_every_preset_round_trips(name: str, kind: str, tmp_path: Path) -> None:
    config = resolved(kind, preset=name)
    plain = to_plain(config)
    assert from_plain(KINDS[kind], plain) == config
    assert from_plain(KINDS[kind], json.loads(json.dumps(plain, allow_nan=False))) == config
    printed = to_toml(plain)
    assert tomllib.loads(printed) == plain
    file = tmp_path / "printed.toml"
    file.write_text(printed, encoding="utf-8")
    alone = resolve(kind, preset=None, file=file, settings=[], flags={})
    assert alone == config  # what --print-config prints is complete


@pytest.mark.parametrize(("name", "kind"), BOTH)
def test_a_preset_is_a_file_too(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / "copy.toml"
    file.write_text(preset_text(name), encoding="utf-8")
    assert resolved(kind, file=file) == resolved(kind, preset=name)


VOCABULARY = {"ptb": 10_000, "ptb-darts": 10_000, "wikitext-2": 33_278}
PUBLISHED = {"ptb": 22_960_000, "ptb-darts": 4_810_000, "wikitext-2": 33_127_878}


@pytest.mark.parametrize(("name", "kind"), [both for both in BOTH if "image" not in both[1]])
def test_every_preset_builds_its_network(name: str, kind: str) -> None:
    config = resolved(kind, preset=name)
    cell = (
        recurrent_space(config.model.nodes) if kind == "search"
        else Genotype.from_plain(config.genotype).recurrent
    )  # fmt: skip
    net = RecurrentLM(
        config.model, VOCABULARY.get(name, 50), cell,
        noise=config.noise, penalty=config.penalty, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == PUBLISHED.get(name, parameters)


@pytest.mark.parametrize("name", preset_names())
def test_presets_say_what_they_are_for_and_nothing_unknown(name: str) -> None:
    tables = preset_tables(name)
    assert tables["about"] and set(tables) <= {"about", *TABLES} and len(tables) > 1
    for kind in set(tables) & set(KINDS):
        assert "corpus" not in preset_table(name, kind) and "seed" not in preset_table(name, kind)


def test_the_recipes_of_the_paper() -> None:
    """Sections 3 and 4 of the facts, number by number."""
    search = resolved("search", preset="ptb-darts")
    assert (search.method, search.epochs, search.model.hidden) == ("darts", 50, 300)
    assert dataclasses.astuple(search.noise) == (0.75, 0.2, 0.0, 0.75, 0.25, 0.0)
    assert (search.penalty.ar, search.penalty.tar) == (0.0, 1e-3)
    assert (search.windows.streams, search.windows.bptt) == (256, 35)
    assert (search.windows.halved, search.windows.jitter) == (0.05, 0.0)
    w = search.weights
    assert (w.lr, w.clip, w.weight_decay, w.momentum) == (20.0, 0.25, 5e-7, 0.0)
    assert (w.nonmono, w.schedule) == (0, "constant")
    a = search.alphas
    assert (a.lr, a.betas, a.weight_decay, a.warmup) == (3e-3, (0.9, 0.999), 1e-3, 0.0)
    assert (a.text, search.order) == ("valid", "finite")
    for name, hidden, dropouth, decay in (
        ("ptb", 850, 0.25, 8e-7),
        ("wikitext-2", 700, 0.15, 5e-7),
    ):
        train: TrainConfig = resolved("train", preset=name)
        assert (train.epochs, train.model.hidden) == (3600, hidden)
        assert dataclasses.astuple(train.noise) == (0.75, 0.2, 0.1, 0.75, dropouth, 0.0)
        assert (train.penalty.ar, train.penalty.tar) == (0.0, 1e-3)
        assert dataclasses.astuple(train.windows) == (64, 35, 5.0, 0.05, 5, 20, 0)
        t = train.weights
        assert (t.lr, t.clip, t.weight_decay, t.nonmono) == (20.0, 0.25, decay, 5)
        assert (t.schedule, t.momentum) == ("constant", 0.0)
        assert (train.valid_streams, train.test_streams) == (10, 1)


def test_the_default_does_not_train_alphas_on_what_it_reports() -> None:
    assert resolved().alphas.text == "held-out"


def test_plain_values_are_fit_for_json_and_checkpoints() -> None:
    def kinds(value: Any) -> set[type]:
        if isinstance(value, dict):
            return {dict}.union(*map(kinds, value.values()))
        if isinstance(value, list):
            return {list}.union(*map(kinds, value))
        return {type(value)}

    for kind in KINDS:
        assert kinds(to_plain(resolved(kind))) <= {dict, list, str, int, float, bool}


def test_toml_of_awkward_values() -> None:
    plain = {"a": 'q"\\\n\té', "b": [1, 2.5, True], "c": {"d": {"e": 1e-07}, "f": -0.0}, "g": 1e22}
    assert tomllib.loads(to_toml({**plain, "c": plain["c"]})) == plain
    assert math.copysign(1, tomllib.loads(to_toml(plain))["c"]["f"]) == -1


@pytest.mark.parametrize("preset", ["demo", "quick", "quick-gdas", "quick-halving", "table"])
def test_short_searches_begin_at_the_frequencies(preset: str) -> None:
    """From a bias of zeros, steps as long as the DARTS paper's explode in some trainings."""
    config = resolve("search", preset=preset, file=None, settings=(), flags={"corpus": "ptb"})
    budget = resolve(
        "search", preset=None, file=None, settings=(), flags={"corpus": "ptb", "seconds": 300.0},
        reading=Reading(),
    )  # fmt: skip
    for own in (config, budget):
        assert own.output_bias == "frequencies"
        assert own.weights.lr * own.weights.clip <= 6.0001  # the longest step

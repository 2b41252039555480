"""eval, sample and score."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from rnnnas.cli import complete
from rnnnas.cli.common import (
    device_option,
    echo,
    json_option,
    pick_device,
    plugin_option,
    print_json,
    say_bits,
    say_compared,
)
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.runs.progress import waiting


def _checkpoint_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """CHECKPOINT, which may be given as --checkpoint, too."""
    option = click.option("--checkpoint", "named", type=click.Path(path_type=Path),
                          shell_complete=complete.trained, help="As CHECKPOINT.")  # fmt: skip
    argument = click.argument("checkpoint", required=False, type=click.Path(path_type=Path),
                              shell_complete=complete.trained)  # fmt: skip
    return argument(option(command))


def _say_whose(checkpoint: Path) -> None:
    """A line where the run in whose folder a checkpoint lies speaks of another one."""
    from rnnnas.runs.sealed import BEST, read_result

    try:
        if checkpoint.name == BEST:
            read_result(checkpoint.parent)
    except CheckpointError as error:
        echo(f"note: {error.cause}; the figures below are this file's", err=True)


def _one(checkpoint: Path | None, named: Path | None) -> Path:
    """The checkpoint that was given, in either way."""
    if checkpoint is not None and named is not None and checkpoint != named:
        raise UsageError(f"{checkpoint} and --checkpoint {named} are two", "give one of them")
    given = checkpoint or named
    if given is None:
        raise UsageError(
            "no checkpoint is named", "give the best.pt of a training, or its run folder"
        )
    return given


def _given(settings: tuple[str, ...], dynamic: bool) -> dict[str, Any]:
    """The settings of dynamic evaluation, by name, of 'dynamic.key=value' texts."""
    from rnnnas.config.plain import value_of

    if settings and not dynamic:
        raise UsageError(f"--set {settings[0]} is for --dynamic", "add --dynamic")
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        group, _, name = key.strip().partition(".")
        if not equals or group != "dynamic" or not name:
            raise UsageError(
                f"--set {setting} is no setting of --dynamic", "write --set dynamic.KEY=VALUE"
            )
        given[name] = value_of(text.strip())
    return given


@click.command("eval")
@_checkpoint_arguments
@click.option("--split", type=click.Choice(["train", "valid", "test"]),
              help="Of the corpus it was trained on.  [default: test]")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), help="Evaluate this file instead.")
@click.option("--encoding", help="Of --text that is not UTF-8, such as utf-16 or latin-1.")
@click.option("--dynamic", is_flag=True,
              help="Dynamic evaluation: the weights learn from what was scored.")  # fmt: skip
@click.option("--cache", is_flag=True,
              help="The continuous cache: words seen lately become likelier.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="A setting of --dynamic that is not chosen, e.g. dynamic.lr=1e-4.")  # fmt: skip
@plugin_option
@device_option
@json_option
def evaluate(
    checkpoint: Path | None, named: Path | None, split: str | None, text: Path | None,
    encoding: str | None, dynamic: bool, cache: bool, settings: tuple[str, ...], device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Perplexity of a CHECKPOINT, or of an image network its accuracy.

    CHECKPOINT is the best.pt of a training, its run folder, or a folder made for the hub.

    Settings of --dynamic and --cache are chosen on the validation text, once, and kept beside the
    checkpoint; but for those of --dynamic that --set gives. Published rates of decay (lamb) are for
    --set dynamic.average=matrices.

    \b
    Examples:
      rnnnas eval checkpoints/qt
      rnnnas eval checkpoints/qt --text story.txt
      rnnnas eval checkpoints/qt --dynamic --cache
    """
    from rnnnas.door import checkpoint_of
    from rnnnas.evaluation.run import evaluate_checkpoint

    if split is not None and text is not None:
        raise UsageError(
            f"--split {split} and --text are two texts",
            "leave one out: --text is a text of its own",
        )
    if encoding is not None and text is None:
        raise UsageError(f"--encoding {encoding} is for --text", "leave it out")
    found = checkpoint_of(_one(checkpoint, named))
    _say_whose(found)
    with waiting("evaluating", quiet=dynamic or cache):  # which show how far they are
        result = evaluate_checkpoint(
            found, split or "test", text=text, device=pick_device(device), dynamic=dynamic,
            cache=cache, given=_given(settings, dynamic), encoding=encoding,
        )  # fmt: skip
    if result.get("leak"):
        echo(
            f"warning: perplexity {result['perplexity']:.2f} lies below the "
            f"{result['best_perplexity']:.2f} that the best model can reach on this source: "
            "the model has seen this text, or the evaluation leaks",
            err=True,
        )
    if as_json:
        print_json(result)
        return
    if "accuracy" in result:
        echo(f"{result['split']} accuracy {result['accuracy']:.2f} %")
        if "top5" in result:
            echo(f"among the best five {result['top5']:.2f} %")
        echo(f"{result['nats']:.6f} nats an image over {result['images']:,} images")
        return
    echo(f"{result['split']} perplexity {result['perplexity']:.4f}")
    echo(f"{result['nats']:.6f} nats a token over {result['tokens']:,} tokens, "
               f"{result['unknown']:,} unknown words")  # fmt: skip
    if "plain_perplexity" in result:
        echo(f"without adapting {result['plain_perplexity']:.4f}")
    for name in ("dynamic", "cache"):
        if name in result:
            chosen = ", ".join(
                f"{key} {value}" if isinstance(value, str) else f"{key} {value:g}"
                for key, value in result[name].items() if not key.startswith("valid_")
            )  # fmt: skip
            echo(f"{name}: {chosen}; validation perplexity "
                       f"{result[name]['valid_perplexity']:.4f}")  # fmt: skip
    if result["word_perplexity"] != result["perplexity"]:
        echo(f"perplexity per word {result['word_perplexity']:.4f}")
    if "bits_per_byte" in result:
        say_bits(result)
        say_compared(result, result["perplexity"], "this model", "train it longer: --minutes N")
    if "best_perplexity" in result:
        echo(f"best any model can reach {result['best_perplexity']:.4f}")


@click.command()
@_checkpoint_arguments
@click.option("--prompt", default="", help="Text to go on from.")
@click.option("--tokens", type=click.IntRange(1), default=100, show_default=True,
              help="How many are drawn at most.")  # fmt: skip
@click.option("--lines", type=click.IntRange(0), default=0, show_default=True,
              help="Stop after so many lines; 0: after --tokens.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True,
              help="Below 1 safer, above 1 wilder, 0 always the likeliest word.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True,
              help="Draw from the k likeliest tokens; 0: from all.")  # fmt: skip
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0,
              show_default=True,
              help="Draw from the likeliest tokens of this probability together.")  # fmt: skip
@click.option("--unknown", is_flag=True, help="Let the model write <unk>.")
@click.option("--count", type=click.IntRange(1), default=1, show_default=True,
              help="Samples, each with a seed of its own from --seed on.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="Decides every draw.")  # fmt: skip
@plugin_option
@device_option
@json_option
def sample(
    checkpoint: Path | None, named: Path | None, prompt: str, count: int, seed: int, device: str,
    as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Text written by the trained model of CHECKPOINT, as it is drawn.

    \b
    Examples:
      rnnnas sample checkpoints/qt --prompt "the company" --tokens 50
      rnnnas sample checkpoints/qt --lines 1 --count 5 --temperature 0.8 --top-p 0.9
    """
    from rnnnas.door import load_language_model

    model = load_language_model(_one(checkpoint, named), pick_device(device))
    seeds = range(seed, seed + count)
    if as_json:
        texts = [model.sample(prompt, seed=one, **options) for one in seeds]
        print_json({"text": texts[0], "samples": texts})
        return
    for one in seeds:
        if count > 1:
            echo(f"--- {one - seed + 1}, seed {one}", err=True)
        last = prompt
        echo(prompt, nl=False)
        for piece in model.stream(prompt, seed=one, **options):
            echo(piece, nl=False)
            last = piece or last
        if not last.endswith("\n"):
            echo()


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path),
              shell_complete=complete.trained,
              help="The best.pt of a training, or its run folder.")  # fmt: skip
@click.option("--restart", is_flag=True,
              help="Read every line as if it were the first of a text.")  # fmt: skip
@click.option("--encoding", help="Of a text that is not UTF-8, such as utf-16 or latin-1.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
@plugin_option
@device_option
def score(
    file: Path, checkpoint: Path, restart: bool, encoding: str | None, as_json: bool, device: str
) -> None:  # fmt: skip
    """Log-probability and perplexity of every line of FILE, as tab-separated values.

    Columns: line number, log-probability in nats (of the line and its end), tokens scored, of them
    unknown words, perplexity per token, the line. A last line has the sum of all.

    \b
    Examples:
      rnnnas score story.txt --checkpoint checkpoints/qt
      rnnnas score sentences.txt --checkpoint checkpoints/qt --restart --json
    """
    from rnnnas.data.text_files import read_lines
    from rnnnas.door import load_language_model
    from rnnnas.evaluation.line_scores import LineScore, line_scores, total

    model = load_language_model(checkpoint, pick_device(device))
    lines, scored = read_lines(file, encoding), list[LineScore]()

    def each() -> Iterator[LineScore]:
        for one in line_scores(model, lines, restart=restart):
            scored.append(one)
            yield one
        yield total(scored)

    if not as_json:
        echo("line\tlog_prob\ttokens\tunknown\tperplexity\ttext")
    for one in each():
        if as_json:
            print_json(one.to_plain())
            continue
        number = "all" if one.line is None else str(one.line)
        text = " ".join(
            re.split(r"[\t\r]", one.text or "")
        )  # which readers of tables take for theirs
        figures = f"{one.log_prob:.6f}\t{one.tokens}\t{one.unknown}\t{one.perplexity:.4f}"
        echo(f"{number}\t{figures}\t{text}")

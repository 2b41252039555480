"""eval and sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rnnnas.cli.common import device_option, json_option, pick_device, plugin_option, print_json
from rnnnas.errors import UsageError


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
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path),
              help="The best.pt of a training, or its run folder.")  # fmt: skip
@click.option("--split", type=click.Choice(["train", "valid", "test"]),
              help="Of the corpus it was trained on.  [default: test]")  # fmt: skip
@click.option("--text", type=click.Path(path_type=Path), help="Evaluate this file instead.")
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
    checkpoint: Path, split: str | None, text: Path | None, dynamic: bool, cache: bool,
    settings: tuple[str, ...], device: str, as_json: bool,
) -> None:  # fmt: skip
    """Perplexity of a checkpoint, or of an image network its accuracy.

    Settings of --dynamic and --cache are chosen on the validation text, once, and kept beside the
    checkpoint; but for those of --dynamic that --set gives. Published rates of decay (lamb) are for
    --set dynamic.average=matrices.

    \b
    Examples:
      rnnnas eval --checkpoint checkpoints/qt/best.pt
      rnnnas eval --checkpoint checkpoints/qt/best.pt --text story.txt
      rnnnas eval --checkpoint checkpoints/qt/best.pt --dynamic --cache
    """
    from rnnnas.door import checkpoint_of
    from rnnnas.evaluation.run import evaluate_checkpoint

    if split is not None and text is not None:
        raise UsageError(
            f"--split {split} and --text are two texts",
            "leave one out: --text is a text of its own",
        )
    result = evaluate_checkpoint(
        checkpoint_of(checkpoint), split or "test", text=text, device=pick_device(device),
        dynamic=dynamic, cache=cache, given=_given(settings, dynamic),
    )  # fmt: skip
    if result.get("leak"):
        click.echo(
            f"warning: perplexity {result['perplexity']:.2f} lies below the "
            f"{result['best_perplexity']:.2f} that the best model can reach on this source: "
            "the model has seen this text, or the evaluation leaks",
            err=True,
        )
    if as_json:
        print_json(result)
        return
    if "accuracy" in result:
        click.echo(f"{result['split']} accuracy {result['accuracy']:.2f} %")
        if "top5" in result:
            click.echo(f"among the best five {result['top5']:.2f} %")
        click.echo(f"{result['nats']:.6f} nats an image over {result['images']:,} images")
        return
    click.echo(f"{result['split']} perplexity {result['perplexity']:.4f}")
    click.echo(f"{result['nats']:.6f} nats a token over {result['tokens']:,} tokens, "
               f"{result['unknown']:,} unknown words")  # fmt: skip
    if "plain_perplexity" in result:
        click.echo(f"without adapting {result['plain_perplexity']:.4f}")
    for name in ("dynamic", "cache"):
        if name in result:
            chosen = ", ".join(
                f"{key} {value}" if isinstance(value, str) else f"{key} {value:g}"
                for key, value in result[name].items() if not key.startswith("valid_")
            )  # fmt: skip
            click.echo(f"{name}: {chosen}; validation perplexity "
                       f"{result[name]['valid_perplexity']:.4f}")  # fmt: skip
    if "word_perplexity" in result:
        click.echo(f"perplexity a word {result['word_perplexity']:.4f}")
    if "best_perplexity" in result:
        click.echo(f"best any model can reach {result['best_perplexity']:.4f}")


@click.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path),
              help="The best.pt of a training, or its run folder.")  # fmt: skip
@click.option("--prompt", default="", help="Text to go on from.")
@click.option("--tokens", type=click.IntRange(1), default=100, show_default=True)
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True,
              help="Below 1 safer, above 1 wilder, 0 always the likeliest word.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True)
@plugin_option
@device_option
@json_option
def sample(
    checkpoint: Path, prompt: str, tokens: int, temperature: float, seed: int, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Text written by a trained model.

    \b
    Example:
      rnnnas sample --checkpoint checkpoints/qt/best.pt --prompt "the company" --tokens 50
    """
    from rnnnas.door import sample as run

    text = run(
        checkpoint, prompt, tokens, temperature=temperature, seed=seed, device=pick_device(device)
    )
    if as_json:
        print_json({"text": text})
    else:
        click.echo(text)

"""eval and sample."""

from __future__ import annotations

from os.path import isdir  # unlike Path's, False for a name that is too long
from pathlib import Path

import click

from rnnnas.cli.common import device_option, json_option, pick_device, print_json, say_compared
from rnnnas.errors import UsageError


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
@device_option
@json_option
def evaluate(
    checkpoint: Path, split: str | None, text: Path | None, dynamic: bool, cache: bool, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Perplexity of a checkpoint, or of an image network its accuracy.

    Settings of --dynamic and --cache are chosen on the validation text, once, and kept beside the
    checkpoint.

    \b
    Examples:
      rnnnas eval --checkpoint checkpoints/qt/best.pt
      rnnnas eval --checkpoint checkpoints/qt/best.pt --text story.txt
      rnnnas eval --checkpoint checkpoints/qt/best.pt --dynamic --cache
    """
    from rnnnas.evaluation.run import evaluate_checkpoint

    if split is not None and text is not None:
        raise UsageError(
            f"--split {split} and --text are two texts",
            "leave one out: --text is a text of its own",
        )
    path = checkpoint / "best.pt" if isdir(checkpoint) else checkpoint
    result = evaluate_checkpoint(
        path, split or "test", text=text, device=pick_device(device), dynamic=dynamic, cache=cache
    )
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
            chosen = ", ".join(f"{key} {value:g}" for key, value in result[name].items()
                               if not key.startswith("valid_"))  # fmt: skip
            click.echo(f"{name}: {chosen}; validation perplexity "
                       f"{result[name]['valid_perplexity']:.4f}")  # fmt: skip
    if result["word_perplexity"] != result["perplexity"]:
        click.echo(f"perplexity a word {result['word_perplexity']:.4f}")
    if "bits_per_byte" in result:
        click.echo(f"{result['bits_per_byte']:.4f} bits a byte")
        say_compared(result, result["perplexity"], "this model", "train it longer: --minutes N")
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
    from rnnnas.evaluation.run import sample as run

    path = checkpoint / "best.pt" if isdir(checkpoint) else checkpoint
    text = run(
        path, prompt=prompt, tokens=tokens, temperature=temperature, seed=seed,
        device=pick_device(device),
    )  # fmt: skip
    if as_json:
        print_json({"text": text})
    else:
        click.echo(text)

"""Exporting a checkpoint: written beside its place, verified against torch, then put there."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch

from rnnnas.draw import text_svg_dot
from rnnnas.errors import UsageError
from rnnnas.exporting import hub, onnx_file, pt2_file
from rnnnas.exporting.graphs import Chunk, Classifier, Step, state_names
from rnnnas.exporting.packing import DTYPES, Dtype, fits_float16
from rnnnas.exporting.source import ExportError, Source, read_source
from rnnnas.exporting.verify import Runner, verify_images, verify_text
from rnnnas.runs.checkpoint import content_digest
from rnnnas.runs.files import check_replaceable, disk_errors
from rnnnas.runs.hub_folder import is_export, read_folder

Format: TypeAlias = Literal["onnx", "html", "hf", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)
OPSET = 20
_SUFFIX = {"onnx": ".onnx", "html": ".html", "pt2": ".pt2"}
_CHUNK_LIMIT = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export wrote and how it compares with torch.

    path: the file, or of `hf` the folder. format, dtype: as asked for. bytes: of the file, or of
    all files of the folder. verified: figures by name, as `verify_text` and `verify_images` give
    them. digest: of the checkpoint it was made of.
    """

    path: Path
    format: Format
    dtype: Dtype
    bytes: int
    verified: dict[str, Any]
    digest: str

    def to_plain(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": str(self.path), "format": self.format, "dtype": self.dtype,
            "bytes": self.bytes, "digest": self.digest, "verified": self.verified,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The figures of the verification as sentences."""
        v = self.verified
        sizes = " and ".join(map(str, v["batches"]))
        if "images" in v:
            said = [
                f"verified on {v['images']} images of {v['text']}, batches of {sizes}: "
                f"probabilities within {v['probability_error']:.1e} of torch, "
                f"{v['same_class']:.0f} % in the same class"
            ]
            if "accuracy" in v:
                said.append(f"accuracy {v['accuracy']:.1f} %, of torch {v['torch_accuracy']:.1f} %")
            return said
        return [
            f"verified on {v['tokens']:,} tokens of {v['text']}, batches of {sizes}: "
            f"log p within {v['log_prob_error']:.1e} of torch",
            f"their perplexity {v['perplexity']:.4f}, by torch in float32 "
            f"{v['torch_perplexity']:.4f}",
        ]

    def hint(self) -> str:
        """The next thing to do with the file."""
        path = str(self.path)
        return {
            "onnx": f"onnxruntime.InferenceSession({path!r})",
            "pt2": f"torch.export.load({path!r}).module()",
            "html": f"open {path} in a browser",
            "hf": f"HubModel.from_pretrained({path!r}), see docs/export.md",
        }[self.format]


def export(
    checkpoint: Path | str,
    *,
    format: Format,
    dtype: Dtype | None = None,
    opset: int = OPSET,
    chunk: int | None = None,
    out: Path | str | None = None,
) -> ExportResult:
    """Write a trained model in a form that needs no rnnnas, and compare it with torch.

    Args:
        checkpoint: a best.pt, its run folder, or a hub folder of an earlier export.
        format: "onnx"; "html", one page that runs the model in a browser; "hf", a folder as the
            Hugging Face hub has them; "pt2", of torch.export.
        dtype: of large weights: "float32", "float16" or "int8" with a scale a row; sums are
            float32 in all. By default int8 for html and float32 for the others.
        opset: of ONNX.
        chunk: T, for onnx and pt2 of language models: score T tokens a call instead of one.
        out: where; by default beside the checkpoint, model.onnx, model.html, model.pt2, or hf.

    Raises:
        UsageError: a combination that does not exist, or a library that is missing.
        CheckpointError: no trained model.
        ExportError: the file does not compute what torch computes; nothing is left of it.
        DiskError: it cannot be written.
    """
    chosen = _check(format, dtype, opset, chunk)
    source = read_source(Path(checkpoint))
    if source.images is not None and chunk is not None:
        raise UsageError("--chunk is for language models", "leave it out")
    if chosen == "float16" and not fits_float16(source.content["weights"]):
        raise UsageError("a weight is larger than float16 can hold", "take --dtype float32")
    target = Path(os.path.abspath(out)) if out is not None else _default(source, format)
    if format == "hf":
        return _folder(source, target, chosen)
    check_replaceable(target, (_SUFFIX[format],))
    with _temporary(target) as temporary:
        verified = _write(source, temporary, format, chosen, opset, chunk or 0)
    size = target.stat().st_size
    return ExportResult(
        path=target, format=format, dtype=chosen, bytes=size, verified=verified,
        digest=source.digest,
    )  # fmt: skip


def _check(format: str, dtype: Dtype | None, opset: int, chunk: int | None) -> Dtype:
    """The dtype of an export. Raises UsageError where the options do not go together."""
    if format not in FORMATS:
        raise UsageError(f"format {format!r} is not known", f"formats: {', '.join(FORMATS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not known", f"dtypes: {', '.join(DTYPES)}")
    if format == "onnx":
        onnx_file.check_installed()
        onnx_file.check_opset(opset)
    elif opset != OPSET:
        raise UsageError("--opset is for --format onnx", "leave it out")
    if chunk is not None and format not in ("onnx", "pt2"):
        raise UsageError("--chunk is for --format onnx and pt2", "leave it out")
    if chunk is not None and not 1 <= chunk <= _CHUNK_LIMIT:
        raise UsageError(f"--chunk {chunk} must lie between 1 and {_CHUNK_LIMIT:,}")
    if format == "hf" and dtype == "int8":
        raise UsageError(
            "the hub's layout holds float32 or float16 here, not int8",
            "take --dtype float32 or float16",
        )
    return dtype or ("int8" if format == "html" else "float32")


def _default(source: Source, format: Format) -> Path:
    folder = source.path if source.path.is_dir() else source.path.parent
    return folder / ("hf" if format == "hf" else f"model{_SUFFIX[format]}")


def _check_parent(target: Path) -> None:
    """Raises UsageError where `target` would have to lie in a file."""
    for parent in target.parents:
        if parent.is_file():
            raise UsageError(
                f"{parent} is a file: nothing lies in it", "name another path by --out"
            )


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A path beside `target`; it takes the target's place when the block ends well, and is removed
    when it does not.
    """
    _check_parent(target)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise UsageError(f"{target} is a folder", "name a file with --out")
    # The ending is kept: torch and onnxruntime look at it.
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(8)}{target.suffix}")
    try:
        with disk_errors(target):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write(
    source: Source, path: Path, format: Format, dtype: Dtype, opset: int, chunk: int
) -> dict[str, Any]:
    """Write a file of one of the formats and verify it; returns the figures."""
    if format == "html":
        from rnnnas.exporting.image_page import write_image_page
        from rnnnas.exporting.page import write_page

        return (write_page if source.images is None else write_image_page)(path, source, dtype)
    about = metadata(source, dtype)
    if source.images is not None:
        return _write_images(source, path, format, dtype, opset, about)
    net = source.language_model()
    names = state_names(net)
    made = Chunk(net, dtype) if chunk and format == "pt2" else Step(net, dtype)
    # Two streams: a batch of one would be taken for a constant.
    shape = (chunk, 2) if chunk and format == "pt2" else (2,)
    token = torch.zeros(shape, dtype=torch.int64)
    examples = [token, *(torch.zeros(2, net.config.hidden) for _ in names)]
    if format == "onnx":
        after = [f"next_{name}" for name in names]
        onnx_file.write_onnx(
            path, made.eval(), examples, ["token", *names], ["log_probs", *after], opset=opset,
            metadata=about, scan=bool(chunk),
        )  # fmt: skip
    else:
        axes = [len(shape) - 1, *(0 for _ in names)]
        pt2_file.write_pt2(path, made.eval(), examples, axes=axes, metadata=about)
    return verify_text(source, _runner(path, format), dtype, chunk=chunk)


def _write_images(
    source: Source, path: Path, format: Format, dtype: Dtype, opset: int, about: dict[str, Any]
) -> dict[str, Any]:
    from rnnnas.exporting.verify import real_images

    assert source.images is not None
    net = Classifier(
        source.image_network(), dtype, source.images.mean, source.images.std
    ).eval()  # fmt: skip
    size = real_images(source)[0].shape[1:]
    examples = [torch.zeros((2, *size), dtype=torch.uint8)]
    if format == "onnx":
        onnx_file.write_onnx(
            path, net, examples, ["images"], ["probabilities"], opset=opset, metadata=about
        )
    else:
        pt2_file.write_pt2(path, net, examples, axes=[0], metadata=about)
    return verify_images(source, _runner(path, format), dtype)


def _runner(path: Path, format: Format) -> Runner:
    return onnx_file.OnnxRunner(path) if format == "onnx" else pt2_file.Pt2Runner(path)


def metadata(source: Source, dtype: Dtype) -> dict[str, object]:
    """What a file says of the model in it, by name: texts, or plain values for JSON."""
    about = source.about
    found: dict[str, object] = {
        "digest": source.digest,
        "cell": about["cell"],
        "genotype": about["genotype"],
        "corpus": about["corpus"],
        "corpus_sha256": about["corpus_sha256"],
        "metrics": about["metrics"],
        "command": about["command"],
        "version": about["version"],
        "dtype": dtype,
    }
    if source.images is not None:
        images = source.images
        return found | {
            "classes": list(images.classes), "mean": list(images.mean), "std": list(images.std),
        }  # fmt: skip
    vocabulary = source.content["vocabulary"]
    text = json.dumps(vocabulary, ensure_ascii=False)
    sha = hashlib.sha256(text.encode()).hexdigest()
    return found | {"vocabulary": text, "vocabulary_sha256": sha}


def _folder(source: Source, target: Path, dtype: Dtype) -> ExportResult:
    """The hub's layout: written beside its place, read back, compared, and put there."""
    _check_parent(target)
    if target == Path.cwd():  # which is replaced: whoever stands in it would stand nowhere
        raise UsageError(f"{target} is the folder that you are in", "name another with --out")
    with disk_errors(target):
        if target.is_file():
            raise UsageError(f"{target} is a file", "name a folder with --out")
        if target.is_dir() and any(target.iterdir()) and not is_export(target):
            raise UsageError(
                f"{target} holds other files", "name another folder with --out, or empty this one"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(8)}")
    genotype = source.genotype
    drawing = text_svg_dot.as_text(genotype) if genotype is not None else ""
    weights = source.content["weights"]
    if dtype == "float16":
        from rnnnas.exporting.packing import packs

        weights = {name: w.half() if packs(name, w) else w for name, w in weights.items()}
    try:
        kind = {"images": True} if source.images is not None else {}
        card = hub.model_card(source.about, kind, drawing)
        hub.write_folder(temporary, source.content, weights, card)
        back = read_folder(temporary)
        if dtype == "float32" and content_digest(back) != source.digest:
            raise ExportError("the folder that was written has another digest than the checkpoint")
        verified = _verify_folder(source, temporary, dtype)
        with disk_errors(target):
            if target.is_dir():
                shutil.rmtree(target)  # an earlier export, or empty
            os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in target.iterdir())
    return ExportResult(
        path=target, format="hf", dtype=dtype, bytes=size, verified=verified, digest=source.digest
    )


def _verify_folder(source: Source, folder: Path, dtype: Dtype) -> dict[str, Any]:
    """The figures of the model that is read back from a folder."""
    back = read_source(folder)
    if back.images is not None:
        images = Classifier(back.image_network(), "float32", back.images.mean, back.images.std)
        return verify_images(source, _torch(images), dtype)
    return verify_text(source, _torch(Step(back.language_model(), "float32")), dtype)


def _torch(module: torch.nn.Module) -> Runner:
    def run(*inputs: Any) -> list[Any]:
        with torch.no_grad():
            out = module(*(torch.from_numpy(i) for i in inputs))
        return [part.numpy() for part in (out if isinstance(out, tuple) else (out,))]

    return run

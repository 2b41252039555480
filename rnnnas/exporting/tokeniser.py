"""A vocabulary as tables for the page: how text becomes tokens there, and tokens text."""

from __future__ import annotations

from typing import Any

from rnnnas.data.vocab import Vocab
from rnnnas.errors import UsageError


def tables(vocab: Vocab) -> dict[str, Any]:
    """Plain values for the page's tokeniser.

    kind: how a line is cut: "words" at white space, "rules" at white space and punctuation with
    joiner marks, "characters", "bytes" of UTF-8, "pieces" by the likeliest sentencepieces.
    tokens: texts by id. eos: id of the line end. unk: id, or null. lower: text is lower-cased
    first. glue: what stands between two tokens of a line. Of pieces also scores (log p by id),
    fixed (ids that no text becomes: control and unknown ones) and bytes (id of byte 0 to 255, or
    an empty list).

    Raises:
        UsageError: for a vocabulary that the page cannot apply.
    """
    shared = {"eos": vocab.eos, "unk": vocab.unk, "lower": vocab.lower}
    rules = getattr(vocab, "tokenizer", "")
    if vocab.kind == "words" and rules in ("", "rules"):
        return {"kind": rules or "words", "tokens": list(vocab.words), "glue": " ", **shared}
    if vocab.kind == "characters":
        return {"kind": "characters", "tokens": list(vocab.words), "glue": "", **shared}
    if vocab.kind == "bytes":
        shown = [chr(i) if 32 <= i < 127 else f"0x{i:02X}" for i in range(256)]
        return {"kind": "bytes", "tokens": shown, "glue": "", **shared}
    if vocab.kind == "sentencepiece":
        return {"kind": "pieces", "glue": "", **shared, **_pieces(vocab)}
    raise UsageError(
        f"the page does not know how to cut text into {vocab.kind}",
        "export with --format onnx, pt2 or hf instead",
    )


def _pieces(vocab: Vocab) -> dict[str, Any]:
    processor: Any = vocab._processor
    ids = range(vocab.size)
    # Ours are trained so that any text round-trips: the page relies on it.
    probe = "  a b "
    if processor.decode(processor.encode(probe)) != probe:
        raise UsageError(
            "this sentencepiece model changes white space, which the page would not",
            "export with --format onnx, pt2 or hf instead",
        )
    spelled = {f"<0x{byte:02X}>": byte for byte in range(256)}
    in_bytes = [0] * 256
    found = 0
    for i in ids:
        if processor.is_byte(i):
            in_bytes[spelled[processor.id_to_piece(i)]] = i
            found += 1
    return {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "fixed": [i for i in ids if processor.is_control(i) or processor.is_unknown(i)],
        "bytes": in_bytes if found == 256 else [],
    }

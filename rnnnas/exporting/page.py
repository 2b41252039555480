"""One HTML file that runs the model in a browser: opened from disk, it asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rnnnas.data.text_streams import Streams
from rnnnas.draw import text_svg_dot
from rnnnas.engine.steps import evaluate
from rnnnas.exporting.packing import Dtype, rounded
from rnnnas.exporting.page_weights import PageRunner, packed, shape_of
from rnnnas.exporting.source import CPU, Source
from rnnnas.exporting.tokeniser import tables
from rnnnas.exporting.verify import own_text, verify_text
from rnnnas.exporting.wasm import kernels
from rnnnas.lm.model import RecurrentLM
from rnnnas.runs.files import json_plain

CHECKED = 48  # tokens that the page scores when it is opened, to compare itself with torch
START = 12  # tokens that stand in the text field at first
_CALM = 0.7  # their temperature
# The page's int8 products round the vector to int16 as well, of 15 bits: it adds up in log p.
_EXACT: dict[str, float] = {"float32": 2e-4, "float16": 2e-4, "int8": 5e-3}


def write_page(path: Path, source: Source, dtype: Dtype) -> dict[str, Any]:
    """Write the page of a language model; returns the figures of its verification.

    The weights and the header are read back from the file and computed with as the page does.

    Raises:
        ExportError: where the page would not compute what torch computes.
        UsageError: for a vocabulary that the page has no rule for.
    """
    assert source.text is not None
    net, vocab = source.language_model(), source.text.vocab
    table, blob = packed(net, dtype)
    shape = shape_of(net)
    written = own_text(net, vocab.eos, CHECKED)
    start = _start(source, net)
    net.load_state_dict(rounded(net.state_dict(), dtype))
    expected = evaluate(net, Streams(written.astype(np.int32), 1, CPU, ""), {}).nats
    header = {
        "shape": shape,
        "tensors": table,
        "tokeniser": tables(vocab),
        "check": {"ids": written[1:].tolist(), "nats": expected},
        "about": about(source, dtype),
    }
    body = read_file("text.html").replace("@start@", escape(start))
    write_html(
        path, source, dtype, header, blob, body, ("weights.js", "engine.js", "tokens.js", "text.js")
    )
    back, stored = read_page(path)
    again = PageRunner(back["shape"], back["tensors"], stored)
    return verify_text(source, again, dtype, exact=_EXACT[dtype])


def _start(source: Source, net: RecurrentLM) -> str:
    """A few tokens of the model's own, likely ones: what the text field begins with."""
    assert source.text is not None
    vocab = source.text.vocab
    ids = own_text(net, vocab.eos, 200, _CALM)[1:]
    # The first line of some length without an unknown word.
    line: list[int] = []
    for i in map(int, ids):
        if i in (vocab.eos, vocab.unk):
            if len(line) >= 4:
                break
            line = []
        else:
            line.append(i)
            if len(line) == START:
                break
    return vocab.decode(line)


def about(source: Source, dtype: Dtype) -> dict[str, str]:
    """Where a model comes from, as rows for a reader."""
    known = source.about
    metrics = {
        key.replace("valid_", "validation ").replace("test_", "test "): (
            f"{value:.2f}" + (" %" if key.endswith("accuracy") else "")
        )
        for key, value in known["metrics"].items()
        if isinstance(value, float)
    }
    rows = {
        "cell": known["cell"],
        "genotype": known["genotype"],
        "corpus": known["corpus"],
        **metrics,
        "parameters": f"{known['parameters']:,}",
        "weights": f"{dtype} in this file"
        + (", a scale a row; the figures above are those of float32" if dtype == "int8" else ""),
        "trained by": known["command"],
        "digest": source.digest,
        "corpus SHA-256": known["corpus_sha256"],
        "rnnnas": known["version"],
    }
    return {key: value for key, value in rows.items() if value}


def headline(source: Source) -> str:
    """The figures that a reader asks for first: 'test perplexity 125.14, 1,019,413 parameters'."""
    known = source.about
    figures = [
        f"{split} {measure} {value:,.2f}{' %' if measure == 'accuracy' else ''}"
        for split, name in (("test", "test"), ("validation", "valid"))
        for measure in ("perplexity", "accuracy")
        if isinstance(value := known["metrics"].get(f"{name}_{measure}"), float)
    ]
    return ", ".join([*figures[:1], f"{known['parameters']:,} parameters"])


def write_html(
    path: Path, source: Source, dtype: Dtype, header: dict[str, Any], blob: bytes, body: str,
    scripts: tuple[str, ...],
) -> None:  # fmt: skip
    """Write a page: its data, the parts that both kinds share, and a policy that allows the scripts
    and the style in it and nothing else.
    """
    # One script: each file states that it is strict, the first does for all.
    script = "\n".join(read_file(name).removeprefix('"use strict";\n') for name in scripts)
    script = f'"use strict";\n(() => {{\n{script}}})();\n'
    style = read_file("page.css")
    genotype = source.genotype
    if genotype is None:
        drawing = f"<p>{escape(_BASELINE[source.about['cell']])}</p>"
    else:
        drawing = f'<div class="drawing" tabindex="0">{text_svg_dot.as_svg(genotype)}</div>'
    code = {"genotype", "trained by", "digest", "corpus SHA-256"}
    rows = ""
    for key, value in about(source, dtype).items():
        shown = f"<code>{escape(value)}</code>" if key in code else escape(value)
        rows += f"<dt>{escape(key)}</dt><dd>{shown}</dd>"
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' 'wasm-unsafe-eval'; "
        f"style-src '{_hash(style)}'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "csp": escape(policy, quote=True).replace("&#x27;", "'"),
        "title": escape(f"{source.name} – rnnnas"),
        "heading": escape(source.name),
        "headline": escape(headline(source)),
        "style": style,
        "body": body,
        "cell_title": "The cell" if genotype is None or len(genotype.cells) == 1 else "The cells",
        "drawing": drawing,
        "about": rows,
        # '<' is written as an escape: no text of a vocabulary can end the element.
        "header": json.dumps(json_plain(header), ensure_ascii=False, separators=(",", ":"))
        .replace("<", "\\u003c"),
        "weights": base64.b64encode(blob).decode(),
        "kernels": base64.b64encode(kernels()).decode(),
        "script": script,
    }  # fmt: skip
    page = re.sub(r"@(\w+)@", lambda found: parts[found[1]], read_file("page.html"))
    # As bytes: a line end must not change, or the policy's hashes would not fit.
    path.write_bytes(page.encode("utf-8", "surrogatepass"))


_BASELINE = {
    "LSTM": "An LSTM: input, forget and output gates around a memory of its own.",
    "GRU": "A GRU: a reset and an update gate.",
}


def _hash(text: str) -> str:
    """How a policy names an element by its content (CSP level 3, section 2.3.1)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def read_file(name: str) -> str:
    """A part of the page."""
    return (resources.files("rnnnas.exporting") / "web" / name).read_text(encoding="utf-8")


def read_page(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the weights of a page."""
    text = path.read_text(encoding="utf-8", errors="surrogatepass")
    found = {
        name: text.partition(f'id="{name}">')[2].partition("</script>")[0]
        for name in ("header", "weights")
    }
    header: dict[str, Any] = json.loads(found["header"])
    return header, base64.b64decode(found["weights"])

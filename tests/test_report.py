"""Reports: what is in them, that they ask for nothing, and how they look to a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from sample_runs import rung_lines, search_run, study_folder, train_run

from rnnnas.cli import main
from rnnnas.errors import CheckpointError, UsageError
from rnnnas.reporting.page import MOST_BYTES, page, report
from rnnnas.reporting.read import RunData, StudyData, read_all, read_run
from rnnnas.reporting.repeat import command_of, study_command
from rnnnas.reporting.sections import Detail, runners_of
from rnnnas.reporting.study_section import result_of
from rnnnas.runs.files import Lock, write_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)  # fmt: skip
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")


class Parts(HTMLParser):
    """The elements of a page, whether they are closed in order, and its text."""

    VOID = {"meta", "input", "br", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def written(paths: list[Path], folder: Path) -> str:
    return report(paths, folder / "report.html").read_text(encoding="utf-8")


# What is in it


def test_a_search_has_its_cell_its_shares_and_its_curves(tmp_path: Path) -> None:
    run = search_run(tmp_path / "found")
    text = written([run], tmp_path)
    parts = Parts(text)
    words = " ".join(parts.words)
    cell = json.loads((run / "result.json").read_text())["cell"]
    assert cell in words and "200.00" in words and "d1" * 32 in words
    for heading in ("The cell, epoch by epoch", "Shares of the operations", "Curves",
                    "Leading operation of each node"):  # fmt: skip
        assert heading in words
    (slider,) = (attrs for tag, attrs in parts.found if attrs.get("type") == "range")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "3", "3")
    kept = [attrs for tag, attrs in parts.found if attrs.get("class") == "kept"]
    assert len(kept) == 8  # a gene a node


def test_the_slider_has_every_epoch_with_its_cell_and_shares(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "found", epochs=6)
    text = written([folder], tmp_path)
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', text)[1])  # type: ignore[index]
    frames = read_run(folder).frames
    assert [frame["e"] for frame in data["frames"]] == [1, 2, 3, 4, 5, 6]
    for shown, frame in zip(data["frames"], frames, strict=True):
        assert data["texts"][shown["g"]] == frame.cell
        flat = [v for row in frame.tables["recurrent"] for v in row]
        assert shown["a"]["recurrent"] == [round(1e4 * v) for v in flat]
        assert frame.genotype is not None
        for node, place in zip(
            frame.genotype.recurrent.nodes, shown["k"]["recurrent"], strict=True
        ):
            row, op = divmod(place, 5)
            names = data["names"]["recurrent"]
            assert names["ops"][op] == node[0].op
            assert names["rows"][row].startswith(f"s{node[0].source} > ")
    assert data["high"] == max(v for f in frames for r in f.tables["recurrent"] for v in r)


def test_a_training_is_told_with_its_test_and_repeated_by_its_command(tmp_path: Path) -> None:
    run = train_run(tmp_path / "trained")
    words = " ".join(Parts(written([run], tmp_path)).words)
    assert "117.00" in words and "12,345" in words and "tanh0 relu1" in words
    assert "rnnnas train --corpus nowhere --genotype 'tanh0 relu1' --seed 1 --preset smoke" in words


@pytest.mark.parametrize("kind", ["search", "train", "study"])
def test_the_command_gives_the_very_settings(kind: str, tmp_path: Path) -> None:
    """It is run as far as --print-config goes, or a study as its plan."""
    import shlex

    from rnnnas.studies.plan import resolve_study

    if kind == "study":
        (study,) = read_all([study_folder(tmp_path / "s")])
        assert isinstance(study, StudyData)
        words = shlex.split(study_command(study) or "")
        given = dict(zip(words[2::2], words[3::2], strict=True))
        flags = {"corpus": given["--corpus"], "methods": given["--methods"].split(","),
                 "seeds": [int(s) for s in given["--seeds"].split(",") if s]}  # fmt: skip
        again = resolve_study(preset=given["--preset"], settings=(), flags=flags)
        assert list(again.methods) == study.plan["config"]["methods"]
        return
    make = search_run if kind == "search" else train_run
    run = read_run(make(tmp_path / "r"))
    words = shlex.split(command_of(run) or "")
    place = words.index("--out")
    done = CliRunner().invoke(main, [*words[1:place], "--print-config", "--json"])
    assert done.exit_code == 0, done.output
    wanted = {k: v for k, v in run.config.items() if k != "corpus_sha256"}
    assert json.loads(done.stdout) == wanted


def test_settings_of_another_version_have_no_command_but_are_shown(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "old")
    about = json.loads((folder / "config.json").read_text())
    about["config"]["long_gone"] = 7
    write_json(folder / "config.json", about)
    run = read_run(folder)
    assert command_of(run) is None
    words = " ".join(Parts(written([folder], tmp_path)).words)
    assert "long_gone" in words and "No preset leads to these settings" in words


def test_a_run_that_still_goes_on_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "now", epochs=5, done=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "epo')  # half a line
    words = " ".join(Parts(written([folder], tmp_path)).words)
    assert "epoch 4 of 5" in words and "200.00" in words  # of its last epoch
    begun = tmp_path / "begun"
    shutil.copytree(folder, begun)
    (begun / "metrics.jsonl").unlink()
    assert "just begun" in " ".join(Parts(written([begun], tmp_path)).words)


def test_what_became_of_a_run_is_told(tmp_path: Path) -> None:
    failed, held = (search_run(tmp_path / name, epochs=7, done=False) for name in ("bad", "held"))
    with (failed / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "failed", "step": 9, "reason": "the loss was not finite"}\n')
    words = " ".join(Parts(written([failed], tmp_path)).words)
    assert "failed, epoch 6 of 7: the loss was not finite" in words
    lock = Lock(held)
    try:
        assert "running, epoch 6 of 7" in " ".join(Parts(written([held], tmp_path)).words)
    finally:
        lock.release()
    assert "stopped, epoch 6 of 7" in " ".join(Parts(written([held], tmp_path)).words)


def test_a_mean_is_of_the_runs_that_it_counts(tmp_path: Path) -> None:
    runs = [train_run(tmp_path / f"t{s}", seed=s, valid=v) for s, v in ((1, 100.0), (2, 104.0))]
    shutil.copytree(runs[0], tmp_path / "t3")
    (tmp_path / "t3" / "result.json").unlink()  # it is not over
    words = " ".join(Parts(written([*runs, runs[0], tmp_path / "t3"], tmp_path)).words)
    assert "mean of 2 seeds" in words and "102.00 [76.59, 127.41]" in words
    assert "mean of" not in " ".join(Parts(written([runs[0], runs[0]], tmp_path)).words)


def test_a_name_that_is_no_utf8_is_shown(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "x")
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/x\xff"))
    folder.rename(strange)
    report([strange], tmp_path / "r.html")
    assert "x\\udcff" in (tmp_path / "r.html").read_text()


def test_a_run_of_the_version_before_shows_what_it_has(tmp_path: Path) -> None:
    """It has no line of alphas: the last cell stands still."""
    folder = search_run(tmp_path / "before")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(x for x in lines if '"alphas"' not in x))
    parts = Parts(written([folder], tmp_path))
    words = " ".join(parts.words)
    assert "No shares of operations were logged" in words and "Curves" in words
    assert not any(attrs.get("type") == "range" for _, attrs in parts.found)
    assert sum(attrs.get("class") == "cell" for _, attrs in parts.found) == 1


def test_rungs_of_a_halving_are_drawn_by_how_far_cells_are_behind(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "halving", done=False)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rung_lines()))
    runners, names = runners_of(read_run(folder))
    assert names == ["rung 1 (4 cells)", "rung 2 (3 cells)"]
    by_cell = {runner.title.partition(",")[0].partition(" (")[0]: runner for runner in runners}
    assert [x for _, x in by_cell["tanh0 relu0"].losses] == pytest.approx([0.0, 0.3])
    assert [x for _, x in by_cell["tanh0 relu1"].losses] == pytest.approx([0.1, 0.1])
    child = by_cell["sigmoid0 relu0"]
    assert child.losses == [(1, 0.0)] and child.parent and child.kept
    assert sum(runner.kept for runner in runners) == 1
    words = " ".join(Parts(written([folder], tmp_path)).words)
    assert "Rungs" in words and "Green: children" in words


def test_runs_that_differ_by_their_seed_get_a_mean_and_its_interval(tmp_path: Path) -> None:
    runs = [train_run(tmp_path / f"t{s}", seed=s, valid=v) for s, v in ((1, 100.0), (2, 104.0))]
    other = train_run(tmp_path / "other", "relu0 relu0", valid=90.0)
    words = " ".join(Parts(written([*runs, other], tmp_path)).words)
    # Of 100 and 104, sd 2.828: 102 ± 12.706 * 2.
    assert "mean of 2 seeds" in words and "102.00 [76.59, 127.41]" in words
    assert "Side by side" in words and words.count("mean of") == 1


def test_a_folder_of_runs_stands_for_all_of_them(tmp_path: Path) -> None:
    train_run(tmp_path / "runs" / "a")
    search_run(tmp_path / "runs" / "b")
    (tmp_path / "runs" / "notes").mkdir()
    assert [item.name for item in read_all([tmp_path / "runs"])] == ["a", "b"]


def test_a_study_has_its_table_its_distribution_and_its_chosen_cells(tmp_path: Path) -> None:
    folder = study_folder(tmp_path / "study")
    (study,) = read_all([folder])
    assert isinstance(study, StudyData) and study.result is not None
    parts = Parts(written([folder], tmp_path))
    words = " ".join(parts.words)
    for method, own in study.result["methods"].items():
        assert method in words and f"{own['valid']['mean']:.1f} ± {own['valid']['sd']:.1f}" in words
        assert own["chosen"]["name"] in words and own["chosen"]["cell"] in words
    for heading in ("Found cells and random cells", "Does the search know?", "Short trainings"):
        assert heading in words
    assert "Kendall's tau" in words
    dots = [a for t, a in parts.found if t == "circle" and "dot" in (a.get("class") or "")]
    assert len(dots) == 8  # two methods of two seeds, four random cells


def test_a_study_under_way_is_the_summary_of_what_is_done(tmp_path: Path) -> None:
    (study,) = read_all([study_folder(tmp_path / "study", done=False)])
    assert isinstance(study, StudyData) and study.result is None
    result = result_of(study)
    assert result is not None
    assert [own["valid"]["n"] for own in result["methods"].values()] == [2, 0, 0]
    assert "not finished" in " ".join(Parts(written([study.folder], tmp_path)).words)


# What it refuses


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run nor a study"):
        report([tmp_path], tmp_path / "report.html")
    text = tmp_path / "text.txt"
    text.write_text("no run")
    with pytest.raises(UsageError, match="there is no folder"):
        read_all([text])
    with pytest.raises(UsageError, match="there is no folder"):
        report([tmp_path / "missing"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_damaged_metrics_are_named_with_their_line(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "found")
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "{half\n", *lines[2:]]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged in line 3"):
        read_run(folder)


def test_a_long_search_still_fits_and_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = search_run(tmp_path / "long", epochs=150)
    text = written([folder], tmp_path)
    assert len(text.encode()) <= MOST_BYTES
    assert "epoch 150 of 150" in text  # thinned out, never cut off
    monkeypatch.setattr("rnnnas.reporting.page.MOST_BYTES", 10_000)
    with pytest.raises(UsageError, match="may have 10,000"):
        report([folder], tmp_path / "large.html")
    assert not (tmp_path / "large.html").exists()


# What it asks for, and what a browser says


def test_nothing_is_loaded_and_nothing_in_a_name_becomes_markup(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    run = search_run(folder)
    about = json.loads((run / "config.json").read_text())
    about["config"]["corpus"] = "</script><script>alert(2)</script>"
    write_json(run / "config.json", about)
    lines = (run / "metrics.jsonl").read_text()
    plain = {"recurrent": {"nodes": [[["</script><b>", 0]]], "concat": [1]}}
    last = {"kind": "alphas", "step": 99, "epoch": 5, "cell": json.dumps(plain),
            "recurrent": [[0.5, 0.5]]}  # fmt: skip
    (run / "metrics.jsonl").write_text(lines + json.dumps(last) + "\n")
    text = written([run], tmp_path)
    parts = Parts(text)
    tags = {tag for tag, _ in parts.found}
    assert not tags & {"img", "b", "link", "iframe", "object", "a"}
    assert sum(tag == "script" for tag, _ in parts.found) == 2  # ours and the data
    for tag, attrs in parts.found:
        assert not {"src", "style", "onerror"} & set(attrs), tag
    policy = next(a["content"] for _, a in parts.found
                  if a.get("http-equiv") == "Content-Security-Policy")  # fmt: skip
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "http" not in policy


def browse(text: str, folder: Path, *more: str) -> tuple[str, str]:
    """The page after its script has run, and what the browser's console said."""
    assert CHROMIUM is not None
    path = folder / "page.html"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000", *more,
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


@needs_chromium
@pytest.mark.slow
def test_the_console_would_say_what_the_policy_forbids(tmp_path: Path) -> None:
    text = page(read_all([train_run(tmp_path / "t")]), Detail())
    foreign = text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>')
    assert "Content Security Policy" in browse(foreign, tmp_path)[1]


@needs_chromium
def test_a_browser_runs_the_page_without_a_word_and_the_slider_moves(tmp_path: Path) -> None:
    folder = search_run(tmp_path / "a", epochs=5)
    run = read_run(folder)
    text = page([run, *read_all([study_folder(tmp_path / "s")])], Detail())
    first = re.sub(r'(type="range"[^>]*) value="4"', r'\1 value="1"', text)
    dom, console = browse(first, tmp_path)
    assert console == "" and "epoch 2 of 5" in dom
    assert '<button type="button" class="theme" aria-label="Show the' in dom  # shown by the script
    frame = run.frames[1]
    assert f"<code>{frame.cell}</code>" in dom
    share = frame.tables["recurrent"][0][2]
    assert f"s0 &gt; s1, relu: {share:.3f}" in dom
    ops = [node[0].op for node in frame.genotype.recurrent.nodes]  # type: ignore[union-attr]
    # The script's drawings are as large as the page's first one: nothing jumps.
    size = r'<svg[^>]* width="(\d+[\d.]*)" height="(\d+[\d.]*)"'
    sizes = [re.search(size, t[t.index('class="frames"') :]) for t in (text, dom)]
    assert sizes[0] and sizes[1] and sizes[0].groups() == sizes[1].groups()
    moving = dom[dom.index('class="frames"') : dom.index("Shares of the operations")]
    drawn = re.findall(r'stroke="var\(--op-([a-z]+)\)" stroke-width="2"', moving)
    assert sorted(drawn) == sorted(ops)


@needs_chromium
@pytest.mark.slow
def test_a_narrow_screen_does_not_scroll_sideways(tmp_path: Path) -> None:
    """At 360 pixels, in a frame of the page: a headless window has 500 at least."""
    text = page(read_all([search_run(tmp_path / "a"), study_folder(tmp_path / "s")]), Detail())
    probe = "document.title=[innerWidth,document.documentElement.scrollWidth].join()"
    # For the probe alone the policy goes; the page's own script and styles stay as they are.
    inner = re.sub(r"<meta http-equiv[^>]*>", "", text)
    inner = inner.replace("</body>", f"<script>{probe};parent.postMessage(document.title,'*')"
                          "</script></body>")  # fmt: skip
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    outer = (
        "<!doctype html><p>waiting</p><script>onmessage=e=>{document.querySelector('p')"
        ".textContent='widths '+e.data}</script>"
        f'<iframe width="360" height="800" src="{(tmp_path / "inner.html").as_uri()}"></iframe>'
    )
    dom, _ = browse(outer, tmp_path)
    found = re.search(r"widths (\d+),(\d+)", dom)
    assert found, dom[:300]
    assert int(found[1]) <= 360 and int(found[2]) <= int(found[1])


# The command


def test_the_command_writes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = search_run(tmp_path / "found")
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    out = tmp_path / "some.html"
    done = CliRunner().invoke(main, ["report", str(run), "--out", str(out), "--open"])
    assert done.exit_code == 0, done.output
    assert out.read_text().startswith("<!doctype html>") and opened == [out.as_uri()]
    again = CliRunner().invoke(main, ["report", str(tmp_path / "nothing")])
    assert again.exit_code == 2 and "there is no folder" in again.output
    assert isinstance(read_all([run])[0], RunData)

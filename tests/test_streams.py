"""Streams and windows against naive indexing: every target once, and lengths by their formula."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnnnas.data.text_streams import Streams, WindowConfig, window_lengths
from rnnnas.errors import DataError, UsageError

CPU = torch.device("cpu")


def streams(tokens: Any, count: int) -> Streams:
    return Streams(np.asarray(tokens), count, CPU)


@given(st.integers(2, 60), st.integers(1, 7), st.integers(0, 6), st.data())
def test_a_window_equals_naive_indexing(length: int, count: int, over: int, data: Any) -> None:
    over = min(over, count - 1)  # tokens that do not fill a row
    tokens = list(range(1000, 1000 + length * count + over))
    text = streams(tokens, count)
    assert text.length == length and text.streams == count
    start = data.draw(st.integers(0, length - 2))
    steps = data.draw(st.integers(1, length - 1 - start))
    inputs, targets = text.window(start, steps)
    assert inputs.shape == targets.shape == (steps, count)
    assert inputs.dtype == targets.dtype == torch.int64
    for b in range(count):
        for t in range(steps):
            assert int(inputs[t, b]) == tokens[b * length + start + t]
            assert int(targets[t, b]) == tokens[b * length + start + t + 1]


@given(st.integers(2, 80), st.integers(1, 5), st.integers(1, 100))
def test_windows_cover_every_target_once(length: int, count: int, steps: int) -> None:
    text = streams(range(length * count), count)
    seen: list[int] = []
    for start, width in text.windows(steps):
        assert 1 <= width <= steps
        seen += text.window(start, width).targets.flatten().tolist()
    firsts = {b * length for b in range(count)}
    assert sorted(seen) == [i for i in range(length * count) if i not in firsts]


@given(
    st.integers(2, 400), st.integers(1, 3), st.integers(2, 40), st.floats(0, 8), st.floats(0, 1),
    st.integers(0, 99),
)  # fmt: skip
def test_lengths_cover_every_target_once(
    length: int, count: int, bptt: int, jitter: float, halved: float, seed: int
) -> None:
    config = WindowConfig(bptt=bptt, jitter=jitter, halved=halved)
    text = streams(range(length * count), count)
    lengths = window_lengths(config, length, random.Random(seed))
    seen: list[int] = []
    start = 0
    for steps in lengths:
        assert steps >= 1
        seen += text.window(start, steps).targets.flatten().tolist()
        start += steps
    firsts = {b * length for b in range(count)}
    assert sorted(seen) == [i for i in range(length * count) if i not in firsts]


def test_a_memory_map_of_uint16_is_viewed_and_read_unsigned(tmp_path: Path) -> None:
    values = np.arange(65536 - 40, 65536, dtype="<u2")
    path = tmp_path / "tokens.bin"
    path.write_bytes(values.tobytes())
    mapped = np.memmap(path, dtype="<u2", mode="r")
    text = streams(mapped, 4)
    assert np.shares_memory(text._rows, mapped)
    batch = text.window(0, 9)
    assert batch.inputs[:, 0].tolist() == list(range(65496, 65505))
    assert batch.targets[:, 3].tolist() == list(range(65527, 65536))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_a_window_is_a_copy(dtype: Any, count: int) -> None:
    """Of a read-only array too: a tensor that looks into it could be written through."""
    tokens = np.arange(30, dtype=dtype)
    tokens.flags.writeable = False
    batch = streams(tokens, count).window(0, 4)
    batch.inputs.fill_(-1)
    assert tokens.tolist() == list(range(30))


@pytest.mark.parametrize(("tokens", "count"), [(0, 1), (1, 1), (9, 5), (127, 64)])
def test_too_short_a_text_is_refused(tokens: int, count: int) -> None:
    with pytest.raises(DataError, match=f"{tokens} tokens are too few for {count} streams") as e:
        streams(range(tokens), count)
    assert "windows.streams" in e.value.remedy
    streams(range(2 * count), count)
    with pytest.raises(DataError) as e:
        Streams(np.arange(tokens), count, CPU, "valid_streams")
    assert "--set valid_streams=N" in e.value.remedy


# Lengths


class Scripted(random.Random):
    """A generator that says what it is told, and keeps what it was asked."""

    def __init__(self, shares: list[float], normals: list[float]) -> None:
        super().__init__(0)
        self.shares, self.normals = iter(shares), iter(normals)
        self.asked: list[tuple[float, float]] = []

    def random(self) -> float:
        return next(self.shares)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        self.asked.append((mu, sigma))
        return next(self.normals)


def test_the_formula_of_a_length() -> None:
    """min(max(5, int N(b, 5)), 55), with b = 35, or 17.5 where the draw lies below .05."""
    draws = Scripted(
        [0.5, 0.05, 0.049, 0.9, 0.0, 0.9, 0.9], [36.99, 4.99, 17.2, 55.0, 80.0, -3.0, 5.01]
    )
    lengths = window_lengths(WindowConfig(jitter=5.0, limit=7), 10_000, draws)
    assert lengths == [36, 5, 17, 55, 55, 5, 5]
    assert draws.asked == [(35.0, 5.0), (35.0, 5.0), (17.5, 5.0), (35.0, 5.0), (17.5, 5.0),
                           (35.0, 5.0), (35.0, 5.0)]  # fmt: skip


def test_other_limits_follow_the_settings() -> None:
    config = WindowConfig(bptt=10, jitter=2.0, halved=0.3, shortest=3, longer=4, limit=3)
    draws = Scripted([0.29, 0.3, 0.5], [1.0, 30.0, 9.9])
    assert window_lengths(config, 1000, draws) == [3, 14, 9]
    assert draws.asked[0] == (5.0, 2.0) and draws.asked[1] == (10.0, 2.0)


def test_lengths_without_jitter_are_whole_or_half() -> None:
    draws = Scripted([0.5, 0.01, 0.5, 0.5], [])
    assert window_lengths(WindowConfig(), 35 + 17 + 35 + 3 + 1, draws) == [35, 17, 35, 3]


def test_lengths_have_the_shares_they_should() -> None:
    lengths = window_lengths(WindowConfig(), 400_000, random.Random(1))[:-1]
    assert set(lengths) == {35, 17}
    assert abs(lengths.count(17) / len(lengths) - 0.05) < 0.01
    jittered = window_lengths(WindowConfig(jitter=5.0), 400_000, random.Random(1))[:-1]
    # int() takes half a step off the mean of 0.95 * 35 + 0.05 * 17.5.
    assert min(jittered) >= 5 and max(jittered) <= 55
    assert abs(sum(jittered) / len(jittered) - (34.125 - 0.5)) < 0.3


def test_a_limit_ends_the_epoch() -> None:
    lengths = window_lengths(WindowConfig(limit=12, jitter=5.0), 100_000, random.Random(2))
    whole = window_lengths(WindowConfig(jitter=5.0), 100_000, random.Random(2))
    assert lengths == whole[:12] and sum(whole) == 99_999
    assert len(window_lengths(WindowConfig(limit=12, halved=0.0), 71, random.Random(2))) == 2


def test_a_seed_gives_one_epoch() -> None:
    config = WindowConfig(jitter=5.0)
    one, same, other = (window_lengths(config, 5000, random.Random(s)) for s in (1, 1, 2))
    assert one == same and one != other


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"streams": 0}, "windows.streams = 0"),
        ({"bptt": 1}, "windows.bptt = 1"),
        ({"shortest": 0}, "windows.shortest = 0"),
        ({"longer": -1}, "windows.longer = -1"),
        ({"limit": -1}, "windows.limit = -1"),
        ({"jitter": -0.1}, "windows.jitter = -0.1"),
        ({"halved": 1.1}, "windows.halved = 1.1"),
        ({"halved": -0.1}, "windows.halved = -0.1"),
    ],
)
def test_bad_settings_are_refused(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as caught:
        WindowConfig(**bad)
    assert named in caught.value.cause

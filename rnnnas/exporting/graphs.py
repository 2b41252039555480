"""What is exported, as modules: one step of a language model, a chunk of text, an image network.

Legend: T steps, B streams or images, H hidden, V vocabulary, K classes. Every weight that packing
applies to is held packed and widened in the graph, so that a file of it is as small as the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rnnnas.cnn.dense.network import DenseNet
from rnnnas.cnn.model import ConvNet
from rnnnas.exporting.packing import Dtype, packs, to_int8
from rnnnas.lm import lstm_gru
from rnnnas.lm.model import RecurrentLM


def state_names(net: RecurrentLM) -> list[str]:
    """The names of the recurrent states, in the order of the hidden state's tensors.

    One state alone is `state`; else h of each layer, counted from 1, and c beside it in an LSTM.
    """
    each = ["h", "c"][: lstm_gru.STATES[net.cell]] if isinstance(net.cell, str) else ["h"]
    names = [f"{kind}_{k + 1}" for k in range(net.config.layers) for kind in each]
    return ["state"] if len(names) == 1 else names


class _Packed(nn.Module):
    """A network whose weights are stored packed and widened at every call."""

    def __init__(self, net: nn.Module, dtype: Dtype) -> None:
        super().__init__()
        self.plain: list[tuple[str, str]] = []  # (name in the network, name of the buffer here)
        self.scaled: list[tuple[str, str]] = []
        for name, value in net.state_dict().items():
            own, value = name.replace(".", "_"), value.detach().clone()
            if dtype == "int8" and packs(name, value):
                value, scale = to_int8(name, value)
                self.register_buffer(f"{own}_scale", scale)
                self.scaled.append((name, own))
            else:
                half = dtype == "float16" and packs(name, value)
                value = value.half() if half else value
                self.plain.append((name, own))
            self.register_buffer(own, value)
        # Not a submodule: its own weights must not enter the file beside the packed ones.
        self._net = (net,)

    @property
    def net(self) -> nn.Module:
        return self._net[0]

    def widened(self) -> dict[str, Tensor]:
        """The network's weights in float32, by their names in it."""
        out: dict[str, Tensor] = {}
        for name, own in self.plain:
            value = getattr(self, own)
            out[name] = value.float() if value.dtype == torch.float16 else value
        for name, own in self.scaled:
            out[name] = getattr(self, own).float() * getattr(self, f"{own}_scale")
        return out


class _LogProbs(nn.Module):
    """log p of every next word: what the functional calls below run of a network."""

    def __init__(self, net: RecurrentLM) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens (T, B) int64, states (B, H) each → log p (T, B, V) and the states after them."""
        alone = len(states) == 1 and not isinstance(self.net.cell, str)
        scores, after = self.net.logits(tokens, states[0] if alone else states)
        # A mixture of softmaxes gives log p itself: a second normalisation would change nothing.
        mixture = self.net.config.softmaxes > 1
        log_probs = scores if mixture else scores.log_softmax(-1)
        assert after is not None
        return (log_probs, after) if isinstance(after, Tensor) else (log_probs, *after)


class Chunk(_Packed):
    """T steps of a language model at once, unrolled: it scores texts.

    Args:
        net: by its reference path.
    """

    def __init__(self, net: RecurrentLM, dtype: Dtype) -> None:
        super().__init__(net, dtype)
        self._scorer = (_LogProbs(net),)

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens (T, B) int64, states (B, H) each → log_probs (T, B, V), then the next states."""
        weights = {f"net.{name}": value for name, value in self.widened().items()}
        out: tuple[Tensor, ...] = functional_call(self._scorer[0], weights, (tokens, *states))
        return out


class Step(Chunk):
    """One step of a language model: it writes texts."""

    def forward(self, tokens: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """tokens (B,) int64, states (B, H) each → log_probs (B, V), then the next states."""
        log_probs, *after = super().forward(tokens.unsqueeze(0), *states)
        return (log_probs.squeeze(0), *after)


class Scores(nn.Module):
    """An image network's scores of normalised images."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, h, w) float32 → (B, K)."""
        scores: Tensor = self.net.logits(images)
        return scores


class Classifier(_Packed):
    """An image network from pixels to probabilities, normalisation included.

    Args:
        net: by its reference path.
        mean, std: of the corpus, a value a channel, of pixels scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: ConvNet | DenseNet, dtype: Dtype, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__(net, dtype)
        self._scorer = (Scores(net),)
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images (B, 3, h, w) uint8 → probabilities (B, K)."""
        weights = {f"net.{name}": value for name, value in self.widened().items()}
        inputs = (images.float() - self.mean) / self.std
        scores: Tensor = functional_call(self._scorer[0], weights, (inputs,))
        return scores.softmax(-1)

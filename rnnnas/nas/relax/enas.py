"""ENAS: an LSTM emits a cell, gene by gene (Pham et al. 2018, section 2.1 and appendix).

Legend: H hidden size of the controller, O operations, I inputs of a cell, n predecessors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rnnnas.errors import UsageError
from rnnnas.nas.relax.base import Alphas, Spaces
from rnnnas.nas.relax.policy import Draw, Pick, Policy, Tally, one_hot
from rnnnas.nas.space import CellSpace

_RANGE = 0.1  # the controller's weights start in U(-0.1, 0.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enas(Policy):
    """The controller: its weights are the alphas.

    For every gene it chooses a predecessor, by attention over the states that are there, then an
    operation; each choice is the LSTM's next input, a state being known by the LSTM's own output
    when it was made. Cells follow one another in one sequence, and a node that keeps two edges
    takes two steps, never the same state twice; it needs the same operations in every cell. Scores
    s pass `tanh` · tanh(s / temperature).

    entropy: weight of the policy's entropy; -; 0 or more; 1e-5, which keeps draws varied
    hidden: H, units of the controller; units; 1 or more; 64 as in ENAS
    tanh: largest score of a choice; nats; above 0; 2.25 as in ENAS
    temperature: of scores; -; above 0; 5 as in ENAS
    distance: whether (i - j)² / 6 is subtracted from the score of state j for node i; not unless
        asked for, as in the paper
    """

    entropy: float = 1e-5
    hidden: int = 64
    tanh: float = 2.25
    temperature: float = 5.0
    distance: bool = False

    def __post_init__(self) -> None:
        # `super()` without arguments fails in a dataclass with slots.
        Policy.__post_init__(self)
        if self.hidden < 1 or not self.tanh > 0 or not self.temperature > 0:
            raise UsageError(
                f"relax.hidden = {self.hidden}, relax.tanh = {self.tanh} and "
                f"relax.temperature = {self.temperature} must be positive"
            )

    def init(self, spaces: Spaces, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = self.hidden
        ops = {space.ops for space in spaces.values()}
        if len(ops) != 1:
            raise UsageError(f"enas needs cells of the same operations, not {sorted(ops)}")
        (names,) = ops
        inputs = max(space.inputs for space in spaces.values())
        shapes = {
            "start": (hidden,),  # the first input
            "states": (inputs, hidden),  # what a cell's inputs are known by
            "operations": (len(names), hidden),  # embeddings
            "lstm": (2 * hidden, 4 * hidden),
            "keys": (hidden, hidden),
            "query": (hidden, hidden),
            "attention": (hidden,),
            "decode": (hidden, len(names)),
        }
        alphas = {}
        for name, shape in shapes.items():
            fresh = torch.empty(shape, device=generator.device)
            alphas[name] = fresh.uniform_(-_RANGE, _RANGE, generator=generator).requires_grad_()
        return alphas

    def roll(self, alphas: Alphas, spaces: Spaces, pick: Pick) -> Draw:
        tally = Tally(alphas["start"], pick)
        state = _start(alphas)
        mixtures = {}
        for name, space in spaces.items():
            known = list(alphas["states"][: space.inputs])  # of every state of the cell, (H,)
            paths: list[tuple[int, int]] = []
            for node in range(space.nodes):
                used: list[int] = []
                for _ in range(space.kept(node)):
                    state = _advance(alphas, *state)
                    sources = _sources(space, node, used)
                    source = sources[
                        tally.choose(self._source_logits(alphas, state[1], known, sources))
                    ]
                    state = _advance(alphas, known[source], *state[1:])
                    row = space.rows(node)[source]
                    choices = space.choices(row)
                    op = choices[tally.choose(self._squash(state[1] @ alphas["decode"])[choices])]
                    state = (alphas["operations"][op], *state[1:])
                    used.append(source)
                    paths.append((row, op))
                known.append(state[1])
            mixtures[name] = one_hot(space, paths, alphas["start"].detach())
        return Draw(mixtures, tally.log_probability, tally.entropy)

    def scores(self, alphas: Alphas, spaces: Spaces) -> dict[str, Tensor]:
        """The controller's probabilities along its greedy path. (E, O).

        At each gene the path takes the likeliest (predecessor, operation) pair given the genes
        before; the pairs' probabilities are the node's scores, their mean where it has two genes.
        """
        state = _start(alphas)
        scores = {}
        for name, space in spaces.items():
            known = list(alphas["states"][: space.inputs])
            table = alphas["start"].new_zeros(len(space.edges), len(space.ops))
            for node in range(space.nodes):
                used: list[int] = []
                for _ in range(space.kept(node)):
                    state = _advance(alphas, *state)
                    sources = _sources(space, node, used)
                    logits = self._source_logits(alphas, state[1], known, sources)
                    best, chosen = -1.0, (0, 0, state)
                    for share, source in zip(logits.softmax(-1), sources, strict=True):
                        branch = _advance(alphas, known[source], *state[1:])
                        row = space.rows(node)[source]
                        choices = space.choices(row)
                        decoded = self._squash(branch[1] @ alphas["decode"])[choices]
                        joint = share * decoded.softmax(-1)
                        table[row, choices] = table[row, choices] + joint / space.kept(node)
                        top = int(joint.argmax())
                        value = float(joint[top].detach())
                        if value > best:
                            best, chosen = value, (source, choices[top], branch)
                    source, op, state = chosen
                    state = (alphas["operations"][op], *state[1:])
                    used.append(source)
                known.append(state[1])
            scores[name] = table
        return scores

    def _squash(self, scores: Tensor) -> Tensor:
        return self.tanh * torch.tanh(scores / self.temperature)

    def _source_logits(
        self, alphas: Alphas, h: Tensor, known: Sequence[Tensor], sources: Sequence[int]
    ) -> Tensor:
        """The score of each state of `sources` as the next predecessor. (n,)."""
        keys = torch.stack([known[source] for source in sources]) @ alphas["keys"]  # (n, H)
        logits = self._squash(torch.tanh(keys + h @ alphas["query"]) @ alphas["attention"])
        if self.distance:
            away = [(len(known) - source) ** 2 / 6 for source in sources]
            logits = logits - logits.new_tensor(away)
        return logits


_State = tuple[Tensor, Tensor, Tensor]  # the LSTM's next input, its output and its memory; (H,)


def _start(alphas: Alphas) -> _State:
    zeros = torch.zeros_like(alphas["start"])
    return alphas["start"], zeros, zeros


def _advance(alphas: Alphas, x: Tensor, h: Tensor, c: Tensor) -> _State:
    """One step of the LSTM, without biases."""
    i, f, o, g = (torch.cat([x, h]) @ alphas["lstm"]).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return x, torch.sigmoid(o) * torch.tanh(c), c


def _sources(space: CellSpace, node: int, used: Sequence[int]) -> list[int]:
    """The states that node `node` may take next."""
    rows = space.rows(node)
    return [j for j, row in enumerate(rows) if j not in used and space.choices(row)]

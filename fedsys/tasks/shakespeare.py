"""The next character of Shakespeare; every speaking role is a natural client.

The federated text task of McMahan et al. 2017 (section 3) and LEAF (Caldas et al. 2018): a role's
speeches, in order, are cut into sequences; the last of each role are for testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedsys.errors import ConfigError, DataError
from fedsys.preprocessing import Preprocessing
from fedsys.tasks.attention import causal_attention
from fedsys.tasks.base import DataSource, Examples, FederatedData, seeded
from fedsys.tasks.files import read_table
from fedsys.tasks.options import Options
from fedsys.tasks.recurrence import gru, lstm

__all__ = ["CharacterModel", "Shakespeare", "Transformer", "encode"]

FILE = "shakespeare.parquet"
HOW = (
    "it is a parquet file with the text columns client_id (the speaking role) and text (one "
    "speech per row), e.g. tinyshakespeare split at each speaker's name"
)
PADDING = -100
# Printable ASCII and the line break; 0 stands for everything else. Fixed, not taken from data: a
# vocabulary made from clients' text would reveal something about it.
SYMBOLS = "\n" + "".join(chr(code) for code in range(32, 127))
VOCABULARY = len(SYMBOLS) + 1


def encode(text: str) -> NDArray[np.uint8]:
    """(len,) ``uint8`` symbol numbers.

    >>> encode("a\\n\\u00e9").tolist()
    [67, 1, 0]
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    table = np.zeros(128, dtype=np.uint8)
    table[[ord(symbol) for symbol in SYMBOLS]] = np.arange(1, VOCABULARY, dtype=np.uint8)
    found: NDArray[np.uint8] = np.where(codes < 128, table[np.minimum(codes, 127)], 0).astype(
        np.uint8
    )
    return found


class CharacterModel(nn.Module):
    """Embedding, recurrent layers, linear read-out: (B, T) symbols to (B, VOCABULARY, T).

    Gates are in torch's order, (r, z, n) for a GRU and (i, f, g, o) for an LSTM.
    """

    def __init__(self, cell: str, embedding: int, hidden: int, layers: int) -> None:
        super().__init__()
        self._cell = cell
        gates = 3 if cell == "gru" else 4
        self.embedding = nn.Embedding(VOCABULARY, embedding)
        self.inputs = nn.ModuleList(
            nn.Linear(embedding if layer == 0 else hidden, gates * hidden)
            for layer in range(layers)
        )
        self.recurrent = nn.ModuleList(nn.Linear(hidden, gates * hidden) for _ in range(layers))
        self.readout = nn.Linear(hidden, VOCABULARY)
        for map_ in (*self.inputs, *self.recurrent):
            for parameter in map_.parameters():
                nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, symbols: Tensor) -> Tensor:
        """(B, T) to (B, VOCABULARY, T)."""
        sequence = self.embedding(symbols.T.long())  # time first: a step's slice lies together
        layer = gru if self._cell == "gru" else lstm
        for inputs, recurrent in zip(self.inputs, self.recurrent, strict=True):
            sequence = layer(sequence, *inputs.parameters(), *recurrent.parameters())
        outputs: Tensor = self.readout(sequence)
        return outputs.permute(1, 2, 0)


class Block(nn.Module):
    """Causal self-attention and a perceptron of four times the width, each behind a norm and added
    to its input, as in GPT-2 (Radford et al. 2019)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.before_attention, self.before_perceptron = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.inputs, self.outputs = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.wider, self.narrower = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, H) to (B, T, H)."""
        batch, length, hidden = x.shape
        taken = self.inputs(self.before_attention(x))
        split = taken.reshape(batch, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
        seen = causal_attention(*split.unbind(0)).transpose(1, 2).reshape(batch, length, hidden)
        x = x + self.outputs(seen)
        wide = functional.gelu(self.wider(self.before_perceptron(x)), approximate="tanh")
        added: Tensor = x + self.narrower(wide)
        return added


class Transformer(nn.Module):
    """Embeddings of symbols and positions, blocks, linear read-out: (B, T) symbols to
    (B, VOCABULARY, T)."""

    def __init__(self, hidden: int, layers: int, heads: int, sequence: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, hidden)
        self.positions = nn.Parameter(0.02 * torch.randn(sequence, hidden))
        self.blocks = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden)
        self.readout = nn.Linear(hidden, VOCABULARY)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, symbols: Tensor) -> Tensor:
        """(B, T) to (B, VOCABULARY, T)."""
        x = self.embedding(symbols.long()) + self.positions[: symbols.shape[1]]
        for block in self.blocks:
            x = block(x)
        outputs: Tensor = self.readout(self.norm(x))
        return outputs.transpose(-1, -2)


class Shakespeare:
    """Options: ``cell`` (gru | lstm | transformer), ``hidden``, ``layers``, ``sequence``,
    ``test_fraction``; of a recurrent cell ``embedding``, of a transformer ``heads``."""

    name = "shakespeare"
    preprocessing: Preprocessing = "client-local"

    def __init__(self, options: Mapping[str, Any]) -> None:
        known = ("cell", "hidden", "layers", "embedding", "heads", "sequence", "test_fraction")
        given = Options(self.name, options, known)
        self._cell = given.choice("cell", "gru", ("gru", "lstm", "transformer"))
        self._hidden = given.count("hidden", 256, high=8192)
        self._layers = given.count("layers", 2, high=16)
        self._embedding = given.count("embedding", 32, high=4096)
        self._heads = given.count("heads", 4, high=64)
        if self._cell == "transformer" and self._hidden % self._heads:
            raise ConfigError(
                f"task.options.heads = {self._heads}: must divide task.options.hidden = "
                f"{self._hidden}"
            )
        self._sequence = given.count("sequence", 80, low=2, high=10_000)
        self._test_fraction = given.fraction("test_fraction", 0.1)

    def init_model(self, seed: int) -> nn.Module:
        """A `CharacterModel` or a `Transformer`."""
        with seeded(seed):
            if self._cell == "transformer":
                return Transformer(self._hidden, self._layers, self._heads, self._sequence)
            return CharacterModel(self._cell, self._embedding, self._hidden, self._layers)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,) mean cross-entropy in nats over a sequence's real characters."""
        each = functional.cross_entropy(outputs, targets, reduction="none", ignore_index=PADDING)
        return each.sum(-1) / (targets != PADDING).sum(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """``accuracy``: (B,) the fraction of a sequence's characters that were predicted."""
        right = (outputs.argmax(-2) == targets).sum(-1)
        return {"accuracy": right / (targets != PADDING).sum(-1)}

    def clients(self, source: DataSource) -> FederatedData:
        """x (M, T) bytes; y (M, T) ``int64``, the next characters, `PADDING` past the end."""
        path = source.find(FILE, HOW)
        table = read_table(path, ("client_id", "text"))
        speeches: dict[str, list[str]] = {}
        roles, texts = table.column("client_id").to_pylist(), table.column("text").to_pylist()
        for row, (role, text) in enumerate(zip(roles, texts, strict=True)):
            if not isinstance(role, str) or not isinstance(text, str):
                raise DataError(f"{path}: row {row}: client_id and text must both be text")
            speeches.setdefault(role, []).append(text)
        train: list[NDArray[np.uint8]] = []
        test: list[NDArray[np.uint8]] = []
        natural: list[int] = []
        names: list[str] = []
        for role in sorted(speeches):
            pieces = self._cut(encode("\n".join(speeches[role])))
            if not pieces:
                continue
            # A role with a single sequence trains; it has nothing left to test on.
            held_out = min(int(np.ceil(len(pieces) * self._test_fraction)), len(pieces) - 1)
            train.extend(pieces[: len(pieces) - held_out])
            test.extend(pieces[len(pieces) - held_out :])
            natural.extend([len(names)] * (len(pieces) - held_out))
            names.append(role)
        return FederatedData(
            train=self._examples(train),
            test=self._examples(test),
            natural=torch.tensor(natural, dtype=torch.int64),
            client_names=tuple(names),
        )

    def _cut(self, symbols: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """Pieces of sequence + 1 characters, each starting with the last character of the one
        before; a remainder of at least two characters is kept."""
        starts = range(0, max(len(symbols) - 1, 0), self._sequence)
        return [symbols[start : start + self._sequence + 1] for start in starts]

    def _examples(self, pieces: list[NDArray[np.uint8]]) -> Examples:
        x = np.zeros((len(pieces), self._sequence), dtype=np.uint8)
        y = np.full((len(pieces), self._sequence), PADDING, dtype=np.int64)
        for row, piece in enumerate(pieces):
            x[row, : len(piece) - 1] = piece[:-1]
            y[row, : len(piece) - 1] = piece[1:]
        return Examples(x=torch.from_numpy(x), y=torch.from_numpy(y))

"""Networks on vectors and on sequences of tokens, with their batches: (model, inputs, targets)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.models.problem import CLASSES

Case = tuple[nn.Module, Tensor, Tensor]


def mlp() -> Case:
    """Three dense layers."""
    layers = [nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, CLASSES)]
    return nn.Sequential(*layers), torch.randn(256, 100), torch.randint(0, CLASSES, (256,))


class Mean(nn.Module):
    """The mean over positions: [N, T, width] -> [N, width]."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, width]."""
        return x.mean(1)


def token_mlp() -> Case:
    """A large embedding, one dense layer a token, the mean over positions, two dense layers."""
    embedding = [nn.Embedding(2000, 64), nn.Linear(64, 64), nn.ReLU(), Mean()]
    head = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES)]
    return nn.Sequential(*embedding, *head), torch.randint(0, 2000, (64, 32)), torch.randint(0, CLASSES, (64,))


class CharacterModel(nn.Module):
    """Embedding, LSTM, and a prediction of the next character at every position."""

    def __init__(self, characters: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, text: Tensor) -> Tensor:
        """[N, T] of character numbers -> [N, characters, T], as cross entropy takes them."""
        return self.head(self.lstm(self.embedding(text))[0]).transpose(1, 2)


def lstm() -> Case:
    """A character model; the loss of a sample is that of all its positions."""
    text = torch.randint(0, 64, (32, 33))
    return CharacterModel(characters=64, width=32, hidden=128), text[:, :-1].contiguous(), text[:, 1:].contiguous()


class SelfAttention(nn.Module):
    """Softmax attention written out, since fused kernels have neither forward mode nor a double backward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width] -> [N, T, width]."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Token and position embeddings, one pre-norm block, a classifier on the mean over positions."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm1, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm3, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] of token numbers -> [N, CLASSES]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1)
        x = self.token(tokens) + self.position(positions)
        x = x + self.attention(self.norm1(x))
        x = x + self.feed_forward(self.norm2(x))
        return self.head(self.norm3(x).mean(1))


def transformer() -> Case:
    """One pre-norm block of width 64 on 32 tokens."""
    model = TransformerBlock(vocabulary=256, length=32, width=64, heads=4)
    return model, torch.randint(0, 256, (64, 32)), torch.randint(0, CLASSES, (64,))

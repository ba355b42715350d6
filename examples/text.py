"""The text that the character models read: the first volume of *Pride and Prejudice* (data/README.md says whence)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

TEXT = Path(__file__).parent / "data" / "pride_and_prejudice_volume_1.txt"


@cache
def text() -> str:
    """The whole text."""
    return TEXT.read_text(encoding="ascii")


@cache
def characters() -> str:
    """The characters that occur, in the order of their codes."""
    return "".join(sorted(set(text())))


def encode(written: str) -> Tensor:
    """Places of these characters among `characters`: int64 ``[len(written)]``."""
    place = {character: index for index, character in enumerate(characters())}
    return torch.tensor([place[character] for character in written])


def encoded_text() -> Tensor:
    """The whole text, encoded."""
    return encode(text())


def decode(codes: Tensor) -> str:
    """The characters at these places."""
    return "".join(characters()[code] for code in codes.tolist())


def split(parts: tuple[float, ...] = (0.8, 0.1, 0.1)) -> list[Tensor]:
    """Training, validation and test text: consecutive, these fractions of the whole."""
    codes = encoded_text()
    ends = [round(sum(parts[: index + 1]) * len(codes)) for index in range(len(parts))]
    return [codes[start:end] for start, end in zip([0, *ends], ends, strict=False)]

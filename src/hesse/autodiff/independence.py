"""Which sample an element depends on: proof that a function treats the rows of a batch independently.

A cotangent that is random on some rows and zero on the others can reach only the rows that those depend on. With masks
that separate every ordered pair of rows (`separating_masks`, about log2(n) of them) a gradient that is exactly zero outside
its mask shows that no row of the value depends on another row of x, at this point.
"""

from __future__ import annotations

import torch

from hesse.autodiff.blocks import pull_block
from hesse.autodiff.recording import Recording, inside_vmap, nodes
from hesse.core import random
from hesse.core.batching import separating_masks, slices
from hesse.core.errors import MixedSamplesError, NonFiniteError, StructureError, UnsupportedError

_MIXING = {"BatchNorm": "batch normalization in train mode", "CudnnBatchNorm": "batch normalization in train mode"}


def batch_size(recording: Recording, asked: str) -> int:
    """The length of the leading axis that all leaves of input and value share.

    Raises:
        StructureError: a leaf without it, or of another length, by name.
    """
    size: int | None = None
    for side, space in (("x", recording.in_space), ("the value", recording.out_space)):
        for name, shape in zip(space.names, space.shapes, strict=True):
            if not shape or (size is not None and shape[0] != size):
                expected = "at least one axis" if size is None else f"{size} rows"
                raise StructureError(
                    asked,
                    f"shape {tuple(shape)} at '{name or side}' of {side}, where {expected} belongs",
                    "give every leaf of x and of the value the batch as its first axis",
                )
            size = shape[0]
    if not size:
        raise StructureError(asked, "a batch of size 0", "pass at least one row")
    return size


def require_independent_rows(recording: Recording, asked: str, chunk: int) -> int:
    """Prove that row i of the value depends on row i of x alone; returns the number of rows.

    Raises:
        MixedSamplesError: a row depends on another row, with the pair and, where it is known, the op.
        UnsupportedError: inside `torch.func.vmap`, where no value can be looked at.

    Cost: about log2(n) backward passes for n rows.
    """
    size = batch_size(recording, asked)
    if inside_vmap():
        raise UnsupportedError(
            asked,
            "structure='batched' inside torch.func.vmap, where the independence of rows cannot be proved",
            "let vmap run over the rows as well, or call hesse outside of it",
        )
    masks = separating_masks(size).to(recording.in_space.device)
    generator = random.make_generator()
    noise = [random.normal(y.shape, y.dtype, y.device, generator) for y in recording.outputs]
    for part in slices(len(masks), chunk):
        mask = masks[part]
        cotangents = [u * mask.reshape(*mask.shape, *[1] * (u.ndim - 1)) for u in noise]
        for name, grad in zip(recording.in_space.names, pull_block(recording, cotangents), strict=True):
            reached = (grad.detach() != 0).unsqueeze(-1).flatten(2).any(2)
            if bool((reached & ~mask).any()):
                if bool(torch.isnan(grad).any()):
                    raise NonFiniteError(
                        asked, f"NaN in the derivative with respect to '{name or 'x'}'", "look for the op that makes it"
                    )
                _refuse(recording, asked, reached & ~mask, mask)
    return size


def _refuse(recording: Recording, asked: str, leaked: torch.Tensor, mask: torch.Tensor) -> None:
    which, row = (int(i) for i in leaked.nonzero()[0])
    sources = [int(i) for i in mask[which].nonzero()[:4, 0]]
    roots = [y.grad_fn for y in recording.outputs if y.grad_fn is not None]
    op = next((text for node in nodes(roots) for key, text in _MIXING.items() if key in node.name()), None)
    raise MixedSamplesError(
        asked,
        f"row {row} of x influences other rows of the value (one of {sources})" + (f": {op}" if op else ""),
        "switch normalization to eval mode, or use structure='dense'",
    )

"""Which sample an element depends on: proof that a function treats the rows of a batch independently.

Where the graph is large, the number of the sample is followed through a second run of the function (`sample_dependence`), which
is a proof for any point. Where it is small, or that run could not tell, the derivative is probed: a cotangent that is random on
some rows and zero on the others can reach only the rows that those depend on. With masks that separate every ordered pair of
rows (`separating_masks`, about log2(n) of them) a gradient that is exactly zero outside its mask shows that no row of the value
depends on another row of x, at this point.
"""

from __future__ import annotations

import torch
from torch._C import _len_torch_dispatch_stack

from hesse.autodiff.blocks import pull_block
from hesse.autodiff.recording import Recording, inside_vmap, nodes
from hesse.autodiff.second_order import with_directional_derivative
from hesse.autodiff.second_run import without_trace
from hesse.core import random
from hesse.core.batching import separating_masks, slices
from hesse.core.errors import MixedSamplesError, NonFiniteError, StructureError, UnsupportedError

_PROBED_BYTES = 2**24  # what the passes of the probe hold, below which it takes less time than a run that is followed
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


def require_independent_rows(recording: Recording, asked: str, chunk: int, *, twice: bool = False) -> int:
    """Prove that row i of the value depends on row i of x alone; returns the number of rows.

    Args:
        recording: of the function.
        asked: what is asked of hesse, for error messages.
        chunk: passes of the probe that are taken at once.
        twice: prove it of second derivatives as well.

    Raises:
        MixedSamplesError: a row depends on another row, with the pair and, where it is known, the op.
        UnsupportedError: inside `torch.func.vmap`, where no value can be looked at.

    Cost: about log2(n) backward passes for n rows; where these hold much, one run of the function instead, or besides.
    """
    size = batch_size(recording, asked)
    if inside_vmap():
        raise UnsupportedError(
            asked,
            "structure='batched' inside torch.func.vmap, where the independence of rows cannot be proved",
            "let vmap run over the rows as well, or call hesse outside of it",
        )
    reason = what_mixes_rows(recording, asked, twice=twice)
    if reason is not None:
        _probe(with_directional_derivative(recording) if twice else recording, asked, chunk, reason)
    return size


def what_mixes_rows(recording: Recording, asked: str, *, twice: bool = False) -> str | None:
    """What makes a row of the value depend on another row of x, at whatever point, from a second run of the function.

    Args:
        recording: of the function, whose leaves share their first axis.
        asked: what is asked of hesse, for error messages.
        twice: ask it of second derivatives as well.

    Returns:
        None where rows are independent for certain; the op with its line, or "" where it is not known: where Python branches on
        values, the function would leave a trace of its second run, or the graph is so small that a probe takes less time.

    Cost: one run of the function, and about 50 microseconds an op; nothing where the graph is small.
    """
    if recording.functorch or _len_torch_dispatch_stack() or recording.in_space.device.type == "meta":
        return ""
    size = batch_size(recording, asked)
    if recording.graph_bytes() * max(size - 1, 0).bit_length() < _PROBED_BYTES:
        return ""
    roots = [y.grad_fn for y in recording.outputs if y.grad_fn is not None]
    if twice and any(hasattr(node, "_forward_cls") for node in nodes(roots)):  # their backward was followed, not its derivative
        return ""
    from hesse.autodiff.dependence.samples import sample_dependence

    try:
        with torch.enable_grad():
            found = sample_dependence(without_trace(recording.f), recording.x, asked)
    except Exception:  # of whatever kind: the function itself may refuse to run again
        return ""
    return None if found.independent else found.reason


def _probe(recording: Recording, asked: str, chunk: int, reason: str) -> None:
    """Look at the derivative for cotangents that are zero on some rows."""
    size = recording.outputs[0].shape[0]
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
                _refuse(recording, asked, reached & ~mask, mask, reason)


def _refuse(recording: Recording, asked: str, leaked: torch.Tensor, mask: torch.Tensor, reason: str) -> None:
    which, row = (int(i) for i in leaked.nonzero()[0])
    sources = [int(i) for i in mask[which].nonzero()[:4, 0]]
    roots = [y.grad_fn for y in recording.outputs if y.grad_fn is not None]
    op = next((text for node in nodes(roots) for key, text in _MIXING.items() if key in node.name()), reason)
    raise MixedSamplesError(
        asked,
        f"row {row} of x influences other rows of the value (one of {sources})" + (f": {op}" if op else ""),
        "switch normalization to eval mode, or use structure='dense'",
    )

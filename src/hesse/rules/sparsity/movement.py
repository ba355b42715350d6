"""Ops that move data and change none of it: run on the numbers of the elements, they say themselves what they moved where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Moved, Same, everything, sparsity_rules, whole

_MOVES = (
    "cat", "stack", "flip", "roll", "rot90", "repeat", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "slice_scatter", "select_scatter",
    "diagonal_scatter", "tril", "triu", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "diag_embed",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "block_diag", "select_backward", "slice_backward", "trace_backward", "diagonal_backward",
    "expand_copy", "permute_copy", "select_copy", "slice_copy", "split_copy", "split_with_sizes_copy",
    "squeeze_copy", "t_copy", "transpose_copy", "unbind_copy", "unfold_copy", "unsqueeze_copy", "view_copy", "diagonal_copy",
    "alias_copy", "detach_copy", "narrow_copy", "lift_fresh_copy", "unsafe_split", "unsafe_split_with_sizes", "_reshape_copy",
    "_pad_circular", "_unsafe_view", "masked_select", "_chunk_cat",
)  # fmt: skip
_FILLS = ("value", "fill_value", "padding_value")


@sparsity_rules.register(*_MOVES)
def movement(call: Call) -> list[Link]:
    """Numbers of elements in the place of values; a mask that depends on the input can choose any."""
    if not all(call.is_fixed(t) for t in call.operands if not is_moved(t)):
        return everything(call, moved_operands(call))
    return moved(call, {id(t): None for t in moved_operands(call)})


@sparsity_rules.register("lu_unpack")
def unpacking(call: Call) -> list[Link]:
    """The factors are the triangles of one matrix."""
    x, (_, lower, upper) = call["LU_data"], call.outputs
    number = torch.arange(1, x.numel() + 1).view(x.shape)
    return [(1, x, Moved((number[..., : lower.shape[-1]].tril(-1) - 1).reshape(lower.shape))),
            (2, x, Moved(number[..., : upper.shape[-2], :].triu() - 1))] if call["unpack_data"] else []  # fmt: skip


@sparsity_rules.register("unfold_backward", "col2im")
def added_up(call: Call) -> list[Link]:
    """The gradients, or columns, of all windows that an element is in."""
    y, x = call.outputs[0], call.operands[0]
    number = torch.arange(1, y.numel() + 1).view(y.shape)
    if "step" in call.given:
        found = number.unfold(call["dim"], call["size"], call["step"])
    else:
        options = (call[name] for name in ("kernel_size", "dilation", "padding", "stride"))
        found = torch.ops.aten.im2col.default(number.to(torch.float64), *options).to(torch.int64)
    return [(0, x, Grouped(found - 1, number - 1))]


@sparsity_rules.register("where", "masked_fill", "masked_scatter")
def choice(call: Call) -> list[Link]:
    """A mask that depends on the input may choose either side; the numbers that it scatters go anywhere."""
    mask = call.given["condition" if "condition" in call.given else "mask"]
    if call.is_fixed(mask) and not is_moved(mask):
        return movement(call)
    y, scattered = call.outputs[0], call.given.get("source")
    return [(0, t, whole(t, y) if t is scattered else Same()) for t in call.operands if t is not mask]


@sparsity_rules.register("fill", "index_fill")
def fill(call: Call) -> list[Link]:
    """Some elements on the value, where that is a tensor, and on nothing that was there."""
    value, index = call["value"], call.given.get("index")
    if index is not None:
        return movement(call) if call.is_fixed(index) else [(0, t, Same()) for t in moved_operands(call)]
    return [(0, value, Same())] if isinstance(value, Tensor) else []


def is_moved(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that have derivatives, rather than indices or masks."""
    return tensor.is_floating_point() or tensor.is_complex()


def moved_operands(call: Call) -> list[Tensor]:
    """The operands that hold numbers, each once."""
    return list({id(t): t for t in call.operands if is_moved(t)}.values())


def moved(call: Call, groups: Mapping[int, Tensor | None]) -> list[Link]:
    """What an op moves where, found out by running it on groups in the place of values.

    Args:
        call: the call; its integer and boolean operands are used as they are.
        groups: by `id` of an operand, the groups of its elements, in its shape, counted from 0; None: each its own.

    Returns:
        For each result and operand, the group that each element of the result was taken from.
    """
    operands = {id(t): t for t in call.operands}
    numbers, starts, start = dict[int, Tensor](), dict[int, int](), 1
    for key, group in groups.items():
        numbers[key], starts[key] = _from(start, operands[key], group), start
        start += operands[key].numel() if group is None else int(group.max()) + 1 if group.numel() else 0
    found = _run(call, numbers)
    if len(starts) == 1:
        return [(i, operands[key], _form(y - 1, group)) for i, y in enumerate(found) for key, group in groups.items()]
    ends, links = [*list(starts.values())[1:], start], list[Link]()
    for index, y in enumerate(found):
        for (key, first), end in zip(starts.items(), ends, strict=True):
            own = (y >= first) & (y < end)
            if bool(own.any()):
                links.append((index, operands[key], _form(torch.where(own, y - first, -1), groups[key])))
    return links


def _from(start: int, operand: Tensor, group: Tensor | None) -> Tensor:
    if group is None:
        return torch.arange(start, start + operand.numel()).view(operand.shape)
    return group + start


def _form(numbers: Tensor, group: Tensor | None) -> Moved | Grouped:
    return Moved(numbers) if group is None else Grouped(group, numbers)


def _run(call: Call, numbers: Mapping[int, Tensor]) -> list[Tensor]:
    """The results on numbers: on integers where the op takes them, else on floating-point numbers of 53 bits."""
    try:
        found = _called(call, numbers)
    except RuntimeError:
        found = _called(call, {key: t.to(torch.float64) for key, t in numbers.items()})
    return [y.to(torch.int64) for y in (found if isinstance(found, (list, tuple)) else (found,)) if isinstance(y, Tensor)]


def _called(call: Call, numbers: Mapping[int, Tensor]) -> Any:
    given = {name: 0 if name in _FILLS and not isinstance(value, Tensor) else _replaced(value, numbers)
             for name, value in call.given.items()}  # fmt: skip
    arguments = call.func._schema.arguments
    run = call.func.overloadpacket if any(a.is_out for a in arguments) else call.func
    named = {a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given}
    return run(*(given[a.name] for a in arguments if not a.kwarg_only), **named)


def _replaced(value: Any, numbers: Mapping[int, Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, numbers) for part in value)
    if isinstance(value, Tensor):
        return numbers.get(id(value), value.cpu())
    return value


def grouped_along(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """Groups in which the places along some axes are one."""
    sizes = [1 if axis in dims else n for axis, n in enumerate(tensor.shape)]
    count = torch.Size(sizes).numel()
    return torch.arange(count).view(sizes).expand(tensor.shape)

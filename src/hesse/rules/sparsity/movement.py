"""Ops that move data and change none of it: run on the numbers of the elements, they say themselves what they moved where."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Same, everything, places, sparsity_rules

_MOVES = (
    "cat", "stack", "flip", "roll", "rot90", "repeat", "gather", "index", "_unsafe_index", "index_select", "take", "embedding",
    "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "slice_scatter", "select_scatter", "diagonal_scatter",
    "index_fill", "tril", "triu", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "diag_embed", "block_diag", "repeat_interleave", "select_backward", "slice_backward",
    "as_strided_copy",
    "expand_copy", "permute_copy", "select_copy", "slice_copy", "split_copy", "split_with_sizes_copy", "squeeze_copy", "t_copy",
    "transpose_copy", "unbind_copy", "unfold_copy", "unsqueeze_copy", "view_copy", "diagonal_copy", "alias_copy", "detach_copy",
    "narrow_copy", "lift_fresh_copy", "masked_select", "unsafe_split", "unsafe_split_with_sizes",
    "_reshape_copy", "trace_backward", "diagonal_backward", "_pad_circular",
)  # fmt: skip
_FILLS = ("value", "fill_value", "padding_value")


@sparsity_rules.register("where", "masked_fill")
def choice(call: Call) -> list[Link]:
    """A mask that depends on the input may choose either side."""
    mask = call.given["condition" if "condition" in call.given else "mask"]
    moved = [t for t in call.operands if t is not mask]
    return movement(call) if call.is_fixed(mask) else [(0, t, Same()) for t in moved]


@sparsity_rules.register("fill")
def fill(call: Call) -> list[Link]:
    """Every element on the value, where that is a tensor; on nothing that was there."""
    value = call["value"]
    return [(0, value, Same())] if isinstance(value, Tensor) else []


@sparsity_rules.register(*_MOVES)
def movement(call: Call) -> list[Link]:
    """Numbers of elements in the place of values; an index that depends on the input can point at everything."""
    moved = [t for t in call.operands if t.is_floating_point() or t.is_complex()]
    if not all(call.is_fixed(t) for t in call.operands if not (t.is_floating_point() or t.is_complex())):
        return everything(call, moved)
    numbers: dict[int, Tensor] = {}
    start = 1
    for t in moved:
        numbers[id(t)] = torch.arange(start, start + t.numel(), dtype=torch.float64).view(t.shape)
        start += t.numel()
    given = {name: 0 if name in _FILLS and not isinstance(value, Tensor) else _replaced(value, numbers)
             for name, value in call.given.items()}  # fmt: skip
    found = call.func(**given) if _takes_names(call) else call.func(*given.values())
    results = [y for y in (found if isinstance(found, (list, tuple)) else (found,)) if isinstance(y, Tensor)]
    return [link for index, y in enumerate(results) for link in _links(index, y, moved, numbers)]


def _takes_names(call: Call) -> bool:
    return all(not a.kwarg_only or a.name in call.given for a in call.func._schema.arguments)


def _replaced(value: Any, numbers: dict[int, Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_replaced(part, numbers) for part in value)
    if isinstance(value, Tensor):
        return numbers.get(id(value), value.cpu())
    return value


def _links(index: int, found: Tensor, moved: list[Tensor], numbers: dict[int, Tensor]) -> list[Link]:
    if not found.is_floating_point():
        return []
    places_found, links = found.round().to(torch.int64) - 1, []
    for t in moved:
        start = int(numbers[id(t)].flatten()[0]) - 1 if t.numel() else 0
        own = (places_found >= start) & (places_found < start + t.numel())
        if bool(own.any()):
            links.append((index, t, Grouped(places(t), torch.where(own, places_found - start, -1))))
    return links


_SCATTER = ("scatter", "scatter_add", "scatter_reduce")
_ALONG = ("index_copy", "index_add", "index_reduce")
_PUT = ("index_put", "_index_put_impl", "_unsafe_index_put")


@sparsity_rules.register(*_SCATTER, *_ALONG, *_PUT)
def scattering(call: Call) -> list[Link]:
    """The elements of a source go to places that an index names, and replace or meet what is there. Where two go to one place,
    both belong to it, as they do for autograd."""
    name = call.func.overloadpacket.__name__.rstrip("_")
    into, out = call["self"], call.outputs[0]
    source = next((call.given[key] for key in ("src", "source", "values") if key in call.given), None)
    indices = [t for t in call.operands if t is not into and t is not source]
    if not all(map(call.is_fixed, indices)):
        return everything(call, [t for t in call.operands if t.is_floating_point() or t.is_complex()])
    target = _targets(name, call, places(into))
    replaces = name in ("scatter", "index_copy") or not call.given.get("accumulate", name not in _PUT)
    links: list[Link] = [(0, into, _left(target, into) if replaces else Same())]
    if isinstance(source, Tensor):
        links.append((0, source, _broadcast(source, target, out)))
    return links


def _targets(name: str, call: Call, numbers: Tensor) -> Tensor:
    """Where each element of the source goes; -1 for those that go nowhere."""
    if name in _PUT:
        return numbers[tuple(slice(None) if i is None else i.cpu() for i in call["indices"])]
    index, numbers = call["index"].cpu(), numbers if numbers.ndim else numbers.view(1)
    if name in _ALONG:
        found = numbers.index_select(call["dim"], index.view(-1))
        return found.expand(call["source"].shape) if call["source"].ndim else found.view(())
    found = numbers.gather(call["dim"], index if index.ndim else index.view(1))
    source = call.given.get("src")
    if not isinstance(source, Tensor):
        return found
    target = torch.full(source.shape, -1)
    target[tuple(slice(n) for n in index.shape)] = found if index.ndim else found.view(())
    return target


def _left(target: Tensor, into: Tensor) -> Grouped:
    kept = places(into).flatten()
    kept[target[target >= 0].flatten()] = -1
    return Grouped(places(into), kept.view(into.shape))


def _broadcast(source: Tensor, target: Tensor, out: Tensor) -> Grouped:
    """The values of `index_put` are broadcast to where they go; what goes to several places belongs to all."""
    if source.shape == target.shape:
        return Grouped(target, places(out))
    hit = torch.full((out.numel(),), -1)
    hit[target.flatten()] = 0
    return Grouped(torch.zeros(source.shape, dtype=torch.int64), hit.view(out.shape))

"""Reading and writing at places that an index names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hesse.rules.sparsity.forms import Call, Grouped, Link, Moved, Pairs, Same, places, sparsity_rules, whole
from hesse.rules.sparsity.movement import grouped_along, is_moved, moved, moved_operands

_READS = ("gather", "index", "_unsafe_index", "_unsafe_masked_index", "index_select", "take", "embedding", "repeat_interleave")
_SCATTER = ("scatter", "scatter_add", "scatter_reduce")
_ALONG = ("index_copy", "index_add", "index_reduce")
_PUT = ("index_put", "_index_put_impl", "_unsafe_index_put", "put", "_unsafe_masked_index_put_accumulate")
_SOURCES = ("src", "source", "values")


@sparsity_rules.register(*_READS)
def reading(call: Call) -> list[Link]:
    """The elements that an index names; any along its axes where it depends on the input."""
    axes = {id(t): (t, _axes(call, t)) for t in moved_operands(call)}
    return moved(call, {key: None if dims is None else grouped_along(t, dims) for key, (t, dims) in axes.items()})


def _axes(call: Call, operand: Tensor) -> Sequence[int] | None:
    """The axes along which an index can point elsewhere at another input; None if there is none."""
    if all(call.is_fixed(t) for t in call.operands if not is_moved(t)):
        return None
    name, axes = call.func.overloadpacket.__name__, list(range(operand.ndim))
    if name == "embedding":
        return [0]
    if "indices" in call.given:  # a boolean index stands for as many axes as it has
        found, axis = [], 0
        for index in call["indices"]:
            taken = index.ndim if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) else 1
            found += list(range(axis, axis + taken)) if index is not None else []
            axis += taken
        return found
    dim = call.given.get("dim")
    return axes if dim is None or not operand.ndim else [dim % operand.ndim]


@sparsity_rules.register(*_SCATTER, *_ALONG, *_PUT)
def scattering(call: Call) -> list[Link]:
    """The elements of a source go to places that an index names, and replace or meet what is there. Where two go to one place,
    both belong to it, as they do for autograd."""
    name = call.func.overloadpacket.__name__.rstrip("_")
    into, out = call["self"], call.outputs[0]
    source = next((call.given[key] for key in _SOURCES if key in call.given), None)
    indices = [t for t in call.operands if t is not into and t is not source and not is_moved(t)]
    if isinstance(source, Tensor) and source.numel() == 0:
        return [(0, into, Same())]
    if not all(map(call.is_fixed, indices)):
        return _anywhere(name, call, into, source)
    target = _targets(name, call, places(into))
    if name in _PUT:
        replaces = not call.given.get("accumulate", name == "_unsafe_masked_index_put_accumulate")
    else:
        replaces = name in ("scatter", "index_copy") and call.given.get("reduce") is None
    links: list[Link] = [(0, into, _left(target, into) if replaces else Same())]
    return [*links, (0, source, _arriving(source, target, out))] if isinstance(source, Tensor) else links


def _anywhere(name: str, call: Call, into: Tensor, source: Tensor | None) -> list[Link]:
    """An element stays in its place or is replaced; those of the source go anywhere, along the axis if there is one."""
    out = call.outputs[0]
    links: list[Link] = [(0, into, Same())]
    if not isinstance(source, Tensor):
        return links
    if name in _PUT or source.ndim != out.ndim or not out.ndim:
        return [*links, (0, source, whole(source, out))]
    axis = call["dim"] % out.ndim
    sizes = [1 if a == axis else max(n, m) for a, (n, m) in enumerate(zip(out.shape, source.shape, strict=True))]
    lines = torch.arange(torch.Size(sizes).numel()).view(sizes)

    def own(t: Tensor) -> Tensor:
        return lines[tuple(slice(1 if a == axis else n) for a, n in enumerate(t.shape))].expand(t.shape)

    return [*links, (0, source, Grouped(own(source), own(out)))]


def _targets(name: str, call: Call, numbers: Tensor) -> Tensor:
    """Where each element of the source goes; -1 for those that go nowhere."""
    if name == "put":
        return numbers.take(call["index"].cpu())
    if name in _PUT:
        mask = call["mask"].cpu() if "mask" in call.given else None
        indices = [None if i is None else i.cpu() if mask is None else torch.where(mask, i.cpu(), 0) for i in call["indices"]]
        found = numbers[tuple(slice(None) if i is None else i for i in indices)]
        return found if mask is None else torch.where(mask, found, -1)
    index, numbers = call["index"].cpu(), numbers if numbers.ndim else numbers.view(1)
    if name in _ALONG:
        found = numbers.index_select(call["dim"], index.view(-1))
        return found.expand(call["source"].shape) if call["source"].ndim else found.view(())
    source = call.given.get("src")
    if not index.numel():
        return torch.full(source.shape if isinstance(source, Tensor) else (0,), -1)
    found = numbers.gather(call["dim"], index if index.ndim else index.view(1))
    if not isinstance(source, Tensor):
        return found
    target = torch.full(source.shape, -1)
    target[tuple(slice(n) for n in index.shape)] = found if index.ndim else found.view(())
    return target


def _left(target: Tensor, into: Tensor) -> Moved:
    kept = places(into).flatten()
    kept[target[target >= 0].flatten()] = -1
    return Moved(kept.view(into.shape))


def _arriving(source: Tensor, target: Tensor, out: Tensor) -> Grouped | Pairs:
    """The values of `index_put` are broadcast to where they go."""
    if source.shape == target.shape or source.numel() == target.numel():
        return Grouped(target, places(out))
    arrives = target >= 0
    return Pairs(places(source), places(source).expand(target.shape)[arrives], target[arrives], places(out))

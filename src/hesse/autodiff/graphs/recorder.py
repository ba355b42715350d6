"""Records every op that runs, forward and backward, as a node of a graph."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.events.records import TensorFacts, checkable, entries, facts, tensors
from hesse.autodiff.graphs.identity import Makers
from hesse.autodiff.graphs.modules import ModuleCalls
from hesse.autodiff.graphs.nodes import ORDERS, GraphNode, Kind, Order
from hesse.autodiff.source_lines import Frame, SourceMap

_ALIASES = {"detach", "alias", "lift_fresh"}
_UNFILLED = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
_MEANT = {"full", "full_like", "new_full", "fill", "fill_", "scalar_tensor", "masked_fill", "masked_fill_", "where"}
_MEANT |= {"index_put", "index_put_", "index_fill", "index_fill_", "constant_pad_nd"}
_SILENT = {"sym_size", "sym_numel", "sym_stride", "sym_storage_offset"}  # they compute nothing, as marks of profilers do
_MOST_NODES = 16


@dataclasses.dataclass(frozen=True)
class Outside:
    """What people call a tensor from outside: its name, its kind, and the path of the module that owns it."""

    name: str
    kind: Kind
    owner: str = ""


class Recorder(LightMode):
    """A dispatch mode that writes down every op as a `GraphNode`; no tensor is kept.

    Args:
        outside: what to call tensors that come from outside.
        modules: tells which module's call is running.
        values: also take range and non-finite counts of every tensor, right after its op.

    Attributes:
        nodes: the nodes so far, in the order in which they ran.
        stage: 0 while the function runs, 1 for its derivative, 2 for the derivative's.
    """

    def __init__(self, outside: Iterable[tuple[Tensor, Outside]], modules: ModuleCalls, values: bool) -> None:
        super().__init__()
        self.nodes: list[GraphNode] = []
        self.stage = 0
        self._values, self._modules = values, modules
        self._places, self._thread = SourceMap(), threading.get_ident()
        self._makers, self._outside, self._detached = Makers[GraphNode](), Makers[Outside](), Makers[GraphNode]()
        self._kept = list(outside)
        self._leaves: dict[int, tuple[GraphNode | None, int | None]] = {id(value): (None, None) for value, _ in self._kept}
        self._by_name: dict[str, GraphNode] = {}
        self._names: Counter[str] = Counter()
        self._numbered = torch.autograd._get_sequence_nr()
        self._before: list[GraphNode] = []
        self._created: dict[int, tuple[list[GraphNode], list[GraphNode]]] = {}
        for value, what in self._kept:
            self._outside.put(value, what)

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op and write it down."""
        if func.namespace == "profiler" or func.overloadpacket.__name__ in _SILENT:
            return func(*args, **kwargs)
        source, phase = self._places.locate()
        cell = self._number()
        if func.namespace == "prim" or func.overloadpacket.__name__ in _ALIASES:
            return self._alias(func, args, kwargs, source, phase)
        read = list(tensors((*args, *kwargs.values())))
        with _unseen():
            given = list(dict.fromkeys(self._made(value, phase) for value in read))
        outputs = func(*args, **kwargs)
        with _unseen():
            cell.append(self._note(func, (source, phase), given, read, (args, kwargs, outputs)))
        return outputs

    def _number(self) -> list[GraphNode]:
        """Lead the autograd nodes that were made since the op before to this op (to the one before, for in-place ops on views,
        whose nodes are made after they ran)."""
        cell: list[GraphNode] = []
        if threading.get_ident() == self._thread:
            now = torch.autograd._get_sequence_nr()
            for number in range(max(self._numbered, now - _MOST_NODES), now):
                self._created[number] = (cell, self._before)
            self._numbered, self._before = now, cell
        return cell

    def _partner(self) -> GraphNode | None:
        """The op whose autograd node runs now."""
        node = torch._C._current_autograd_node()
        if node is None:
            return None
        cells = self._created.get(node._sequence_nr())
        cell = () if cells is None else cells[node.name().endswith("CopySlices")]
        return cell[0] if cell else None

    def _alias(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Frame | None, phase: str) -> Any:
        """Ops that return what they are given. A detached tensor becomes a node when the user's code reads it: autograd
        detaches whatever it keeps."""
        outputs = func(*args, **kwargs)
        if func.overloadpacket.__name__ == "detach" and phase == "forward" and args[0].requires_grad:
            with _unseen():
                maker = self._made(args[0], phase)
                self._detached.put(
                    outputs,
                    dataclasses.replace(
                        maker, name="", op=str(func), kind="op", source=source, inputs=(maker.name,), module=self._modules.here,
                        view=True,
                    ),
                )  # fmt: skip
        return outputs

    def _made(self, value: Tensor, phase: str) -> GraphNode:
        """The node that made a tensor; a new one where it comes from outside, or was detached by the user."""
        leaf, version = self._leaves.get(id(value), (None, None))
        if leaf is not None and version == _version(value):  # itself, and no view of it that has its layout too
            return leaf
        maker = self._makers.get(value)
        if maker is None:
            return self._from_outside(value)
        detached = None if phase != "forward" or value.requires_grad else self._detached.get(value)
        if detached is None or detached.inputs != (maker.name,):
            return maker
        if not detached.name:
            detached = self._append(detached, "detach")
            self._detached.put(value, detached)
        return detached

    def _from_outside(self, value: Tensor) -> GraphNode:
        what = self._outside.get(value) or Outside("constant", "constant")
        module = self._modules.owner(what.owner) if what.kind in ("parameter", "buffer") else self._modules.here
        module = "" if what.kind == "input" else module
        seen = self._facts(value)
        meant = bool(seen.infs) and not seen.nans and (not value.ndim or not bool(torch.isposinf(entries(value)).any()))
        node = GraphNode("", what.name, what.kind, ORDERS[self.stage], (seen,), module=module, meant=meant)
        node = self._append(node, what.name)
        self._makers.put(value, node)
        if id(value) in self._leaves:
            self._leaves[id(value)] = node, _version(value)
        return node

    def _note(
        self, func: Any, place: tuple[Frame | None, str], given: list[GraphNode], read: list[Tensor], call: tuple[Any, Any, Any]
    ) -> GraphNode:
        """Write an op down, and remember what it made."""
        args, kwargs, outputs = call
        name, made = func.overloadpacket.__name__, list(tensors(outputs))
        written = _written(func, args, kwargs)
        own = {id(value) for value in written}
        fresh = [value for value in made if id(value) not in own]
        shared = {key for value in read if (key := _memory(value)) is not None}
        view = not written and bool(fresh) and all(_memory(value) in shared for value in fresh)
        seen = tuple(self._result(value, name, given, view) for value in (*written, *fresh))
        partner = self._partner()
        order = self._order(partner, place[1])
        parents = tuple(node.name for node in given)
        module = self._module(partner, given, place[1])
        partner_name = None if partner is None else partner.name
        node = GraphNode(
            "", str(func), "op", order, seen, place[0], parents, module, partner_name, view, _meant(name, given, seen)
        )
        node = self._append(node, name)
        for value in fresh:
            self._makers.put(value, node)
        for value in written:
            self._makers.write(value, node)
        return node

    def _order(self, partner: GraphNode | None, phase: str) -> Order:
        """A pass differentiates what it goes back through: that of a gradient is of second order."""
        through = ORDERS.index(partner.phase) + 1 if partner is not None else int(phase == "backward")
        return ORDERS[min(2, max(self.stage, through))]

    def _module(self, partner: GraphNode | None, given: list[GraphNode], phase: str) -> str:
        if phase == "forward" or self._modules.in_pass:
            return self._modules.here
        if partner is not None:
            return partner.module
        parts = zip(*(node.module.split(".") for node in given), strict=False)
        common = [names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, parts)]
        return self._modules.nearest(".".join(common))

    def _append(self, node: GraphNode, name: str) -> GraphNode:
        count = self._names[name]
        self._names[name] += 1
        node = dataclasses.replace(node, name=f"{name}_{count}" if count else name)
        while node.name in self._by_name:
            node = dataclasses.replace(node, name=f"{node.name}_")
        self._by_name[node.name] = node
        self.nodes.append(node)
        return node

    def _result(self, value: Tensor, name: str, given: list[GraphNode], view: bool) -> TensorFacts:
        """The facts of an output; a view that moves every entry has those of what it views."""
        if not self._values or name in _UNFILLED:
            return _shape_only(value)
        if view and len(given) == 1 and given[0].outputs and _moved(value, given[0].outputs[0]):
            return dataclasses.replace(given[0].outputs[0], shape=tuple(value.shape))
        return self._facts(value)

    def _facts(self, value: Tensor) -> TensorFacts:
        if not self._values:
            return _shape_only(value)
        if checkable(value):
            return facts(value)
        return _whole_numbers(value) if _is_counted(value) else _shape_only(value)

    def result(self, value: Any, name: str, kind: Kind, of: Tensor | None = None) -> None:
        """Write an output down.

        Args:
            value: the output; a number has no node behind it.
            name: what people call it.
            kind: "answer" or "gradient".
            of: what it is the gradient by, whose module it is drawn in.
        """
        order = ORDERS[self.stage]
        if not isinstance(value, Tensor):
            self._append(GraphNode("", f"{name} = {value!r}", kind, order), name)
            return
        maker = self._made(value, "forward" if self.stage == 0 else "backward")
        same = tuple(seen for seen in maker.outputs if seen.shape == tuple(value.shape))
        leaf = None if of is None else self._leaves.get(id(of), (None, None))[0] or self._makers.get(of)
        module = "" if leaf is None else leaf.module
        self._append(GraphNode("", name, kind, order, same[:1], None, (maker.name,), module, meant=maker.meant), name)

    def called(self, value: Tensor) -> str:
        """What people call a leaf."""
        what = self._outside.get(value)
        return what.name if what is not None else self._made(value, "backward").name

    def concerns(self, name: str, value: Tensor) -> bool:
        """Whether a variable has to do with the call: it is an argument, an op read it, or a module around it was called."""
        what = self._outside.get(value)
        if what is None or what.kind == "input" or self._makers.get(value) is not None:
            return True
        return "" in self._modules.texts or bool(self._modules.nearest(name))

    def name_outside(self, value: Tensor, name: str) -> None:
        """Say what to call a tensor that the next pass is given."""
        self._kept.append((value, Outside(name, "input")))
        self._leaves[id(value)] = None, None
        self._outside.put(value, self._kept[-1][1])


def _unseen() -> AbstractContextManager[Any]:
    """Hide what is computed for the record from other dispatch modes."""
    return _disable_current_modes() if _get_current_dispatch_mode_stack() else nullcontext()


def _version(value: Tensor) -> int | None:
    """How often a tensor's memory was written; None where nobody counts."""
    return None if value.is_inference() else value._version


def _shape_only(value: Tensor) -> TensorFacts:
    shape = () if value.is_nested else tuple(int(size) for size in value.shape)
    return TensorFacts(shape, value.dtype, value.device)


def _is_counted(value: Tensor) -> bool:
    """Whether a tensor holds integers or booleans that can be compared."""
    plain = type(value) in (Tensor, torch.nn.Buffer, torch.nn.Parameter) and value.layout is torch.strided
    counted = value.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    return plain and counted and not value.is_nested and not value.is_meta and value.numel() > 0


def _whole_numbers(value: Tensor) -> TensorFacts:
    held = value.detach()
    low, high = torch.aminmax(held.to(torch.uint8) if held.dtype is torch.bool else held)
    return TensorFacts(tuple(value.shape), value.dtype, value.device, float(low), float(high))


def _memory(value: Tensor) -> int | None:
    """What tells a tensor's storage from others; None for tensors without one."""
    if type(value) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or value.layout is not torch.strided:
        return None
    return None if value.is_nested or value._is_zerotensor() else value.untyped_storage()._cdata


def _moved(value: Tensor, seen: TensorFacts) -> bool:
    """Whether a view shows all that it views, in its own type."""
    return value.numel() == math.prod(seen.shape) and value.dtype == seen.dtype and not (value.is_neg() or value.is_conj())


def _meant(name: str, given: list[GraphNode], seen: tuple[TensorFacts, ...]) -> bool:
    """Whether infinities come from an explicit constant or from a mask that was passed on."""
    if not any(facts.infs for facts in seen) or any(facts.nans for facts in seen) or any(node.bad for node in given):
        return False
    return name in _MEANT or any(node.meant for node in given)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an op writes into."""
    if not func._schema.is_mutable:
        return []
    written: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += tensors(args[number] if number < len(args) else kwargs.get(argument.name))
    return written

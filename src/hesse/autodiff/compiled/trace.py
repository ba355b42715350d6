"""One run of a function, recorded as a graph of aten operations.

A dispatch mode below autograd sees every tensor operation of the run: forward, backward and whatever is nested in them. So
the record is the derivative program itself, with nothing left of Python but the values that Python read from tensors
(`bool`, `item`, sizes that depend on data); these become reads, which every later run checks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from hesse.autodiff.compiled.aliases import Aliases, writes_of
from hesse.autodiff.compiled.state_codes import kind_of_file
from hesse.autodiff.compiled.state_values import same
from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.source_lines import SourceMap

LARGEST_CONSTANT = 1 << 16
LARGEST_FOLDED = 1 << 28  # bytes of what follows from tensors that are known never to change
Node = Any  # an `fx.Node`, whose target and arguments PyTorch declares too widely to be of use
_aten = torch.ops.aten
_MEMORY = {_aten.set_, _aten.resize_, _aten.resize_as_, _aten._resize_output_, _aten.resize}
_BY_ADDRESS = {_aten.as_strided, _aten.as_strided_, _aten.as_strided_copy, _aten.as_strided_scatter}
_OF_SHAPES = {_aten.is_same_size}  # settled by the shapes, although no tensor comes back
_DYNAMIC_SHAPES = {_aten._ctc_loss, _aten.bincount, _aten.repeat_interleave}
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # what hesse itself does is known
_LIBRARY = os.path.dirname(os.path.dirname(_OWN)) + os.sep
_IMMUTABLE = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_TO_PYTHON = {"item", "tolist", "__float__", "__int__", "__complex__", "__index__"}
_OPAQUE = {
    "numpy": "its NumPy array",
    "__array__": "its NumPy array",
    "__dlpack__": "its DLPack capsule",
    "data_ptr": "its address",
    "storage": "its storage",
    "typed_storage": "its storage",
    "untyped_storage": "its storage",
}
_OF_THE_OBJECT = {
    "grad": "its .grad",
    "grad_fn": "what it was computed by",
    "is_leaf": "whether it was computed",
    "is_inference": "where it was made",
    "_version": "how often it was written to",
    "_base": "what it is a view of",
    "storage_offset": "its place in memory",
}  # of tensors that come from outside; no guard compares them


@dataclass(frozen=True)
class Read:
    """A value that Python took from a tensor.

    Attributes:
        node: gives the value: a Python number of an operation, or the tensor whose shape or elements were read.
        kind: "value" (what the operation returned), "shape" or "elements" (`tolist`) of a tensor.
        expected: what was read in the recorded run.
        source: ``(file, line, function)`` of the user's code, if known.
    """

    node: fx.Node
    kind: str
    expected: Any
    source: tuple[str, int, str] | None

    def agrees(self, found: Any) -> bool:
        """Whether a later run read the same (NaN agrees with NaN)."""
        return same_value(self.expected, found)


def same_value(a: Any, b: Any) -> bool:
    """Whether two values that were read are the same: numbers, or nested lists of them, as guards compare them."""
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))
    return same(b, a)


@dataclass
class Trace:
    """A recorded run.

    Attributes:
        graph: placeholders (the inputs, then the closed-over tensors), operations, one output: reads, then results.
        input_names: what people call the inputs, if they are to see them.
        identified: positions of the inputs that the function sees as the very objects that it is given.
        captured: closed-over tensors met, in the order of their placeholders.
        fixed: closed-over tensors that never change, by their `id`; they become constants.
        folding: bytes that a constant may hold which operations on constants give.
        constants: tensors made in the run from Python data, and those that are fixed, by attribute name.
        reads: in the order in which they were made.
        aliases: which nodes share memory.
        random: whether random numbers were drawn from a default generator.
        before: what external memory held before the run wrote to it, by its address.
        refused: why a graph cannot repeat the run; empty where it can. The run itself went on to its end.
        irregular: why this run is not like later ones, which may be recorded; empty where it is.
        compares_memory: whether hesse asked which tensors lie at the same place in memory.
        results: the variable leaves of what the run returned: nodes, or the index of an input.
        structure: pytree spec of what the run returned, and its other leaves.
    """

    graph: fx.Graph
    inputs: list[Tensor]
    input_names: list[str] = field(default_factory=list)
    identified: tuple[int, ...] = ()
    captured: list[Tensor] = field(default_factory=list)
    fixed: Mapping[int, Tensor] = field(default_factory=dict)
    folding: int = 8 * LARGEST_CONSTANT
    constants: dict[str, Tensor] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    aliases: Aliases = field(default_factory=Aliases)
    random: bool = False
    before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = field(default_factory=dict)
    refused: str = ""
    irregular: str = ""
    compares_memory: bool = False
    results: list[fx.Node] = field(default_factory=list)
    structure: tuple[pytree.TreeSpec, tuple[tuple[int, Any], ...]] | None = None
    _named: int = 0

    def new_constant(self, stem: str) -> str:
        """A name that no constant has."""
        self._named += 1
        return f"{stem}_{self._named - 1}"


class _Operations(LightMode):
    """Records every operation of a thread, until one cannot be repeated."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        self._known: Any = WeakTensorKeyDictionary()
        self._sources = SourceMap()
        self._last = trace.graph._root
        for index, tensor in enumerate(trace.inputs):
            self._placeholder(f"input_{index}", tensor)

    def refuse(self, reason: str) -> None:
        """Record no more; the first reason counts."""
        self.trace.refused = self.trace.refused or reason

    def note_irregular(self, reason: str, *, lasting: bool) -> None:
        """As `LightMode.note_irregular`."""
        if lasting:
            self.refuse(reason)
        self.trace.irregular = self.trace.irregular or reason

    def _placeholder(self, name: str, tensor: Tensor) -> fx.Node:
        with self.trace.graph.inserting_after(self._last):
            node = self._last = self.trace.graph.placeholder(name)
        _describe(node, tensor, None, "forward")
        self.trace.aliases.input(node, tensor)
        self._known[tensor] = node
        return node

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node that gave a tensor; one that no operation gave is captured from outside."""
        node = self._known.get(tensor)
        if node is None and tensor._is_zerotensor():  # made by forward mode, without an operation
            node = self.trace.graph.call_function(
                _aten.zeros.default, (list(tensor.shape),), {"dtype": tensor.dtype, "device": tensor.device}
            )
            _describe(node, tensor, None, "forward")
            self.trace.aliases.fresh(node)
            self._known[tensor] = node
        if node is None and self.trace.fixed.get(id(tensor)) is tensor:
            return self._kept(tensor, tensor, None)
        if node is None:
            self.trace.captured.append(tensor)
            node = self._placeholder(f"captured_{len(self.trace.captured) - 1}", tensor)
        return node

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record one operation."""
        watcher = sys.getprofile()  # what is done here is not the user's, and not to be watched
        if not callable(watcher):
            return self._record(func, args, kwargs)
        sys.setprofile(None)
        try:
            return self._record(func, args, kwargs)
        finally:
            sys.setprofile(watcher)

    def _record(self, func: Any, args: Any, kwargs: Any) -> Any:
        packet = getattr(func, "overloadpacket", func)
        if packet in _MEMORY:
            self.refuse(f"{func} changes the memory of a tensor")
        if packet in _BY_ADDRESS and self._is_external(args[0]):
            self.refuse(f"{func} depends on where an argument lies in its memory")
        if self.trace.refused:
            return func(*args, **kwargs)
        source, phase = self._sources.locate()
        if packet is _aten.lift_fresh and self._known.get(args[0]) is None:
            self._constant(args[0], source)
            return args[0]
        nodes = self._nodes(tuple(args)), {key: self._nodes(value) for key, value in kwargs.items()}
        written = writes_of(func, args, kwargs)
        self._keep(written)
        out = func(*map(_written_out, args), **{key: _written_out(value) for key, value in kwargs.items()})
        node = self.trace.graph.call_function(func, *nodes)
        self.trace.aliases.operation(node, [self._known[t] for t in written])
        self.trace.random |= torch.Tag.nondeterministic_seeded in func.tags and not _own_generator(args, kwargs)
        self._outputs(node, out, source, phase)
        if torch.Tag.dynamic_output_shape in func.tags or packet in _DYNAMIC_SHAPES or func.namespace != "aten":
            self._shapes(out, source)
        return out

    def _keep(self, written: Sequence[Tensor]) -> None:
        """Keep what memory from outside holds before it is written to."""
        for tensor in written:
            if tensor.layout == torch.strided and self._is_external(tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.trace.before:
                    self.trace.before[storage.data_ptr()] = storage, storage.clone()

    def is_given(self, tensor: Tensor, name: str) -> bool:
        """Whether something that is read of a tensor can be another at the next call."""
        node = self._known.get(tensor)
        if node is None:
            return name != "grad"  # that of a closed-over tensor is guarded
        if name == "storage_offset":
            return self.trace.aliases.group(node) in self.trace.aliases.external
        return node.op == "placeholder" and (name != "grad" or node.name.startswith("input"))

    def _is_external(self, tensor: Tensor) -> bool:
        return self.trace.aliases.group(self.node_of(tensor)) in self.trace.aliases.external

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.node_of(value)
        return type(value)(map(self._nodes, value)) if type(value) in (list, tuple) else value

    def _outputs(self, node: Node, out: Any, source: Any, phase: str) -> None:
        inputs = node.all_input_nodes
        if isinstance(out, Tensor):
            _describe(node, out, source, phase)
            if out not in self._known:  # an operation in place returns what it was given
                self.trace.aliases.output(node, out, inputs)
                self._known[out] = node
            return
        node.meta.update(source=source, phase=phase, outputs=[_metadata(t) for t in out] if _is_several(out) else [])
        if not _is_several(out):
            if out is not None and node.target.overloadpacket not in _OF_SHAPES:
                self.trace.reads.append(Read(node, "value", out, source))
            return
        for index, part in enumerate(out):
            if not isinstance(part, Tensor) or part in self._known:
                continue
            item = self.trace.graph.call_function(getitem, (node, index))
            _describe(item, part, source, phase)
            self.trace.aliases.output(item, part, inputs)
            self._known[part] = item

    def _shapes(self, out: Any, source: Any) -> None:
        for part in pytree.tree_leaves(out):
            if isinstance(part, Tensor) and part in self._known:
                self.trace.reads.append(Read(self._known[part], "shape", tuple(part.shape), source))

    def _constant(self, tensor: Tensor, source: Any) -> None:
        if tensor.numel() > LARGEST_CONSTANT:
            self.refuse(f"a tensor of {tensor.numel()} numbers is made from Python data at each call")
            return
        place = self._kept(None, tensor.clone(), source)
        node = self.trace.graph.call_function(_aten.clone.default, (place,))  # a new tensor at each call, as in the run
        _describe(node, tensor, source, "forward")
        self.trace.aliases.output(node, tensor, [])
        self._known[tensor] = node

    def _kept(self, tensor: Tensor | None, kept: Tensor, source: Any) -> fx.Node:
        """The place of a constant, which a tensor of the run may be."""
        name = self.trace.new_constant("constant")
        self.trace.constants[name] = kept
        place = self.trace.graph.get_attr(name)
        _describe(place, kept, source, "forward")
        self.trace.aliases.output(place, kept, [])
        if tensor is not None:
            self._known[tensor] = place
        return place

    def elements(self, tensor: Tensor, found: Any) -> None:
        """Note that Python read all elements of a tensor."""
        if not self.trace.refused:
            self.trace.reads.append(Read(self.node_of(tensor), "elements", found, self._sources.locate()[0]))

    def finish(self, result: Any) -> None:
        """Note what the run returned."""
        leaves, spec = pytree.tree_flatten(result)
        static = []
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self.trace.results.append(self.node_of(leaf))
            elif leaf is None or isinstance(leaf, _IMMUTABLE):
                static.append((index, leaf))
            else:
                self.refuse(f"the function returns a {type(leaf).__name__}, which may hold values of one call only")
        self.trace.structure = spec, tuple(static)


class _Functions(TorchFunctionMode):
    """Sees what Python takes from tensors without an operation."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        caller = sys._getframe(1).f_code.co_filename
        if name == "data_ptr" and caller.startswith(_LIBRARY):  # to find tensors that are the same one
            self._operations.trace.compares_memory = True
        if caller.startswith(_OWN) or (name == "data_ptr" and caller.startswith(_LIBRARY)):
            return func(*args, **(kwargs or {}))
        if name in _OPAQUE and args and isinstance(args[0], Tensor):
            self._operations.refuse(f"the function takes from a tensor {_OPAQUE[name]}")
        elif name == "__get__" or name in _OF_THE_OBJECT:
            self._property(getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name, args)
        elif name == "__set__":
            self._operations.refuse("the function sets an attribute (.data or .grad) of a tensor")
        elif name == "backward":
            self._operations.refuse("the function calls backward(), which writes to .grad")
        if name in _TO_PYTHON and args[0].requires_grad:
            args = (args[0].detach(), *args[1:])  # PyTorch would warn of it, at this line
        result = func(*args, **(kwargs or {}))
        if name == "tolist":
            self._operations.elements(args[0], result)
        return result

    def _property(self, name: str, args: Any) -> None:
        """Refuse what user code reads of a tensor from outside and no guard compares."""
        if name not in _OF_THE_OBJECT or not args or not isinstance(args[0], Tensor):
            return
        if kind_of_file(sys._getframe(2).f_code.co_filename) == "user" and self._operations.is_given(args[0], name):
            self._operations.refuse(f"the function asks a tensor that it did not compute for {_OF_THE_OBJECT[name]}")


def record(run: Callable[[], Any], inputs: Sequence[Tensor], fixed: Mapping[int, Tensor] | None = None) -> tuple[Trace, Any]:
    """Run a function once and record its operations.

    Args:
        run: the function, of no arguments.
        inputs: tensors that it is given, all different objects.
        fixed: as in `Trace`; more may be added in the course of the run.

    Returns:
        The trace, and what the function returned. A trace with a reason in `refused` is of no further use.

    Cost: one run, with about 30 microseconds more an operation.
    """
    trace = Trace(fx.Graph(), list(inputs))
    if fixed is not None:
        trace.fixed, trace.folding = fixed, LARGEST_FOLDED
    operations = _Operations(trace)
    with operations, _Functions(operations):
        result = run()
    if not trace.refused:
        operations.finish(result)
    return trace, result


def getitem(parts: Sequence[Any], index: int) -> Any:
    """One of the tensors that an operation gave."""
    return parts[index]


def _written_out(value: Any) -> Any:
    """Zeros in memory for PyTorch's zero tensors, on which some operations crash inside a dispatch mode."""
    if isinstance(value, Tensor):
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device) if value._is_zerotensor() else value
    return type(value)(map(_written_out, value)) if type(value) in (list, tuple) else value


def _is_several(out: Any) -> bool:
    return isinstance(out, (tuple, list))


def _own_generator(args: Any, kwargs: Any) -> bool:
    return any(isinstance(a, torch.Generator) for a in (*args, *kwargs.values()))


def _metadata(out: Any) -> Any:
    return (tuple(out.shape), out.dtype, out.device, tuple(out.stride()) if out.layout == torch.strided else None) \
        if isinstance(out, Tensor) else None  # fmt: skip


def _describe(node: fx.Node, tensor: Tensor, source: Any, phase: str) -> None:
    shape, dtype, device, stride = _metadata(tensor)
    node.meta.update(shape=shape, dtype=dtype, device=device, stride=stride, source=source, phase=phase)

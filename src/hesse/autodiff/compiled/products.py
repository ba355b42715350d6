"""Products of an operator, recorded once and replayed: the operations of a backward pass without the engine around them.

The tensors that a kept graph holds never change, so they are constants of the record, and what follows from them alone is
computed once. Their versions are compared at every product: where one was written to, the operator itself is asked.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.agreement import agree, largest
from hesse.autodiff.compiled.entry import mode_key
from hesse.autodiff.compiled.function import is_inside_other_tracer
from hesse.autodiff.compiled.mode import CompileNotice, Mode
from hesse.autodiff.compiled.native import NativeUnavailable, compile_native
from hesse.autodiff.compiled.path import simplify
from hesse.autodiff.compiled.replay import Deviation, Replay, Runner
from hesse.autodiff.compiled.state_codes import kind_of_code
from hesse.autodiff.compiled.trace import LARGEST_FOLDED, Trace, record
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.autodiff.linearize import cast_leaves
from hesse.autodiff.source_lines import warn_user
from hesse.core import random, tree
from hesse.core.guard import Guard
from hesse.core.tree import Tree
from hesse.linalg.diagonal_rules import costly_diagonal_rule, diagonal_rule
from hesse.linalg.norm_rules import Order, norm_rule
from hesse.linalg.trace import trace_rule
from hesse.linalg.woodbury import congruence_rule
from hesse.operators.algebra import Congruence
from hesse.operators.base import LinearOperator

_DIRECT = 3  # products of a kind before it is recorded: checks of a first product, timed ways of a block
_MOST_KINDS = 16  # sizes of blocks, settings of PyTorch
_PASSES = tuple(f"{part}.py" for part in ("hesse/operators/data_set", "hesse/operators/average"))


class CompiledProducts(LinearOperator):
    """An operator whose products are replayed; made by `compile_products`.

    Attributes:
        operator: the operator itself, asked where a record does not hold.
        compile_seconds: wall-clock seconds spent on recording and compiling so far, those of its transpose not included.
        replays: products (a block counts once) that were replayed.
    """

    def __init__(self, operator: LinearOperator, compile: Mode) -> None:
        self.operator = operator
        self._compile: Mode = compile
        self.in_space, self.out_space, self.tags = operator.in_space, operator.out_space, operator.tags
        self.compile_seconds, self.replays = 0.0, 0
        self._kinds: dict[Any, _Product | str] = {}
        self._met: dict[Any, int] = {}
        self._noted: set[str] = set()

    @property
    def mass(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the operator."""
        return self.operator.mass

    @property
    def direct(self) -> str:
        """Why products of some kind run directly; empty where none does."""
        return next((kind for kind in self._kinds.values() if isinstance(kind, str)), "")

    def mv(self, v: Tree) -> Tree:
        return self._run(self.operator.mv, v, None)

    def mm(self, V: Tree) -> Tree:
        parts = self.in_space.check(V, "block of vectors", 1)
        return self._run(self.operator.mm, V, parts[0].shape[0])

    def transpose(self) -> LinearOperator:
        return CompiledProducts(self.operator.T, self._compile)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy records anew: what was recorded reads this operator's tensors."""
        return CompiledProducts, (self.operator, self._compile)

    def _run(self, product: Callable[[Tree], Tree], v: Tree, count: int | None) -> Tree:
        if count == 0 or self._is_followed(v) or is_inside_other_tracer():
            return product(v)
        key = count, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *mode_key()
        found = self._kinds.get(key)
        if found is None:
            self._met[key] = self._met.get(key, 0) + 1
            result = product(v)
            if self._met[key] == _DIRECT and len(self._kinds) < _MOST_KINDS:
                self._record(key, product, v, result)
            return result
        if not isinstance(found, str) and found.holds():
            outputs = found(_plain(cast_leaves(self.in_space, v, "vector", int(count is not None))))
            if not isinstance(outputs, Deviation):
                self.replays += 1
                return self.out_space.rebuild(outputs)
        return product(v)

    def _is_followed(self, v: Tree) -> bool:
        """Whether the product is to be differentiated itself."""
        if not torch.is_grad_enabled():
            return False
        return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree.leaves(v))

    def _record(self, key: Any, product: Callable[[Tree], Tree], v: Tree, result: Tree) -> None:
        start = time.perf_counter()
        try:
            inputs = _plain(cast_leaves(self.in_space, v, "vector", int(key[0] is not None)))
            given = [part.detach() for part in tree.leaves(result)]
            if any(part.requires_grad for part in tree.leaves(result)):
                raise Unrecordable("its products can be differentiated by what it was made from")
            self._kinds[key] = _Product(lambda: self._random(product, inputs), inputs, given, self._compile, self._notice)
        except Unrecordable as error:
            self._kinds[key] = error.reason
            self._notice(f"runs directly: {error.reason}")
        self.compile_seconds += time.perf_counter() - start

    def _random(self, product: Callable[[Tree], Tree], like: Sequence[Tensor]) -> tuple[Trace, Tree]:
        """A product with another vector, recorded: what depends on the vector's numbers shows in the comparison."""
        generator = random.make_generator()
        inputs = [random.normal(part.shape, part.dtype, part.device, generator) for part in like]
        return record(lambda: product(self.in_space.rebuild(list(inputs))), inputs)

    def _notice(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            warn_user(f"{self.operator!r} {text}", CompileNotice)

    def __repr__(self) -> str:
        return f"{self.operator!r}, {self._compile}"


class _Product:
    """A recorded product: its operations, and a guard of the tensors that they read."""

    def __init__(
        self, recorded: Callable[[], tuple[Trace, Tree]], inputs: list[Tensor], given: list[Tensor], compile: str,
        notice: Callable[[str], None],
    ) -> None:  # fmt: skip
        trace, result, watch = _watched(recorded)
        if watch.reason:  # it may have been that of a finalizer, which the collector of garbage happened to call
            trace, result, watch = _watched(recorded)
        if watch.reason or trace.refused:
            raise Unrecordable(watch.reason or trace.refused)
        if trace.random or trace.aliases.written & trace.aliases.external:
            raise Unrecordable(f"a product {'draws random numbers' if trace.random else 'writes to tensors that it keeps'}")
        if len(trace.results) != len(given) or any(part.layout != torch.strided for part in tree.leaves(result)):
            raise Unrecordable("its products are no trees of dense tensors")
        self._guards = [*watch.guards, Guard(list(trace.captured))]
        _fix(trace)
        simplify(trace)
        self._run: Runner = Replay(trace)
        _verify(self._run, inputs, given)
        if compile == "native":
            try:
                runner, _ = compile_native(trace)
                _verify(runner, inputs, given)
                self._run = runner
            except (NativeUnavailable, Unrecordable) as error:
                notice(f"is replayed instead of compiled: {error.reason}")
        trace.inputs, trace.captured = [], []

    def __call__(self, inputs: list[Tensor]) -> list[Tensor] | Deviation:
        return self._run(inputs)

    def holds(self) -> bool:
        """Whether nothing was written to that the record reads, or that the operator watches itself."""
        return not any(guard.changed() for guard in self._guards)


class _Watch:
    """Says whether a run goes through Python that a record cannot stand for: the user's code, or a pass over data.

    Attributes:
        reason: what it was; empty if there was none.
        guards: those that the run asked.
    """

    def __init__(self) -> None:
        self.reason = ""
        self.guards: list[Guard] = []

    def __enter__(self) -> _Watch:
        self._before, self._collects = sys.getprofile(), gc.isenabled()
        gc.disable()  # finalizers and callbacks of a collection are none of the product's
        sys.setprofile(self._see)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)
        if self._collects:
            gc.enable()

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or self.reason:
            return
        if frame.f_code is Guard.check.__code__:
            self.guards.append(frame.f_locals["self"])
        name = frame.f_code.co_filename.replace("\\", "/")
        if name.endswith(_PASSES) or "/torch/utils/data/" in name:
            self.reason = "a product goes through a data set, which may hold other data at the next one"
        elif name.endswith("/torch/nn/modules/module.py"):
            self.reason = "a product runs the model again, whose settings may be others then"
        elif "/torch/distributed/" in name:
            self.reason = "a product talks to other processes"
        elif kind_of_code(frame.f_code, frame.f_globals) == "user":
            self.reason = f"a product runs Python code of yours: {frame.f_code.co_name} in {name}:{frame.f_lineno}"


def _watched(recorded: Callable[[], tuple[Trace, Tree]]) -> tuple[Trace, Tree, _Watch]:
    """A recorded run, and what was seen in it; its backward passes too run in this thread, which is watched."""
    with _Watch() as watch, torch.autograd.set_multithreading_enabled(False):
        trace, result = recorded()
    return trace, result, watch


def _fix(trace: Trace) -> None:
    """Make constants of the tensors that a run met."""
    places = [node for node in trace.graph.nodes if node.op == "placeholder"][len(trace.inputs) :]
    for place, tensor in zip(places, trace.captured, strict=True):
        name = trace.new_constant("constant")
        trace.constants[name] = tensor
        with trace.graph.inserting_before(place):
            constant = trace.graph.get_attr(name)
        constant.meta = dict(place.meta)
        trace.aliases.output(constant, tensor, [])
        place.replace_all_uses_with(constant)
        trace.results = [constant if node is place else node for node in trace.results]
        trace.graph.erase_node(place)
    trace.fixed, trace.folding = {id(tensor): tensor for tensor in trace.captured}, LARGEST_FOLDED
    trace.captured = []


def _verify(runner: Runner, inputs: list[Tensor], given: list[Tensor]) -> None:
    """Compare with the direct product of the same vector.

    Raises:
        Unrecordable: it differs by more than rounding.
    """
    try:
        found = runner(inputs)
    except Exception as error:
        raise Unrecordable(f"the compiled product failed ({type(error).__name__}: {error})") from error
    scale = max(map(largest, (*inputs, *given)), default=0.0)
    if isinstance(found, Deviation) or not all(agree(mine, its, scale) for mine, its in zip(found, given, strict=True)):
        raise Unrecordable("the compiled product differs from the direct one")


def _plain(parts: Sequence[Tensor]) -> list[Tensor]:
    """As the recorded ones lay in memory."""
    return [part.detach().resolve_conj().resolve_neg().contiguous() for part in parts]


@diagonal_rule.register(CompiledProducts)
def _diagonal(A: CompiledProducts) -> Tensor | None:
    return diagonal_rule(A.operator)


@costly_diagonal_rule.register(CompiledProducts)
def _costly_diagonal(A: CompiledProducts) -> Tensor | None:
    return costly_diagonal_rule(A.operator)


@trace_rule.register(CompiledProducts)
def _trace(A: CompiledProducts) -> complex | None:
    return trace_rule(A.operator)


@norm_rule.register(CompiledProducts)
def _norm(A: CompiledProducts, ord: Order) -> float | None:
    return norm_rule(A.operator, ord)


@congruence_rule.register(CompiledProducts)
def _congruence(A: CompiledProducts) -> Congruence | None:
    return congruence_rule(A.operator)

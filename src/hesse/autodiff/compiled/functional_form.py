"""A trace as a functional graph: no operation writes to memory, values that Python read and writes to inputs are outputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hesse.autodiff.compiled.trace import Read, Trace

_aten = torch.ops.aten


class NativeUnavailable(Exception):
    """A trace cannot be compiled to native code; it is replayed instead.

    Attributes:
        reason: why, as the end of a sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Functional:
    """The functional form of a trace.

    Attributes:
        module: inputs, then constants, to read values, then results, then new values of written inputs.
        mode: the fake tensor mode of its metadata.
        fakes: fake inputs.
        constants: what to pass after the inputs.
        reads: the trace's reads that depend on data, by their index there, in the order of their outputs.
        results: number of results.
        written: indices of inputs to copy the last outputs into.
    """

    module: fx.GraphModule
    mode: FakeTensorMode
    fakes: list[Tensor]
    constants: list[Tensor]
    reads: list[tuple[int, Read]]
    results: int
    written: list[int]


def functional_form(trace: Trace) -> Functional:
    """The functional form of an optimized trace, decomposed as inductor likes it.

    Raises:
        NativeUnavailable: shapes depend on data, inputs are of a kind or share memory in a way that compiled code would
            get wrong, or an operation has no functional or fake form.
    """
    inputs = [*trace.inputs, *trace.captured]
    _refuse(inputs)
    written = _written(trace, inputs)
    fills, lifted = _split(trace.constants)
    run = _Run(trace, set(written), fills, list(lifted))
    mode = FakeTensorMode()
    try:
        with mode:
            fakes = [
                torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in (*inputs, *lifted.values())
            ]
            function: Callable[..., Any] = run
            if trace.aliases.written:
                function = torch.func.functionalize(run, remove="mutations")
            module = make_fx(function, decomposition_table=_decompositions())(*fakes)
    except DynamicOutputShapeException as error:
        raise NativeUnavailable(f"the shape that {error.func} gives depends on values") from error
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise NativeUnavailable(f"it has no functional form ({type(error).__name__}: {text})") from error
    return Functional(module, mode, fakes, list(lifted.values()), run.reads, len(trace.results), written)


class _Run(fx.Interpreter):
    """Runs a trace on other tensors: written inputs are copied first, reads give tensors instead of Python values."""

    def __init__(self, trace: Trace, written: set[int], fills: dict[str, Any], lifted: list[str]) -> None:
        super().__init__(fx.GraphModule(dict.fromkeys(trace.constants), trace.graph))
        self._written, self._fills, self._names = written, fills, lifted
        self._lifted: dict[str, Tensor] = {}
        self._is_gathered = bool(trace.fixed)
        self._all_reads, self.reads = trace.reads, list[tuple[int, Read]]()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(tensors) - len(self._names)
        self._lifted = dict(zip(self._names, tensors[count:], strict=True))
        inputs = [t.clone() if index in self._written else t for index, t in enumerate(tensors[:count])]
        outputs = self.run(*inputs, enable_io_processing=False)
        count = len(self._all_reads)
        self.reads = [(i, read) for i, read in enumerate(self._all_reads) if _depends_on_data(read, outputs[i])]
        return (*(outputs[i] for i, _ in self.reads), *outputs[count:], *(inputs[i] for i in sorted(self._written)))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in self._lifted:
            return self._lifted[target]
        shape, number, dtype, device = self._fills[target]
        return torch.full(shape, number, dtype=dtype, device=device)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is _aten._local_scalar_dense.default:
            return args[0]
        if target is _aten.equal.default:
            return torch.eq(args[0], args[1]).all()
        if target is _aten.is_nonzero.default:
            return torch.ne(args[0], 0)
        if target is _aten.index_select.default and self._is_gathered and args[0].is_contiguous():
            source = args[0]  # in memory: inductor would compute each element where it is picked
            args = (_aten.as_strided.default(source, source.shape, source.stride(), 0), *args[1:])
        if target is _aten._efficientzerotensor.default:  # has no memory that a kernel could read
            return torch.zeros(*args, **kwargs)
        return super().call_function(target, args, kwargs)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Those of inductor, without the ones that would draw other random numbers."""
    from torch._inductor import config
    from torch._inductor.decomposition import select_decomp_table

    importlib.import_module("torch._inductor.lowering")  # which the one of max-pooling takes to be there
    with config.patch(fallback_random=True):
        table = select_decomp_table()
    kept = {op: how for op, how in table.items() if torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ())}
    return {**kept, _aten.bernoulli.default: _bernoulli}


def _bernoulli(probability: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """As torch computes it, in an overload that inductor calls instead of writing it out by other random numbers."""
    return _aten.bernoulli.Tensor(probability, probability, generator=generator)


def _depends_on_data(read: Read, found: Any) -> bool:
    """Whether a read may give another value at another call; fake tensors know all that shapes settle."""
    return isinstance(found, Tensor) and read.kind != "shape"


def _refuse(inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        if tensor.layout != torch.strided or type(tensor) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer):
            raise NativeUnavailable(f"an input is a {type(tensor).__name__} of layout {tensor.layout}")
        if tensor.is_neg() or tensor.is_conj():
            raise NativeUnavailable("an input is a lazily negated or conjugated view")


def _written(trace: Trace, inputs: Sequence[Tensor]) -> list[int]:
    """Indices of inputs that the trace writes to."""
    places = [node for node in trace.graph.nodes if node.op == "placeholder"]
    groups = [trace.aliases.group(node) for node in places]
    written = [index for index, group in enumerate(groups) if group in trace.aliases.written]
    for index in written:
        if groups.count(groups[index]) > 1:
            raise NativeUnavailable("a written input shares its memory with another input")
        if not inputs[index].is_contiguous():
            raise NativeUnavailable("a written input is not contiguous")
    return written


def _split(constants: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Constants of one number, which kernels can write out, and the others, which become inputs."""
    fills: dict[str, Any] = {}
    lifted: dict[str, Tensor] = {}
    for name, tensor in constants.items():
        flat = tensor.detach().reshape(-1)
        if tensor.is_meta:  # only its shape can matter
            fills[name] = (tuple(tensor.shape), 0, tensor.dtype, tensor.device)
        elif flat.numel() and bool((flat == flat[0]).all()) and tensor.is_contiguous():
            fills[name] = (tuple(tensor.shape), flat[0].item(), tensor.dtype, tensor.device)
        else:
            lifted[name] = tensor
    return fills, lifted

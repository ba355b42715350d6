"""Native code for a trace: its functional form, compiled by inductor and called without guards of inductor's own.

The guards of a path have made sure of shapes, strides, dtypes and devices before; so a call costs what its kernels cost. On a
CPU the kernels are called from C++, and intermediate results share one piece of memory a call: against kernels called from
Python (torch 2.13, one thread) value and gradient of a small MLP take 41 microseconds instead of 49, a Hessian product 73
instead of 102, an LSTM of 20 steps 244 instead of 566; pieces of memory besides the results 1 instead of 4, 11 and 172. It
compiles faster too, since all is one unit of C++ instead of one a kernel: 0.58, 0.48 and 0.78 of the processor time.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from hesse.autodiff.compiled.agreement import agree, largest
from hesse.autodiff.compiled.functional_form import Functional, NativeUnavailable, functional_form
from hesse.autodiff.compiled.indices import INDEXING, indices_are_fixed
from hesse.autodiff.compiled.inductor import Misordered, helped_inductor, read_after_handed_on
from hesse.autodiff.compiled.replay import Deviation, Runner, without_casts
from hesse.autodiff.compiled.trace import Read, Trace
from hesse.autodiff.compiled.undo import random_states, restore_random
from hesse.autodiff.ownership import sharing

_OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # the same random numbers as without compilation
    "cpp.dynamic_threads": False,  # which would start threads in every kernel, however small
    "size_asserts": False,  # the guards of a path have looked
    "alignment_asserts": False,
    "scalar_asserts": False,
    "triton.cudagraphs": False,
    "freezing": False,
    "cpp_wrapper": False,
    "memory_planning": False,
}
_IN_CPP: dict[str, Any] = {"cpp_wrapper": True, "memory_planning": True, "memory_pool": "intermediates"}
_SERIAL: dict[str, Any] = {"cpp.threads": 1}
_COMPILING = threading.Lock()
_Call = Callable[[list[Tensor]], Sequence[Tensor]]


def compile_native(trace: Trace) -> tuple[Runner, str]:
    """Compile an optimized trace.

    Args:
        trace: ends in its reads and results; holds the tensors of the recorded run.

    Returns:
        What runs it (several threads may call it), and the generated source.

    Raises:
        NativeUnavailable: there is no compiler, or something in the trace cannot be compiled; it says what.

    Cost: one run on fake tensors, and the compiler: 1 to 20 seconds; a tenth of it where inductor's cache has the result.
    """
    form = functional_form(trace)
    runner = Native(form, [*trace.inputs, *trace.captured])
    return runner, runner.code


class Native:
    """A compiled trace: called with the inputs, it gives the results, or a `Deviation`.

    What the trace writes to inputs is written after the reads were checked, so a deviation leaves the inputs as they were.
    After another number was given to `torch.set_num_threads` it is compiled again: kernels start as many threads as pay.

    Attributes:
        code: the generated source.
    """

    def __init__(self, form: Functional, inputs: Sequence[Tensor]) -> None:
        self._form, self._constants = form, form.constants
        self._reads, self._written = form.reads, form.written
        self._first, self._last = len(form.reads), len(form.reads) + form.results
        self._shared: list[int] | None = None
        call, self.code, self._in_cpp = _compile_in_some_wrapper(form, inputs)
        self._calls = {torch.get_num_threads(): call}

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor] | Deviation:
        call = self._calls.get(torch.get_num_threads()) or self._with_other_threads(inputs)
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            with torch._C._AutoDispatchBelowAutograd(), without_casts():
                outputs = call([*inputs, *self._constants])
            if self._reads:
                found = _deviation(self._reads, outputs)
                if found is not None:
                    return found
            for position, index in enumerate(self._written, self._last):
                inputs[index].copy_(outputs[position])
            results = list(outputs[self._first : self._last])
            if self._shared is None:
                self._shared = sharing(results, [*inputs, *self._constants])
            for index in self._shared:
                results[index] = results[index].clone()
            return results
        finally:
            torch._C._set_grad_enabled(before)

    def _with_other_threads(self, inputs: Sequence[Tensor]) -> _Call:
        """The code for as many threads as there are now; the functional form itself where that gives other numbers."""
        plain = _plainly(self._form.module)
        try:
            call, _ = _compile(self._form, self._in_cpp)
            if not _same_results(call, plain, [*inputs, *self._constants]):
                call = plain
        except NativeUnavailable:
            call = plain
        self._calls[torch.get_num_threads()] = call
        return call


def _same_results(call: _Call, plain: _Call, tensors: list[Tensor]) -> bool:
    """Whether code gives what the functional form gives; both draw the random numbers that are drawn next."""
    before = random_states()
    with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), without_casts():
        try:
            wanted = plain([*tensors])
            restore_random(before)
            found = call([*tensors])
        finally:
            restore_random(before)
    scale = max(map(largest, (*tensors, *wanted)), default=0.0)
    return all(agree(mine, its, scale) for mine, its in zip(found, wanted, strict=True))


def _deviation(reads: Sequence[tuple[int, Read]], outputs: Sequence[Tensor]) -> Deviation | None:
    for (index, read), output in zip(reads, outputs, strict=False):
        found = output.tolist() if read.kind == "elements" else output.item()
        if not read.agrees(found):
            return Deviation(index, found)
    return None


def _compile_in_some_wrapper(form: Functional, inputs: Sequence[Tensor]) -> tuple[_Call, str, bool]:
    """What runs a functional form, its source, and whether its kernels are called from C++: where inductor can and it works."""
    tensors = [*inputs, *form.constants]
    if all(t.device.type == "cpu" for t in tensors):
        after = random_states()
        try:
            call, source = _compile(form, in_cpp=True)
            with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
                call(tensors)
            return call, source, True
        except Misordered:  # which would be wrong without C++ as well
            raise
        except Exception:  # some operations that C++ has to call through Python fail only then
            pass
        finally:
            restore_random(after)
    return *_compile(form, in_cpp=False), False


def _compile(form: Functional, in_cpp: bool) -> tuple[_Call, str]:
    """What runs a functional form, and its source.

    A kernel that finds an index out of bounds throws, which ends the process where threads were started: it starts none.
    Indices that follow from constants and shapes were in bounds when the trace was recorded, and need no look.
    """
    targets = [str(node.target) for node in form.module.graph.nodes if node.op == "call_function"]
    if not targets:
        return _plainly(form.module), form.module.code
    options = {**_OPTIONS, **_IN_CPP} if in_cpp else _OPTIONS
    with _quietly():
        if indices_are_fixed(form):
            return _with_options(form, {**options, "assert_indirect_indexing": False})
        if not any(name in target for target in targets for name in INDEXING):
            call, source = _with_options(form, options)
            if "omp parallel" not in source or "out of bounds" not in source:
                return call, source
        return _with_options(form, {**options, **_SERIAL})


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """One compilation at a time, of which only failures are heard."""
    log = logging.getLogger("torch._inductor.ir")  # says which operations C++ calls through Python
    with _COMPILING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.setLevel(level)


def _with_options(form: Functional, options: dict[str, Any]) -> tuple[_Call, str]:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.output_code import CompiledFxGraph

    module = copy.deepcopy(form.module)  # which inductor rewrites
    try:
        with config.patch(options), tracing(TracingContext(form.mode)), helped_inductor():
            compiled = compile_fx_inner(module, form.fakes, is_inference=True, cpp_wrapper=options["cpp_wrapper"])
    except Exception as error:
        raise NativeUnavailable(_reason(error)) from error
    if not isinstance(compiled, CompiledFxGraph) or compiled.current_callable is None:
        raise NativeUnavailable(f"inductor gave a {type(compiled).__name__}")
    if name := read_after_handed_on(compiled.source_code):
        raise Misordered(f"of the program that inductor makes of it, {name} is read after its memory was handed on")
    return compiled.current_callable, compiled.source_code  # past inductor's profiling wrapper


def _plainly(module: fx.GraphModule) -> _Call:
    return lambda inputs: module(*inputs)


def _reason(error: BaseException) -> str:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    if any(type(e).__name__ in ("InvalidCxxCompiler", "FileNotFoundError") for e in chain):
        return f"no working C++ compiler was found ({_line(chain[-1])})"
    return f"inductor could not compile it ({type(error).__name__}: {_line(error)})"


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__

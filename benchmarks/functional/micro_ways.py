"""The columns of the first table: ways to compute a small derivative.

A way gives candidates, by name; the first that is right and runs as one graph stands in the table. Making a candidate and
calling it once is what a first call costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import hesse
from benchmarks.functional.micro import Flat, Micro

Make = Callable[[tuple[Tensor, ...]], Flat]
Candidate = tuple[str, Make]


def _by_func(micro: Micro) -> Iterator[Candidate]:
    yield "", lambda _: micro.by_func


def _by_hand(micro: Micro) -> Iterator[Candidate]:
    yield "", lambda _: micro.by_hand


def _traced(micro: Micro) -> Iterator[Candidate]:
    from torch.fx.experimental.proxy_tensor import make_fx

    yield "", lambda tensors: make_fx(micro.by_func)(*tensors)


def _unguarded(micro: Micro) -> Iterator[Candidate]:
    yield "", lambda tensors: _kernels(micro.by_func, tensors)


def _kernels(f: Flat, tensors: tuple[Tensor, ...]) -> Flat:
    """What inductor makes of `f`, called with no guard."""
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(t) for t in tensors]
    plain = make_fx(f)(*tensors)  # without it the decompositions of what is differentiated would be too
    module = make_fx(functionalize(plain, remove="mutations_and_views"), decomposition_table=select_decomp_table())(*fakes)
    with tracing(TracingContext(mode)), torch.no_grad():
        compiled: Any = compile_fx_inner(module, fakes, is_inference=True)
    call = compiled.current_callable  # past inductor's own wrapper
    return lambda *t: call(list(t))


def _compiled(micro: Micro) -> Iterator[Candidate]:
    for name, f in (("torch.func", micro.by_func), ("autograd.grad", micro.by_hand)):
        yield name, lambda _, f=f: torch.compile(f)


def _hesse(mode: Any) -> Callable[[Micro], Iterator[Candidate]]:
    def candidates(micro: Micro) -> Iterator[Candidate]:
        if not micro.values_only:
            yield "", lambda _: micro.by_hesse(compile=mode)
        elif mode == "off":
            yield "", lambda _: micro.by_hesse
        else:
            yield "", lambda _: hesse.grad(micro.by_hesse, with_gradients=False, compile=mode)

    return candidates


WAYS: dict[str, Callable[[Micro], Iterator[Candidate]]] = {
    "func": _by_func,
    "hand": _by_hand,
    "traced": _traced,
    "compile": _compiled,
    "unguarded": _unguarded,
    "direct": _hesse("off"),
    "replay": _hesse("replay"),
    "native": _hesse("native"),
}

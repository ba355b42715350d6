"""What is said of ops holds: the safe ones keep finite numbers finite, poles are told from overflow, writes are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hesse.autodiff.events import ops as events_ops
from hesse.autodiff.events.ops import Knowledge, checkable, knowledge, tensors

aten = torch.ops.aten
CALLS: dict[str, Callable[[Tensor], Any]] = {
    "relu": F.relu, "relu_": lambda x: x.clone().relu_(), "tanh": torch.tanh, "tanh_": lambda x: x.clone().tanh_(),
    "sigmoid": torch.sigmoid, "sigmoid_": lambda x: x.clone().sigmoid_(), "_softmax": lambda x: x.softmax(-1),
    "threshold_backward": lambda x: aten.threshold_backward(x, x, 0.0),
    "sigmoid_backward": lambda x: aten.sigmoid_backward(x, x.sigmoid()),
    "tanh_backward": lambda x: aten.tanh_backward(x, x.tanh()), "clone": torch.clone, "zeros_like": torch.zeros_like,
    "zeros": lambda x: torch.zeros(3), "new_zeros": lambda x: x.new_zeros(3), "ones": lambda x: torch.ones(3),
    "ones_like": torch.ones_like, "cat": lambda x: torch.cat([x, x]), "stack": lambda x: torch.stack([x, x]),
    "index_select": lambda x: x.index_select(0, torch.tensor([1, 0])),
    "gather": lambda x: x.gather(0, torch.zeros(1, 4).long()), "masked_select": lambda x: x.masked_select(x > 0),
    "embedding": lambda x: F.embedding(torch.tensor([1]), x), "neg": torch.neg, "neg_": lambda x: x.clone().neg_(),
    "abs": torch.abs, "sign": torch.sign, "sin": torch.sin, "cos": torch.cos, "erf": torch.erf,
    "max_pool2d_with_indices": lambda x: F.max_pool2d(x[None], 2, return_indices=True), "arange": lambda x: torch.arange(3.0),
    "flip": lambda x: x.flip(0), "roll": lambda x: x.roll(1), "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid,
    "hardtanh_backward": lambda x: aten.hardtanh_backward(x, x, -1.0, 1.0),
    "select_backward": lambda x: aten.select_backward(x[0], x.shape, 0, 0),
    "slice_backward": lambda x: aten.slice_backward(x[:1], x.shape, 0, 0, 1, 1), "repeat": lambda x: x.repeat(2, 1),
    "bernoulli_": lambda x: x.clone().bernoulli_(), "zero_": lambda x: x.clone().zero_(), "maximum": lambda x: x.maximum(-x),
    "minimum": lambda x: x.minimum(-x), "amax": lambda x: x.amax(), "amin": lambda x: x.amin(), "sort": torch.sort,
    "topk": lambda x: x.topk(2), "tril": torch.tril, "triu": torch.triu, "_reshape_copy": lambda x: aten._reshape_copy(x, [-1]),
    "take": lambda x: x.take(torch.tensor([0, 2])),
}  # fmt: skip


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Knowledge, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((knowledge(func), args, kwargs or {}, outputs))
        return outputs


def test_every_safe_op_has_a_call() -> None:
    assert set(CALLS) == events_ops._SAFE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(CALLS))
def test_safe_ops_keep_finite_numbers_finite(name: str, dtype: torch.dtype) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    x = torch.tensor([[largest, -largest, 0.0, smallest], [-largest, largest, -1.0, 88.0]], dtype=dtype)
    with Seen() as seen:
        try:
            CALLS[name](x)
        except (RuntimeError, NotImplementedError) as error:
            pytest.skip(f"not for {dtype}: {error}")
    found = [call for call in seen.calls if call[0].name == name]
    assert found
    for known, args, kwargs, outputs in found:
        assert known.safe
        made = [value for value in (*tensors(outputs), *known.written(args, kwargs)) if checkable(value)]
        assert all(value.isfinite().all() for value in made)


def test_views_writes_and_unfilled_memory() -> None:
    x = torch.ones(2, 3)
    assert knowledge(aten.t.default).view
    assert knowledge(aten.lift_fresh.default).view
    assert not knowledge(aten.add_.Tensor).view
    (written,) = knowledge(aten.add_.Tensor).written((x, x), {})
    assert written is x
    out = torch.empty(2, 3)
    (written,) = knowledge(aten.add.out).written((x, x), {"out": out})
    assert written is out
    assert knowledge(aten.add.out).overwrites
    assert not knowledge(aten.add_.Tensor).overwrites
    assert knowledge(aten.empty.memory_format).unfilled
    assert knowledge(aten._foreach_mul_.Scalar).written(([x, out], 2.0), {}) == [x, out]
    assert knowledge(aten.mul.Tensor).written((x, x), {}) == []
    with Seen() as seen:
        F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)
    known, args, kwargs, _ = next(call for call in seen.calls if call[0].name.endswith("batch_norm"))
    assert len(known.written(args, kwargs)) == 2


def test_poles() -> None:
    zero, one = torch.tensor([1.0, 0.0]), torch.ones(2)
    assert knowledge(aten.div.Tensor).has_pole((one, zero))
    assert not knowledge(aten.div.Tensor).has_pole((zero, one))
    assert knowledge(aten.div.Scalar).has_pole((one, 0.0))
    assert knowledge(aten.reciprocal.default).has_pole((zero,))
    assert not knowledge(aten.reciprocal.default).has_pole((one,))
    assert knowledge(aten.addcdiv_.default).has_pole((one, one, zero))
    assert not knowledge(aten.addcdiv_.default).has_pole((zero, zero, one))
    assert knowledge(aten.log.default).has_pole((zero,))
    assert knowledge(aten.pow.Tensor_Scalar).has_pole((zero, -1.0))
    assert not knowledge(aten.pow.Tensor_Scalar).has_pole((one, 2.0))
    assert not knowledge(aten.mul.Tensor).has_pole((zero, one))


def test_what_can_be_checked() -> None:
    class Plain(Tensor):
        pass

    assert checkable(torch.ones(2))
    assert checkable(torch.ones(2).as_subclass(Plain))
    assert checkable(torch.ones(2, dtype=torch.complex64))
    assert checkable(torch.eye(2).to_sparse())
    assert not checkable(torch.ones(2, device="meta"))
    assert not checkable(torch.arange(2))
    assert not checkable(torch.empty(0))
    assert not checkable(torch._efficientzerotensor(3))
    assert not checkable(1.0)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    assert not checkable(nested)

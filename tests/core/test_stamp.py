"""What a stamp sees: writes that PyTorch counts, those it does not; and that nothing else is a change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hesse.core.errors import DataError
from hesse.core.guard import Guard
from hesse.core.stamp import Stamp


def _by_numpy(p: Tensor) -> None:
    p.detach().numpy()[...] += 1


def _by_data(p: Tensor) -> None:
    p.data.add_(1)


def _by_replacing(p: Tensor) -> None:
    p.data = p.data + 1


def _by_equal_memory(p: Tensor) -> None:
    p.data = p.data.clone()


def _by_foreach(p: Tensor) -> None:
    torch._foreach_add_([p.data], 1)


def _by_vector(p: Tensor) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector([p]) + 1, [p])  # pyright: ignore[reportPrivateImportUsage]


def _by_storage(p: Tensor) -> None:
    p.untyped_storage().copy_((p.detach() + 1).contiguous().untyped_storage())


def _counted(p: Tensor) -> None:
    with torch.no_grad():
        p.add_(1)


WRITES = [_by_numpy, _by_data, _by_replacing, _by_equal_memory, _by_foreach, _by_vector, _by_storage, _counted]


@pytest.mark.parametrize("shape", [(), (1,), (3, 2), (1024,), (1025,), (71, 97), (5, 3, 401)])
@pytest.mark.parametrize("write", WRITES)
def test_every_way_of_writing_is_seen(write: Callable[[Tensor], None], shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.randn(shape))
    stamp = Stamp(parameter)
    parameter.detach().clone().add_(parameter.sum())
    assert stamp.holds() and stamp.holds()
    write(parameter)
    assert not stamp.holds()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float32, torch.complex64,
                                   torch.complex128, torch.float8_e5m2, torch.int64])  # fmt: skip
def test_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.zeros(40, 70).to(dtype)
    stamp = Stamp(tensor)
    assert stamp.holds()
    tensor.data.copy_(torch.ones(40, 70))
    assert not stamp.holds()


def test_not_a_number_is_itself() -> None:
    assert Stamp(torch.full((7,), torch.nan)).holds()


@pytest.mark.parametrize("count", [1, 5, 1024])
def test_all_numbers_of_a_small_tensor_count(count: int) -> None:
    tensor = torch.arange(float(count))
    for place in range(0, count, max(count // 7, 1)):
        stamp = Stamp(tensor)
        tensor.data[place] += 1
        assert not stamp.holds()


@pytest.mark.parametrize("form", [lambda t: t, lambda t: t.mT, lambda t: t[7:60]])
def test_every_row_and_column_of_a_tensor_without_gaps_counts(form: Callable[[Tensor], Tensor]) -> None:
    tensor = form(torch.randn(80, 110))
    for part in (tensor, tensor.mT):
        for row in part:
            stamp = Stamp(tensor)
            row.data.add_(1)
            assert not stamp.holds()


@pytest.mark.parametrize(
    "form",
    [lambda t: t[:, 3:60], lambda t: t[::2], lambda t: t[1:].mT[::3], lambda t: t[5], lambda t: t[:, 2], lambda t: t[4, 5]],
)
def test_of_a_view_with_gaps_its_own_numbers_count_and_none_beside_it(form: Callable[[Tensor], Tensor]) -> None:
    whole, beside = torch.randn(80, 110), torch.ones(80, 110, dtype=torch.bool)
    form(beside)[...] = False
    stamp = Stamp(form(whole))
    whole.data[beside] += 1
    assert stamp.holds()
    form(whole).data.add_(1)
    assert not stamp.holds()


def test_an_expanded_tensor() -> None:
    row = torch.randn(7)
    stamp = Stamp(row.expand(5000, 7))
    assert stamp.holds()
    row.data[6] += 1
    assert not stamp.holds()


def test_what_becomes_shared_memory_has_not_changed() -> None:
    tensor = torch.randn(30, 60)
    stamp = Stamp(tensor)
    tensor.share_memory_()
    assert stamp.holds() and stamp.holds()
    tensor.data.add_(1)
    assert not stamp.holds()
    stamp = Stamp(torch.zeros(30, 60))
    stamp.tensor.share_memory_()
    stamp.tensor.data.add_(1)
    assert not stamp.holds() and not stamp.holds()


def test_tensors_of_inference_mode() -> None:
    with torch.inference_mode():
        tensor = torch.randn(4, 5)
    stamp = Stamp(tensor)
    assert stamp.holds()
    with torch.inference_mode():
        tensor.add_(1)
    assert not stamp.holds()


def test_tensors_without_memory_are_watched_by_version() -> None:
    with FakeTensorMode():
        fake = torch.randn(3, 2)
    sparse = torch.eye(4).to_sparse()
    for tensor in (fake, sparse, torch.empty(3, 2, device="meta"), torch.empty(0, 3)):
        stamp = Stamp(tensor)
        assert stamp.holds()
        tensor.mul_(2)
        assert not stamp.holds()


def test_within_vmap() -> None:
    found = []

    def look(row: Tensor) -> Tensor:
        found.append(Stamp(row).holds())
        return row

    torch.vmap(look)(torch.randn(3, 2))
    assert found == [True]


class _Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations.append(str(func))
        return func(*args, **(kwargs or {}))


def test_no_operation_runs() -> None:
    parameter = nn.Parameter(torch.randn(50, 40))
    with _Seen() as seen:
        assert Stamp(parameter).holds()
    assert not seen.operations and parameter._version == 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda guard: pickle.loads(pickle.dumps(guard))])
def test_a_guard_is_copied_before_a_change_only(again: Callable[[Guard], Guard]) -> None:
    tensor = torch.randn(5, 3)
    guard = Guard([tensor], ["weight"])
    assert not again(guard).changed()
    tensor.numpy()[4, 2] = np.pi
    with pytest.raises(DataError, match="'weight'"):
        again(guard)


def test_memory_that_was_freed_is_not_looked_at() -> None:
    base = torch.randn(4000)
    views = [base[:1000], base[1000:3000], base.view(50, 80)[:, 7:40], base[3999:]]
    stamps = [Stamp(view) for view in views]
    base.untyped_storage().resize_(0)  # as sharded models do with gathered parameters
    assert not any(stamp.holds() for stamp in stamps)
    again = [Stamp(view) for view in views]
    assert all(stamp.holds() for stamp in again)
    Guard(views).check("a", "b")


def test_a_storage_that_shrinks_under_a_tensor() -> None:
    base = torch.randn(300_000)
    first, last = Stamp(base[:100]), Stamp(base[-100:])
    base.untyped_storage().resize_(4 * 200)
    assert not last.holds()
    assert first.holds() or base.data_ptr() != first._place  # the allocator may have moved it


@pytest.mark.parametrize("make", [
    lambda: torch.randn(64, 2000)[:, :1000],
    lambda: torch.randn(2000, 64)[:, :30],
    lambda: torch.randn(8, 30, 40, 50)[:, :, 3:20, ::2],
    lambda: torch.randn(5, 5000).mT[:, 1:4],
])  # fmt: skip
def test_every_part_of_a_large_view_with_gaps_is_looked_at(make: Callable[[], Tensor]) -> None:
    for axis in range(make().ndim):
        view = make()
        stamp = Stamp(view)
        length = view.shape[axis]
        view.data.narrow(axis, length // 2, length - length // 2).add_(1)
        assert not stamp.holds(), axis


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_lazy_and_nested_tensors_are_watched_by_version() -> None:
    guard = Guard([nn.LazyLinear(3).weight, torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])])
    guard.check("a", "b")

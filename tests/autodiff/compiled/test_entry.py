"""Calls are recognized by structure, shapes, dtypes and plain values; each difference is noticed."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch

from hesse.autodiff.compiled.entry import Entry
from hesse.autodiff.compiled.unrecordable import Unrecordable

Pair = namedtuple("Pair", ["a", "b"])


@dataclass
class Config:
    w: torch.Tensor
    rate: float = 0.5
    unset: int = field(init=False)


def tensors():
    return {"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1.5]}


def test_tensors_and_variable_floats_are_gathered_in_order() -> None:
    params, x = tensors(), torch.ones(4)
    entry = Entry((params, x), {"y": x.double()}, (0,))
    found = entry.gather((params, x), {"y": x.double()})
    assert [tuple(t.shape) for t in found] == [(2, 3), (3,), (), (4,), (4,)]
    params["b"][1] = 2.5
    assert entry.gather((params, x), {"y": x.double()})[2].item() == 2.5
    assert entry.args[0]["b"][1].item() == 1.5 and isinstance(entry.args[0]["b"][1], torch.Tensor)


@pytest.mark.parametrize(
    "other",
    [
        ({"w": torch.zeros(3, 3), "b": [torch.zeros(3), 1.5]}, torch.ones(4)),
        ({"w": torch.zeros(2, 3).double(), "b": [torch.zeros(3), 1.5]}, torch.ones(4)),
        ({"w": torch.zeros(3, 2).t(), "b": [torch.zeros(3), 1.5]}, torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": (torch.zeros(3), 1.5)}, torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1]}, torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), torch.tensor(1.5)]}, torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3)]}, torch.ones(4)),
        ({"b": [torch.zeros(3), 1.5], "w": torch.zeros(2, 3)}, torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1.5], "c": 1}, torch.ones(4)),
        (OrderedDict(w=torch.zeros(2, 3), b=[torch.zeros(3), 1.5]), torch.ones(4)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1.5]}, torch.ones(4).requires_grad_()),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1.5]}, torch.nn.Parameter(torch.ones(4), requires_grad=False)),
        ({"w": torch.zeros(2, 3), "b": [torch.zeros(3), 1.5]}, torch.ones(4), 1),
    ],
)
def test_what_differs_is_no_hit(other) -> None:
    entry = Entry((tensors(), torch.ones(4)), {}, (0,))
    assert entry.gather((tensors(), torch.ones(4)), {}) is not None
    assert entry.gather(other, {}) is None
    assert entry.gather((tensors(), torch.ones(4)), {"extra": 1}) is None


@pytest.mark.parametrize(
    ("value", "same", "others"),
    [
        (1, 1, [2, True, 1.0, None]),
        (0.5, 0.5, [0.25, 1, "0.5"]),
        (0.0, 0.0, [-0.0]),
        (float("nan"), float("nan"), [1.0]),
        ("a", "a", ["b", None]),
        (None, None, [0, False]),
        (torch.float32, torch.float32, [torch.float64]),
        ((1, (2,)), (1, (2,)), [(1, (3,)), [1, (2,)]]),
        (Pair(1, 2), Pair(1, 2), [Pair(1, 3), (1, 2)]),
        ({"k": 1}, {"k": 1}, [{"k": 2}, {"j": 1}, {}]),
    ],
)
def test_plain_values_are_compared_with_their_types(value, same, others) -> None:
    x = torch.ones(2)
    entry = Entry((x, value), {}, (0,))
    assert entry.gather((x, same), {}) is not None
    for other in others:
        assert entry.gather((x, other), {}) is None, other


def test_dataclasses_named_tuples_and_registered_nodes() -> None:
    made = Config(torch.zeros(2))
    entry = Entry((made, Pair(torch.ones(1), 3)), {}, (0,))
    assert entry.gather((Config(torch.ones(2), 0.75), Pair(torch.ones(1), 3)), {})[1].item() == 0.75
    assert type(entry.args[0]) is Config and not hasattr(entry.args[0], "unset")
    late = Config(torch.zeros(2))
    late.unset = 3
    assert entry.gather((late, Pair(torch.ones(1), 3)), {}) is None
    ordered = Entry((OrderedDict(a=torch.zeros(2)),), {}, (0,))
    assert ordered.gather((OrderedDict(a=torch.ones(2)),), {}) is not None
    assert ordered.gather((OrderedDict(b=torch.ones(2)),), {}) is None


def test_a_tensor_given_twice_is_two_inputs() -> None:
    x = torch.ones(2)
    entry = Entry(({"a": x, "b": x},), {}, (0,))
    assert entry.inputs[0] is not entry.inputs[1]
    assert len(entry.gather(({"a": x, "b": x},), {})) == 2


def test_other_objects_are_compared_by_identity_and_named() -> None:
    class Settings:
        pass

    one, x = Settings(), torch.ones(1)
    entry = Entry((x, {"settings": one}), {}, (0,))
    assert entry.objects == {"argument 1['settings']": one}
    assert entry.gather((x, {"settings": one}), {}) is not None
    assert entry.gather((x, {"settings": Settings()}), {}) is None


class Mine(torch.Tensor):
    pass


@pytest.mark.parametrize("make", [lambda: torch.ones(2).to_sparse(), lambda: torch.ones(2).as_subclass(Mine)])
def test_sparse_tensors_and_subclasses_are_not_compiled(make) -> None:
    with pytest.raises(Unrecordable):
        Entry((torch.ones(1), make()), {}, (0,))

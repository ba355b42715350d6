"""`parameter_jacobian`: forms, selections and options on one small network, against loops over samples."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import hesse
from hesse.core.errors import DataError, StructureError
from tests.parameters import oracle
from tests.parameters.fingerprint import changes, fingerprint

N, C = 6, 3


class Net(nn.Module):
    """A convolution, an embedding-free tied head, a normalization and a parameter used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv1d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, C)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.image(x))).mT
        return self.head(self.hidden(torch.tanh(self.hidden(h)) * self.scale).mean(1))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Net().double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    return torch.randn(N, 2, 5, generator=g, dtype=torch.float64), torch.randint(0, C, (N,), generator=g)


@pytest.fixture
def rows(net: Net, batch: tuple[Tensor, Tensor]) -> Tensor:
    return oracle.loss_rows(net, nn.CrossEntropyLoss(reduction="sum"), *batch)


def jacobian(net: nn.Module, batch: Any, **options: Any) -> hesse.ParameterJacobian:
    return hesse.parameter_jacobian(net, nn.CrossEntropyLoss(), batch, **options)


def test_dict_and_tree_name_the_rows(net: Net, batch: Any, rows: Tensor) -> None:
    J = jacobian(net, batch)
    for named in (J.as_dict(), J.as_tree()):
        assert list(named) == [name for name, _ in net.named_parameters()]
        assert all(named[name].shape == (N, *p.shape) for name, p in net.named_parameters())
        assert oracle.difference(torch.cat([part.reshape(N, -1) for part in named.values()], 1), rows) < 1e-12
    outputs = hesse.parameter_jacobian(net, None, batch).as_dict()
    assert all(outputs[name].shape == (N, C, *p.shape) for name, p in net.named_parameters())


def test_norms_per_parameter(net: Net, batch: Any) -> None:
    J = jacobian(net, batch)
    expected = {name: part.reshape(N, -1).norm(dim=1) for name, part in J.as_dict().items()}
    found = J.norms(per="parameter")
    assert list(found) == list(expected)
    assert all(oracle.difference(found[name], expected[name]) < 1e-12 for name in expected)
    with pytest.raises(StructureError, match="norms"):
        J.norms(per="color")  # pyright: ignore[reportArgumentType]


def test_gram_with_another_batch(net: Net, batch: Any, rows: Tensor) -> None:
    other = (batch[0][:4].flip(2) * 0.5, batch[1][:4])
    others = oracle.loss_rows(net, nn.CrossEntropyLoss(reduction="sum"), *other)
    J, K = jacobian(net, batch), jacobian(net, other)
    assert oracle.difference(J.gram(K), rows @ others.mT) < 1e-12
    outputs, few = (hesse.parameter_jacobian(net, None, b) for b in (batch, other))
    dense, dense_few = oracle.output_rows(net, batch[0], N), oracle.output_rows(net, other[0], 4)
    assert oracle.difference(outputs.gram(few), torch.einsum("ncd,mkd->ncmk", dense, dense_few)) < 1e-12
    assert oracle.difference(J.gram(outputs), torch.einsum("nd,mkd->nmk", rows, dense)) < 1e-12
    with pytest.raises(StructureError, match="same parameters"):
        J.gram(jacobian(net, batch, params=["head.bias"]))


@pytest.mark.parametrize("lengths", [(3, 7), (1, 7), (7, 1), (1, 1)])
def test_gram_of_sequences_of_different_lengths(lengths: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, C), nn.Flatten(1)).double()
    tokens = [
        torch.randint(0, 5, (n, t), generator=torch.Generator().manual_seed(t)) for n, t in zip((4, 5), lengths, strict=True)
    ]
    total: Callable[[Any, Any], Tensor] = lambda output, target: output.sin().sum()  # noqa: E731
    J, K = (hesse.parameter_jacobian(model, total, (x, torch.zeros(len(x)))) for x in tokens)
    first, second = (oracle.loss_rows(model, total, x, torch.zeros(len(x))) for x in tokens)
    assert oracle.difference(J.gram(K), first @ second.mT) < 1e-12


@pytest.mark.parametrize("make", [
    lambda n, d: torch.full((n, d), torch.nan, dtype=torch.float64),
    lambda n, d: torch.full((n, 2 * d), torch.nan, dtype=torch.float64)[:, ::2],
    lambda n, d: torch.full((d, n), torch.nan, dtype=torch.float64).T,
])  # fmt: skip
def test_dense_writes_into_a_given_tensor_again_and_again(net: Net, batch: Any, rows: Tensor, make: Any) -> None:
    J = jacobian(net, batch)
    buffer = make(N, rows.shape[1])
    for _ in range(2):
        assert J.dense(out=buffer) is buffer
        assert oracle.difference(buffer, rows) < 1e-12


def test_a_batch_changed_in_place_afterwards_is_noticed(net: Net, batch: Any) -> None:
    J = jacobian(net, batch)
    batch[0].zero_()
    with pytest.raises(DataError, match="changed in place"):
        J.norms()


def test_an_optimizer_step_afterwards_changes_nothing(net: Net, batch: Any, rows: Tensor) -> None:
    J = jacobian(net, batch)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(3)
    assert oracle.difference(J.dense(), rows) < 1e-12


def test_chosen_parameters(net: Net, batch: Any, rows: Tensor) -> None:
    whole = {name: part.reshape(N, -1) for name, part in jacobian(net, batch).as_dict().items()}
    for chosen in (["head.bias", "hidden.weight"], lambda name, tensor: name in ("head.bias", "hidden.weight")):
        J = jacobian(net, batch, params=chosen)
        assert J.in_space.names == ("hidden.weight", "head.bias")
        assert oracle.difference(J.dense(), torch.cat([whole[name] for name in J.in_space.names], 1)) < 1e-12
    with pytest.raises(StructureError, match=r"'head\.nothing'"):
        jacobian(net, batch, params=["head.nothing"])
    with pytest.raises(StructureError, match="none"):
        jacobian(net, batch, params=lambda name, tensor: False)


Point = namedtuple("Point", ["slope", "rest"])


def test_a_function_of_a_tree_of_parameters(batch: Any) -> None:
    g = torch.Generator().manual_seed(1)
    params = Point(
        torch.randn(4, 2, generator=g).double(), {"b": [torch.randn(4, generator=g).double(), torch.tensor(2.0).double()]}
    )

    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(x.mean(2) @ params.slope.T + params.rest["b"][0]) * params.rest["b"][1]

    x, y = batch[0], torch.randn(N, 4, generator=g).double()
    J = hesse.parameter_jacobian((f, params), nn.MSELoss(reduction="sum"), (x, y))
    leaves = [params.slope.clone().requires_grad_(), *[leaf.clone().requires_grad_() for leaf in params.rest["b"]]]
    own = Point(leaves[0], {"b": leaves[1:]})
    expected = torch.stack([oracle.gradient(((f(own, x[i : i + 1]) - y[i]) ** 2).sum(), leaves) for i in range(N)])
    assert oracle.difference(J.dense(), expected) < 1e-12
    tree = J.as_tree()
    assert isinstance(tree, Point) and tree.slope.shape == (N, 4, 2) and tree.rest["b"][1].shape == (N,)


def test_output_picks_the_tensor(net: Net, batch: Any, rows: Tensor) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor) -> Any:
            return Point(slope=x, rest={"logits": self.inner(x)})

    J = hesse.parameter_jacobian(Wrapped(), F.cross_entropy, batch, output=lambda o: o.rest["logits"])
    assert oracle.difference(J.dense(), rows) < 1e-12
    with pytest.raises(StructureError, match="output="):
        hesse.parameter_jacobian(Wrapped(), F.cross_entropy, batch)


def test_outputs_of_one_number_and_of_many_axes(batch: Any) -> None:
    single = nn.Sequential(nn.Flatten(), nn.Linear(10, 1), nn.Flatten(0)).double()
    J = hesse.parameter_jacobian(single, None, batch[0])
    assert J.dense().shape == (N, 11) and J.norms().shape == (N,) and J.gram().shape == (N, N)
    assert oracle.difference(J.dense(), oracle.output_rows(single, batch[0], N)[:, 0]) < 1e-12
    many = nn.Conv1d(2, 4, 3).double()
    J = hesse.parameter_jacobian(many, None, batch[0])
    expected = oracle.output_rows(many, batch[0], N)
    assert oracle.difference(J.dense().reshape(expected.shape), expected) < 1e-12
    assert oracle.difference(J.norms(), expected.norm(dim=2).reshape(N, 4, 3)) < 1e-12


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_on_the_model(net: Net, batch: Any, training: bool) -> None:
    model = nn.Sequential(net, nn.InstanceNorm1d(1, track_running_stats=True).double(), nn.Flatten(1)).train(training)
    model.insert(1, nn.Unflatten(1, (1, C)))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model[0].head.register_forward_hook(lambda *args: None)
    before = fingerprint(model)
    J = jacobian(model, batch)
    J.dense(), J.norms(), J.gram(), J.sum_of_squares()
    with pytest.raises(hesse.HesseError):
        jacobian(model, (batch[0], batch[1][:3]))
    assert changes(before, fingerprint(model)) == []

"""`optim`: torch's optimizers on gradient functions and trees of parameters."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import hesse
from hesse.core.errors import LeafError, StructureError
from hesse.nn import optim

F64 = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(11)


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(20, 3, **F64), torch.randn(20, 2, **F64)


def tree_of_parameters() -> dict:
    return {
        "layers": [{"w": torch.randn(3, 4, **F64)}, {"w": torch.randn(4, 2, **F64)}],
        "b": torch.zeros(2, **F64),
        "name": "net",
    }


def loss(params: dict, x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.tanh(x @ params["layers"][0]["w"])
    return ((hidden @ params["layers"][1]["w"] + params["b"] - y) ** 2).mean()


def by_hand(params: dict, make, x: Tensor, y: Tensor, steps: int) -> tuple[list[Tensor], list[float]]:
    """Plain torch on copies: leaves after the steps, and the loss before each."""
    leaves = [params["layers"][0]["w"], params["layers"][1]["w"], params["b"]]
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    optimizer = make(leaves)
    values = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss({"layers": [{"w": leaves[0]}, {"w": leaves[1]}], "b": leaves[2]}, x, y)
        value.backward()
        return value

    for _ in range(steps):
        values.append(optimizer.step(closure).item())
    return [t.detach() for t in leaves], values


OPTIMIZERS = {
    "sgd": lambda leaves: torch.optim.SGD(leaves, lr=0.1),
    "momentum": lambda leaves: torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda leaves: torch.optim.Adam(leaves, lr=1e-2, amsgrad=True),
    "adamw": lambda leaves: torch.optim.AdamW(leaves, lr=1e-2, weight_decay=0.3, foreach=True),
    "rprop": torch.optim.Rprop,
    "adagrad": lambda leaves: torch.optim.Adagrad(leaves, lr=0.1, maximize=True),
    "rmsprop": lambda leaves: torch.optim.RMSprop(leaves, centered=True, momentum=0.5),
    "asgd": torch.optim.ASGD,
    "lbfgs": lambda leaves: torch.optim.LBFGS(leaves, lr=0.5, max_iter=7),
    "wolfe": lambda leaves: torch.optim.LBFGS(leaves, max_iter=4, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"stable_gradients": True}, {"compile": "replay", "stable_gradients": True}])
def test_steps_are_those_of_plain_torch(name: str, options: dict) -> None:
    x, y = data()
    params = tree_of_parameters()
    expected, losses = by_hand(params, OPTIMIZERS[name], x, y, 4)
    step = optim(hesse.grad(loss, **options), params, OPTIMIZERS[name])
    values = [float(step(x, y).value) for _ in range(4)]
    assert values == pytest.approx(losses, rel=1e-11)
    for a, b in zip([params["layers"][0]["w"], params["layers"][1]["w"], params["b"]], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("requires", [True, False])
def test_the_users_tensors_are_changed_in_place_and_nothing_else(grad_mode: bool, requires: bool) -> None:
    x, y = data()
    params = tree_of_parameters()
    leaves = [params["layers"][0]["w"], params["layers"][1]["w"], params["b"]]
    for leaf in leaves:
        leaf.requires_grad_(requires)
    leaves[0].grad = torch.full((3, 4), 7.0, **F64)
    before = [leaf.detach().clone() for leaf in leaves]
    step = optim(hesse.grad(loss), params, OPTIMIZERS["adam"])
    with torch.set_grad_enabled(grad_mode):
        result = step(x, y)
    assert params["layers"][0]["w"] is leaves[0] and params["name"] == "net"
    assert leaves[0].grad.eq(7).all() and leaves[1].grad is None and leaves[2].grad is None
    assert all(leaf.requires_grad is requires and leaf.is_leaf for leaf in leaves)
    assert not any(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    assert not result.value.requires_grad and result.grads["name"] == "net"
    assert all(leaf.grad is None for group in step.optimizer.param_groups for leaf in group["params"])


def test_gradients_are_switched_on_as_the_caller_has_them() -> None:
    outside = torch.tensor(2.0, **F64, requires_grad=True)
    p = torch.tensor([3.0, 4.0], **F64)
    step = optim(hesse.grad(lambda p: (outside * p**2).sum()), p, OPTIMIZERS["sgd"])
    with torch.no_grad():
        assert not step().value.requires_grad
    value = step().value
    assert torch.autograd.grad(value, outside)[0].item() == pytest.approx(0.6**2 * 25)
    assert not p.requires_grad and outside.grad is None


def test_what_df_returned_is_returned() -> None:
    x, y = data()
    params = tree_of_parameters()
    df = hesse.grad(lambda p, x, y, scale=1.0: (scale * loss(p, x, y), x.shape, {"mean": y.mean()}))
    step = optim(df, params, OPTIMIZERS["sgd"])
    expected = loss(params, x, y)
    grads, value, shape, more = step(x, y, scale=3.0)
    torch.testing.assert_close(value, 3 * expected)
    assert shape == (20, 3) and more["mean"] == y.mean() and grads["b"].shape == (2,)


def test_gradient_functions_of_ones_own_and_gradients_alone() -> None:
    w = torch.tensor([2.0, 3.0], **F64)
    optim(lambda p: (2 * p, "anything"), w, OPTIMIZERS["sgd"])()
    torch.testing.assert_close(w, torch.tensor([1.6, 2.4], **F64))
    pair = (torch.tensor(1.0), torch.tensor(2.0))
    optim(lambda p: (p[1], p[0]), pair, OPTIMIZERS["sgd"])()  # the gradient of a product: each parameter is the other's
    assert [float(t) for t in pair] == pytest.approx([0.8, 1.9])
    step = optim(hesse.grad(lambda p: (p**2).sum(), with_forward=False), w, torch.optim.SGD)
    before = w.clone()
    step()
    torch.testing.assert_close(w, before - 1e-3 * 2 * before)
    lbfgs = optim(hesse.grad(lambda p: (p**2).sum(), with_forward=False), w, torch.optim.LBFGS)
    with pytest.raises(StructureError, match="LBFGS reads the loss"):
        lbfgs()


def test_closures_evaluate_anew() -> None:
    seen = []

    def f(p: Tensor) -> Tensor:
        seen.append(p.detach().clone())
        return ((p - 3) ** 4).sum()

    p = torch.zeros(2, **F64)
    result = optim(hesse.grad(f), p, lambda leaves: torch.optim.LBFGS(leaves, max_iter=5, max_eval=9))()
    assert len(seen) > 3 and not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert result.value.item() == 2 * 81.0 and torch.equal(result.grads, torch.full((2,), -108.0, **F64))


def test_groups_by_path() -> None:
    x, y = data()
    params = tree_of_parameters()
    before = hesse.grad(loss)(params, x, y).grads
    old = {"w0": params["layers"][0]["w"].clone(), "w1": params["layers"][1]["w"].clone(), "b": params["b"].clone()}
    groups = {"layers.0.*": {"lr": 0.5}, "*.w": {"lr": 0.25}}
    step = optim(hesse.grad(loss), params, OPTIMIZERS["sgd"], groups=groups)
    step(x, y)
    torch.testing.assert_close(params["layers"][0]["w"], old["w0"] - 0.5 * before["layers"][0]["w"])
    torch.testing.assert_close(params["layers"][1]["w"], old["w1"] - 0.25 * before["layers"][1]["w"])
    torch.testing.assert_close(params["b"], old["b"] - 0.1 * before["b"])
    assert repr(step) == "optim(SGD, 3 leaves, 3 groups)"
    with pytest.raises(StructureError, match=r"'layers\.2\.\*' picks none"):
        optim(hesse.grad(loss), params, OPTIMIZERS["sgd"], groups={"layers.2.*": {}})


def test_transformed_gradients() -> None:
    w = torch.tensor([3.0, 4.0], **F64)

    def clip(grads):
        norm = torch.nn.utils.get_total_norm(list(grads.values()))
        return {name: g * (1 / norm).clamp(max=1) for name, g in grads.items()}

    grads, _ = optim(hesse.grad(lambda p: 5 * (p["w"] ** 2).sum()), {"w": w}, OPTIMIZERS["sgd"], transform=clip)()
    torch.testing.assert_close(w, torch.tensor([3 - 0.06, 4 - 0.08], **F64))
    assert grads["w"].tolist() == [30.0, 40.0]


def test_schedules_and_states() -> None:
    x, y = data()
    params = tree_of_parameters()
    step = optim(hesse.grad(loss), params, OPTIMIZERS["adam"])
    schedule = torch.optim.lr_scheduler.StepLR(step.optimizer, 1, gamma=0.1)
    step(x, y)
    schedule.step()
    assert step.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    twin = {"layers": [{"w": t["w"].clone()} for t in params["layers"]], "b": params["b"].clone(), "name": None}
    again = optim(hesse.grad(loss), twin, OPTIMIZERS["adam"])
    again.load_state_dict(step.state_dict())
    for _ in range(3):
        assert torch.equal(step(x, y).value, again(x, y).value)
    assert torch.equal(twin["b"], params["b"])


def test_a_tensor_in_several_places_is_one_leaf() -> None:
    w = torch.tensor([2.0, 3.0], **F64)
    leaf = w.clone().requires_grad_()
    by_torch = torch.optim.Adam([leaf], lr=0.1)
    step = optim(
        hesse.grad(lambda p: (p["a"] ** 3 * p["b"][0]).sum()),
        {"a": w, "b": [w.detach()]},
        lambda t: torch.optim.Adam(t, lr=0.1),
    )
    for _ in range(3):
        step()
        by_torch.zero_grad()
        (leaf**4).sum().backward()
        by_torch.step()
    torch.testing.assert_close(w, leaf.detach(), rtol=1e-13, atol=1e-13)
    assert repr(step) == "optim(Adam, 1 leaves, 1 groups)"
    empty = {"a": torch.zeros(0), "b": torch.zeros(0), "c": torch.ones(1)}
    optim(hesse.grad(lambda p: p["c"].sum()), empty, OPTIMIZERS["sgd"])()
    assert empty["c"].item() == pytest.approx(0.9)


def test_other_trees() -> None:
    @dataclasses.dataclass
    class Model:
        w: Tensor
        b: Tensor | None
        depth: int

    model = Model(torch.tensor(2.0, **F64), None, 3)
    optim(hesse.grad(lambda m: m.w**m.depth), model, OPTIMIZERS["sgd"])()
    assert model.w.item() == pytest.approx(2 - 0.1 * 12)
    z = torch.tensor([1 + 2j], dtype=torch.complex128)
    optim(hesse.grad(lambda p: p.abs().square().sum()), z, OPTIMIZERS["sgd"])()
    torch.testing.assert_close(z, torch.tensor([0.8 + 1.6j], dtype=torch.complex128))
    view = torch.arange(12.0, **F64).reshape(3, 4)
    column = view[:, 1]
    optim(hesse.grad(lambda p: p.sum()), column, OPTIMIZERS["sgd"])()
    assert view[:, 1].tolist() == [0.9, 4.9, 8.9] and view[:, 0].tolist() == [0.0, 4.0, 8.0]


def test_replaced_tensors_are_noticed() -> None:
    params = {"a": torch.zeros(2), "b": torch.zeros(3)}
    step = optim(hesse.grad(lambda p: p["a"].sum() + p["b"].sum()), params, OPTIMIZERS["sgd"])
    step()
    params["b"].data = torch.ones(3)
    with pytest.raises(StructureError, match=r"(?s)'b'.*copy_"):
        step()
    step = optim(hesse.grad(lambda p: p["a"].sum() + p["b"].sum()), params, OPTIMIZERS["sgd"])
    params["b"] = torch.zeros(3)
    with pytest.raises(StructureError, match="'b'"):
        step()


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ({"a": torch.ones(1), "s": 0.5}, LeafError, r"(?s)'s' is a Python float.*torch\.tensor\(0\.5\)"),
        ({"a": torch.ones(1), "n": torch.tensor([3])}, LeafError, r"'n' has dtype torch\.int64"),
        ({"a": torch.ones(1).expand(3)}, StructureError, "'a' is expanded"),
    ],
)
def test_leaves_that_cannot_be_changed_in_place(params: dict, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        optim(hesse.grad(lambda p: p["a"].sum()), params, OPTIMIZERS["sgd"])


@pytest.mark.parametrize(
    ("df", "words"),
    [
        (lambda p: ({"a": torch.ones(2)}, 0.0), "none for 'b'"),
        (lambda p: ({"a": torch.ones(2), "b": torch.ones(1)}, 0.0), r"shape \(1,\) for 'b'"),
        (lambda p: ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(3)}, 0.0), "too many, 'c'"),
    ],
)
def test_gradients_that_do_not_match(df, words: str) -> None:
    params = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(StructureError, match=words):
        optim(df, params, OPTIMIZERS["sgd"])()
    assert not params["a"].any()


def df_of_a(params: dict) -> tuple[dict, Tensor]:
    return {"a": torch.ones(2)}, params["a"].sum()


def test_a_misspelled_option_is_not_ignored() -> None:
    with pytest.raises(StructureError, match=r"'lrr' for 'a'"):
        optim(df_of_a, {"a": torch.ones(2)}, lambda leaves: torch.optim.SGD(leaves, lr=0.1), groups={"a": {"lrr": 0.2}})


def test_a_factory_makes_an_optimizer() -> None:
    with pytest.raises(LeafError, match="a SGD"):
        optim(df_of_a, {"a": torch.ones(2)}, torch.optim.SGD([torch.ones(2)], lr=0.1))
    with pytest.raises(LeafError, match="a list"):
        optim(hesse.grad(lambda p: p.sum()), torch.zeros(2), lambda leaves: leaves)

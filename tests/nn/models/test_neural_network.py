"""`NeuralNetwork` against `torch.nn.Sequential` with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import DataError, LeafError, StructureError
from hesse.nn.models import NeuralNetwork, SpatialNetwork

from .common import F64, check_part, filled, generator, gradients, normal

close = torch.testing.assert_close


def reference(params: dict[str, Any], activation: type[nn.Module], *, classifier: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, layer in enumerate(params.values()):
        linear = nn.Linear(layer["weight"].shape[1], layer["weight"].shape[0], dtype=F64)
        linear.load_state_dict({name: layer[name] for name in ("weight", "bias")})
        layers.append(linear)
        last = classifier and index == len(params) - 1
        assert ("normalization" in layer) <= (not last)
        if "normalization" in layer:
            norm = nn.BatchNorm1d(len(layer["bias"]), dtype=F64)
            norm.load_state_dict(layer["normalization"], strict=False)
            layers.append(norm)
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def reference_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    y = module(x)
    weights = torch.arange(1.0, y.numel() + 1, dtype=F64).reshape(y.shape).cos()
    return list(torch.autograd.grad((y * weights).sum(), list(module.parameters())))


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize(("activation", "module"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("softplus", nn.Softplus)])
@pytest.mark.parametrize("batch_normalization", [False, True])
def test_value_and_gradients(classifier: bool, activation: str, module: type[nn.Module], batch_normalization: bool) -> None:
    f, params = NeuralNetwork(
        3, (5, 4, 2), batch_normalization=batch_normalization, activation=activation, classifier=classifier, dtype=F64
    )
    params, x = filled(params), normal(7, 3)
    ours = f(params, x, training=True)
    other = reference(params, module, classifier=classifier)
    close(ours[0] if batch_normalization else ours, other(x), rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(f, params, x, training=True), reference_gradients(other, x), strict=True):
        close(a, b, rtol=1e-10, atol=1e-10)


def test_running_statistics_go_in_and_come_out() -> None:
    f, params = NeuralNetwork(3, (5, 2), batch_normalization=True, dtype=F64)
    params = filled(params)
    other, state = reference(params, nn.ReLU, classifier=False), None
    for seed in (3, 4, 5):
        x = normal(6, 3, seed=seed)
        before = state
        kept = None if before is None else tree.map_tree(Tensor.clone, before)
        y, state = f(params, x, state, training=True)
        close(y, other(x), rtol=1e-12, atol=1e-12)
        assert before is None or all(torch.equal(a, b) for a, b in zip(tree.leaves(before), tree.leaves(kept), strict=True))
    other.eval()
    y, same = f(params, x, state)
    close(y, other(x), rtol=1e-12, atol=1e-12)
    for name, norm in (("layer1", other[1]), ("layer2", other[4])):
        close(state[name]["running_mean"], norm.running_mean)
        close(state[name]["running_var"], norm.running_var)
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(same), tree.leaves(state), strict=True))
    assert not any(t.requires_grad for t in tree.leaves(state))
    close(f(params, x[2], state)[0], y[2])  # a single sample, in evaluation


def test_the_state_hangs_on_no_graph() -> None:
    f, params = NeuralNetwork(3, (4,), batch_normalization=True, dtype=F64)
    params["layer1"]["weight"].requires_grad_()
    y, state = f(params, normal(5, 3), training=True)
    assert y.requires_grad
    assert not any(t.requires_grad for t in tree.leaves(state))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (5, 12), (5, 3, 4), (1, 12), (1, 3, 4)])
def test_single_samples_and_batches_of_any_shape(shape: tuple[int, ...]) -> None:
    f, params = NeuralNetwork(12, (5, 2), dtype=F64)
    x = normal(*shape)
    single = shape in ((12,), (3, 4))
    rows = x.reshape(-1, 12)
    expected = torch.stack([f(params, row) for row in rows])
    close(f(params, x), expected[0] if single else expected, rtol=1e-14, atol=1e-14)
    assert f(params, x).shape == ((2,) if single else (len(rows), 2))


def test_dropout_in_training_only_and_by_generator() -> None:
    f, params = NeuralNetwork(400, (300,), dropout=0.25, activation=torch.neg, dtype=F64)
    assert f.dropout == (0.25,)
    params["layer1"]["weight"], params["layer1"]["bias"] = torch.eye(300, 400, dtype=F64), torch.zeros(300, dtype=F64)
    x = torch.ones(50, 400, dtype=F64)
    close(f(params, x), -torch.ones(50, 300, dtype=F64))
    a = -f(params, x, training=True, generator=generator(5))
    b = -f(params, x, training=True, generator=generator(5))
    assert torch.equal(a, b)
    assert set(a.unique().tolist()) == {0.0, 1 / 0.75}
    assert abs(float((a == 0).double().mean()) - 0.25) < 0.02  # 15000 draws: five standard errors
    assert not torch.equal(a, -f(params, x, training=True, generator=generator(6)))


def test_dropout_by_the_global_generator() -> None:
    f, params = NeuralNetwork(8, (300,), dropout=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        a = f(params, torch.ones(8), training=True)
        torch.manual_seed(7)
        assert torch.equal(a, f(params, torch.ones(8), training=True))
        assert not torch.equal(a, f(params, torch.ones(8), training=True))


def test_dropout_of_each_layer() -> None:
    f, params = NeuralNetwork(6, (200, 3), dropout=(0.0, 1.0), dtype=F64)
    params = filled(params)
    y = f(params, normal(4, 6), training=True)
    close(y, params["layer2"]["bias"].relu().expand(4, 3))  # all that enters the second layer is dropped
    with pytest.raises(StructureError, match="3 values for 2 layers"):
        NeuralNetwork(6, (5, 3), dropout=(0.1, 0.2, 0.3))
    with pytest.raises(StructureError, match=r"1\.5"):
        NeuralNetwork(6, (5, 3), dropout=1.5)


def test_initial_values_are_those_of_torch() -> None:
    _, params = NeuralNetwork(50, (400, 300), batch_normalization=True, generator=generator(3))
    for layer, fan_in in zip(params.values(), (50, 400), strict=True):
        for leaf in (layer["weight"], layer["bias"]):
            assert leaf.abs().max() <= fan_in**-0.5
            assert leaf.abs().max() > 0.95 * fan_in**-0.5
        assert torch.equal(layer["normalization"]["weight"], torch.ones(len(layer["bias"])))
        assert not layer["normalization"]["bias"].any()
    _, again = NeuralNetwork(50, (400, 300), batch_normalization=True, generator=generator(3))
    assert all(torch.equal(a, b) for a, b in zip(tree.leaves(params), tree.leaves(again), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        _, one = NeuralNetwork(3, (2,))
        _, two = NeuralNetwork(3, (2,))
    assert not torch.equal(one["layer1"]["weight"], two["layer1"]["weight"])


def test_a_generator_leaves_the_global_one_alone(untouched: None) -> None:
    f, params = NeuralNetwork(4, (3,), dropout=0.5, generator=generator())
    f(params, torch.ones(4), training=True, generator=generator())


def test_dtype_and_device() -> None:
    _, params = NeuralNetwork(4, (3, 2), dtype=torch.float16, batch_normalization=True, device="meta", generator=generator())
    assert {(t.dtype, t.device.type) for t in tree.leaves(params)} == {(torch.float16, "meta")}


def test_the_first_defaults_are_those_of_the_original() -> None:
    f, params = NeuralNetwork()
    assert [tuple(t.shape) for t in tree.leaves(params)] == [(100, 10), (100,), (2, 100), (2,)]
    assert not f.stateful
    check_part(f, params, torch.randn(3, 10, generator=generator()))


def test_pure() -> None:
    f, params = NeuralNetwork(4, (3, 2), batch_normalization=True, activation=torch.tanh, dtype=F64)
    check_part(f, params, normal(5, 4), training=True)


def test_samples_by_vmap() -> None:
    f, params = NeuralNetwork(4, (3, 2), dtype=F64)
    x = normal(5, 4)
    close(torch.vmap(lambda row: f(params, row))(x), f(params, x))


def test_messages() -> None:
    wrong: Any = None
    f, params = NeuralNetwork(4, (3,), batch_normalization=True)
    with pytest.raises(DataError, match="more than one value"):
        f(params, torch.ones(4), training=True)
    with pytest.raises(StructureError, match="4 elements"):
        f(params, torch.ones(2, 5))
    with pytest.raises(LeafError, match="int64"):
        f(params, torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(StructureError, match="'bent'"):
        NeuralNetwork(4, (3,), activation="bent")
    with pytest.raises(StructureError, match="activation=None"):
        NeuralNetwork(4, (3,), activation=wrong)
    with pytest.raises(StructureError, match="widths"):
        NeuralNetwork(4, ())
    for make in (NeuralNetwork, SpatialNetwork):
        for width in (0, -1):
            with pytest.raises(StructureError, match=f"input_features={width}"):
                make(width, (3,))


def test_one_width_is_one_layer() -> None:
    f, params = NeuralNetwork(4, 3)
    assert f.hidden_features == (3,) and set(params) == {"layer1"}

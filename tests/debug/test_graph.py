"""Traced graphs against graphs written down by hand, values against values computed apart, and nothing changed."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hesse.autodiff.graphs.nodes import ORDERS
from hesse.autodiff.graphs.traced import TracedGraph
from hesse.core.errors import LeafError, StructureError
from hesse.debug.graph import trace_graph

Edges = dict[str, tuple[str, ...]]


def edges(graph: TracedGraph) -> Edges:
    return {node.name: node.inputs for node in graph.nodes}


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def product(x: Tensor, w: Tensor) -> Tensor:
    h = x @ w
    return torch.tanh(h).sum()


def line_of(text: str) -> int:
    with open(__file__, encoding="utf-8") as source:
        return next(number for number, line in enumerate(source, 1) if line.strip() == text)


def test_forward_and_backward_by_hand() -> None:
    graph = trace_graph(product, data(4, 3), data(3, 2))
    assert edges(graph) == {
        "x": (), "w": (), "mm": ("x", "w"), "tanh": ("mm",), "sum": ("tanh",), "output": ("sum",),
        "cotangent of output": (),
        "expand": ("cotangent of output",), "tanh_backward": ("expand", "tanh"),
        "t": ("x",), "mm_1": ("t", "tanh_backward"), "t_1": ("w",), "mm_2": ("tanh_backward", "t_1"),
        "gradient by x": ("mm_2",), "gradient by w": ("mm_1",),
    }  # fmt: skip
    forward = {node.name for node in graph.nodes if node.phase == "forward"}
    assert forward == {"x", "w", "mm", "tanh", "sum", "output"}
    assert {node.phase for node in graph.nodes} == {"forward", "backward"}
    partners = {node.name: node.partner for node in graph.nodes if node.partner is not None}
    assert partners == {"expand": "sum", "tanh_backward": "tanh", "t": "mm", "mm_1": "mm", "t_1": "mm", "mm_2": "mm"}
    assert {node.name for node in graph.nodes if node.view} == {"expand", "t", "t_1"}
    kinds = {node.name: node.kind for node in graph.nodes if node.kind != "op"}
    assert kinds == {
        "x": "input", "w": "input", "output": "answer", "cotangent of output": "input", "gradient by x": "gradient",
        "gradient by w": "gradient",
    }  # fmt: skip


def test_lines_are_the_users_and_backward_ops_have_their_forward_ops() -> None:
    graph = trace_graph(product, data(4, 3), data(3, 2))
    lines = {"mm": "h = x @ w", "tanh": "return torch.tanh(h).sum()"}
    for name, text in lines.items():
        source = graph[name].source
        assert source is not None
        assert (source.file, source.line) == (__file__, line_of(text))
    assert graph["tanh_backward"].source == graph["tanh"].source
    assert graph["mm_1"].source == graph["mm"].source


def test_values_are_those_of_the_tensors() -> None:
    x, w = data(4, 3), data(3, 2)
    graph = trace_graph(product, x, w)
    h = np.tanh(x.numpy() @ w.numpy())
    seen = graph["tanh"].outputs[0]
    assert (seen.shape, seen.dtype) == ((4, 2), torch.float64)
    assert seen.low == pytest.approx(h.min(), rel=1e-14)
    assert seen.high == pytest.approx(h.max(), rel=1e-14)
    by_w = x.numpy().T @ (1 - h**2)
    seen = graph["gradient by w"].outputs[0]
    assert (seen.low, seen.high) == pytest.approx((by_w.min(), by_w.max()), rel=1e-13)


def test_orders_and_values_can_be_left_out() -> None:
    x, w = data(4, 3), data(3, 2)
    graph = trace_graph(product, x, w, order=0, values=False)
    assert list(edges(graph)) == ["x", "w", "mm", "tanh", "sum", "output"]
    assert all(facts.low is None for node in graph.nodes for facts in node.outputs)
    assert graph["tanh"].shape == (4, 2)


def test_double_backward_is_the_product_of_the_hessian_with_the_gradient() -> None:
    x = data(3)
    graph = trace_graph(lambda x: (x.sin() ** 2).sum(), x, order=2)
    expected = 2 * np.cos(2 * x.numpy()) * np.sin(2 * x.numpy())
    seen = graph["Hessian x gradient by x"].outputs[0]
    assert (seen.low, seen.high) == pytest.approx((expected.min(), expected.max()), rel=1e-13)
    second = [node for node in graph.nodes if node.phase == "double backward"]
    through = {graph[node.partner].phase for node in second if node.partner is not None}
    assert through == {"forward", "backward"}
    assert [node.phase for node in graph.nodes] == sorted((node.phase for node in graph.nodes), key=ORDERS.index)
    assert any("Hessian with the gradient" in note for note in graph.notes)


def test_what_has_no_second_derivative_says_so() -> None:
    linear = trace_graph(lambda x: (3 * x).sum(), data(4), order=2)
    assert any("no double backward" in note for note in linear.notes)

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return 3 * ctx.saved_tensors[0] ** 2 * g

    graph = trace_graph(lambda x: Once.apply(x).sum(), data(4), order=2)  # pyright: ignore
    assert any("double backward stops short" in note for note in graph.notes)
    assert "gradient by x" in edges(graph)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)))


def test_modules_own_their_ops_parameters_and_derivatives() -> None:
    net = Net()
    graph = trace_graph(net, torch.randn(5, 3))
    assert {path: text.partition("(")[0] for path, text in graph.modules.items()} == {
        "": "Net", "body": "Sequential", "body.0": "Linear", "body.1": "BatchNorm1d", "head": "Linear",
    }  # fmt: skip
    named = {node.op: node.module for node in graph.nodes if node.kind in ("parameter", "buffer")}
    assert named.pop("body.1.running_mean") == "body.1"
    assert named.pop("body.1.num_batches_tracked", "body.1") == "body.1"
    assert named.pop("body.1.running_var") == "body.1"
    assert named == {name: name.rpartition(".")[0] for name, _ in net.named_parameters()}
    place = {node.op.split(".")[1]: node.module for node in graph.nodes if node.kind == "op" and not node.view}
    assert place["relu"] == ""
    assert place["threshold_backward"] == ""
    assert place["native_batch_norm"] == place["native_batch_norm_backward"] == "body.1"
    assert {node.module for node in graph.find("addmm")} == {"body.0", "head"}
    assert graph["gradient by head.weight"].module == "head"
    assert {node.op for node in graph.nodes if node.kind == "gradient"} == {
        f"gradient by {name}" for name, _ in net.named_parameters()
    }


def test_a_module_called_again_has_a_call_of_its_own() -> None:
    cell = nn.Linear(3, 3)
    graph = trace_graph(lambda x: cell(cell(x)).sum(), torch.randn(2, 3))
    assert [node.module for node in graph.find("addmm")] == ["cell", "cell#2"]
    assert [node.op for node in graph.nodes if node.kind == "parameter"] == ["cell.weight", "cell.bias"]


def test_a_leaf_is_itself_beside_a_view_of_the_same_layout() -> None:
    graph = trace_graph(lambda w: (w.t().t() * w).sum(), data(3, 3))
    assert graph["mul"].inputs == ("t_1", "w")

    def written(w: Tensor) -> Tensor:
        w.add_(1)
        return w.t().t() * w

    assert "w" not in trace_graph(written, data(3, 3))["mul"].inputs  # which was before
    layer = nn.Linear(3, 3)
    graph = trace_graph(nn.Sequential(layer, nn.Tanh(), layer), torch.randn(2, 3))  # its weight is transposed back in "0#2"
    assert "0#2" in graph.modules
    assert graph["gradient by 0.weight"].module == graph["0.weight"].module == "0"


def test_writes_in_place_are_versions() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        y[0].add_(1)
        y.mul_(3)
        y[:, 1] = x[:, 0]
        return (y**2).sum()

    graph = trace_graph(f, data(4, 3), order=0)
    assert edges(graph) == {
        "x": (), "mul": ("x",), "select": ("mul",), "add_": ("select",), "mul_": ("add_",), "select_1": ("x",),
        "select_2": ("mul_",), "copy_": ("select_2", "select_1"), "pow": ("copy_",), "sum": ("pow",), "output": ("sum",),
    }  # fmt: skip
    assert graph["add_"].bytes == graph["select"].bytes == 0
    assert graph["mul"].bytes == 4 * 3 * 8


def test_an_argument_that_is_written_into_can_be_differentiated_by() -> None:
    x = data(3)
    kept = x.clone()
    graph = trace_graph(lambda x: x.mul_(2).sin().sum(), x)
    assert graph["gradient by x"].outputs[0].high == pytest.approx(float((2 * torch.cos(2 * kept)).max()), rel=1e-13)
    assert torch.equal(x, kept)


def test_detached_values_are_seen_where_the_user_detaches_only() -> None:
    graph = trace_graph(lambda x: (x.tanh().detach() * x).sum(), data(4), order=1)
    assert edges(graph)["detach"] == ("tanh",)
    assert graph["mul"].inputs == ("detach", "x")
    assert "detach" not in edges(trace_graph(lambda x: x.tanh().sum(), data(4)))


def test_a_gradient_within_the_function_is_a_backward_pass() -> None:
    def penalty(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        return (slope**2).sum()

    graph = trace_graph(penalty, data(3).requires_grad_(), order=1)
    assert {node.phase for node in graph.nodes if node.kind == "op"} == {"forward", "backward", "double backward"}
    source = line_of("(slope,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)")
    assert {node.source.line for node in graph.nodes if node.source and node.phase == "double backward"} == {source}


def test_checkpoints_run_again_in_the_backward_pass() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
    graph = trace_graph(lambda x: checkpoint(net, x, use_reentrant=False).sum(), torch.randn(2, 3))  # pyright: ignore
    found = [(node.phase, node.module) for node in graph.nodes if node.op == "aten.addmm.default"]
    assert found == [("forward", "net.0"), ("backward", "net#2.0")]
    assert graph["tanh_backward"].module == "net.1"


def test_which_output_is_differentiated() -> None:
    x = data(3)
    summed = trace_graph(lambda x: x**2, x)
    assert any("its sum was differentiated" in note for note in summed.notes)
    assert summed["gradient by x"].outputs[0].high == pytest.approx(2 * float(x.max()), rel=1e-14)
    named = trace_graph(lambda x: {"logits": x, "loss": (x**2).sum()}, x)
    assert [node.name for node in named.nodes if node.name.startswith("cotangent")] == ["cotangent of loss"]
    first = trace_graph(lambda x: ((x**2).sum(), x), x)
    assert any("the output '0' alone" in note for note in first.notes)
    seeded = trace_graph(lambda x: x**2, x, cotangent=torch.full((3,), -5.0, dtype=torch.float64))
    assert seeded["gradient by x"].outputs[0].low == pytest.approx(-10 * float(x.max()), rel=1e-14)
    part = trace_graph(lambda x: {"a": x, "b": x**2}, x, cotangent={"b": torch.ones(3, dtype=torch.float64)})
    assert [node.name for node in part.nodes if node.name.startswith("cotangent")] == ["cotangent of b"]


def test_what_is_differentiated_by() -> None:
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    weights = {"gradient by weight", "gradient by bias"}

    def gradients(graph: TracedGraph) -> set[str]:
        return {node.name for node in graph.nodes if node.kind == "gradient"}

    assert gradients(trace_graph(net, x)) == weights
    assert gradients(trace_graph(net, x, argnums=0)) == weights | {"gradient by input"}
    assert gradients(trace_graph(net, x.clone().requires_grad_())) == weights | {"gradient by input"}
    assert gradients(trace_graph(lambda a, n: (a["w"] * n).sum(), {"w": x}, torch.arange(3))) == {"gradient by a.w"}
    scale = torch.ones(3, requires_grad=True)
    assert gradients(trace_graph(lambda x: (x * scale).sum(), x)) == {"gradient by scale"}


UNUSED = nn.Linear(2, 2)


def test_what_no_gradient_reaches_is_said_of_what_takes_part_only() -> None:
    used = nn.Linear(3, 2)

    def f(x: Tensor, y: Tensor) -> Tensor:
        return used(x).sum() if len(x) else UNUSED(x)

    x = torch.randn(4, 3)
    assert not [note for note in trace_graph(f, x, x).notes if "reaches" in note]
    assert "no gradient reaches y" in trace_graph(f, x, x + 1, argnums=(0, 1)).notes
    twice = trace_graph(lambda a, b: (a * b).sum(), x, x)
    assert twice["mul"].inputs == ("a",)
    assert twice["gradient by a"].outputs[0].high == pytest.approx(2 * float(x.max()))
    net = Net()
    net.extra = nn.Linear(2, 2)  # pyright: ignore
    assert "no gradient reaches extra.weight, extra.bias" in trace_graph(net, x).notes
    assert "no gradient reaches net.extra.weight, net.extra.bias" in trace_graph(lambda x: net(x).sum(), x).notes


@pytest.mark.parametrize(
    ("f", "found"),
    [
        (lambda i: i + 1, "no output depends"),
        (lambda i: None, "no output is a tensor (but NoneType)"),
        (lambda i: "text", "no output is a tensor (but str)"),
    ],
)
def test_nothing_to_differentiate_is_said(f: Any, found: str) -> None:
    graph = trace_graph(f, torch.arange(3))
    assert [note for note in graph.notes if found in note]
    assert {node.phase for node in graph.nodes} <= {"forward"}
    assert all(line.strip() for line in str(graph).splitlines())


def test_wrong_calls_are_refused() -> None:
    x = data(3)
    with pytest.raises(StructureError, match=r"(?s)the class ReLU.*ReLU\(\.\.\.\)"):
        trace_graph(nn.ReLU, x)
    with pytest.raises(StructureError, match=r"(?s)a Tensor.*the function first"):
        trace_graph(x, torch.sin)  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match=r"output \[3\] for \[2\]"):
        trace_graph(lambda x: x**2, x, cotangent=torch.ones(2))
    with pytest.raises(StructureError, match="no output 'b'"):
        trace_graph(lambda x: {"a": x**2}, x, cotangent={"b": x})
    with pytest.raises(StructureError, match="1 positional"):
        trace_graph(lambda x: x, x, argnums=1)
    with pytest.raises(LeafError, match="no floating-point"):
        trace_graph(lambda i: i, torch.arange(3), argnums=0)
    with pytest.raises(LeafError, match="lazy"):
        trace_graph(nn.LazyLinear(3), x)
    with pytest.raises(ZeroDivisionError):
        trace_graph(lambda x: x / (1 // 0), x)


def test_nothing_is_changed() -> None:
    net = Net().train()
    net.head.weight.grad = torch.full((2, 4), 7.0)
    x, state = torch.randn(5, 3), {name: value.clone() for name, value in net.state_dict().items()}
    versions = [p._version for p in net.parameters()]

    def step(x: Tensor) -> Tensor:
        net.eval()
        x.mul_(2)
        random.random(), np.random.rand()  # pyright: ignore
        loss = F.dropout(net.train()(x), 0.5).square().mean()
        loss.backward(retain_graph=True)
        return loss

    kept, draws = x.clone(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())  # pyright: ignore
    trace_graph(step, x, order=1)
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), draws[0])
    assert random.getstate() == draws[1]
    assert np.array_equal(np.random.get_state()[1], draws[2])  # pyright: ignore
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [p._version for p in net.parameters()] == versions
    assert net.training
    assert net.body.training
    assert torch.equal(net.head.weight.grad, torch.full((2, 4), 7.0))
    assert net.head.bias.grad is None
    assert not nn.modules.module._global_forward_hooks


def test_no_tensor_is_kept_alive() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def f(x: Tensor) -> Tensor:
        y = x.sin()
        seen.append(weakref.ref(y))
        return y.sum()

    graph = trace_graph(f, data(4), order=2)
    gc.collect()
    assert seen[0]() is None
    assert len(graph) > 5


def test_nonfinite_values_are_told_from_masks() -> None:
    def f(x: Tensor, mask: Tensor) -> Tensor:
        scores = x.masked_fill(mask, float("-inf"))
        return (torch.softmax(scores, -1) * (x - 5).log()).sum()

    x, mask = torch.rand(3, 4), torch.ones(3, 4).triu(1).bool()
    graph = trace_graph(f, x, mask, order=0)
    assert [node.name for node in graph.bad] == ["log", "mul", "sum", "output"]
    assert graph["masked_fill"].meant
    assert graph["masked_fill"].outputs[0].infs == 6
    assert graph["log"].outputs[0].nans == 12
    given = trace_graph(lambda x, m: torch.softmax(x + m, -1).sum(), x, torch.zeros(3, 4).masked_fill(mask, -torch.inf))
    assert not given.bad
    assert given["m"].meant
    assert trace_graph(lambda x: x.sum(), torch.tensor([1.0, torch.inf])).bad[0].name == "x"


def test_whole_numbers_have_ranges_too() -> None:
    graph = trace_graph(nn.Embedding(10, 4), torch.tensor([[7, 2, 5]]), order=0)
    assert (graph["input"].outputs[0].low, graph["input"].outputs[0].high) == (2.0, 7.0)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.sparse_coo_tensor(torch.tensor([[0, 1], [1, 2]]), x[:2, 0], (3, 3)).to_dense().sum(),
        lambda x: torch.fft.fft(x).abs().sum(),
        lambda x: torch.vmap(lambda row: row.sin().sum())(x).sum(),
        lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1].sum(),
        lambda x: x.to(torch.float8_e4m3fn).float().sum(),
        lambda x: (x.sum() * 0).item() + x.new_zeros(0).sum() + x.sum(),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_unusual_tensors_pass(f: Any) -> None:
    graph = trace_graph(f, torch.randn(4, 3), order=2)
    assert "gradient by x" in edges(graph)


def test_marks_of_profilers_and_questions_for_sizes_are_no_ops() -> None:
    linear = nn.Linear(3, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(linear.parameters())

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = linear(x).sum()
        loss.backward()
        optimizer.step()  # marks its time for profilers
        return loss

    assert not [op for op in trace_graph(step, data(4, 3)).counts if op.startswith("profiler")]
    rows = torch.nested.nested_tensor([data(2, 3), data(4, 3)], layout=torch.jagged)
    graph = trace_graph(lambda rows: rows.sin() * 2, rows)
    assert set(graph.counts) == {"aten.sin.default", "aten.mul.Tensor", "aten.cos.default"}


def test_a_subclass_of_tensor_is_differentiated_by() -> None:
    rows = torch.nested.nested_tensor([data(2, 3), data(4, 3)], layout=torch.jagged)
    graph = trace_graph(lambda rows: rows.sin(), rows)
    assert "gradient by rows" in edges(graph)
    assert not rows.requires_grad


def test_fused_kernels_are_plain_at_second_order_only() -> None:
    q = torch.randn(2, 4, 5, 8)
    first = trace_graph(lambda q: F.scaled_dot_product_attention(q, q, q).sum(), q)
    second = trace_graph(lambda q: F.scaled_dot_product_attention(q, q, q).sum(), q, order=2)
    assert first.find("scaled_dot_product")
    assert not second.find("_scaled_dot_product_flash")
    assert "Hessian x gradient by q" in edges(second)


def test_the_same_run_gives_the_same_graph() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    x = torch.randn(2, 3, 8)
    first, second = trace_graph(layer, x), trace_graph(layer, x)
    assert first.nodes == second.nodes
    assert first.to_dot() == second.to_dot()
    assert first.to_html() == second.to_html()


def test_titles() -> None:
    assert trace_graph(nn.Linear(2, 2), torch.ones(1, 2)).title == "Linear"
    assert trace_graph(product, data(4, 3), data(3, 2)).title == "product"
    assert trace_graph(lambda x: x.sum(), data(3)).title.startswith("lambda at test_graph.py:")


def test_a_write_into_a_view_is_differentiated_at_its_line() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        y[0].mul_(x[1])
        return y.sum()

    graph = trace_graph(f, data(4, 3))
    (write,) = (node for node in graph.nodes if node.op == "aten.mul_.Tensor")
    made = [node for node in graph.nodes if node.partner == write.name]
    assert "aten.mul.Tensor" in {node.op for node in made}
    assert {node.source for node in made} == {write.source}
    assert write.source is not None
    assert write.source.line == line_of("y[0].mul_(x[1])")


def test_a_backward_pass_that_fails_is_drawn_as_far_as_it_came() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 2
        y[0].mul_(y[1])
        return (y**2).sum()

    graph = trace_graph(f, data(4, 3))
    assert any("the backward pass stops short" in note and "inplace" in note for note in graph.notes)
    assert {node.phase for node in graph.nodes} == {"forward", "backward"}
    assert not [node for node in graph.nodes if node.kind == "gradient"]

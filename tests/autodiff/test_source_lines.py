"""Ops lead back to the user's lines: forward, backward, of any order, in threads and below torch.func."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hesse.autodiff.source_lines import Place, SourceMap, Spot, place_of, user_frame, user_stack

HERE = __file__


class Places(TorchDispatchMode):
    """Notes the place of every op."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.map = SourceMap(**options)
        self.seen: list[tuple[str, Place]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append((func.overloadpacket.__name__, self.map.place()))
        return func(*args, **(kwargs or {}))

    def lines(self, op: str, phase: str) -> set[str]:
        """The texts of the lines that ran this op in this phase."""
        return {text(place) for name, place in self.seen if name == op and place.phase == phase}


def text(place: Place) -> str:
    assert place.source is not None
    assert place.source.file == HERE
    with open(HERE, encoding="utf-8") as file:
        return file.read().splitlines()[place.source.line - 1].strip()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 3 * ctx.saved_tensors[0].square()


LINEAR = nn.Linear(3, 4)


def program(x: Tensor) -> Tensor:
    y = LINEAR(x)
    y = y.tanh()
    z = y.sin()
    return z.exp().sum()


def variable(*shape: int) -> Tensor:
    return torch.linspace(0.1, 0.9, torch.Size(shape).numel()).reshape(shape).requires_grad_()


def test_the_frame_is_the_users() -> None:
    frame = user_frame()
    assert frame is not None
    assert (frame.file, frame.function) == (HERE, "test_the_frame_is_the_users")
    assert str(frame) == f"{HERE}:{frame.line} in test_the_frame_is_the_users"
    inner = (lambda: user_stack())()
    assert [frame.function.rpartition(".")[2] for frame in inner[:2]] == ["<lambda>", "test_the_frame_is_the_users"]


def test_calls_through_libraries_are_the_users_lines() -> None:
    with Places() as places:
        program(variable(2, 3))
    assert places.lines("addmm", "forward") == {"y = LINEAR(x)"}
    assert places.lines("tanh", "forward") == {"y = y.tanh()"}


@pytest.mark.parametrize("op, line", [("addmm", "y = LINEAR(x)"), ("tanh", "y = y.tanh()"), ("exp", "return z.exp().sum()")])
def test_backward_ops_have_the_forward_line(op: str, line: str) -> None:
    x = variable(2, 3)
    with Places() as places:
        torch.autograd.grad(program(x), x)
    assert places.lines(op, "forward") == {line}
    backward = {"addmm": "mm", "tanh": "tanh_backward", "exp": "expand"}[op]
    assert places.lines(backward, "backward") == {line}
    assert all(place.phase == "backward" for name, place in places.seen if name == "ones_like")


def test_double_backward_has_the_forward_line() -> None:
    x = variable(2, 3)
    with Places() as places:
        (grad,) = torch.autograd.grad(program(x), x, create_graph=True)
        seen = len(places.seen)
        torch.autograd.grad(grad.square().sum(), x)
    places.seen = places.seen[seen:]
    assert places.lines("neg", "backward") == {"z = y.sin()"}
    assert places.lines("tanh_backward", "backward") == {"y = y.tanh()"}
    assert places.lines("pow", "forward") == {"torch.autograd.grad(grad.square().sum(), x)"}


def test_forward_over_reverse_by_torch_func() -> None:
    with Places() as places:
        torch.func.hessian(program)(variable(2, 3))
    assert places.lines("tanh", "forward") == {"y = y.tanh()"}
    assert places.lines("tanh_backward", "backward") == {"y = y.tanh()"}
    assert places.lines("neg", "backward") == {"z = y.sin()"}


def test_the_users_own_backward_has_its_own_line() -> None:
    x = variable(3)
    with Places() as places:
        torch.autograd.grad(Cube.apply(x.sin()).sum(), x)
    assert places.lines("pow", "backward") == {"return grads[0] * 3 * ctx.saved_tensors[0].square()"}
    assert places.lines("cos", "backward") == {"torch.autograd.grad(Cube.apply(x.sin()).sum(), x)"}


def test_checkpoints_run_the_users_lines_again() -> None:
    x = variable(2, 3)
    with Places() as places:
        checkpoint(program, x, use_reentrant=False).backward()
    assert places.lines("tanh", "forward") == {"y = y.tanh()"}
    assert places.lines("tanh", "backward") == {"y = y.tanh()"}
    assert places.lines("tanh_backward", "backward") == {"y = y.tanh()"}


def test_assignments_have_their_line() -> None:
    x = variable(4)
    with Places() as places:
        y = x * 2
        y[1:3] = x[0]
        z = y.exp()
        torch.autograd.grad(z.sum(), x)
    assert places.lines("zeros_like", "backward") == {"y[1:3] = x[0]"}
    assert places.lines("select_backward", "backward") == {"y[1:3] = x[0]"}


def test_a_forward_pass_not_seen_has_the_line_that_started_the_pass() -> None:
    x = variable(2, 3)
    result = program(x)
    with Places() as places:
        torch.autograd.grad(result, x)
    assert places.lines("tanh_backward", "backward") == {"torch.autograd.grad(result, x)"}


def test_stacks_only_when_asked_for() -> None:
    x = variable(2, 3)
    with Places() as short, Places(stacks=True) as long:
        torch.autograd.grad(program(x), x)
    assert [len(place.stack) for _, place in short.seen] == [1] * len(short.seen)
    place = next(place for name, place in long.seen if name == "tanh_backward")
    assert [frame.function for frame in place.stack[:2]] == ["program", "test_stacks_only_when_asked_for"]


def test_two_threads_keep_their_lines() -> None:
    wrong: list[Place] = []

    def work(count: int) -> None:
        x = variable(2, 3)
        with Places() as places:
            for _ in range(count):
                torch.autograd.grad(program(x), x)
        if places.lines("tanh_backward", "backward") != {"y = y.tanh()"}:
            wrong.append(places.seen[0][1])

    threads = [threading.Thread(target=work, args=(count,)) for count in (20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_map_in_two_threads() -> None:
    shared, results = SourceMap(), {}

    def work(name: str, op: Any) -> None:
        x = variable(3)
        with Places() as places:
            places.map = shared
            for _ in range(20):
                torch.autograd.grad(op(x), x)
        results[name] = places

    def sines(x: Tensor) -> Tensor:
        return x.sin().sum()

    def logs(x: Tensor) -> Tensor:
        return x.double().log().sum()

    threads = [threading.Thread(target=work, args=("sines", sines)), threading.Thread(target=work, args=("logs", logs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results["sines"].lines("cos", "backward") == {"return x.sin().sum()"}
    assert results["logs"].lines("div", "backward") == {"return x.double().log().sum()"}


def test_a_thread_after_another_has_lines_of_its_own() -> None:
    """It may get the identifier of the one that ended, and counts its nodes anew."""
    shared = SourceMap()
    found: list[Places] = []

    def work(op: Any) -> None:
        x = variable(3)
        with Places() as places:
            places.map = shared
            for _ in range(20):
                torch.autograd.grad(op(x), x)
        found.append(places)

    def sines(x: Tensor) -> Tensor:
        return x.sin().sum()

    def logs(x: Tensor) -> Tensor:
        return x.double().log().sum()

    for op in (sines, logs):
        thread = threading.Thread(target=work, args=(op,))
        thread.start()
        thread.join()
    assert found[0].lines("cos", "backward") == {"return x.sin().sum()"}
    assert found[1].lines("div", "backward") == {"return x.double().log().sum()"}



def test_a_stack_ends_with_the_users_outermost_frame() -> None:
    stack = user_stack()
    assert stack[0].file == stack[-1].file == __file__  # neither pytest nor what started it


class Spots(Places):
    """Notes the spot of every op, and looks them up at the end."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.later.append((func.overloadpacket.__name__, self.map.spot()))
        return func(*args, **(kwargs or {}))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.later: list[tuple[str, Spot | Place]] = []

    def look(self) -> Spots:
        """Look all of them up."""
        self.seen = [(name, place_of(where)) for name, where in self.later]
        return self


def test_spots_lead_to_the_same_places() -> None:
    x = variable(2, 3)

    def step() -> None:
        y = x * 2
        y[1:2] = x[0]
        (grad,) = torch.autograd.grad(program(y) + Cube.apply(x).sum(), x, create_graph=True)
        checkpoint(program, grad, use_reentrant=False).backward()

    places, spots = Places(stacks=True), Spots(stacks=True)
    for mode in (places, spots):
        x.grad = None
        with mode:
            step()
    spots.look()
    assert [name for name, _ in spots.seen] == [name for name, _ in places.seen]
    for (name, found), (_, expected) in zip(spots.seen, places.seen, strict=True):
        assert found == expected, name


def test_functions_without_source_have_their_bare_name() -> None:
    text = "def outer():\n    def inner(x):\n        return x.sin()\n    return inner\n"
    space: dict[str, Any] = {}
    exec(compile(text, "<no such file>", "exec"), space)
    with Spots() as spots:
        space["outer"]()(torch.ones(2))
    place = spots.look().seen[-1][1]
    assert place.source == ("<no such file>", 3, "inner")

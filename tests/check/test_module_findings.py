"""Each thing that can be wrong with a module is found, and named by the comparison that shows it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hesse.check.module import check_module


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Layer(nn.Module):
    """``sin(x W^T)``."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3, seed=5))

    def forward(self, x):
        return torch.sin(x @ self.weight.mT)


def checks(module: nn.Module, level: str = "full", **options: Any) -> set[str]:
    """The names of the comparisons that failed."""
    report = check_module(module, draw(4, 3), level=level, **options)
    assert report.verdict == ("wrong" if report.findings else report.verdict)
    return {finding.check for finding in report.findings}


class Linear(torch.autograd.Function):
    """A linear map; `change` sees context, cotangent and both gradients."""

    @staticmethod
    def forward(ctx, x, weight, change):
        ctx.save_for_backward(x, weight)
        ctx.change, ctx.weight = change, weight
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return *ctx.change(ctx, g, g @ weight, g.mT @ x), None


class Changed(Layer):
    """A linear layer with something wrong in its backward pass."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x):
        return Linear.apply(x, self.weight, self.change)


def test_the_changed_layer_is_sound_without_a_change() -> None:
    assert not checks(Changed(lambda ctx, g, a, b: (a, b)))


def assigns(ctx, g, a, b):
    ctx.weight.grad = b.detach()
    return a, None


def test_a_gradient_that_is_assigned_is_no_gradient() -> None:
    assert "accumulation into .grad" in checks(Changed(assigns), "quick")


class ClearsGrad(Layer):
    def forward(self, x):
        self.weight.grad = None
        return super().forward(x)


def test_a_forward_pass_that_clears_gradients() -> None:
    assert "accumulation into .grad twice" in checks(ClearsGrad(), "quick")


def test_a_hook_that_halves_what_is_accumulated() -> None:
    module = Layer()
    module.weight.register_post_accumulate_grad_hook(lambda p: p.grad.mul_(0.5))
    assert "accumulation into .grad" in checks(module, "quick")


def test_a_hook_that_changes_the_gradient() -> None:
    module = Layer()
    module.weight.register_hook(lambda g: 2 * g)
    assert "gradients of parameters with hooks" in checks(module, "quick")


class InEval(Layer):
    """Right in training mode only; as a whole by a constant, so that no value shows it."""

    def forward(self, x):
        y = super().forward(x)
        return y if self.training else 0.5 * y + 0.5 * y.detach()


@pytest.mark.parametrize("training", [True, False])
def test_both_modes_are_checked(training: bool) -> None:
    found = checks(InEval().train(training), "quick")
    assert any("reverse mode" in check for check in found)
    assert any(check.startswith("eval mode: ") for check in found) == training


class Frozen(Layer):
    """The input has no gradient where the weight is frozen."""

    def forward(self, x):
        return super().forward(x) if self.weight.requires_grad else super().forward(x.detach())


def test_subsets_of_requires_grad() -> None:
    assert "only 'inputs.0' requires gradients" in checks(Frozen(), "quick")


class OnePass(torch.autograd.Function):
    """Counts each weight once a backward pass."""

    @staticmethod
    def forward(ctx, x, weight, owner):
        ctx.save_for_backward(x, weight)
        ctx.owner = owner
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        task, ctx.owner.task = ctx.owner.task, torch._C._current_graph_task_id()
        return g @ weight, g.mT @ x * float(task != ctx.owner.task), None


class Owner:
    task = -1

    def __deepcopy__(self, memo):
        return self


class CountsOnce(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.owner = Owner()

    def forward(self, x):
        return OnePass.apply(x, self.weight, self.owner)


def test_shared_parameters_get_both_gradients() -> None:
    found = checks(CountsOnce())
    assert {"two modules that share parameters", "update of shared parameters", "two calls in one graph"} <= found


class Shrinks(Layer):
    """Writes to its weight: something else each time, or the same."""

    def __init__(self, write) -> None:
        super().__init__()
        self.write = write

    def forward(self, x):
        self.write(self.weight.data)
        return super().forward(x)


class WritesInput(Layer):
    def forward(self, x):
        y = super().forward(x)
        x.data.mul_(0.5)
        return y


def test_mutation() -> None:
    report = check_module(WritesInput(), draw(4, 3))
    assert ("unchanged by the forward pass", "inputs.0") in {(f.check, f.leaf) for f in report.findings}
    assert checks(Changed(lambda ctx, g, a, b: (g.mul_(0.5) @ ctx.weight, b)), "quick") >= {"cotangent unchanged"}
    assert checks(Changed(_writes_weight), "quick") == {"parameters unchanged"}
    for write in (lambda w: w.mul_(0.9), lambda w: w.clamp_(-0.3, 0.3)):
        assert checks(Shrinks(write), "quick") == {"parameters unchanged"}


def _writes_weight(ctx, g, a, b):
    ctx.weight.data.mul_(1.5)
    return a, b


class Counter(Layer):
    """Another value at each call."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


def test_non_determinism_is_told_from_dropout() -> None:
    assert checks(Counter()) == {"non-determinism"}
    report = check_module(nn.Sequential(Layer(), nn.Dropout(0.5)), draw(4, 3))
    assert report.ok
    assert any("draws random numbers" in note for note in report.notes)


class Closure(Layer):
    """Computes with the weight that it was made with, in every copy."""

    def __init__(self) -> None:
        super().__init__()
        self.function = Holder(self.weight)

    def forward(self, x):
        return torch.sin(self.function(x))


class Holder:
    def __init__(self, weight) -> None:
        self.weight = weight

    def __call__(self, x):
        return x @ self.weight.mT

    def __deepcopy__(self, memo):
        return self


def test_a_copy_that_computes_with_the_original() -> None:
    assert "deepcopy: gradients" in checks(Closure(), "quick")


class LosesScale(Layer):
    """A file of it lacks the scale."""

    scale = 1.0

    def forward(self, x):
        return self.scale * super().forward(x)

    def __reduce_ex__(self, protocol):
        return (LosesScale, ())

    def __deepcopy__(self, memo):
        own = LosesScale()
        own.scale = self.scale
        own.weight = copy.deepcopy(self.weight, memo)
        return own.train(self.training)


def test_what_comes_back_from_a_file() -> None:
    module = LosesScale()
    module.scale = 2.0
    assert {"pickle: outputs", "torch.save and torch.load: outputs"} <= checks(module)


class Stale(Layer):
    """Keeps the weight's norm of its first call."""

    def forward(self, x):
        norm = self.__dict__.setdefault("norm", self.weight.detach().norm())
        return super().forward(x) / norm


class Unsaved(Layer):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].detach() * 1.1


@pytest.mark.parametrize("module", [Stale, Unsaved])
def test_states(module) -> None:
    found = checks(module(), "quick")
    assert "state_dict into another copy: outputs" in found


class Updates(Layer):
    """Keeps the transposed weight of its last training-mode version number, which an update in place of `.data` leaves."""

    def forward(self, x):
        kept = self.__dict__.get("kept")
        if kept is None or kept[0] != len(x):
            kept = self.__dict__["kept"] = (len(x), self.weight.detach().clone())
        return torch.sin(x @ (self.weight - self.weight.detach() + kept[1]).mT)


def test_a_module_that_does_not_follow_its_updates() -> None:
    assert "outputs after an update" in checks(Updates())


class Remembers(Layer):
    """Everything that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return super().forward(x)


class Tires(Layer):
    """The input's gradient is halved from the sixtieth call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x if self.calls < 60 else 0.5 * x + 0.5 * x.detach())


def test_repeats() -> None:
    assert "memory" in checks(Remembers())
    assert any(check.endswith(" repeats") for check in checks(Tires()))


class Reuses(Layer):
    """Hands out one buffer as the weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = torch.zeros(2, 3, dtype=torch.float64)

    def forward(self, x):
        return Linear.apply(x, self.weight, lambda ctx, g, a, b: (a, self.buffer.copy_(b.detach())))


def test_gradients_of_earlier_passes() -> None:
    assert "gradients of an earlier pass" in checks(Reuses())


class ByRows(torch.autograd.Function):
    """A linear map whose weight's gradient takes four rows for granted, with a rule for `vmap` that is `factor` times right."""

    @staticmethod
    def forward(x, weight, factor):
        return x @ weight.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.mT @ x * (4 / len(x) if len(x) else 1.0), None

    @staticmethod
    def vmap(info, dims, x, weight, factor):
        return factor * torch.einsum("kni,oi->kno", x.movedim(dims[0], 0), weight), 0


class FourRows(Layer):
    factor = 1.0

    def forward(self, x):
        return ByRows.apply(x, self.weight, self.factor)


class Batched(FourRows):
    factor = 1.5


def test_batch_sizes() -> None:
    found = checks(FourRows())
    assert {"3 rows: gradients", "1 row: gradients", "5 rows: gradients"} <= found
    assert "rows in another order: gradients" not in found


class NoRows(torch.autograd.Function):
    """The weight's gradient is not finite without rows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.mT

    @staticmethod
    def backward(ctx, g):
        x, weight = ctx.saved_tensors
        return g @ weight, g.mT @ x + torch.tensor(0.0 if len(x) else float("nan"))


class Empty(Layer):
    def forward(self, x):
        return NoRows.apply(x, self.weight)


def test_no_rows() -> None:
    assert "no rows" in checks(Empty())


def test_vmap() -> None:
    assert "vmap: outputs" in checks(Batched())


class Strided(Layer):
    """Reads its input as if it were contiguous."""

    def forward(self, x):
        return super().forward(torch.as_strided(x, x.shape, (x.shape[1], 1), x.storage_offset()))


def test_strides() -> None:
    report = check_module(Strided(), draw(4, 3), level="full")
    wrong = {(finding.check, finding.leaf) for finding in report.findings}
    assert ("transposed input", "inputs.0") in wrong
    assert ("offset input", "inputs.0") not in wrong


class Scaled(nn.Module):
    """A buffer that takes part with half of its derivative."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(draw(3, seed=5))
        self.register_buffer("scale", draw(3, seed=6))

    def forward(self, x):
        scale = self.factor * self.scale + (1 - self.factor) * self.scale.detach()
        return x * scale * self.weight


def test_buffers() -> None:
    report = check_module(Scaled(0.5), draw(4, 3), level="full")
    assert [(f.check, f.leaf) for f in report.findings] == [("buffers", "scale")]
    assert check_module(Scaled(1.0), draw(4, 3), level="full").ok
    report = check_module(Scaled(0.0), draw(4, 3), level="full")
    assert report.ok
    assert any("depend on buffer 'scale'" in note for note in report.notes)


class WithDiagonal(nn.Module):
    """``tanh(x W^T)`` and the diagonal of its Gauss-Newton matrix, in closed form."""

    def __init__(self, wrong: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3, seed=5))
        self.wrong = wrong

    def forward(self, x):
        return torch.tanh(x @ self.weight.mT)

    def own_diagonal(self, x):
        slope = (1 - self(x).square()).square().detach()
        return {"weight": slope.mT @ x.square() * self.wrong, "inputs.0": slope @ self.weight.detach().square()}


class UnderItsName(WithDiagonal):
    def diag_hessian(self, x):
        return self.own_diagonal(x)


def test_the_diagonal_of_the_module() -> None:
    for wrong in (1.0, 1.001):
        expected = set() if wrong == 1.0 else {"Gauss-Newton diagonal"}
        module = WithDiagonal(wrong)
        assert checks(module, "quick", diagonal=module.own_diagonal) == expected
        assert checks(UnderItsName(wrong), "quick") == expected
    rows = check_module(UnderItsName(), draw(4, 3)).compared
    assert [row.count for row in rows if row.check == "Gauss-Newton diagonal"] == [2]

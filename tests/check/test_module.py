"""Sound modules pass, in every form in which modules come; the budgets of the levels hold; nothing of the user's changes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hesse.check import CheckReport
from hesse.check.check_report import WrongDerivativeError
from hesse.check.module import assert_module, check_module
from hesse.core.errors import LeafError, NonFiniteError, StructureError


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def _seeded():
    state = torch.get_rng_state()
    torch.manual_seed(7)
    yield
    torch.set_rng_state(state)


class Counted(nn.Module):
    """Counts the calls of all its instances."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2).double()

    def forward(self, x):
        Counted.calls += 1
        return self.inner(x)


class Dictionary(nn.Module):
    """Keyword inputs, a mask, a scale that is a Python number; a dict with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(3, 2, seed=1))

    def forward(self, x, *, mask, scale=1.0):
        y = (x * mask) @ self.weight * scale
        return {"main": torch.tanh(y), "parts": (y.sum(1), mask.sum())}


class Output:
    def __init__(self, value) -> None:
        self.value = value


class ReturnsObject(nn.Linear):
    def forward(self, input):
        return Output(super().forward(input))


class ComplexLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.complex(draw(2, 3, seed=1), draw(2, 3, seed=2)))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight.mT).abs().square() + x.sum()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 3), nn.Linear(3, 4)
        self.decoder.weight = nn.Parameter(draw(4, 3))
        self.encoder.weight = nn.Parameter(draw(3, 4))
        self.second = self.encoder

    def forward(self, x):
        return self.decoder(torch.tanh(self.second(x))) + torch.tanh(self.encoder(x)) @ self.encoder.weight


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Linear(3, 2))


def frozen() -> nn.Module:
    own = nn.Linear(3, 2)
    own.weight.requires_grad_(False)
    return own


SOUND = {
    "linear": (lambda: nn.Linear(3, 2), (draw(5, 3),), {}),
    "perceptron with dropout": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.4), nn.Sigmoid()), (draw(5, 3),), {},
    ),
    "in place": (lambda: nn.Sequential(nn.ELU(inplace=True), nn.Linear(3, 2), nn.ReLU(inplace=True)), (draw(5, 3),), {}),
    "embedding": (lambda: nn.Embedding(6, 3, padding_idx=1), (torch.tensor([[1, 4], [0, 4], [5, 1]]),), {}),
    "embedding that writes": (lambda: nn.Embedding(6, 3, max_norm=0.5), (torch.tensor([[1, 4], [0, 4], [5, 1]]),), {}),
    "embedding by frequency": (lambda: nn.Embedding(6, 3, scale_grad_by_freq=True), (torch.tensor([1, 4, 4, 0]),), {}),
    "sparse gradient": (lambda: nn.Embedding(6, 3, sparse=True), (torch.tensor([[1, 4], [0, 4]]),), {}),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()), (draw(5, 3),), {}),
    "no parameters": (lambda: nn.Softmax(dim=1), (draw(5, 3),), {}),
    "keywords and a dict": (Dictionary, (draw(4, 3),), {"mask": draw(4, 3, seed=3), "scale": 0.5}),
    "an object": (lambda: ReturnsObject(3, 2), (draw(5, 3),), {}),
    "complex": (ComplexLayer, (draw(4, 3),), {}),
    "tied": (Tied, (draw(5, 4),), {}),
    "recurrent": (lambda: nn.GRU(3, 2), (draw(4, 2, 3),), {}),
    "attention": (Attention, (draw(2, 3, 4),), {}),
    "parametrized": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(3, 2)), (draw(5, 3),), {}),
    "frozen weight": (frozen, (draw(5, 3),), {}),
    "loss": (lambda: nn.BCELoss(), (torch.sigmoid(draw(5, 3)), torch.sigmoid(draw(5, 3, seed=1))), {}),
    "labels that must stay in [0, 1]": (lambda: nn.BCELoss(), (torch.sigmoid(draw(5, 3)), torch.eye(5, 3).double()), {}),
    "labels that are compared": (lambda: nn.HingeEmbeddingLoss(), (draw(5, 3), draw(5, 3, seed=1).sign()), {}),
    "target without derivative": (lambda: nn.SoftMarginLoss(), (draw(5, 3), draw(5, 3, seed=1).sign()), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("training", [True, False])
def test_sound_modules_are_confirmed(name: str, training: bool) -> None:
    make, inputs, named = SOUND[name]
    report = check_module(make().double().train(training), *inputs, **named)
    assert not report.findings, report
    assert report.verdict == "ok", report
    assert report.evaluations <= 60


@pytest.mark.parametrize("name", ["linear", "keywords and a dict", "embedding", "tied"])
def test_sound_modules_are_confirmed_in_full(name: str) -> None:
    make, inputs, named = SOUND[name]
    report = check_module(make().double(), *inputs, level="full", **named)
    assert report.ok, report
    assert report.evaluations <= 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shorter_types_are_confirmed(dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    report = check_module(module, draw(5, 3, dtype=dtype))
    assert not report.findings, report


@pytest.mark.parametrize("make", [old_weight_norm, lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))])
def test_weight_norm_is_right_in_first_order_only(make) -> None:
    report = check_module(make().double(), draw(5, 3), level="full")
    assert {finding.check for finding in report.findings} == {"second order"}, report  # a bug of torch 2.13


def test_evaluations_are_those_that_ran() -> None:
    Counted.calls = 0
    report = check_module(Counted(), draw(5, 3))
    assert report.ok
    assert report.evaluations == Counted.calls


def test_sparse_inputs_move_where_they_store_values() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(draw(4, 2, seed=1))

        def forward(self, a):
            return torch.cos(a.to_dense()) @ self.weight

    index = torch.tensor([[0, 1, 2, 2], [1, 3, 0, 2]])
    a = torch.sparse_coo_tensor(index, draw(4), (3, 4)).coalesce()
    report = check_module(Product(), a)
    assert report.ok, report
    assert {row.leaf for row in report.compared if row.check == "reverse mode"} == {"weight", "inputs.0"}


def test_nothing_of_the_user_changes() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    grad = module[0].weight.grad = draw(4, 3, seed=9)
    x = draw(5, 3).requires_grad_()
    x.grad = draw(5, 3, seed=8)
    seen: list[int] = []
    hook = module.register_forward_hook(lambda *_: seen.append(1))
    state = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    before, rng, attributes = x.detach().clone(), torch.get_rng_state(), [sorted(vars(part)) for part in module.modules()]
    check_module(module, x, level="full")
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [part.training for part in module.modules()]
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module[0].weight.grad is grad
    assert torch.equal(grad, draw(4, 3, seed=9))
    assert module[0].bias.grad is None
    assert not module[0].bias.requires_grad
    assert torch.equal(x.detach(), before)
    assert x.grad is not None
    assert torch.equal(x.grad, draw(5, 3, seed=8))
    assert attributes == [sorted(vars(part)) for part in module.modules()]
    hook.remove()


class Uncopyable(nn.Module):
    """Counts, writes to its parameter's `.grad`-free buffer, and cannot be copied."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(2, 3))
        self.register_buffer("seen", torch.zeros(3, dtype=torch.float64))
        self.history: list[int] = [1]
        self.fails = fails

    def __deepcopy__(self, memo):
        raise RuntimeError("no copies")

    def forward(self, x):
        self.history.append(len(x))
        self.seen.add_(x.detach().sum(0))
        self.last = x
        if self.fails and len(self.history) > 5:
            raise KeyError("lost")
        return torch.sin(x @ self.weight.mT)


@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_module_that_cannot_be_copied_is_checked_in_place_and_put_back(level: str) -> None:
    module = Uncopyable()
    weight = module.weight.detach().clone()
    report = check_module(module, draw(5, 3), level=level)
    assert report.ok, report
    assert any("cannot be copied (RuntimeError: no copies)" in note for note in report.notes)
    assert module.history == [1]
    assert not module.seen.any()
    assert not hasattr(module, "last")
    assert torch.equal(module.weight, weight)
    assert type(module.weight) is nn.Parameter
    assert module.weight.grad is None
    assert module.weight.requires_grad


def test_it_is_put_back_when_an_exception_flies() -> None:
    module = Uncopyable(fails=True)
    module.history = [1, 1, 1, 1]
    module.weight.grad = draw(2, 3, seed=4)
    report = _report_or_error(module)
    assert not isinstance(report, CheckReport) or not report.ok
    assert module.history == [1, 1, 1, 1]
    assert not module.seen.any()
    assert torch.equal(module.weight.grad, draw(2, 3, seed=4))


def _report_or_error(module: nn.Module) -> CheckReport | Exception:
    try:
        return check_module(module, draw(5, 3))
    except KeyError as error:
        return error


def test_bad_input_is_refused() -> None:
    linear, x = nn.Linear(3, 2).double(), draw(5, 3)
    with pytest.raises(StructureError, match="two levels"):
        check_module(linear, x, level="slow")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match=r"takes an nn\.Module"):
        check_module(torch.sin, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(LeafError, match="no floating-point parameter"):
        check_module(nn.Embedding(4, 2).requires_grad_(False), torch.tensor([1]))
    with pytest.raises(NonFiniteError, match="NaN or infinity in the output"):
        check_module(linear, x * float("nan"))
    with pytest.raises(StructureError, match="without a tensor of floating-point numbers"):
        check_module(Argmax(), x)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        check_module(linear, draw(5, 4))


class Argmax(nn.Module):
    def forward(self, x):
        return x.argmax(1)


def test_assert_module_raises_with_the_report() -> None:
    assert_module(nn.Linear(3, 2).double(), draw(5, 3))
    with pytest.raises(WrongDerivativeError, match="Detached was to be confirmed"):
        assert_module(Detached(3, 2).double(), draw(5, 3))


class Detached(nn.Linear):
    def forward(self, input):
        return input @ self.weight.detach().mT + self.bias


def test_generators_draw_the_directions() -> None:
    module, x = nn.Linear(3, 2).double(), draw(5, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    errors = [[row.error for row in check_module(module, x, generator=g).compared] for g in generators]
    assert errors[0] == errors[1]
    assert errors[0] != errors[2]


def test_whole_numbers_are_held_only_where_the_module_jumps() -> None:
    signs = draw(5, 3, seed=1).sign()
    report = check_module(nn.HingeEmbeddingLoss(), draw(5, 3), signs)
    assert any("held: inputs.1" in note and "jumps" in note for note in report.notes)
    assert {row.leaf for row in report.compared if row.check == "reverse mode"} == {"inputs.0"}
    report = check_module(nn.MSELoss(), draw(5, 3), signs)
    assert not any("held" in note for note in report.notes)
    assert {row.leaf for row in report.compared if row.check == "reverse mode"} == {"inputs.0", "inputs.1"}


def test_the_reproducer_shows_the_finding_once_the_module_is_filled_in(capsys: pytest.CaptureFixture[str]) -> None:
    module = Detached(3, 2).double()
    code = check_module(module, draw(5, 3)).reproducer
    assert code.count("module = ...  # fill in: Detached, .train()") == 1
    exec(code.replace("module = ...", "module = own"), {"own": module})
    gradient, difference = (float(line.split()[1]) for line in capsys.readouterr().out.splitlines())
    assert gradient == 0
    assert abs(difference) > 1e-2

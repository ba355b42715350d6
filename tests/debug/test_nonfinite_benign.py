"""What is meant, cleaned, overwritten or of no use raises no alarm; the same programs with their cleaning taken away do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hesse.debug import find_nonfinite

REAL = torch.float64
HIDDEN = torch.ones(3, 3, dtype=torch.bool).triu(1)


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=REAL, requires_grad=True)


def masked_attention() -> None:
    scores = torch.randn(3, 3, dtype=REAL, requires_grad=True)
    mask = torch.full((3, 3), -torch.inf, dtype=REAL).triu(1)
    (scores + mask).softmax(-1).square().sum().backward()
    scores.masked_fill(HIDDEN, -torch.inf).logsumexp(-1).sum().backward()


def module_masks() -> Tensor:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False, False, False, True, True], [False] * 5])
    out = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(5), src_key_padding_mask=padding)
    out.sum().backward()
    return out


def cleaned_value() -> Tensor:
    return torch.nan_to_num(leaf(-1.0, 4.0).detach().log(), nan=0.0).sum()


def cleaned_by_where() -> Tensor:
    y = leaf(-1.0, 4.0).detach().sqrt()
    return torch.where(y.isnan(), torch.zeros_like(y), y).sum()


def doubly_guarded_where() -> None:
    x = leaf(0.0, 4.0)
    safe = torch.where(x > 0, x, torch.ones_like(x))
    torch.where(x > 0, safe.sqrt(), torch.zeros_like(x)).sum().backward()


def cleaned_gradient() -> Tensor:
    x = leaf(0.0, 4.0)
    h = x.sqrt()
    h.register_hook(lambda g: g.clone())
    (g,) = torch.autograd.grad(h.sum(), x)
    return torch.nan_to_num(g, posinf=0.0)


def mean_of_what_is_known() -> Tensor:
    return torch.tensor([1.0, float("nan"), 2.0]).nanmean()


def overwritten() -> Tensor:
    y = torch.full((4,), -1.0).sqrt()
    y.copy_(torch.ones(4))
    z = torch.full((2, 2), torch.nan)
    z[:] = 3.0
    return y.sum() + z.sum()


def first_of_a_minimum() -> Tensor:
    best = torch.full((3,), torch.inf)
    for _ in range(3):
        best = torch.minimum(best, torch.randn(3))
    return best


def not_used() -> Tensor:
    x = leaf(-1.0, 4.0)
    x.log().sum()
    loss = x.square().sum()
    loss.backward()
    return loss


def a_test_for_nan() -> Tensor:
    y = leaf(-1.0, 4.0).detach().log()
    return y[~torch.isnan(y)].sum() + torch.isinf(y).sum()


def log_probabilities_returned() -> Tensor:
    return torch.randn(3, 3).masked_fill(HIDDEN, -torch.inf)


def filled_memory() -> Tensor:
    out = torch.empty(3, 2)
    for i in range(3):
        out[i] = float(i)
    return out.sum() + torch.add(torch.ones(2), 1.0, out=torch.empty(2)).sum()


def gradient_of_no_use() -> None:
    net, x = nn.Linear(2, 1), torch.tensor([[0.0, 1.0]], requires_grad=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    grads = torch.autograd.grad(net(x.sqrt()).sum(), [*net.parameters(), x])
    for p, g in zip(net.parameters(), grads[:2], strict=True):
        p.grad = g
    optimizer.step()


def ctc() -> None:
    scores = torch.randn(10, 2, 5, dtype=REAL).log_softmax(-1).requires_grad_()
    F.ctc_loss(scores, torch.tensor([[1, 2, 3], [4, 4, 1]]), torch.tensor([10, 10]), torch.tensor([3, 3])).backward()


BENIGN = [
    masked_attention, module_masks, cleaned_value, cleaned_by_where, doubly_guarded_where, cleaned_gradient,
    mean_of_what_is_known, overwritten, first_of_a_minimum, not_used, a_test_for_nan, log_probabilities_returned, filled_memory,
    gradient_of_no_use, ctc,
]  # fmt: skip


@pytest.fixture
def garbage_is_nan() -> Iterator[None]:
    """Fresh memory holds NaN, as PyTorch fills it in deterministic mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("step", BENIGN, ids=lambda step: step.__name__)
def test_no_alarm(step: Callable[[], object], garbage_is_nan: None) -> None:
    torch.manual_seed(0)
    report = find_nonfinite(step)
    assert not report.found, str(report)
    assert report.error is None


def test_the_same_without_the_cleaning() -> None:
    def trap() -> None:
        x = leaf(0.0, 4.0)
        torch.where(x > 0, x.sqrt(), torch.zeros_like(x)).sum().backward()

    def row_without_a_place() -> Tensor:
        return torch.zeros(2, 3).masked_fill(torch.tensor([[True] * 3, [False] * 3]), -torch.inf).softmax(-1)

    def late() -> Tensor:
        y = torch.full((4,), -1.0).sqrt()
        y[:3] = 1.0
        return y

    def unfilled() -> Tensor:
        torch.use_deterministic_algorithms(True)
        try:
            out = torch.empty(3)
        finally:
            torch.use_deterministic_algorithms(False)
        out[:2] = 1.0
        return out.sum()

    steps = {
        "div": trap, "log": lambda: leaf(-1.0, 4.0).detach().log(), "_softmax": row_without_a_place, "sqrt": late,
        "empty": unfilled,
    }  # fmt: skip
    for op, step in steps.items():
        report = find_nonfinite(step)
        assert report.found, op
        assert report.op.split(".")[1] == op


@pytest.mark.parametrize("when", ["data", "forward"])
def test_states_that_were_spoilt_before_the_step(when: str) -> None:
    """A buffer that holds infinities from the start is its owner's affair; one that the step spoils is found."""
    norm = nn.BatchNorm1d(2)
    running: Tensor = norm.running_var  # pyright: ignore
    x = torch.randn(4, 2)
    if when == "forward":
        x = x * 1e30
        report = find_nonfinite(lambda: (norm(x).detach(), None)[1])
        assert (report.found, report.sink) == (True, "state buffer running_var")
        assert running.isinf().all()
    else:
        running.fill_(torch.inf)
        assert not find_nonfinite(lambda: x.sum()).found

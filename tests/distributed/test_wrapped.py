"""Wrapped models: the module inside is taken, under its own names, and the wrapper does not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import hesse
from hesse.core.errors import UnsupportedError

from .oracles import gauss_newton, gradients, hessian
from .ranks import run_ranks


class Model(nn.Module):
    """A weight used twice, a bias, running statistics, a frozen scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.second = nn.Linear(4, 4, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 3)
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(x)))
        return self.last(self.norm(self.second(torch.tanh(h))))


def model_of() -> Model:
    torch.manual_seed(3)
    model = Model().double()
    model.norm.running_mean = torch.randn(4, dtype=torch.float64)
    model.norm.running_var = torch.rand(4, dtype=torch.float64) + 0.5
    return model.eval()


def data_of(seed: int = 0, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (count,), generator=generator)


def require_right(wrapped: nn.Module, bare: nn.Module) -> None:
    """Quantities of every engine against loops over the bare module."""
    x, t = data_of()
    rows = gradients(bare, F.cross_entropy, x, t)
    J = hesse.parameter_jacobian(wrapped, F.cross_entropy, (x, t))
    assert list(J.in_space.names) == [name for name, p in bare.named_parameters() if p.requires_grad]
    torch.testing.assert_close(J.norms(), rows.norm(dim=1))
    torch.testing.assert_close(J.gram(), rows @ rows.T)
    for operator, oracle in (
        (hesse.loss_hessian(wrapped, F.cross_entropy, (x, t)), hessian(bare, F.cross_entropy, x, t)),
        (hesse.ggn(wrapped, F.cross_entropy, (x, t)), gauss_newton(bare, F.cross_entropy, x, t)),
        (hesse.fisher(wrapped, F.cross_entropy, (x, t), kind="empirical"), rows.T @ rows / len(x)),
    ):
        torch.testing.assert_close(hesse.dense(operator), oracle)
    assert isinstance(hesse.kfac(wrapped, F.cross_entropy, (x, t)).mass, float)


def snapshot(model: nn.Module) -> list[Tensor]:
    return [leaf.clone() for leaf in model.state_dict().values()]


def on_one_rank(rank: int) -> list[tuple[str, Tensor]]:
    bare = model_of()
    wrapped = DistributedDataParallel(copy.deepcopy(bare))
    fired: list[int] = []
    wrapped.register_comm_hook(fired, comm)
    before = snapshot(wrapped)
    if rank == 0:  # the other one does not take part: whatever communicated would wait for it
        require_right(wrapped, bare)
    assert not fired and all(p.grad is None for p in wrapped.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(wrapped), strict=True))
    x, t = data_of(rank)
    F.cross_entropy(wrapped(x), t).backward()
    assert fired
    return [(name, p.grad) for name, p in wrapped.module.named_parameters() if p.grad is not None]


def comm(fired: list[int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Notes a reduction, and averages."""
    fired.append(1)
    work = torch.distributed.all_reduce(bucket.buffer().div_(2), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


comm.__annotations__ = {"bucket": torch.distributed.GradBucket, "return": torch.futures.Future[Tensor]}  # PyTorch reads them


def test_ddp_is_the_module_inside_and_trains_on() -> None:
    first, second = run_ranks(on_one_rank, 2, group_timeout=20)
    bare = model_of()
    sum((F.cross_entropy(bare(x), t) / 2 for x, t in (data_of(0), data_of(1))), torch.zeros(())).backward()
    for (name, a), (_, b) in zip(first, second, strict=True):
        own = bare.get_parameter(name).grad
        assert own is not None
        torch.testing.assert_close(a, own)
        assert torch.equal(a, b)


def compiled_copies(model: nn.Module) -> nn.Module:
    inner: Any = torch.compile(model)
    return nn.DataParallel(inner)


def twice(module: nn.Module, inputs: Any, output: Any) -> Any:
    return 2 * output


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, compiled_copies],
                         ids=["data-parallel", "compiled", "both"])  # fmt: skip
def test_wrappers_of_one_process(wrap: Callable[[nn.Module], nn.Module]) -> None:
    bare = model_of()
    require_right(wrap(copy.deepcopy(bare)), bare)


def test_wrappers_that_compute_something_else_are_refused() -> None:
    x, t = data_of()
    hooked = nn.DataParallel(model_of())
    hooked.register_forward_hook(twice)
    with pytest.raises(UnsupportedError, match="DataParallel with forward hooks"):
        hesse.ggn(hooked, F.cross_entropy, (x, t))
    inside = nn.Sequential(nn.Linear(5, 3).double(), nn.DataParallel(nn.Linear(3, 3).double()))
    with pytest.raises(UnsupportedError, match="'1' is a DataParallel, whose forward pass communicates"):
        hesse.ggn(inside, F.cross_entropy, (x, t))


def refused_by_rank(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    x, t = data_of()
    mixed = DistributedDataParallel(model_of())
    mixed.mixed_precision = "a policy"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UnsupportedError, match="DistributedDataParallel with mixed_precision=a policy"):
        hesse.ggn(mixed, F.cross_entropy, (x, t))
    flattened = FullyShardedDataParallel(model_of(), device_id=torch.device("cpu"), use_orig_params=True)
    with pytest.raises(UnsupportedError, match=r"the model is a FullyShardedDataParallel(?s:.*)fully_shard"):
        hesse.ggn(flattened, F.cross_entropy, (x, t))


def test_ranks_refuse_mixed_precision_and_flattened_parameters() -> None:
    run_ranks(refused_by_rank, 2)

"""Models sharded over ranks against loops over one process's copy of them."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F

import hesse
from hesse.core.errors import DataError, DistributedError, HesseError, MemoryBudgetError, StructureError, UnsupportedError
from hesse.core.wrapped import sharded_leaves
from hesse.distributed import count_traffic, gram, spread
from hesse.distributed.sharded_model import gathered
from hesse.distributed.sharded_vectors import gather, shard, sharded

from .oracles import gauss_newton, gradients, hessian
from .ranks import run_ranks

ALL = os.environ.get("HESSE_TEST_ALL", "") not in ("", "0")


class Model(nn.Module):
    """Blocks of their own, one called by another method, a tied weight, statistics and a frozen scale; no axis is even."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.block = Block()
        self.norm = nn.BatchNorm1d(7)
        self.last = nn.Linear(7, 3)
        self.norm.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.block.encode(torch.tanh(self.first(x)))))


class Block(nn.Module):
    """A square weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(7, 7)
        self.two = nn.Linear(7, 7, bias=False)
        self.two.weight = self.one.weight

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.two(torch.tanh(self.one(x))))

    forward = encode


def model_of() -> Model:
    torch.manual_seed(5)
    model = Model().double().eval()
    model.norm.running_mean = torch.randn(7, dtype=torch.float64)
    model.norm.running_var = torch.rand(7, dtype=torch.float64) + 0.5
    return model


def fsdp_of(bare: nn.Module) -> Any:
    model: Any = copy.deepcopy(bare)
    fully_shard(model.first)
    fully_shard(model.block)
    register_fsdp_forward_method(model.block, "encode")
    return fully_shard(model)


def data_of(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    count = 4 + rank
    return torch.randn(count, 5, dtype=torch.float64, generator=generator), torch.randint(3, (count,), generator=generator)


def flat(vector: Any) -> Tensor:
    return torch.cat([leaf.reshape(-1) for leaf in vector.values()])


def require_local(model: Any, bare: nn.Module, rank: int) -> None:
    """What a rank computes of its own data."""
    x, t = data_of(rank)
    rows = gradients(bare, F.cross_entropy, x, t)
    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, t))
    torch.testing.assert_close(J.norms(), rows.norm(dim=1))
    torch.testing.assert_close(J.dense(), rows)
    v = J.in_space.normal()
    for operator, oracle in (
        (hesse.loss_hessian(model, F.cross_entropy, (x, t)), hessian(bare, F.cross_entropy, x, t)),
        (hesse.ggn(model, F.cross_entropy, (x, t)), gauss_newton(bare, F.cross_entropy, x, t)),
        (hesse.fisher(model, F.cross_entropy, (x, t), kind="empirical"), rows.T @ rows / len(x)),
    ):
        torch.testing.assert_close(flat(operator @ v), oracle @ flat(v))
        torch.testing.assert_close(hesse.diagonal(operator), oracle.diagonal())


def layouts(model: nn.Module) -> dict[str, Any]:
    return {name: leaf.placements for name, leaf in sharded_leaves(model)}


def fully_sharded(rank: int) -> None:
    bare = model_of()
    model = fsdp_of(bare)
    hooks = [list(part._forward_pre_hooks.values()) + list(part._forward_hooks.values()) for part in model.modules()]
    names = {name for name, _ in sharded_leaves(model)}
    assert names == {name for name, _ in bare.named_parameters()}
    x, t = data_of(rank)
    with pytest.raises(UnsupportedError, match=r"'first.weight' is sharded over ranks(?s:.*)gathered\(model\)"):
        hesse.ggn(model, F.cross_entropy, (x, t))
    pair = gathered(model)
    require_local(pair, bare, rank)
    require_local(gathered(model, example=x), bare, rank)
    assert hooks == [list(part._forward_pre_hooks.values()) + list(part._forward_hooks.values()) for part in model.modules()]
    assert all(isinstance(p, DTensor) and p.grad is None for p in model.parameters())
    F.cross_entropy(model(x), t).backward()  # trains on as it would
    own = gradients_over_ranks(bare)
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad.full_tensor(), own[name])
    model(x)  # leaves the root gathered
    assert isinstance(model.last.weight, nn.Parameter) and not isinstance(model.last.weight, DTensor)
    assert {name for name, _ in sharded_leaves(model)} == names
    pair = gathered(model)
    model.reshard()  # frees what the root held
    require_local(pair, bare, rank)
    with torch.no_grad():
        model(x)
    part = dict(sharded_leaves(model))["last.bias"].to_local()
    if rank == 0:
        part.data += 1
    with pytest.raises(UnsupportedError, match=r"'last.bias' was changed(?s:.*)reshard\(\)"):
        gathered(model)
    model.reshard()
    assert not torch.equal(gathered(model)[1]["last.bias"], bare.last.bias)


def gradients_over_ranks(bare: nn.Module) -> dict[str, Tensor]:
    bare = copy.deepcopy(bare)
    for rank in range(dist.get_world_size()):
        x, t = data_of(rank)
        (F.cross_entropy(bare(x), t) / dist.get_world_size()).backward()
    return {name: p.grad for name, p in bare.named_parameters() if p.grad is not None}


def vectors(rank: int) -> None:
    bare = model_of()
    model = fsdp_of(bare)
    x, t = data_of(0)
    pair = gathered(model)
    A = hesse.ggn(pair, F.cross_entropy, (x, t))
    oracle = gauss_newton(bare, F.cross_entropy, x, t)
    S = sharded(A, model)
    v, V = A.in_space.normal(), A.in_space.normal(3)
    placed = shard(v, model)
    assert {name: leaf.placements for name, leaf in placed.items()} == {name: layouts(model)[name] for name in placed}
    assert all(torch.equal(leaf, v[name]) for name, leaf in gather(placed).items())
    assert all(leaf.to_local().untyped_storage().nbytes() < v[name].nbytes for name, leaf in placed.items())
    product = S @ placed
    assert {name: leaf.placements for name, leaf in product.items()} == {name: leaf.placements for name, leaf in placed.items()}
    torch.testing.assert_close(flat(gather(product)), oracle @ flat(v))
    torch.testing.assert_close(flat(gather(S.T @ placed)), oracle.T @ flat(v))
    torch.testing.assert_close(flat(S @ v), oracle @ flat(v))
    rows = shard(V, model)
    assert rows["first.weight"].placements == (Shard(1),)  # axis 0 counts the vectors
    block = gather(S @ rows)
    torch.testing.assert_close(A.in_space.ravel(block, 1), A.in_space.ravel(V, 1) @ oracle.T)
    solution = hesse.solve(S + 0.1 * hesse.identity(S.in_space), gather(placed))
    torch.testing.assert_close(flat(solution), torch.linalg.solve(oracle + 0.1 * torch.eye(len(oracle)), flat(v)))
    some = hesse.ggn(pair, F.cross_entropy, (x, t), params=["last.weight"])
    assert set(sharded(some, model) @ shard({"last.weight": v["last.weight"]}, model)) == {"last.weight"}
    local = sharded(hesse.ggn(pair, F.cross_entropy, data_of(rank)), model)
    with pytest.raises(DistributedError, match=r"rank 1 differs from rank 0 at 'first.weight' and 6 more"):
        assert local @ placed
    with pytest.raises(StructureError, match=r"'first.weight' \(5,\): \(7, 5\) there"):
        shard({"first.weight": torch.zeros(5, dtype=torch.float64)}, model)
    with pytest.raises(StructureError, match="no such leaf there"):
        sharded(A, {"other": placed["last.weight"]})
    with pytest.raises(StructureError if rank else DistributedError, match="is a tree of tensors"):
        shard({"last.weight": 3.0 if rank else v["last.weight"]}, model)
    with pytest.raises(StructureError if rank else DistributedError, match="no such leaf there"):
        shard({"none" if rank else "last.weight": v["last.weight"]}, model)
    assert torch.equal(gather(shard(v, model))["last.weight"], v["last.weight"])
    with pytest.raises(UnsupportedError, match="from parameters to parameters"):
        sharded(hesse.parameter_jacobian(pair, F.cross_entropy, (x, t)), model)


class Pair(nn.Module):
    """Two layers as tensor parallelism cuts them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(5, 8)
        self.down = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def pair_of() -> Pair:
    torch.manual_seed(7)
    return Pair().double()


def over_all_data(rank: int, ranks: int) -> None:
    """Each rank its own data, parameters, vectors and results sharded: the matrices of all data."""
    bare = model_of()
    model = fsdp_of(bare)
    pair = gathered(model)
    batches = [data_of(other) for other in range(ranks)]
    x, t = (torch.cat(parts) for parts in zip(*batches, strict=True))
    rows = gradients(bare, F.cross_entropy, x, t)
    mine = spread([data_of(rank)], timeout=30)
    for operator, oracle in (
        (hesse.loss_hessian(pair, F.cross_entropy, mine), hessian(bare, F.cross_entropy, x, t)),
        (hesse.ggn(pair, F.cross_entropy, mine), gauss_newton(bare, F.cross_entropy, x, t)),
        (hesse.fisher(pair, F.cross_entropy, mine, kind="empirical"), rows.T @ rows / len(x)),
    ):
        v = operator.in_space.normal()
        product = sharded(operator, model) @ shard(v, model)
        assert all(isinstance(leaf, DTensor) for leaf in product.values())
        torch.testing.assert_close(flat(gather(product)), oracle @ flat(v))
    for make in (hesse.kfac, hesse.ekfac):
        torch.testing.assert_close(
            hesse.dense(make(pair, F.cross_entropy, mine)), hesse.dense(make(bare, F.cross_entropy, batches))
        )
    with count_traffic() as traffic:
        gather(shard(pair[1], model))
    whole = sum(leaf.nbytes for leaf in pair[1].values())
    assert traffic.by_name["gather"][1] == pytest.approx(whole * (ranks - 1) / ranks)


def tensor_parallel(rank: int) -> None:
    bare = pair_of()
    mesh = init_device_mesh("cpu", (2,))
    model = parallelize_module(copy.deepcopy(bare), mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    x = data_of(rank)[0]
    same = data_of(0)[0]
    with pytest.raises(UnsupportedError, match="hooks of tensor parallelism at 'up'"):
        gathered(model)
    require_local(gathered(model, example=same), bare, rank)
    wrong = parallelize_module(copy.deepcopy(bare), mesh, {"up": Doubling(), "down": RowwiseParallel()})
    with pytest.raises(UnsupportedError, match="its output on the example is another one"):
        gathered(wrong, example=same)
    columns = copy.deepcopy(bare)
    columns.up.weight = nn.Parameter(distribute_tensor(bare.up.weight.detach(), mesh, [Shard(1)]))
    columns.up.bias = nn.Parameter(distribute_tensor(bare.up.bias.detach(), mesh, [Replicate()]))
    pair = gathered(columns)
    require_local(pair, bare, rank)
    with pytest.raises(StructureError, match="a DTensor as input"):
        pair[0](pair[1], distribute_tensor(x, mesh, [Replicate()]))
    with pytest.raises(UnsupportedError, match="lives in its process"):
        copy.deepcopy(pair[0])
    with pytest.raises(UnsupportedError, match=r"'up.weight' is sharded over ranks(?s:.*)distributed.gather"):
        hesse.ggn((pair[0], dict(columns.named_parameters())), F.cross_entropy, data_of(rank))
    sharded_leaves_are_named(bare, mesh, data_of(rank))


def sharded_leaves_are_named(bare: nn.Module, mesh: Any, batch: tuple[Tensor, Tensor]) -> None:
    """Vectors, inputs and targets that are sharded, where tensors of one process are needed."""
    x, t = batch
    cut_x, cut_t = (distribute_tensor(leaf, mesh, [Shard(0)], src_data_rank=None) for leaf in batch)
    for make in (hesse.ggn, hesse.loss_hessian, hesse.fisher, hesse.kfac, hesse.ekfac, hesse.parameter_jacobian):
        for data, where in (((cut_x, t), "input"), ((x, cut_t), "target"), ([(x, t), (x, cut_t)], "DTensor at '1'|target"),
                            ([(x, t), ({"x": [cut_x]}, t)], "at '0.x.0'|input 'x.0'")):  # fmt: skip
            with pytest.raises(DataError, match=rf"({where})(?s:.*)to_local\(\), or .full_tensor"):
                hesse.dense(make(bare, F.cross_entropy, data))
    G, J = hesse.ggn(bare, F.cross_entropy, batch), hesse.parameter_jacobian(bare, F.cross_entropy, batch)
    over = hesse.ggn(bare, F.cross_entropy, spread([batch], timeout=30))
    v = G.in_space.normal()
    cut = v | {"down.weight": distribute_tensor(v["down.weight"], mesh, [Shard(0)], src_data_rank=None)}
    flat_cut = distribute_tensor(flat(v), mesh, [Replicate()], src_data_rank=None)
    S = sharded(G, {name: distribute_tensor(leaf, mesh, [Shard(0)], src_data_rank=None) for name, leaf in v.items()})
    for ask in (lambda: G @ cut, lambda: over @ cut, lambda: J @ cut, lambda: (G + 2 * hesse.identity(G.in_space)) @ cut,
                lambda: hesse.solve(G + hesse.identity(G.in_space), cut),
                lambda: hesse.solve(S + hesse.identity(S.in_space), cut)):  # fmt: skip
        with pytest.raises(StructureError, match=r"a DTensor at 'down.weight'(?s:.*)distributed.gather\(vector\)"):
            ask()
    for operator in (G, over, S):
        with pytest.raises(StructureError, match=r"a DTensor(?s:.*)full_tensor"):
            operator.flat @ flat_cut
    weights: Any = distribute_tensor(torch.ones(len(batch[0]), dtype=torch.float64), mesh, [Replicate()], src_data_rank=None)
    for rows in (J, hesse.parameter_jacobian(bare, F.cross_entropy, [batch])):
        for weigh in (lambda rows=rows: rows.clipped_sum(1.0, weights=weights), lambda rows=rows: rows.T @ weights):
            with pytest.raises(StructureError, match=r"a DTensor(?s:.*)full_tensor"):
                weigh()
    with pytest.raises(StructureError, match="a DTensor"):
        same = hesse.parameter_jacobian(bare, F.cross_entropy, data_of(0))
        gram(same, out=distribute_tensor(torch.zeros(4, 4), mesh, [Shard(0)], src_data_rank=None))


def two_axes(rank: int) -> None:
    """Four ranks: replicated groups of shards, and shards of what tensor parallelism has cut."""
    bare, x = pair_of(), data_of(0)[0]
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    hybrid: Any = fully_shard(copy.deepcopy(bare), mesh=mesh)
    cut = parallelize_module(copy.deepcopy(bare), mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    both: Any = fully_shard(cut, mesh=mesh["data"])
    for model in (hybrid, both):
        pair = gathered(model, example=x)
        require_local(pair, bare, rank)
        A = hesse.ggn(pair, F.cross_entropy, data_of(0))
        oracle = gauss_newton(bare, F.cross_entropy, *data_of(0))
        v = A.in_space.normal()
        placed = shard(v, model)
        assert {name: leaf.placements for name, leaf in placed.items()} == layouts(model)
        assert all(torch.equal(leaf, v[name]) for name, leaf in gather(placed).items())
        torch.testing.assert_close(flat(gather(sharded(A, model) @ placed)), oracle @ flat(v))
        local = sharded(hesse.ggn(pair, F.cross_entropy, data_of(rank)), model)
        with pytest.raises(DistributedError, match="differs from rank 0"):
            assert local @ placed


class Doubling(ColwiseParallel):
    """Does more than to redistribute."""

    @staticmethod
    def _prepare_input_fn(
        input_layouts: Any, desired_input_layouts: Any, mod: Any, inputs: Any, device_mesh: Any
    ) -> Any:
        return ColwiseParallel._prepare_input_fn(input_layouts, desired_input_layouts, mod, (2 * inputs[0],), device_mesh)


def refusals(rank: int) -> list[HesseError]:
    found: list[HesseError] = []
    bare = model_of()
    half: Any = fully_shard(copy.deepcopy(bare), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    buffered = fsdp_of(bare)
    buffered.norm.running_mean = distribute_tensor(torch.zeros(7), init_device_mesh("cpu", (2,)), [Shard(0)])
    tight = fsdp_of(bare)
    for model, memory in ((half, None), (buffered, None), (tight, 2**30 if rank else 500)):
        with pytest.raises(HesseError) as caught:
            gathered(model, memory=memory)
        found.append(caught.value)
    least = found[-1].least  # pyright: ignore[reportAttributeAccessIssue]
    assert set(gathered(tight, memory=least)[1]) == {name for name, p in bare.named_parameters() if p.requires_grad}
    same: Any = fully_shard(copy.deepcopy(bare), mp_policy=MixedPrecisionPolicy(param_dtype=torch.float64))
    require_local(gathered(same), bare, rank)
    return found


def test_fully_sharded_models_equal_the_module() -> None:
    run_ranks(fully_sharded, 2)


def test_sharded_vectors_and_operators() -> None:
    run_ranks(vectors, 2)


@pytest.mark.parametrize("ranks", [2, *([3, 4] if ALL else [])])
def test_data_and_parameters_on_different_ranks(ranks: int) -> None:
    run_ranks(over_all_data, ranks, ranks)


def test_tensor_parallel_models() -> None:
    run_ranks(tensor_parallel, 2)


@pytest.mark.skipif(not ALL, reason="four processes: HESSE_TEST_ALL=1 runs it")
def test_meshes_of_two_axes() -> None:
    run_ranks(two_axes, 4)


def test_refusals_are_the_same_on_all_ranks() -> None:
    first, second = run_ranks(refusals, 2)
    assert [str(error) for error in first] == [str(error) for error in second]
    half, buffered, tight = first
    assert "mixed precision of fully_shard at the model: MixedPrecisionPolicy(param_dtype=torch.bfloat16" in str(half)
    assert "the buffer 'norm.running_mean' is sharded" in str(buffered)
    assert isinstance(tight, MemoryBudgetError) and "500 B" in str(tight)

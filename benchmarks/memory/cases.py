"""The quantities: each prepares its data, and returns what computes it. Nothing here knows of budgets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import hesse
from hesse.core.space import Space
from hesse.operators import Congruence, Dense, Function, Kronecker, LowRank, Tag
from hesse.parameters.contractions import Moments

Work = Callable[[], Any]
CASES: dict[str, Callable[[int], Work]] = {}
"""Name -> preparation, for a size: 1 is the full one, larger numbers divide it (to load what is loaded once)."""


def _case(make: Callable[[int], Work]) -> Callable[[int], Work]:
    CASES[make.__name__] = make
    return make


def _images(divisor: int, count: int = 256) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.Softplus(), nn.Conv2d(16, 16, 3, padding=1), nn.Softplus(), nn.AvgPool2d(4),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    n = max(count // divisor, 4)
    return model, nn.CrossEntropyLoss(), (torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))


def _wide(divisor: int, count: int = 4096) -> tuple[nn.Module, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    n = max(count // divisor, 4)
    return model, nn.MSELoss(), (torch.randn(n, 256), torch.randn(n, 10))


def _vector(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn_like(p) for name, p in model.named_parameters()}


def _block(model: nn.Module, count: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(count, *p.shape) for name, p in model.named_parameters()}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def _rows(quantity: Callable[[Any], Any], make: Callable[[int], Any]) -> Callable[[int], Work]:
    def prepare(divisor: int) -> Work:
        model, loss, batch = make(divisor)
        return lambda: quantity(hesse.parameter_jacobian(model, loss, batch))

    return prepare


def _scaled_alike(found: Moments) -> tuple[Tensor, Tensor]:
    """The two factors whose product is ``left (x) right / terms``, the second of norm 1: they alone are determined."""
    size = found.right.norm()
    return found.left * (size / (found.terms or 1)), found.right / size


for _name, _quantity in {
    "norms": lambda J: J.norms(),
    "gram": lambda J: J.gram(),
    "sum_of_squares": lambda J: J.sum_of_squares(),
    "clipped_sum": lambda J: J.clipped_sum(1.0),
    "variance": lambda J: J.variance(),
    "moments": lambda J: {name: _scaled_alike(m) for name, m in J.moments().items()},
    "dense": lambda J: J.dense(),
    "weighted_sum": lambda J: J.T @ torch.ones(J.shape[0]),
}.items():
    CASES[f"rows_{_name}"] = _rows(_quantity, _images)


def _curvature(make: Callable[..., Any], question: Callable[[Any, nn.Module], Any], data: Callable[[int], Any]) -> Any:
    def prepare(divisor: int) -> Work:
        model, loss, batch = data(divisor)
        return lambda: question(make(model, loss, batch), model)

    return prepare


_MATRICES: dict[str, Callable[..., Any]] = {
    "hessian": hesse.loss_hessian,
    "ggn": hesse.ggn,
    "ggn_sampled": lambda *given: hesse.ggn(*given, kind="sampled", generator=_seeded()),
    "fisher_empirical": lambda *given: hesse.fisher(*given, kind="empirical"),
}
for _name, _make in _MATRICES.items():
    CASES[f"{_name}_product"] = _curvature(_make, lambda A, model: A @ _vector(model), _images)
    CASES[f"{_name}_block"] = _curvature(_make, lambda A, model: A @ _block(model, 8), _images)
CASES["ggn_wide_product"] = _curvature(hesse.ggn, lambda A, model: A @ _vector(model), _wide)
CASES["ggn_diagonal"] = _curvature(hesse.ggn, lambda A, model: hesse.diagonal(A), _images)
CASES["ggn_trace"] = _curvature(hesse.ggn, lambda A, model: hesse.trace(A, generator=_seeded()).value, _images)
CASES["hessian_trace"] = _curvature(
    hesse.loss_hessian, lambda A, model: hesse.trace(A, rtol=0.2, generator=_seeded()).value, _images
)
CASES["ggn_eigsh"] = _curvature(hesse.ggn, lambda A, model: hesse.eigsh(A, 2, rtol=1e-2, generator=_seeded()).values, _images)
CASES["fisher_sampled_diagonal"] = _curvature(
    lambda *given: hesse.fisher(*given, kind="sampled", generator=_seeded()), lambda A, model: hesse.diagonal(A), _images
)
for _name, _make in {"kfac": hesse.kfac, "ekfac": hesse.ekfac}.items():
    CASES[_name] = _curvature(
        lambda *given, make=_make: make(*given, generator=_seeded()), lambda A, model: A @ _vector(model), _images
    )


@_case
def ggn_of_batches(divisor: int) -> Work:
    """Four batches, several products."""
    model, loss, (x, y) = _images(divisor)
    batches = list(zip(x.chunk(4), y.chunk(4), strict=True))
    v = _vector(model)

    def work() -> Any:
        matrix = hesse.ggn(model, loss, batches)
        return [matrix @ v for _ in range(3)]

    return work


@_case
def ntk(divisor: int) -> Work:
    """The whole kernel."""
    model, _, (x, _) = _images(divisor, 64)
    return lambda: hesse.ntk(model, x, outputs=[0, 1, 2]).tensor()


def _function(d: int, m: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    torch.manual_seed(0)
    W, V = torch.randn(64, d, dtype=torch.float64) / d, torch.randn(m, 64, dtype=torch.float64)
    return lambda x: torch.tanh(x @ W.mT) @ V.mT, torch.randn(d, dtype=torch.float64)


@_case
def jacobian_dense(divisor: int) -> Work:
    """3000 by 4000 numbers: 96 MB."""
    f, x = _function(4000 // divisor, 3000 // divisor)
    return lambda: hesse.jacobian(f, x, structure="dense").jacobian


@_case
def jacobian_forward(divisor: int) -> Work:
    """4000 by 3000 numbers: 96 MB."""
    f, x = _function(3000 // divisor, 4000 // divisor)
    return lambda: hesse.jacobian(f, x, structure="dense", mode="forward").jacobian


@_case
def hessian_dense(divisor: int) -> Work:
    """3000 by 3000 numbers: 72 MB."""
    f, x = _function(3000 // divisor, 40)
    return lambda: hesse.hessian(lambda p: f(p).square().sum(), x, structure="dense").hessian


@_case
def jacobian_batched(divisor: int) -> Work:
    """1024 rows of 96 by 128 numbers: 100 MB."""
    f, x = _function(128, 96)
    batch = torch.randn(1024 // divisor, 128, dtype=x.dtype)
    return lambda: hesse.jacobian(f, batch, structure="batched").jacobian


@_case
def jacobian_sparse(divisor: int) -> Work:
    """A chain of 200,000 unknowns."""
    x = torch.rand(200_000 // divisor, dtype=torch.float64)

    def work() -> Tensor:
        return hesse.jacobian(lambda p: p[1:] * p[:-1] ** 2, x, structure="sparse", layout="sparse").jacobian.values()

    return work


def _field(divisor: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    f, _ = _function(64, 64)
    return f, torch.randn(8192 // divisor, 64, dtype=torch.float64)


@_case
def divergence(divisor: int) -> Work:
    """8192 points in 64 dimensions."""
    f, x = _field(divisor)
    return lambda: hesse.divergence(f, x, structure="batched").divergence


@_case
def laplacian(divisor: int) -> Work:
    """8192 points in 64 dimensions."""
    f, x = _field(divisor)
    return lambda: hesse.laplacian(lambda p: f(p).square().sum(-1), x, structure="batched").laplacian


def _operator(divisor: int) -> Any:
    f, x = _function(max(1500 // divisor, 600), 40)  # more than what is done exactly, so that small ones go the same way
    return hesse.hessian_operator(lambda p: f(p).square().sum() + p.square().sum(), x)


_QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "dense": hesse.dense,
    "factor": lambda A: hesse.factor(A).solve(A.in_space.unravel(torch.ones(A.shape[0], dtype=torch.float64))),
    "spectrum": lambda A: hesse.spectrum(A, generator=_seeded(), atol=0.2).nodes,
    "logdet": lambda A: hesse.logdet(A, generator=_seeded()).value,
    "norm": lambda A: hesse.norm(A, generator=_seeded()).value,
    "svd": lambda A: hesse.svd(A, 2, generator=_seeded()).values,
    "diagonal": hesse.diagonal,
}
for _name, _question in _QUESTIONS.items():
    CASES[f"operator_{_name}"] = lambda divisor, ask=_question: (lambda: ask(_operator(divisor)))


@_case
def convolution_pinv(divisor: int) -> Work:
    """A kernel of 8 channels on images of 64 by 64."""
    torch.manual_seed(0)
    size = max(64 // divisor, 8)
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    A = hesse.convolution.from_module(layer, (8, size, size))
    y = torch.randn(A.out_space.shapes[0])
    return lambda: hesse.pinv(A) @ y


@_case
def divergence_hutchinson(divisor: int) -> Work:
    """64 random vectors for 8192 points in 64 dimensions."""
    f, x = _field(divisor)
    return lambda: hesse.divergence(f, x, method="hutchinson", samples=64, structure="batched")[1:]


@_case
def divergence_hutchinson_dense(divisor: int) -> Work:
    """4096 random vectors for one point in 3000 dimensions."""
    f, x = _function(3000 // divisor, 3000 // divisor)
    return lambda: hesse.divergence(f, x, method="hutchinson", samples=max(4096 // divisor, 64), structure="dense")[1:]


def _factored(make: Callable[..., Any], **options: Any) -> Callable[[int], Work]:
    return _curvature(lambda *given: make(*given, **options), lambda A, model: A @ _vector(model), _images)


CASES["kfac_expected"] = _factored(hesse.kfac, kind="expected")
CASES["kfac_empirical_reduce"] = _factored(hesse.kfac, kind="empirical", approximation="reduce")
CASES["ekfac_ggn"] = _factored(hesse.ekfac, kind="ggn")
CASES["ekfac_empirical_reduce"] = _factored(hesse.ekfac, kind="empirical", approximation="reduce")


def _flat(divisor: int) -> Any:
    """A diagonally dominant matrix of dimension 100,000, a product with which takes next to nothing."""
    dim = 100_000 // divisor
    scale = torch.linspace(1, 3, dim, dtype=torch.float64)

    def product(v: Tensor) -> Tensor:
        return scale * v + 0.1 * v.roll(1) + 0.1 * v.roll(-1)

    tags = frozenset({Tag.SYMMETRIC, Tag.HERMITIAN, Tag.PSD})
    space = Space.of(scale)
    return Function(space, space, product, tags=tags)


_ITERATIONS: dict[str, Callable[[Any], Any]] = {
    "eigsh": lambda A: hesse.eigsh(A, 4, rtol=0.05, max_products=400, on_failure="return", generator=_seeded()).values,
    "lobpcg": lambda A: hesse.eigsh(
        A, 4, method="lobpcg", rtol=0.05, max_products=400, on_failure="return", generator=_seeded()
    ).values,
    "svd": lambda A: hesse.svd(A, 4, rtol=0.1, max_products=400, on_failure="return", generator=_seeded()).values,
    "spectrum": lambda A: hesse.spectrum(A, atol=0.4, max_products=200, on_failure="return", generator=_seeded()).nodes,
    "logdet": lambda A: hesse.logdet(A, generator=_seeded()).value,
    "trace": lambda A: hesse.trace(A, rtol=1e-4, generator=_seeded()).value,
    "trace_hutchpp": lambda A: hesse.trace(
        A, method="hutch++", rtol=1e-9, max_products=150, on_failure="return", generator=_seeded()
    ).value,
    "trace_xtrace": lambda A: hesse.trace(
        A, method="xtrace", rtol=1e-9, max_products=100, on_failure="return", generator=_seeded()
    ).value,
    "diagonal_estimate": lambda A: hesse.diagonal(A, rtol=0.02, generator=_seeded()),
    "diagonal_xdiag": lambda A: hesse.diagonal(A, method="xdiag", rtol=0.2, generator=_seeded()),
    "norm_fro": lambda A: hesse.norm(A, generator=_seeded()).value,
    "condition": lambda A: hesse.condition(A, generator=_seeded(), on_failure="return").value,
}
for _name, _question in _ITERATIONS.items():
    CASES[f"flat_{_name}"] = lambda divisor, ask=_question: (lambda: ask(_flat(divisor)))

_SOLUTIONS: dict[str, Callable[[Any, Tensor], Any]] = {
    "solve": hesse.solve,
    "solve_nystrom": lambda A, b: hesse.solve(A, b, preconditioner=hesse.nystrom(A, 8, generator=_seeded())),
    "minres": lambda A, b: hesse.solve(A, b, method="minres"),
    "lsmr": lambda A, b: hesse.solve(A, b, method="lsmr"),
    "lstsq": hesse.lstsq,
    "lstsq_damped": lambda A, b: hesse.lstsq(A, b, damping=0.5),
    "pinv": lambda A, b: hesse.pinv(A) @ b,
}


def _solution(ask: Callable[[Any, Tensor], Any]) -> Callable[[int], Work]:
    """With 8 right-hand sides, which are data and not counted."""

    def prepare(divisor: int) -> Work:
        A = _flat(divisor)
        b = torch.ones(8, A.shape[1], dtype=torch.float64)
        return lambda: ask(A, b)

    return prepare


for _name, _ask in _SOLUTIONS.items():
    CASES[f"flat_{_name}"] = _solution(_ask)


def _few_rows(divisor: int) -> tuple[Any, Tensor]:
    """``0.5 I + J^T J`` with 20 rows J of 300,000 numbers, and ten right-hand sides."""
    torch.manual_seed(0)
    dim = 300_000 // divisor
    J = Dense(torch.randn(20, dim, dtype=torch.float64) / dim**0.5)
    return Congruence(J) + 0.5 * hesse.identity(J.in_space), torch.ones(10, dim, dtype=torch.float64)


@_case
def woodbury(divisor: int) -> Work:
    """A system of the size of the rows."""
    A, b = _few_rows(divisor)
    return lambda: hesse.solve(A, b, method="woodbury")


def _matrices(divisor: int) -> dict[str, Any]:
    """Operators of 3000 x 2500 numbers, 60 MB, by their structure."""
    torch.manual_seed(0)
    out, into = 3000 // divisor, 2500 // divisor
    left, right = torch.randn(out, 40, dtype=torch.float64), torch.randn(into, 40, dtype=torch.float64)
    J = Dense(torch.randn(40, into, dtype=torch.float64))
    large, small = (torch.randn(*shape, dtype=torch.float64) for shape in ((out // 30, into // 50), (30, 50)))
    return {
        "lowrank": LowRank(left, None, right),
        "composed": Dense(left) @ J,
        "congruence": Congruence(J),
        "kronecker": Kronecker(large, small),
    }


for _name in _matrices(64):
    CASES[f"{_name}_dense"] = lambda divisor, kind=_name: partial(hesse.dense, _matrices(divisor)[kind])


_MORE_QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "solve": lambda A: hesse.solve(A, A.in_space.unravel(torch.ones(A.shape[0], dtype=torch.float64)), method="dense"),
    "pinv": lambda A: hesse.pinv(A, rtol=1e-6) @ A.in_space.unravel(torch.ones(A.shape[0], dtype=torch.float64)),
    "spectrum_exact": lambda A: hesse.spectrum(A, method="exact").nodes,
    "logdet_exact": lambda A: hesse.logdet(A, method="exact").value,
    "eigsh_exact": lambda A: hesse.eigsh(A, 4, method="exact").values,
    "svd_exact": lambda A: hesse.svd(A, 4, method="exact").values,
    "norm_exact": lambda A: hesse.norm(A, method="exact").value,
    "slogdet": lambda A: tuple(hesse.slogdet(A)),
}
for _name, _question in _MORE_QUESTIONS.items():
    CASES[f"operator_{_name}"] = lambda divisor, ask=_question: (lambda: ask(_operator(divisor)))


def _uneven(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Batches of 29, 31 and 17 samples in turn."""
    sizes: list[int] = []
    while sum(sizes) < len(x):
        sizes.append(min((29, 31, 17)[len(sizes) % 3], len(x) - sum(sizes)))
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def _outputs(divisor: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 256), nn.Tanh(), nn.Linear(256, 48))
    return model, torch.randn(max(96 // divisor, 4), 128)


@_case
def gram_of_batches(divisor: int) -> Work:
    """256 images in uneven batches."""
    model, loss, (x, y) = _images(divisor)
    return lambda: hesse.parameter_jacobian(model, loss, _uneven(x, y)).gram()


@_case
def norms_of_batches(divisor: int) -> Work:
    """1024 images in batches of 256."""
    model, loss, (x, y) = _images(divisor, 1024)
    batches = list(zip(x.split(256), y.split(256), strict=True))
    return lambda: hesse.parameter_jacobian(model, loss, batches).norms()


@_case
def ntk_wide(divisor: int) -> Work:
    """96 samples of 48 outputs: 85 MB."""
    model, x = _outputs(divisor)
    return lambda: hesse.ntk(model, x).tensor()


@_case
def ntk_blocks(divisor: int) -> Work:
    """The same block by block, each dropped after its part of the product with a vector."""
    model, x = _outputs(divisor)
    v = torch.randn(len(x), 48, generator=_seeded())

    def work() -> Tensor:
        product = torch.zeros_like(v)
        for rows, columns, values in hesse.ntk(model, list(x.split(len(x) // 3))).blocks():
            product[rows] += torch.einsum("ncmd,md->nc", values, v[columns])
            if rows != columns:  # of the lower triangle, whatever the blocks are
                product[columns] += torch.einsum("ncmd,nc->md", values, v[rows])
        return product

    return work


@_case
def rows_project(divisor: int) -> Work:
    """256 images, projected to 64 numbers."""
    model, loss, batch = _images(divisor)

    def work() -> Tensor:
        J = hesse.parameter_jacobian(model, loss, batch)
        return J.project(hesse.random_projection(J, 64))

    return work


@_case
def rows_to_zarr(divisor: int) -> Work:
    """Uneven batches, so that most chunks have rows of two of them."""
    model, loss, (x, y) = _images(divisor)

    def work() -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            R = hesse.parameter_jacobian(model, loss, _uneven(x, y)).to_zarr(f"{folder}/rows.zarr")
            return R[:2].clone()

    return work


@_case
def gram_to_zarr(divisor: int) -> Work:
    """4096 samples in batches of 100, in chunks of 256 KiB."""
    model, loss, (x, y) = _wide(divisor)

    def work() -> Tensor:
        batches = list(zip(x.split(100), y.split(100), strict=True))
        with tempfile.TemporaryDirectory() as folder:
            K = hesse.parameter_jacobian(model, loss, batches).gram_to_zarr(f"{folder}/gram.zarr", chunk_bytes=2**18)
            return K[:2].clone()

    return work

"""One way to project per-sample gradients, timed in a process of its own: prints one line of JSON.

Ways of hesse make the projected rows of a batch from its kept Jacobian. Those of the peers, and "dense", get the N x D matrix
of per-sample gradients (float32), which is made before the clock starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Budget, peak_growth, timing

SAMPLES = 64
WAYS = ("rows", "dense", "gaussian", "rademacher-4", "rademacher-1", "fjlt", "trak", "dattri")
MODELS = ("mlp", "cnn", "embedding")


def model_and_batch(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, inputs and labels."""
    torch.manual_seed(0)
    labels = torch.randint(10, (SAMPLES,))
    if name == "mlp":
        layers = (nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
        return nn.Sequential(*layers), torch.randn(SAMPLES, 784), labels
    if name == "cnn":
        widths, layers = (3, 32, 64, 128), []
        for into, out in itertools.pairwise(widths):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
        return nn.Sequential(*layers, *head), torch.randn(SAMPLES, 3, 32, 32), labels
    text = nn.Sequential(nn.Embedding(20_000, 64), nn.Linear(64, 64), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 64, 10))
    return text, torch.randint(20_000, (SAMPLES, 32)), labels


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The rows by loops over samples, ``[N, D]``."""
    params, rows = list(model.parameters()), []
    for i in range(len(x)):
        parts = torch.autograd.grad(F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), params)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def of_hesse(way: str, k: int, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """What is timed for a way of hesse."""
    import hesse
    from hesse.operators.projections import random_projection

    J = hesse.parameter_jacobian(model, F.cross_entropy, (x, y))
    if way == "rows":
        buffer = torch.zeros(J.shape)
        return lambda: J.dense(out=buffer)
    kind, _, nonzeros = way.partition("-")
    P = random_projection(J, k, kind=kind, seed=1, nonzeros=int(nonzeros) if nonzeros else None)  # pyright: ignore
    return lambda: J.project(P)


def of_matrix(way: str, k: int, rows: Tensor) -> Callable[[], Any]:
    """What is timed for a way that takes the matrix of gradients."""
    if way == "dense":
        stored = torch.randn(rows.shape[1], k)
        return lambda: rows @ stored
    if way == "trak":
        from trak.projectors import BasicProjector, ProjectionType  # pyright: ignore
    else:
        from dattri.func.projection import BasicProjector, ProjectionType  # pyright: ignore
    projector = BasicProjector(rows.shape[1], k, 1, ProjectionType.normal, torch.device("cpu"))
    return lambda: projector.project(rows, 0)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("k", type=int)
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, x, y = model_and_batch(args.model)

    def gradient() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()

    made: list[Callable[[], Any]] = []

    def make() -> None:
        made.append(of_hesse(args.way, args.k, model, x, y))

    def make_from(rows: Tensor) -> None:
        made.append(of_matrix(args.way, args.k, rows))

    if args.way in ("dense", "trak", "dattri"):
        rows = gradients(model, x, y)
        growth = peak_growth(lambda: (make_from(rows), made[0]()))
    else:
        gradient()
        make()
        growth = peak_growth(made[0])
    found = timing(made[0], gradient, Budget(args.seconds, 3, 20))
    print(json.dumps({"bytes": growth, "parameters": sum(p.numel() for p in model.parameters()), **asdict(found)}))


if __name__ == "__main__":
    main()

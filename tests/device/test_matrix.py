"""The matrix: every public name, four precisions, one device; beside float64 on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import hesse
from hesse.autodiff.compiled.compile_products import compile_products
from hesse.autodiff.compiled.mode import CompileNotice
from hesse.core import tree

from . import apart, cases_curvature, cases_data, cases_functions, cases_linalg
from .place import PRECISIONS, ROUNDING, Place

CASES = {**cases_curvature.CASES, **cases_linalg.CASES, **cases_functions.CASES, **cases_data.CASES}
COMPUTE_NOTHING = {"HesseError": "an error", "distributed": "tests/distributed, in processes of their own"}
DEVICE = os.environ.get("HESSE_TEST_DEVICE", "")
KIND = DEVICE.partition(":")[0]
if KIND == apart.NAME:
    apart.install()
REASON = (
    f"HESSE_TEST_DEVICE={DEVICE}, but torch finds no GPU"
    if DEVICE
    else "set HESSE_TEST_DEVICE to cuda (or cpu, or apart) to run the device matrix"
)
needs_device = pytest.mark.skipif(not DEVICE or (KIND == "cuda" and not torch.cuda.is_available()), reason=REASON)
EXCEPT = {
    ("check_operator", "autocast"): "its laws hold to the rounding of float32, and autocast computes in bfloat16",
    ("convolution", "bfloat16"): "torch.fft has no bfloat16",
    ("parameter_jacobian", "autocast"): "autocast lowers one factor of a Gram matrix, and not the other",
}
RUNS = sorted({id(run): name for name, run in reversed(CASES.items())}.values())
PAIRS = [(name, precision) for name in RUNS for precision in PRECISIONS]


def test_every_public_name_has_a_case() -> None:
    missing = set(hesse.__all__) - set(CASES) - set(COMPUTE_NOTHING)
    assert not missing, f"write a case in tests/device for {sorted(missing)}"


def numbers(result: Any) -> list[Tensor]:
    """Every number of a result, dense and in float64 on the CPU."""
    leaves = tree.leaves(result)
    dense = [leaf.to_dense() if isinstance(leaf, Tensor) and leaf.layout != torch.strided else leaf for leaf in leaves]
    return [torch.as_tensor(leaf).detach().to("cpu", torch.float64) for leaf in dense]


def on(place: Place, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CASES[name](place)


def compare(device: str, name: str, precision: str) -> str:
    """Assert that a case gives on a device what it gives in float64 on the CPU; says why it was refused, if it was."""
    expected = numbers(on(Place("cpu", torch.float64), name))
    place = Place(device, *PRECISIONS[precision])
    with place.settings():
        try:
            result = on(place, name)
        except hesse.HesseError as error:
            assert precision in ("bfloat16", "autocast"), f"refused in {precision}: {error}"
            return str(error).splitlines()[0]
    found = numbers(result)
    assert len(found) == len(expected)
    for mine, its in zip(found, expected, strict=True):
        assert mine.shape == its.shape
        allowed = ROUNDING[precision] * max(float(its.abs().max()) if its.numel() else 0.0, 1e-3)
        assert float((mine - its).abs().max() if its.numel() else 0.0) <= allowed
    return ""


@needs_device
@pytest.mark.parametrize(("name", "precision"), PAIRS if DEVICE else PAIRS[:1])
def test_as_in_float64_on_the_cpu(name: str, precision: str) -> None:
    limits = [reason for reason, names in apart.LIMITS.items() if name in names and KIND == apart.NAME]
    if KIND == apart.NAME and precision == "autocast":
        limits = ["PyTorch has no autocast there"]
    if limits or (name, precision) in EXCEPT:
        pytest.skip(EXCEPT.get((name, precision)) or limits[0])
    if refused := compare(DEVICE, name, precision):
        pytest.skip(f"refused by name: {refused}")


def test_a_sample_of_the_matrix_on_the_cpu(sweep: Callable[[Sequence[Any], int], list[Any]]) -> None:
    for name, precision in sweep([pair for pair in PAIRS if pair not in EXCEPT], 4):
        compare("cpu", name, precision)


def test_a_sample_of_the_matrix_apart_from_the_cpu(sweep: Callable[[Sequence[str], int], list[str]]) -> None:
    limited = set().union(*apart.LIMITS.values())
    names = sweep([name for name in RUNS if name not in limited], 4)
    chosen = [f"{__file__}::test_as_in_float64_on_the_cpu[{name}-float64]" for name in names]
    chosen.append(f"{__file__}::test_tensors_on_two_devices_are_refused")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *chosen]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HESSE_TEST_DEVICE": apart.NAME}
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert f"{len(chosen)} passed" in done.stdout, done.stdout[-2000:]


@pytest.mark.skipif(KIND != apart.NAME, reason="runs in a process of its own, with HESSE_TEST_DEVICE=apart")
def test_tensors_on_two_devices_are_refused() -> None:
    far, near = torch.ones(3, device=apart.NAME), torch.ones(3)
    for mixed in (lambda: far + near, lambda: torch.dot(near, far), lambda: torch.where(far > 0, far, near)):
        with pytest.raises(apart.Mixed):
            mixed()
    with pytest.raises((TypeError, RuntimeError)):
        far.numpy()
    assert (far * 2 + near[0]).cpu().tolist() == [3.0, 3.0, 3.0]


@needs_device
@pytest.mark.skipif(KIND == apart.NAME, reason="the device itself runs Python code there")
def test_python_code_in_the_threads_of_the_device_is_seen() -> None:
    factor = [2.0]

    class Scale(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return x * 1.0

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return g * factor[0]

    def scaled(x: Tensor) -> Any:
        return Scale.apply(x)

    C = compile_products(hesse.linearize(scaled, torch.ones(3, device=DEVICE)).jacobian.T)
    u = torch.ones(3, device=DEVICE)
    with pytest.warns(CompileNotice, match="runs Python code of yours: backward"):
        for _ in range(4):
            C.mv(u)
    factor[0] = 5.0
    assert C.mv(u).cpu().tolist() == [5.0, 5.0, 5.0]

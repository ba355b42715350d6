"""No false alarms: `check_module` over all stock modules, in three dtypes, three layouts and both modes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
from benchmarks.checks import stock
from benchmarks.checks.stock_entry import DTYPES, Catalog, Entry, Layout, has_layout, modes
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError

from hesse.check import CheckReport, check_module

ENTRIES = stock.catalog()
LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided", "channels last")
SEEDS = range(10)
PER_FAMILY = 2
NO_DERIVATIVE = {"Embedding(7, 3, scale_grad_by_freq=True)"}  # its gradient is divided by frequencies, on purpose


@dataclass(frozen=True)
class Case:
    """One check of one entry."""

    entry: Entry
    dtype: torch.dtype
    layout: Layout
    training: bool
    seed: int

    def __str__(self) -> str:
        mode = "train" if self.training else "eval"
        return f"{self.entry.name}, {self.dtype}, {self.layout}, {mode}, seed {self.seed}"

    def module_and_inputs(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        torch.manual_seed(self.seed)
        module = self.entry.module(self.dtype, training=self.training)
        return module, self.entry.draw(self.dtype, self.layout, torch.Generator().manual_seed(self.seed))

    def check(self) -> CheckReport:
        module, inputs = self.module_and_inputs()
        return check_module(module, *inputs, generator=torch.Generator().manual_seed(self.seed))


def cases_of(family: Callable[[Catalog], None], dtype: torch.dtype) -> list[Case]:
    add = Catalog()
    family(add)
    return [Case(entry, dtype, layout, training, seed)
            for entry in add.entries if not stock.lacks(entry, dtype) and not stock.defect(entry)
            for layout in LAYOUTS if has_layout(entry, layout)
            for training in modes(entry) for seed in SEEDS]  # fmt: skip


def has_compared_values(report: CheckReport) -> bool:
    """Whether some gradient was compared with differences, without which "ok" says nothing."""
    return any("reverse mode" in comparison.check for comparison in report.compared)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", stock.FAMILIES, ids=lambda family: family.__name__)
def test_no_false_alarm(family, dtype, sweep) -> None:
    alarms = []
    with torch.random.fork_rng():
        for case in sweep(cases_of(family, dtype), PER_FAMILY):
            report = case.check()
            if report.verdict != "ok" or not (has_compared_values(report) or case.entry.name in NO_DERIVATIVE):
                alarms.append(f"{case}\n{report}")
    assert not alarms, "\n\n".join(alarms)


def named_in(names: Iterable[str]) -> pytest.MarkDecorator:
    entries = [entry for entry in ENTRIES if entry.name.startswith(tuple(names))]
    return pytest.mark.parametrize("entry", entries, ids=lambda entry: entry.name)


@named_in((*stock.WRONG_IN_TORCH, *stock.ROUNDED_IN_TORCH))
def test_defects_of_torch_are_found(entry: Entry) -> None:
    assert Case(entry, torch.float64, "contiguous", True, 0).check().verdict == "wrong"


@named_in(stock.WRONG_IN_TORCH)
def test_defects_of_torch_are_there(entry: Entry) -> None:
    """By torch's own checker, which shares no code with the subject; a mended torch fails here."""
    module, inputs = Case(entry, torch.float64, "contiguous", True, 0).module_and_inputs()
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    names = [name for name, _ in module.named_parameters()]

    def f(*leaves: Tensor):
        parameters = dict(zip(names, leaves[len(inputs) :], strict=True))
        return torch.func.functional_call(module, parameters, leaves[: len(inputs)])

    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(f, (*inputs, *module.parameters()), check_forward_ad="options" in entry.name)


def test_the_slope_that_torch_rounds_is_a_sixth_to_eight_digits() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(nn.Hardsigmoid()(x).sum(), x)
    assert 1e-9 < float((6 * slope - 1).abs().min()) < 1e-6


@named_in(stock.NO_CHANNELS_LAST)
def test_channels_last_that_torch_cannot_pull_back(entry: Entry) -> None:
    module, (x, target) = Case(entry, torch.float64, "channels last", True, 0).module_and_inputs()
    with pytest.raises(RuntimeError, match="must be contiguous"):
        module(x.requires_grad_(), target).backward()


@named_in(stock.NO_EMPTY_BATCH)
def test_empty_batches_that_torch_cannot_pull_back(entry: Entry) -> None:
    module, (x,) = Case(entry, torch.float64, "contiguous", True, 0).module_and_inputs()
    with pytest.raises(RuntimeError):
        module(x[:0].requires_grad_()).sum().backward()


def test_every_class_that_computes_appears(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        for name, why in stock.LEFT_OUT.items():
            print(f"\n  no stock module to check: {name}, {why}", end="")
    assert set(stock.LEFT_OUT) <= set(dir(nn))
    assert not stock.computing() - stock.classes(ENTRIES)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.parametrize("entry", [e for e in ENTRIES if stock.lacks(e, torch.bfloat16)], ids=lambda entry: entry.name)
def test_what_torch_lacks(entry: Entry) -> None:
    module, inputs = Case(entry, torch.bfloat16, "contiguous", True, 0).module_and_inputs()
    with pytest.raises(NotImplementedError, match=stock.lacks(entry, torch.bfloat16)):
        module(*inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_others_run_and_give_finite_values(dtype: torch.dtype) -> None:
    """So that a report can only be right or wrong about derivatives."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for entry in ENTRIES:
            if not stock.lacks(entry, dtype):
                module, inputs = Case(entry, dtype, "contiguous", True, 0).module_and_inputs()
                values = [t for t in torch.utils._pytree.tree_leaves(module(*inputs)) if isinstance(t, Tensor)]
                assert all(value.isfinite().all() for value in values), entry.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_numbers(layout: Layout) -> None:
    for entry in ENTRIES:
        drawn = [entry.draw(torch.float32, form, torch.Generator().manual_seed(3)) for form in (layout, "contiguous")]
        assert all(torch.equal(x, plain) for x, plain in zip(*drawn, strict=True)), entry.name

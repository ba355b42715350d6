"""The first NaN that reaches a result is named by op, line, module and phase; a step keeps its effects and its hooks."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils.checkpoint import checkpoint

from hesse.debug import NonfiniteReport, find_nonfinite, watch_nonfinite

REAL = torch.float64


def code(report: NonfiniteReport) -> str:
    return linecache.getline(report.file, report.line).strip()


def leaf(*values: float) -> Tensor:
    return torch.tensor(values, dtype=REAL, requires_grad=True)


def facts(report: NonfiniteReport) -> tuple[str, str, str, str]:
    return report.op.split(".")[1] if "." in report.op else report.op, report.kind, report.phase, report.sink


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5, dtype=REAL), nn.Linear(5, 2, dtype=REAL)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second((h - h).sqrt())


def test_forward_with_module_chain_and_cone() -> None:
    x = leaf(2.0, 0.0)
    scale = leaf(3.0)

    def step() -> Tensor:
        unrelated = x.cos().sum()
        y = x.log()
        z = (y * scale).sum() + unrelated
        z.backward()
        return z

    report = find_nonfinite(step)
    assert facts(report) == ("log", "inf", "forward", "loss")
    assert code(report) == "y = x.log()"
    assert report.function.endswith("step")
    assert report.output is not None
    assert (report.output.shape, report.output.infs, report.inputs[0].low) == ((2,), 1, 0.0)
    assert [re.match(r"aten\.(\w+)", step)[1] for step in report.chain] == ["log", "mul", "sum", "add"]  # pyright: ignore
    dot = report.dot()
    assert dot.count("label=") == 5  # the input of the log, and the four ops; neither cos nor scale
    assert dot.count("color=red") == 2 * 4
    assert "cos" not in dot
    assert "inf from aten.log.default (forward), reached: loss" in str(report) == report.text


def test_backward_has_the_forward_line_and_the_module() -> None:
    net = nn.Sequential(nn.Linear(3, 3, dtype=REAL), Block())
    report = find_nonfinite(lambda: net(torch.ones(4, 3, dtype=REAL)).sum().backward())
    assert facts(report) == ("div", "inf", "backward", "gradient of 1.first.weight")
    assert code(report) == "return self.second((h - h).sqrt())"
    assert report.module == "1"
    assert report.node == "SqrtBackward0"
    assert report.title == "backward of sqrt (SqrtBackward0: aten.div.Tensor)"
    assert report.text.startswith(f"inf from {report.title}, reached: gradient of 1.first.weight")
    assert report.chain[0].startswith(f"{report.title} at ")
    assert report.title in report.dot()
    wrapped = nn.Module()
    wrapped.encoder = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity(), Block()])})
    wrapped.forward = lambda x: wrapped.encoder["layers"][1](x)  # pyright: ignore
    assert find_nonfinite(lambda: wrapped(torch.ones(4, 3, dtype=REAL)).sum().backward()).module == "encoder.layers.1"


def test_double_backward() -> None:
    x = leaf(0.0, 4.0)

    def step() -> None:
        y = x.abs() ** 1.5
        (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        grad.sum().backward()

    report = find_nonfinite(step)
    assert facts(report)[2:] == ("double backward", "gradient")
    assert re.match(r"double backward of (\w+) \((\w+): aten\.\w+\.\w+\)$", report.title)
    assert code(report) == "y = x.abs() ** 1.5"


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "Adagrad", "NAdam"])
@pytest.mark.parametrize("foreach", [False, True])
def test_an_optimizer_is_told_with_its_parameter(kind: str, foreach: bool) -> None:
    net = nn.Linear(3, 2, dtype=REAL)
    nn.init.zeros_(net.weight)
    optimizer = getattr(torch.optim, kind)(net.parameters(), lr=0.1, eps=0.0, foreach=foreach)
    x = torch.tensor([[0.0, 1.0, 2.0]], dtype=REAL)
    before = net.weight.detach().clone()

    def step() -> None:
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    report = find_nonfinite(step)
    assert (report.kind, report.phase, report.sink, report.tensor) == ("nan", "optimizer", "parameter weight", "weight")
    assert code(report) == "optimizer.step()"
    assert not torch.equal(net.weight, before)  # the step's effects stand
    assert net.weight.isnan().sum() == 2
    assert all(state["step"] == 1 for state in optimizer.state.values())


def test_an_optimizer_of_large_parameters_is_told_as_a_whole() -> None:
    net = nn.Linear(200, 130, dtype=REAL)
    nn.init.zeros_(net.weight)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1, eps=0.0)
    x = torch.ones(2, 200, dtype=REAL)
    x[:, 7] = 0.0

    def step() -> None:
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    report = find_nonfinite(step)
    assert (report.op, report.kind, report.phase) == ("torch.optim.Adam.step", "nan", "optimizer")
    assert (report.sink, report.tensor, code(report)) == ("parameter weight", "weight", "optimizer.step()")
    assert report.output is not None
    assert (report.output.nans, report.inputs[0].low, report.inputs[0].high) == (130, 0.0, 2.0)
    assert all(state["step"] == 1 for state in optimizer.state.values())
    nn.init.zeros_(net.weight)
    optimizer.param_groups[0]["eps"] = 1e-8
    assert not find_nonfinite(step).found
    optimizer.state[net.weight]["exp_avg"][3, 4] = torch.nan
    report = find_nonfinite(step)
    assert (report.op, report.phase, report.tensor) == ("input", "data", "exp_avg of weight")


def test_a_closure_is_no_part_of_the_optimizer() -> None:
    net = nn.Linear(3, 2, dtype=REAL)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1e-3, max_iter=3)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = net(torch.ones(1, 3, dtype=REAL)).square().sum()
        loss = loss / 0 if bad == len(calls) else loss
        loss = (loss - loss).sqrt() if bad < 0 else loss
        loss.backward()
        return loss

    bad = 0
    assert not find_nonfinite(lambda: optimizer.step(closure)).found
    calls.clear()
    bad = 2
    report = find_nonfinite(lambda: optimizer.step(closure))
    assert facts(report) == ("div", "inf", "forward", "loss")
    bad, net = -1, nn.Linear(3, 2, dtype=REAL)
    optimizer = torch.optim.LBFGS(net.parameters(), lr=1e-3, max_iter=3)
    report = find_nonfinite(lambda: optimizer.step(closure=closure))
    assert facts(report)[:3] == ("div", "inf", "backward")


def test_the_state_of_an_optimizer_has_a_name() -> None:
    net = nn.Linear(3, 2)
    loose = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([*net.parameters(), loose])

    def step() -> None:
        optimizer.zero_grad()
        (net(torch.ones(1, 3)) * loose).sum().backward()
        optimizer.step()

    step()
    optimizer.state[net.bias]["exp_avg_sq"].fill_(torch.nan)
    report = find_nonfinite(step)
    assert (report.phase, report.tensor) == ("data", "exp_avg_sq of bias")
    assert report.sink == "state exp_avg_sq of bias"
    optimizer = torch.optim.Adam([*net.parameters(), loose], eps=0.0)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()  # no slope for the loose one: 0 / 0
    report = find_nonfinite(step)
    assert (report.phase, report.sink, report.tensor) == ("optimizer", "parameter 2 of Adam", "parameter 2 of Adam")


def test_an_update_by_hand() -> None:
    p = nn.Parameter(torch.ones(3))

    def step() -> None:
        (p * 1e30).sum().backward()
        assert p.grad is not None
        with torch.no_grad():
            p.sub_(1e20 * p.grad)

    report = find_nonfinite(step)
    assert facts(report) == ("mul", "overflow", "optimizer", "parameter")
    assert code(report) == "p.sub_(1e20 * p.grad)"


def test_data() -> None:
    x, w = torch.tensor([1.0, float("nan")]), torch.ones(2, requires_grad=True)

    def step() -> None:
        h = x.view(2, 1)
        (h * w).sum().backward()

    report = find_nonfinite(step)
    assert facts(report) == ("input", "nan", "data", "loss")
    assert code(report) == "h = x.view(2, 1)"
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.bias.fill_(torch.nan)
    report = find_nonfinite(lambda: net(torch.ones(1, 2)).sum())
    assert (report.phase, report.tensor, report.module) == ("data", "bias", "Linear")


def test_data_that_was_cleaned_once() -> None:
    x = torch.tensor([1.0, torch.nan])

    def step() -> Tensor:
        cleaned = x.nan_to_num()
        return torch.cat([x.relu(), cleaned])

    report = find_nonfinite(step)
    assert facts(report) == ("input", "nan", "data", "returned value")
    assert code(report) == "cleaned = x.nan_to_num()"


class Bad(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([1.0, torch.nan if index == 2 else 0.0])


def test_data_from_a_worker() -> None:
    loader = torch.utils.data.DataLoader(Bad(), batch_size=4, num_workers=1)

    def step() -> list[Tensor]:
        found = []
        for batch in loader:
            found.append(batch.sum())
        return found

    report = find_nonfinite(step)
    assert facts(report) == ("input", "nan", "data", "returned value")
    assert report.output is not None
    assert report.output.shape == (4, 2)


def test_buffers_that_are_only_read() -> None:
    net = nn.BatchNorm1d(2).eval()
    assert net.running_var is not None
    net.running_var.fill_(-1.0)
    report = find_nonfinite(lambda: net(torch.ones(3, 2)))
    assert (report.kind, report.phase, report.sink) == ("nan", "forward", "returned value")
    assert [given.low for given in report.inputs] == [1.0, 1.0, 0.0, 0.0, -1.0]
    net.running_var.fill_(torch.nan)
    report = find_nonfinite(lambda: net(torch.ones(3, 2)))
    assert (report.phase, report.tensor, report.sink) == ("data", "buffer running_var", "returned value")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_overflow_is_told_from_a_pole(dtype: torch.dtype) -> None:
    large = torch.full((3,), torch.finfo(dtype).max, dtype=dtype)
    report = find_nonfinite(lambda: large * 2)
    assert facts(report) == ("mul", "overflow", "forward", "returned value")
    assert report.inputs[0].high == torch.finfo(dtype).max
    assert find_nonfinite(lambda: large.double().mul(1e300).to(dtype)).kind == "overflow"
    assert find_nonfinite(lambda: 1 / (large - large)).kind == "inf"
    assert find_nonfinite(lambda: large / torch.full_like(large, 0.25)).kind == "overflow"


def test_a_loss_that_a_mask_makes_infinite() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    hidden = torch.tensor([[True, False, False], [False, False, False]])

    def step() -> None:
        masked = scores.masked_fill(hidden, -torch.inf)
        loss = nn.functional.cross_entropy(masked, torch.tensor([0, 1]))
        loss.backward()

    report = find_nonfinite(step)
    assert (report.kind, report.sink) == ("inf", "loss")
    assert code(report) == "loss = nn.functional.cross_entropy(masked, torch.tensor([0, 1]))"


class Divide(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # pyright: ignore
        (x,) = ctx.saved_tensors
        return g / (x - x)


def test_a_custom_function_is_told_by_its_backward_line() -> None:
    x = leaf(1.0, 2.0)
    report = find_nonfinite(lambda: Divide.apply(x).sum().backward())
    assert facts(report)[1:] == ("inf", "backward", "gradient")
    assert report.title == "backward of Divide (DivideBackward: aten.div.Tensor)"
    assert code(report) == "return g / (x - x)"


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    x = leaf(1.0, 2.0)

    def block(x: Tensor) -> Tensor:
        return (x - x).sqrt()

    report = find_nonfinite(lambda: checkpoint(block, x, use_reentrant=reentrant).sum().backward())  # pyright: ignore
    assert facts(report)[:3] == ("div", "inf", "backward")
    assert code(report) == "return (x - x).sqrt()"


def test_a_scaler_skips_what_overflows() -> None:
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def step(scale: float, loss: Callable[[Tensor], Tensor]) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        scaler.scale(loss(net(x))).backward()
        scaler.step(optimizer)
        scaler.update()

    def flat(y: Tensor) -> Tensor:
        return (y - y).sqrt().sum()

    assert not find_nonfinite(lambda: step(2.0**120, lambda y: y.square().mean() * 1e10)).found
    asked = find_nonfinite(lambda: step(2.0**120, lambda y: y.square().mean() * 1e10), skipped_steps=True)
    assert asked.kind == "overflow"
    real = find_nonfinite(lambda: step(2.0**10, flat))
    assert (real.phase, code(real)) == ("backward", "return (y - y).sqrt().sum()")
    assert find_nonfinite(lambda: step(2.0**10, lambda y: y.sum() * torch.inf)).sink == "loss"


def test_compiled_regions_are_named_and_run_eagerly() -> None:
    def region(x: Tensor) -> Tensor:
        return x.log() * 2

    compiled = torch.compile(region, backend="eager")
    x = leaf(0.0, 1.0)
    assert compiled(x + 1).shape == (2,)
    report = find_nonfinite(lambda: compiled(x).sum())
    assert (code(report), report.region.rpartition(".")[2]) == ("return x.log() * 2", "region")
    assert "compiled region (run eagerly)" in report.text
    assert torch.equal(compiled(x + 1), region(x + 1))


def test_a_step_that_raises() -> None:
    x = leaf(-1.0)

    def step() -> None:
        y = x.log()
        assert torch.isfinite(y.sum()), "bad loss"

    report = find_nonfinite(step)
    assert (report.found, report.sink, code(report)) == (True, "value before the error", "y = x.log()")
    assert isinstance(report.error, AssertionError)
    assert "the step raised AssertionError: bad loss" in report.text
    fine = find_nonfinite(lambda: {}["missing"])
    assert (fine.found, type(fine.error)) == (False, KeyError)
    assert "the step raised KeyError" in str(fine)
    with pytest.raises(AssertionError), watch_nonfinite() as seen:
        step()
    assert (seen.found, code(seen)) == (True, "y = x.log()")


def test_a_hook_goes_on_stops_or_ends_the_step() -> None:
    class StopHereError(Exception):
        pass

    def ends(report: NonfiniteReport) -> None:
        raise StopHereError(report.op)

    net = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    reached: list[str] = []

    def step() -> None:
        y = net(torch.ones(1, 2))
        loss = (y - y).sqrt().sum()
        reached.append("loss")
        loss.backward()
        reached.append("gradients")
        optimizer.step()
        reached.append("end")

    with pytest.raises(StopHereError, match="div"):
        find_nonfinite(step, hook=ends)
    assert reached == ["loss", "gradients"]  # before the optimizer has spoiled the parameters
    assert torch.equal(net.weight, before)
    assert torch._C._len_torch_dispatch_stack() == 0
    told: list[NonfiniteReport] = []
    with watch_nonfinite(told.append) as report:
        step()
        net.bias.detach().log()
    assert told[0] is report
    assert len(told) == 1
    assert find_nonfinite(step, hook=lambda report: "stop").found


def test_an_event_is_saved(tmp_path: Any) -> None:
    x, w = leaf(2.0, 0.0), leaf(1.0, 0.0)
    path = tmp_path / "event.pt"

    def save(report: NonfiniteReport) -> None:
        assert report.event is not None
        report.event.save(path)

    find_nonfinite(lambda: (x / w).sum(), hook=save)
    saved = torch.load(path, weights_only=True)
    assert saved["op"] == "aten.div.Tensor"
    assert "nan from aten.div.Tensor" in saved["text"]
    assert [value.tolist() for value in saved["inputs"]] == [[2.0, 0.0], [1.0, 0.0]]
    assert saved["output"][0] == 2.0
    assert saved["output"].isnan().tolist() == [False, True]


def test_nothing_is_left_behind() -> None:
    state = torch.get_rng_state()
    x = leaf(1.0, 2.0)
    optimizer_hooks = __import__("sys").modules["torch.optim.optimizer"]
    for step in (lambda: x.sum(), lambda: 1 / 0, lambda: torch.optim.Adam([x], lr="no")):  # pyright: ignore
        find_nonfinite(step)
        assert torch._C._len_torch_dispatch_stack() == 0
        assert not hooks._global_forward_hooks
        assert not hooks._global_forward_pre_hooks
        assert not optimizer_hooks._global_optimizer_pre_hooks
        assert not optimizer_hooks._global_optimizer_post_hooks
        assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert x.grad is None


def test_an_optimizer_that_raises_is_left_whole() -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.param_groups[0]["lr"] = "no number"

    def step() -> None:
        try:
            optimizer.step()
        except Exception:
            net.bias.detach().sub(1e9).log()

    report = find_nonfinite(step)
    assert not report.found
    assert torch._C._len_torch_dispatch_stack() == 0


def test_the_same_numbers_as_without() -> None:
    def trained(watched: bool) -> list[Tensor]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.3), nn.BatchNorm1d(6), nn.Linear(6, 2))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

        def step() -> None:
            optimizer.zero_grad()
            net(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()

        for _ in range(3):
            assert not find_nonfinite(step).found if watched else step() is None
        return [*net.state_dict().values()]

    assert all(torch.equal(a, b) for a, b in zip(trained(True), trained(False), strict=True))

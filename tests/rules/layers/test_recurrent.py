"""The fused LSTM: every option by the rule, equal to loops over samples of the step by step LSTM in float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import hesse
from hesse.rules.forms import Contract, Dense
from hesse.rules.layers import Meeting, SampleAxis, layer_rules
from tests.parameters import oracle

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

NODE = "MkldnnRnnLayerBackward0"
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Options:
    """What a sequence model may be made of; `read`: what of the LSTM's results its output is."""

    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = True
    starts: bool = False
    read: str = "sequence"


class Reader(nn.Module):
    """An LSTM on samples ``[N, T, I]``, with initial states ``[N, layers * directions, H]`` if there are any."""

    def __init__(self, options: Options, inputs: int = 3, width: int = 5) -> None:
        super().__init__()
        self.options = options
        self.lstm = nn.LSTM(
            inputs,
            width,
            num_layers=options.layers,
            bias=options.bias,
            batch_first=options.batch_first,
            bidirectional=options.bidirectional,
        )

    def forward(self, x: Tensor, h: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        state = None if h is None or c is None else (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        out, (hy, cy) = self.lstm(x if self.options.batch_first else x.transpose(0, 1), state)
        results = {
            "sequence": out if self.options.batch_first else out.transpose(0, 1),
            "step": out.select(1 if self.options.batch_first else 0, -1),
            "state": hy.transpose(0, 1),
            "cell": cy.transpose(0, 1),
        }
        return torch.cat([results[name].flatten(1) for name in self.options.read.split("+")], 1)


def curved(output: Tensor, target: Tensor) -> Tensor:
    """A loss whose derivative differs from element to element: one random factor a sample."""
    return (output.flatten(1).sin().sum(1) * target).sum()


def seeded(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomized(model: nn.Module) -> nn.Module:
    """Other random weights, the same in every run."""
    with torch.no_grad():
        for seed, p in enumerate(model.parameters()):
            p.copy_(0.5 * seeded(*p.shape, seed=seed))
    return model


def fused_nodes(output: Tensor) -> list[Any]:
    """The nodes of fused LSTM layers behind an output."""
    pending, seen = [output.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [parent for parent, _ in node.next_functions]
    return [node for node in seen if node.name() == NODE]


def compare(model: nn.Module, *inputs: Tensor) -> None:
    """Rows and quantities of a float32 model equal those of its float64 copy, sample by sample, and all took the rule."""
    assert fused_nodes(model(*inputs)), "the model has no fused LSTM"
    target = seeded(len(inputs[0]), seed=9)
    J = hesse.parameter_jacobian(model, curved, (inputs, target))
    assert set(J.paths.values()) == {"rule"}
    exact = copy.deepcopy(model).double()
    rows = oracle.loss_rows(exact, curved, tuple(x.double() for x in inputs), target.double())
    sizes = [p.numel() for p in oracle.trainable(model)]
    for (name, found), expected in zip(J.as_dict().items(), rows.split(sizes, 1), strict=True):
        assert oracle.difference(found.flatten(1).double(), expected) < TOLERANCE, name
    assert oracle.difference(J.norms().double(), rows.norm(dim=1)) < TOLERANCE
    assert oracle.difference(J.gram().double(), rows @ rows.mT) < TOLERANCE
    assert oracle.difference(J.in_space.ravel(J.sum_of_squares()).double(), rows.square().sum(0)) < TOLERANCE


drawn = st.builds(
    Options,
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    batch_first=st.booleans(),
    starts=st.booleans(),
    read=st.sampled_from(["sequence", "step", "state", "cell", "sequence+state", "state+cell", "sequence+state+cell"]),
)


@given(options=drawn, count=st.integers(2, 6), steps=st.integers(1, 5))
def test_rows_equal_a_loop_over_samples(options: Options, count: int, steps: int) -> None:
    inputs = [seeded(count, steps, 3)]
    if options.starts:
        many = options.layers * (1 + options.bidirectional)
        inputs += [seeded(count, many, 5, seed=1), seeded(count, many, 5, seed=2)]
    compare(randomized(Reader(options)), *inputs)


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_hh_l0_reverse"])
def test_one_weight_alone(name: str) -> None:
    model = randomized(Reader(Options(bidirectional=True)))
    for own, p in model.named_parameters():
        p.requires_grad_(own == f"lstm.{name}")
    compare(model, seeded(4, 6, 3))


class Lines(nn.Module):
    """Every sample is several sequences, merged with the samples for the LSTM: after each sample, or before all of them."""

    def __init__(self, samples_first: bool) -> None:
        super().__init__()
        self.lstm, self.samples_first = nn.LSTM(3, 5, batch_first=True), samples_first

    def forward(self, x: Tensor) -> Tensor:
        lines = x if self.samples_first else x.transpose(0, 1)
        out = self.lstm(lines.flatten(0, 1))[0].unflatten(0, lines.shape[:2])
        return out if self.samples_first else out.transpose(0, 1)


@pytest.mark.parametrize("samples_first", [True, False])
def test_several_sequences_a_sample(samples_first: bool) -> None:
    compare(randomized(Lines(samples_first)), seeded(4, 2, 6, 3))


def test_saturated_gates() -> None:
    model = randomized(Reader(Options(starts=True)))
    compare(model, 30 * seeded(5, 6, 3), 10 * seeded(5, 1, 5, seed=1), 10 * seeded(5, 1, 5, seed=2))


def test_output_rows_equal_a_loop_over_samples() -> None:
    model, x = randomized(Reader(Options(bidirectional=True, read="step"))), seeded(4, 6, 3)
    J = hesse.parameter_jacobian(model, None, x)
    assert set(J.paths.values()) == {"rule"}
    rows = oracle.output_rows(copy.deepcopy(model).double(), x.double(), 4)
    assert oracle.difference(J.dense().double(), rows) < TOLERANCE


def meet(node: Any, index: int, shape: torch.Size, attached: bool = False, **outputs: Tensor) -> Meeting:
    """A meeting of an LSTM layer; cotangents by name."""
    slots = {"out": 0, "h": 1, "c": 2}
    cotangents = {slots[name]: g for name, g in outputs.items()}
    places = {slot: SampleAxis(1 if slot == 0 else 0, 1, 1) for slot in cotangents}
    return Meeting(node, index, cotangents, places, shape, attached, {})


@pytest.mark.parametrize("reverse", [False, True])
def test_attached_forms_have_derivatives(reverse: bool) -> None:
    model = randomized(Reader(Options(bidirectional=True, batch_first=False)))
    names = [name for name, _ in model.named_parameters() if name.endswith("reverse") == reverse]
    weights = [model.get_parameter(name) for name in names]
    out, (hy, cy) = model.lstm(seeded(6, 4, 3))  # pyright: ignore[reportCallIssue]
    (node,) = (n for n in fused_nodes(out) if n._saved_reverse == reverse)
    own = slice(5, None) if reverse else slice(5)
    g = {"out": out[..., own].cos(), "h": hy[int(reverse)].cos(), "c": cy[int(reverse)].cos()}
    total = out.new_zeros(())
    for index, w in enumerate(weights, 1):
        form = layer_rules.get(NODE)(meet(node, index, w.shape, True, **g))  # pyright: ignore[reportOptionalCall]
        assert isinstance(form, Contract if index < 3 else Dense)
        total = total + form.dense().square().sum()
    found = torch.autograd.grad(total, weights)

    exact = copy.deepcopy(model).double()
    doubles, expected = [exact.get_parameter(name) for name in names], torch.zeros((), dtype=torch.float64)
    x = seeded(6, 4, 3).double()
    for i in range(4):
        out, (hy, cy) = exact.lstm(x[:, i : i + 1])  # pyright: ignore[reportCallIssue]
        value = out[..., own].sin().sum() + hy[int(reverse)].sin().sum() + cy[int(reverse)].sin().sum()
        rows = torch.autograd.grad(value, doubles, create_graph=True)
        expected = expected + sum(row.square().sum() for row in rows)
    for one, other in zip(found, torch.autograd.grad(expected, doubles), strict=True):
        assert oracle.difference(one.double(), other) < TOLERANCE


def test_unknown_layouts_are_left_to_the_exact_path() -> None:
    model = Reader(Options())
    out, (hy, _) = model.lstm(seeded(4, 6, 3))
    (node,) = fused_nodes(out)
    rule, shape = layer_rules.get(NODE), torch.Size((20, 3))
    assert rule is not None
    known = meet(node, 1, shape, out=torch.ones(6, 4, 5), h=torch.ones_like(hy[0]))
    assert isinstance(rule(known), Contract)
    assert rule(replace(known, index=5)) is None
    assert rule(replace(known, places={0: SampleAxis(0, 1, 1), 1: SampleAxis(0, 1, 1)})) is None
    assert rule(replace(known, places={0: SampleAxis(1, 1, 1), 1: SampleAxis(0, 2, 1)})) is None

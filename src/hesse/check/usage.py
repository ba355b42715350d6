"""How a gradient may be used: with other cotangents, strides, passes and subsets, in which it has to stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hesse.autodiff.passes import backward_pass
from hesse.check.check_report import Comparison, Finding
from hesse.check.diagnosis import diagnose
from hesse.check.differences import has_kink
from hesse.check.first_order import FirstOrder, first_line
from hesse.check.layouts import expanded, layouts
from hesse.check.subject import Leaves, preserved
from hesse.core.random import normal

_FACTORS = (-1.0, 1e3, 1e-3)
_UNITS = 1e3  # units in the last place that another order of summation may cost
Compute = Callable[[], tuple[Leaves, Leaves]]


class Usage:
    """Comparisons of a gradient with itself.

    Args:
        first: the function with a cotangent.
        generator: of the second cotangent.

    Attributes:
        rows, findings, notes: what was compared, what is wrong, and what could not be compared.
    """

    def __init__(self, first: FirstOrder, generator: torch.Generator) -> None:
        self.first, self.subject, self._generator = first, first.subject, generator
        self._tolerance = _UNITS * first.precision.epsilon
        self.rows: list[Comparison] = []
        self.findings: list[Finding] = []
        self.notes: list[str] = []

    def compare(self) -> None:
        """Everything.

        Cost: about 10 gradients, 3 more for each leaf and each output, and 1 for each leaf besides.
        """
        for check, compute in (*self._cotangents(), *self._passes(), *self._subsets()):
            self._agree(check, compute)
        for check, compute in self._cotangent_layouts():
            self._agree(check, compute)
        for check, point in self._input_layouts():
            self._same_at(check, point)

    def _cotangents(self) -> Iterator[tuple[str, Compute]]:
        u, g = self.first.cotangents, self.first.gradient
        for factor in _FACTORS:
            yield f"cotangent times {factor:g}", lambda c=factor: (self._pull([c * t for t in u]), [c * t for t in g])
        other = [normal(t.shape, t.dtype, t.device, self._generator) for t in u]

        def added() -> tuple[Leaves, Leaves]:
            both = self._pull([a + b for a, b in zip(u, other, strict=True)])
            return both, [a + b for a, b in zip(self._pull(other), g, strict=True)]

        yield "sum of cotangents", added

    def _passes(self) -> Iterator[tuple[str, Compute]]:
        subject, u, g = self.subject, self.first.cotangents, self.first.gradient

        def again() -> tuple[Leaves, Leaves]:
            own, outputs = subject.recorded(subject.leaves)
            try:
                backward_pass(outputs, own, u)
                return backward_pass(outputs, own, u), g
            except RuntimeError as error:
                if "second time" not in str(error):
                    raise
                self.notes.append("a graph is good for one backward pass only")
                return g, g

        def twice() -> tuple[Leaves, Leaves]:
            own, outputs = subject.recorded(subject.leaves)
            with torch.enable_grad():
                outputs = [*outputs, *subject.outputs(own)]
            return backward_pass(outputs, own, [*u, *u]), [2 * t for t in g]

        def interleaved() -> tuple[Leaves, Leaves]:
            own, outputs = subject.recorded(subject.leaves)
            subject.recorded(self.first.beside)
            return backward_pass(outputs, own, u), g

        def kept() -> tuple[Leaves, Leaves]:
            point, cotangents = [x.clone() for x in subject.leaves], [t.clone() for t in u]
            own, outputs = subject.recorded(point)
            backward_pass(outputs, own, cotangents)
            return [*point, *cotangents], [*subject.leaves, *u]

        yield "second backward pass of one graph", again
        yield "accumulation over two uses", twice
        yield "another call before the backward pass", interleaved
        yield "inputs and cotangents unchanged", kept

    def _subsets(self) -> Iterator[tuple[str, Compute]]:
        subject, u, g = self.subject, self.first.cotangents, self.first.gradient
        for leaf in range(len(g) if len(g) > 1 else 0):

            def alone(leaf: int = leaf) -> tuple[Leaves, Leaves]:
                own, outputs = subject.recorded(subject.leaves, only=leaf)
                return backward_pass(outputs, [own[leaf]], u), [g[leaf]]

            yield f"'{subject.names[leaf]}' alone requires gradients", alone
        for index in range(len(u) if len(u) > 1 else 0):

            def single(index: int = index) -> tuple[Leaves, Leaves]:
                own, outputs = subject.recorded(subject.leaves)
                only = [t if i == index else None for i, t in enumerate(u)]
                zeros = [t if i == index else torch.zeros_like(t) for i, t in enumerate(u)]
                return backward_pass(outputs, own, only), self._pull(zeros)

            yield f"output '{subject.output_names[index]}' alone has a cotangent", single

    def _cotangent_layouts(self) -> Iterator[tuple[str, Compute]]:
        u = self.first.cotangents
        for index, own in enumerate(u):
            for kind, other in layouts(own):
                yield f"{kind} cotangent", lambda i=index, t=other: (self._pull([*u[:i], t, *u[i + 1 :]]), self.first.gradient)
            flat = expanded(own)
            if flat is not None:
                yield (
                    "expanded cotangent",
                    lambda i=index, t=flat: (
                        self._pull([*u[:i], t, *u[i + 1 :]]),
                        self._pull([*u[:i], t.contiguous(), *u[i + 1 :]]),
                    ),
                )

    def _input_layouts(self) -> Iterator[tuple[str, Leaves]]:
        leaves = self.subject.leaves
        for index, own in enumerate(leaves):
            flat = expanded(own)
            kinds = [*layouts(own), *([("expanded", flat)] if flat is not None else [])]
            yield from ((f"{kind} input", [*leaves[:index], other, *leaves[index + 1 :]]) for kind, other in kinds)

    def _same_at(self, check: str, point: Leaves) -> None:
        """Compare the gradient at a point with that at a contiguous copy; ties of equal elements may differ."""
        u = self.first.cotangents
        plain = [x.contiguous() for x in point]
        try:
            values, found = self.subject.value_and_gradient(point, u)
        except Exception as error:
            self.notes.append(f"{check}: the function raises {first_line(error)}")
            return
        expected_values, expected = self.subject.value_and_gradient(plain, u)
        if not all(y.isfinite().all() for y in expected_values):
            self.notes.append(f"{check}: the value is not finite there")
            return
        if not all(self._close(a, b) for a, b in zip(values, expected_values, strict=True)):
            self.notes.append(f"{check}: the value itself is another one, so that derivatives were not compared")
            return
        if not all(self._close(a, b) for a, b in zip(found, expected, strict=True)) and self._has_kink(plain):
            self.notes.append(f"{check}: a kink, where several gradients are right")
            return
        self._agree(check, lambda: (found, expected))

    def _has_kink(self, point: Leaves) -> bool:
        direction = [s * normal(x.shape, x.dtype, x.device, self._generator)
                     for s, x in zip(self.first.sizes, point, strict=True)]  # fmt: skip
        precision = self.first.precision
        return has_kink(self.subject.along(point, direction, self.first.cotangents), precision.steps[0], precision.epsilon)

    def _pull(self, cotangents: Leaves) -> Leaves:
        return self.subject.gradient(self.subject.leaves, cotangents)

    def _agree(self, check: str, compute: Compute) -> None:
        try:
            with preserved([*self.subject.leaves, *self.first.cotangents]):
                found, expected = compute()
        except Exception as error:
            self.rows.append(Comparison(check, "", 1, float("inf"), 0.0, "wrong"))
            self.findings.append(Finding(check, "", None, None, None, 0.0, f"raises {first_line(error)}"))
            return
        names = self.subject.names if len(found) == len(self.subject.names) else [""] * len(found)
        worst = 0.0
        for name, a, b in zip(names, found, expected, strict=True):
            size = b.abs().max().item()
            error = 0.0 if self._close(a, b) else (a - b).abs().max().item() / (size or 1.0)
            worst = max(worst, error if error == error else float("inf"))
            if not self._close(a, b):
                words = f"{diagnose(a, b)}; only here"
                self.findings.append(Finding(check, name, None, None, None, 0.0, words))
        self.rows.append(Comparison(check, "", 1, worst, 0.0, "wrong" if worst else "ok"))

    def _close(self, a: torch.Tensor, b: torch.Tensor) -> bool:
        finite = b[b.isfinite()]
        size = finite.abs().max().item() if finite.numel() else 0.0
        same = (a - b).abs() <= self._tolerance * size
        return bool((same | ~(a.isfinite() | b.isfinite())).all())  # sums of infinities may be NaN in one and not in the other

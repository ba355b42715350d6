"""Diagonals of second derivatives, propagated backwards through the graph of a run node by node (Becker, LeCun 1988).

Elementwise nodes that follow each other are taken together: whatever elementwise program lies between two other nodes
(``x * x``, ``x * torch.sigmoid(x)``, ``x - tanh(x)``) passes the square of its derivative as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from hesse.autodiff.forward import Forward
from hesse.autodiff.layout import Walk
from hesse.autodiff.propagation_rules import ELEMENTWISE, Crossing, square_rules
from hesse.autodiff.recording import node_outputs
from hesse.autodiff.refusals import typed_errors
from hesse.core.errors import UnsupportedError

Edge = tuple[int, int]


def propagate(forward: Forward, diagonal: Tensor, slope: Tensor | None, asked: str) -> dict[str, Tensor]:
    """Second derivatives by every parameter, diagonals only, from those by the output.

    Args:
        forward: a run of a model.
        diagonal: second derivatives of the objective by each element of the output.
        slope: the objective's gradient by the output, to add the second derivatives of elementwise nodes; None to leave
            them out.
        asked: for error messages.

    Raises:
        UnsupportedError: a node without a rule, by name.

    Cost: about one backward pass; with `slope` about three.
    """
    result = {name: torch.zeros_like(leaf) for name, leaf in forward.leaves.items()}
    if not forward.output.requires_grad:
        return {name: part.detach() for name, part in result.items()}
    with torch.no_grad():
        for name, part in _Propagation(forward, slope, asked).run(diagonal).items():
            result[name] = part
    return {name: part.detach() for name, part in result.items()}


class _Propagation:
    def __init__(self, forward: Forward, slope: Tensor | None, asked: str) -> None:
        self.walk, self.asked = forward.walk, asked
        self.order = list(consumers_first(self.walk))
        self.tracked = self.walk.tracked
        self.leads = self._leads_to_parameters()
        self.arrived: dict[Edge, Tensor] = {}
        self.slopes = {} if slope is None else self._slopes(forward.output, slope)
        self.is_full = slope is not None

    def run(self, diagonal: Tensor) -> dict[str, Tensor]:
        """What arrives at the parameters, by name."""
        self.arrived[0, self.walk.slot] = diagonal
        found = {}
        for i in self.order:
            node = self.walk.nodes[i]
            arrived = [self.arrived.pop((i, slot), None) for slot in range(len(node_outputs(node)))]
            if all(part is None for part in arrived) or not self.leads[i]:
                continue
            if i in self.tracked:
                found[self.tracked[i]] = arrived[0]
            elif node.name() in ELEMENTWISE and arrived[0] is not None:
                self._through_elements(i, arrived[0])
            else:
                self._through_rule(i, arrived)
        return found

    def _send(self, edge: Edge, part: Tensor) -> None:
        meta = node_outputs(self.walk.nodes[edge[0]])[edge[1]]
        part = part.to_dense() if part.layout != torch.strided else part
        part = part.to(meta.dtype).sum_to_size(tuple(meta.shape))
        self.arrived[edge] = self.arrived[edge] + part if edge in self.arrived else part

    def _through_rule(self, i: int, arrived: list[Tensor | None]) -> None:
        node = self.walk.nodes[i]
        rule = square_rules.get(node.name())
        if rule is None:
            raise UnsupportedError(
                self.asked,
                f"no rule for {node.name()}",
                "use diagonal(ggn(model, loss, data)), which is exact and takes any model",
            )
        for edge, part in zip(self.walk.edges[i], rule(Crossing(node, arrived, self.asked)), strict=False):
            if edge is not None and part is not None and self.leads[edge[0]]:
                self._send(edge, part)

    def _through_elements(self, root: int, h: Tensor) -> None:
        """Square the derivative of the elementwise program that ends at `root` by each of its sources."""
        shape = tuple(node_outputs(self.walk.nodes[root])[0].shape)
        inside = self._elementwise_above(root, shape)
        slopes: dict[Edge, Tensor] = {(root, 0): torch.ones_like(h)}
        with torch.set_grad_enabled(self.is_full):
            for i in (i for i in self.order if i in inside):
                result = self.walk.nodes[i](slopes.pop((i, 0)))
                parts = result if isinstance(result, tuple) else (result,)
                for edge, part in zip(self.walk.edges[i], parts, strict=False):
                    if edge is not None and part is not None:
                        slopes[edge] = slopes[edge] + part if edge in slopes else part
        second = self._second(root, slopes) if self.is_full and (root, 0) in self.slopes else {}
        for edge, part in slopes.items():
            if self.leads[edge[0]]:
                self._send(edge, part.detach().square() * h)
                if edge in second:
                    self._send(edge, second[edge])

    def _elementwise_above(self, root: int, shape: tuple[int, ...]) -> set[int]:
        inside, pending = {root}, [root]
        while pending:
            for edge in self.walk.edges[pending.pop()]:
                if edge is None or edge[0] in inside:
                    continue
                node = self.walk.nodes[edge[0]]
                if node.name() in ELEMENTWISE and tuple(node_outputs(node)[0].shape) == shape:
                    inside.add(edge[0])
                    pending.append(edge[0])
        return inside

    def _second(self, root: int, slopes: dict[Edge, Tensor]) -> dict[Edge, Tensor]:
        """The program's second derivatives by each source alone, times the slope of the objective."""
        found = {}
        g = self.slopes[root, 0]
        for edge, part in slopes.items():
            if not part.requires_grad:
                continue
            if any(edge[0] in self._ancestors(other[0]) for other in slopes if other != edge):
                raise UnsupportedError(
                    self.asked,
                    f"{self.walk.nodes[root].name()} joins a value with a function of that value",
                    "use curvature='gauss-newton', which needs no second derivative of it",
                )
            target = GradientEdge(self.walk.nodes[edge[0]], edge[1])
            with torch.enable_grad(), typed_errors():
                grad = torch.autograd.grad((part * g).sum(), target, retain_graph=True, allow_unused=True)[0]
            if grad is not None:
                found[edge] = grad
        return found

    def _ancestors(self, i: int) -> set[int]:
        seen, pending = set(), [i]
        while pending:
            for edge in self.walk.edges[pending.pop()]:
                if edge is not None and edge[0] not in seen:
                    seen.add(edge[0])
                    pending.append(edge[0])
        return seen

    def _slopes(self, output: Tensor, slope: Tensor) -> dict[Edge, Tensor]:
        edges = [(i, 0) for i, node in enumerate(self.walk.nodes) if node.name() in ELEMENTWISE]
        if not edges:
            return {}
        targets = [GradientEdge(self.walk.nodes[i], slot) for i, slot in edges]
        with typed_errors():
            grads = torch.autograd.grad(output, targets, slope, retain_graph=True, allow_unused=True)
        return {edge: grad for edge, grad in zip(edges, grads, strict=True) if grad is not None}

    def _leads_to_parameters(self) -> list[bool]:
        leads = [i in self.tracked for i in range(len(self.walk.nodes))]
        for i in reversed(self.order):
            leads[i] = leads[i] or any(edge is not None and leads[edge[0]] for edge in self.walk.edges[i])
        return leads


def consumers_first(walk: Walk) -> Iterator[int]:
    """The positions of a graph's nodes, each after all that use it."""
    open_uses = Counter(edge[0] for edges in walk.edges for edge in edges if edge is not None)
    ready = [i for i in range(len(walk.nodes)) if not open_uses[i]]
    while ready:
        i = ready.pop()
        yield i
        for edge in walk.edges[i]:
            if edge is not None:
                open_uses[edge[0]] -= 1
                if not open_uses[edge[0]]:
                    ready.append(edge[0])

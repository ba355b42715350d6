"""A module under check: run on inputs of one's own choosing, with its outputs and its gradients by name."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hesse.autodiff.functional import functional
from hesse.autodiff.passes import backward_pass
from hesse.autodiff.recording import node_outputs, nodes
from hesse.check.functions.subject import is_continuous, preserved, random_state_kept
from hesse.check.modules.aliases import aliases_follow
from hesse.check.modules.call import Call
from hesse.core import tree
from hesse.core.errors import StructureError
from hesse.core.random import normal

Named = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """One recorded run of a module.

    Attributes:
        outputs: name -> output, with its graph.
        leaves: name -> parameter or input that requires gradients.
    """

    outputs: Named
    leaves: Named

    def pull(self, cotangents: Mapping[str, Tensor], *, keep: bool = True) -> Named:
        """The gradients for a cotangent, by name; the graph stays.

        Args:
            cotangents: by name of output.
            keep: whether what the backward pass writes to them is undone.

        Cost: one backward pass.
        """
        given = [cotangents[name] for name in self.outputs]
        with preserved(given if keep else []), random_state_kept(list(self.leaves.values()), move=True):
            found = backward_pass(list(self.outputs.values()), list(self.leaves.values()), given)
        return {name: g.detach() for name, g in zip(self.leaves, found, strict=True)}

    def backward(self, cotangents: Mapping[str, Tensor]) -> None:
        """Accumulate the gradients into `.grad` of the leaves, as training does; the graph is spent."""
        pairs = [(y, cotangents[name]) for name, y in self.outputs.items() if y.requires_grad]
        with random_state_kept(list(self.leaves.values()), move=True):
            if len(pairs) == 1:
                pairs[0][0].backward(pairs[0][1].clone())  # .grad may be a view of it, which the next pass adds to
            elif pairs:
                terms = [(u.conj() * y).real.sum() if y.is_complex() else (u * y).sum() for y, u in pairs]
                torch.stack([term.double() for term in terms]).sum().backward()


class Specimen:
    """A module, the inputs of one call, and what one sound run of it gave.

    Buffers are copied for each run, and random numbers are the same in each.

    Args:
        module: the user's own; `module` may be set to a copy of it, to be worked on.
        call: the inputs.
        generator: of cotangents and directions.

    Attributes:
        original: the user's own module.
        pristine: a copy that never runs; None where there is none.
        copyable: whether `module` can be copied.
        cotangents, outputs, gradients: of the first run, by name; set by `start`.
        dtypes: that the first run computed in.
        evaluations: how often a module ran.
        draws: whether a run drew random numbers.
        still: name of a table -> its padding row, which gets no gradient though outputs depend on it.
        by_design: names of tables whose gradient is scaled by frequency, and so is no derivative.
        in_place: whether a part says that it works in place, as `nn.ReLU(inplace=True)` does.
        passed: the copies of its inputs that the last run of such a module got.
    """

    def __init__(self, module: nn.Module, call: Call, generator: torch.Generator) -> None:
        self.module, self.call, self.generator = module, call, generator
        self.original = module
        self.pristine: nn.Module | None = None
        self.copyable = True
        self.cotangents: Named = {}
        self.outputs: Named = {}
        self.gradients: Named = {}
        self.dtypes: set[torch.dtype] = set()
        self.evaluations = 0
        self.draws = False
        self._functions: dict[int, tuple[nn.Module, Callable[..., Any]]] = {}
        self.still = {name: part.padding_idx for name, part in _tables(module) if part.padding_idx is not None}
        self.by_design = {name for name, part in _tables(module) if part.scale_grad_by_freq}
        self.in_place = any(getattr(part, "inplace", False) is True for part in module.modules())
        self.passed: Named = {}

    def parameters(self, module: nn.Module | None = None) -> Named:
        """The parameters that are differentiated, each once, by name."""
        module = self.module if module is None else module
        return {name: p for name, p in module.named_parameters() if p.requires_grad and is_continuous(p) and p.numel()}

    def run(
        self,
        module: nn.Module | None = None,
        inputs: Named | None = None,
        *,
        only: Collection[str] | None = None,
        leaves: Named | None = None,
    ) -> Run:
        """Run a module in training's way: on its own parameters, with a graph.

        Args:
            module: instead of the specimen's.
            inputs: instead of the specimen's; strides are kept.
            only: the inputs that require gradients; all by default.
            leaves: tensors for the inputs, taken as they are.
        """
        module = self.module if module is None else module
        given = self.call.moving if inputs is None else inputs
        own = {name: t.detach().requires_grad_(only is None or name in only) for name, t in given.items()}
        own = own if leaves is None else leaves
        with torch.enable_grad():
            outputs = self.outputs_of(module, own)
        moving = {name: t for name, t in {**self.parameters(module), **own}.items() if t.requires_grad}
        return Run(outputs, moving)

    def outputs_of(self, module: nn.Module, inputs: Named, parameters: Named | None = None) -> Named:
        """The continuous outputs of a module, by name."""
        self.evaluations += 1
        passed = {name: t.clone() for name, t in inputs.items()} if self.in_place else inputs
        self.passed = passed if self.in_place else {}
        args, named = self.call.build(passed)
        with random_state_kept([*inputs.values(), *module.parameters()]):
            before = torch.default_generator.get_state()
            with aliases_follow(module, parameters or {}):
                value = self._function(module)(parameters or {}, *args, **named)
            self.draws |= not torch.equal(before, torch.default_generator.get_state())
        return continuous_outputs(value)

    def _function(self, module: nn.Module) -> Callable[..., Any]:
        """The module as a function of its parameters, which begins each call with the same buffers."""
        known = self._functions.get(id(module))
        if known is None or known[0] is not module:
            known = self._functions[id(module)] = module, functional(module)[0]
        return known[1]

    def gradient(self, module: nn.Module | None = None, inputs: Named | None = None) -> tuple[Named, Named]:
        """Outputs and gradients of one run, by name.

        Cost: one gradient.
        """
        run = self.run(module, inputs)
        return {name: y.detach() for name, y in run.outputs.items()}, run.pull(self.cotangents)

    def start(self, run: Run) -> None:
        """Draw cotangents for the outputs of a first run, and note what types it computed in."""
        self.cotangents = {name: normal(y.shape, y.dtype, y.device, self.generator) for name, y in run.outputs.items()}
        roots = [y.grad_fn for y in run.outputs.values() if y.grad_fn is not None]
        self.dtypes = {meta.dtype for node in nodes(roots) for meta in node_outputs(node)}
        self.dtypes |= {t.dtype for t in (*run.outputs.values(), *run.leaves.values())}

    def copied(self) -> nn.Module:
        """A copy of the module, without gradients in `.grad`."""
        return fresh_copy(self.module)

    def untouched_copy(self) -> nn.Module:
        """A copy of the module as it was before its first run, in the mode in which it is now."""
        own = fresh_copy(self.module if self.pristine is None else self.pristine)
        for part, same in zip(own.modules(), self.module.modules(), strict=True):
            part.training = same.training
        return own

    def shrunk(self, factor: float = 0.97) -> Named:
        """Other inputs in the same domain: all smaller by a factor."""
        return {name: factor * value for name, value in self.call.moving.items()}


def _tables(module: nn.Module) -> list[tuple[str, nn.Embedding | nn.EmbeddingBag]]:
    """Tables of embeddings, by the name of their weight."""
    parts = module.named_modules()
    return [(f"{path}.weight" if path else "weight", part) for path, part in parts
            if isinstance(part, (nn.Embedding, nn.EmbeddingBag))]  # fmt: skip


def fresh_copy(module: nn.Module) -> nn.Module:
    """A deep copy with `.grad` empty."""
    own = copy.deepcopy(module)
    for parameter in own.parameters():
        parameter.grad = None
    return own


def continuous_outputs(value: Any) -> Named:
    """Floating-point and complex tensors of what a module returned, dense, by path; objects are opened once.

    Raises:
        StructureError: there is none.
    """
    named = tree.named_leaves(value)
    if not any(isinstance(y, Tensor) for _, y in named) and hasattr(value, "__dict__"):
        named = tree.named_leaves(dict(vars(value)))
    found = {path: y for path, y in named if isinstance(y, Tensor) and is_continuous(y)}
    if not found:
        raise StructureError("Derivatives of a module's outputs are checked.",
                             f"it returned {type(value).__name__} without a tensor of floating-point numbers",
                             "let the module return a tensor, or a tree of tensors")  # fmt: skip
    return {path: y if y.layout is torch.strided else y.to_dense() for path, y in found.items()}

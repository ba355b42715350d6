"""What users pass as a model and as data, brought to one form."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_gradtrackingtensor
from torch.nn.modules.batchnorm import _BatchNorm

from hesse.autodiff.functional import functional
from hesse.autodiff.weight_norm import PlainWeightNorm, has_weight_norm
from hesse.core import tree
from hesse.core.errors import (
    DataError,
    DeviceError,
    LeafError,
    MixedSamplesError,
    NonFiniteError,
    StructureError,
    UnsupportedError,
)
from hesse.core.tree import Tree
from hesse.core.wrapped import is_sharded, sharded_leaves, unwrapped

Selection = Iterable[str] | Callable[[str, Tensor], bool] | None


@dataclass(frozen=True, eq=False)
class Model:
    """A model: a function of parameters and inputs, and the parameters.

    Attributes:
        call: ``call(params, inputs)``.
        params: tree of the parameters to differentiate by, detached.
        key: the user's object, under which facts about its graphs are remembered.
        module: the module behind it, or None for a function.
        own: name -> the user's own parameter tensors.
    """

    call: Callable[[Tree, Any], Any]
    params: Tree
    key: Any
    module: nn.Module | None
    own: Mapping[str, Tensor]

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """The parameters to differentiate by, and the user's others."""
        return (*tree.leaves(self.params), *self.own.values())

    @property
    def read_names(self) -> tuple[str, ...]:
        """Names of `reads`; a parameter that is differentiated by stands in it twice."""
        return (*(name for name, _ in tree.named_leaves(self.params)), *self.own)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return tree.leaves(self.params)[0].device


def as_model(model: Any, *, params: Selection = None, output: Callable[[Any], Tensor] | None = None) -> Model:
    """Bring a module, or a pair ``(f, params)``, to one form.

    Args:
        model: an `nn.Module`, or ``(f, params)`` with ``f(params, *inputs)``. Of `DistributedDataParallel`, `DataParallel` and
            `torch.compile` the module inside is taken, under its own names; the wrapper does not run.
        params: names of the parameters to differentiate by, or a predicate ``(name, tensor) -> bool``; default: all that
            require grad (for a pair: all).
        output: picks the tensor out of what the model returns.

    Raises:
        StructureError: neither of the two. MixedSamplesError: batch normalization in train mode.
        UnsupportedError: an embedding with max_norm, which changes its weight when it is used; parameters sharded over ranks;
            a wrapper that computes something else than the module inside.
    """
    if isinstance(model, nn.Module):
        module = unwrapped(model, "Derivatives of a model are taken of the module itself, by its own parameters.")
        _refuse_modules(module)
        f, everything = functional(module)
        key, own = module, dict(module.named_parameters())
    elif isinstance(model, tuple) and len(model) == 2 and callable(model[0]):
        f, everything = model
        own = {name: leaf for name, leaf in tree.named_leaves(everything) if isinstance(leaf, Tensor)}
        _refuse_differentiated(own)
        _refuse_sharded(own)
        everything = tree.map_tree(lambda p: torch.as_tensor(p).detach(), everything)
        key = getattr(f, "module", f)
        module = key if isinstance(key, nn.Module) else None
        if module is not None:
            _refuse_modules(module)
            sharded = dict(sharded_leaves(module))  # whose full values are in the pair
            own |= {name: leaf for name, leaf in module.named_parameters() if name not in sharded}
    else:
        raise StructureError(
            "A model is an nn.Module or a pair (f, params).", type(model).__name__, "pass functional(module) or (f, params)"
        )
    chosen = _choose(everything, params)
    frozen, has_norm = dict(tree.named_leaves(everything)), has_weight_norm(module)

    def call(values: Tree, inputs: Any) -> Any:
        whole = values if chosen is everything else _merge(everything, frozen, values)
        with _without_compilation(), PlainWeightNorm() if has_norm else nullcontext():
            if isinstance(inputs, dict):
                result = f(whole, **inputs)
            else:
                result = f(whole, *inputs) if isinstance(inputs, tuple) else f(whole, inputs)
            return result if output is None else output(result)

    named = tree.named_leaves(chosen)
    if not named:
        raise StructureError("A model needs parameters to differentiate by.", "none", "set requires_grad, or pass params=")
    for name, leaf in named:
        if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            raise LeafError("Parameters are floating-point tensors.", f"{leaf.dtype} at '{name}'", "leave it out by params=")
        if tree.has_nan(leaf):
            raise NonFiniteError("Parameters have to be finite.", f"NaN at '{name}'", "find where it came from first")
    return Model(call, chosen, key, module, own)


def _without_compilation() -> AbstractContextManager[Any]:
    """Compiled modules are run eagerly: their graph is one opaque node, with one derivative at most."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _choose(everything: Tree, params: Selection) -> Tree:
    if params is None:
        return everything
    named = dict(tree.named_leaves(everything))
    if callable(params):
        return {name: leaf for name, leaf in named.items() if params(name, leaf)}
    wanted = [params] if isinstance(params, str) else list(params)
    unknown = [name for name in wanted if name not in named]
    if unknown:
        raise StructureError(
            "params= takes names of parameters.", f"no trainable parameter {unknown[0]!r}", f"one of {list(named)[:8]}"
        )
    return {name: leaf for name, leaf in named.items() if name in wanted}


def _merge(everything: Tree, frozen: dict[str, Tensor], values: dict[str, Tensor]) -> Tree:
    _, structure = tree.flatten(everything)
    return structure.unflatten(values.get(name, leaf) for name, leaf in frozen.items())


def _refuse_differentiated(own: Mapping[str, Tensor]) -> None:
    """Refuse parameters that a torch.func transform differentiates by: the derivatives of results would be zero, silently."""
    for name, leaf in own.items():
        if is_gradtrackingtensor(leaf):
            raise UnsupportedError(
                "Derivatives of a model are taken at fixed parameters.",
                f"'{name}' is differentiated by torch.func around the call",
                "use hesse.linearize or hesse.hessian_operator of a function, or parameter_jacobian(..., create_graph=True)",
            )


def _refuse_sharded(own: Mapping[str, Tensor]) -> None:
    for name, leaf in own.items():
        if is_sharded(leaf):
            raise UnsupportedError(
                "Derivatives of a function are taken by tensors of this process.",
                f"'{name}' is sharded over ranks",
                "pass hesse.distributed.gather(params), and let the function take full tensors",
            )


def _refuse_modules(module: nn.Module) -> None:
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise MixedSamplesError(
                "Derivatives of a model need samples that do not influence each other.",
                f"batch normalization with batch statistics: '{name}' ({type(part).__name__})",
                "call model.eval(), or use group or layer normalization",
            )
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)) and part.max_norm is not None:
            raise UnsupportedError(
                "Derivatives of a model leave the model as it is.",
                f"'{name}' ({type(part).__name__}) has max_norm, which rescales its weight whenever it is used",
                "set max_norm=None and normalize the weight yourself",
            )


def split_batch(batch: Any, asked: str, *, target_needed: bool = True) -> tuple[Any, Any]:
    """``(inputs, targets)`` of one batch.

    Raises:
        DataError: not a pair.
    """
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0] if not isinstance(batch[0], list) else tuple(batch[0]), batch[1]
    if not target_needed and isinstance(batch, (Tensor, dict)):
        return batch, None
    raise DataError(
        asked,
        f"{_describe(batch)} as a batch",
        "pass (inputs, targets); inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs",
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    size = f" of length {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"a {type(value).__name__}{size}"


def is_one_batch(data: Any) -> bool:
    """Whether data is one batch (a pair) rather than an iterable of batches."""
    if isinstance(data, tuple):
        return len(data) == 2
    if isinstance(data, list) and len(data) == 2:
        return not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in data)
    return False


def sample_count(inputs: Any, targets: Any, asked: str) -> int:
    """The number of samples: the length of the first axis of every input tensor, and of the targets.

    Raises:
        DataError: no samples, no tensor, axes of different lengths, or a tensor that is sharded over ranks, by name.
    """
    size, first = None, ""
    for side, part in (("input", inputs), ("target", targets)):
        for name, leaf in tree.named_leaves(part):
            if not isinstance(leaf, Tensor):
                continue
            label = f"{side} '{name}'" if name else side
            if is_sharded(leaf):
                raise DataError(asked, f"{label} is a DTensor", "pass this rank's samples: .to_local(), or .full_tensor()")
            if leaf.ndim == 0:
                raise DataError(asked, f"{label} has no axis", "give every tensor the batch as its first axis")
            if size is not None and leaf.shape[0] != size:
                raise DataError(
                    asked,
                    f"{label} has {leaf.shape[0]} rows where {first} has {size}",
                    "give every tensor the batch as its first axis, of the same length",
                )
            size, first = leaf.shape[0], first or label
    if size is None:
        raise DataError(asked, "no tensor among the inputs", "pass tensors")
    if size == 0:
        raise DataError(asked, "a batch of size 0", "pass at least one sample")
    return size


def check_inputs(model: Model, inputs: Any, asked: str) -> None:
    """Refuse NaN among the inputs, inputs on another device than the parameters, and inputs sharded over ranks."""
    for name, leaf in tree.named_leaves(inputs):
        if not isinstance(leaf, Tensor):
            continue
        if is_sharded(leaf):
            raise DataError(asked, f"input '{name}' is a DTensor", "pass this rank's samples: .to_local()")
        if leaf.device != model.device:
            raise DeviceError(
                asked, f"input '{name}' on {leaf.device}, parameters on {model.device}", "move them to one device"
            )
        if leaf.dtype.is_floating_point and tree.has_nan(leaf):
            row = int(torch.isnan(leaf).nonzero()[0, 0]) if leaf.ndim else 0
            raise NonFiniteError(asked, f"NaN in input '{name}', first in sample {row}", "clean the data")


def select_rows(value: Any, rows: Tensor) -> Any:
    """The given samples of a tree of inputs or targets, laid out in memory as they were (ops choose their kernels by that)."""
    return tree.map_tree(lambda leaf: _take(leaf, rows.to(leaf.device)) if isinstance(leaf, Tensor) else leaf, value)


def _take(leaf: Tensor, rows: Tensor) -> Tensor:
    taken = leaf[rows]
    if leaf.layout != torch.strided or leaf.is_contiguous():
        return taken
    order = sorted(range(leaf.ndim), key=lambda axis: (leaf.stride(axis), leaf.shape[axis]))
    strides, extent, old_extent = [0] * leaf.ndim, 1, 1
    for axis in order:  # from the innermost axis outwards, with the same gaps between
        if leaf.stride(axis) == 0:
            continue
        if leaf.stride(axis) < old_extent:
            return taken
        strides[axis] = extent + leaf.stride(axis) - old_extent
        extent += strides[axis] * (taken.shape[axis] - 1)
        old_extent += leaf.stride(axis) * (leaf.shape[axis] - 1)
    distinct = [size if stride else min(size, 1) for size, stride in zip(taken.shape, strides, strict=True)]
    laid_out = torch.empty_strided(distinct, strides, dtype=leaf.dtype, device=leaf.device)
    return laid_out.copy_(taken[tuple(slice(size) for size in distinct)]).expand(taken.shape)

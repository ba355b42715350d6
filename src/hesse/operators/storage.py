"""Operators saved to and loaded from safetensors files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hesse.core import tree
from hesse.core.errors import DataError, HesseError, NoRuleError, StructureError
from hesse.core.registry import Registry
from hesse.core.space import Space
from hesse.core.storage import load_tensors, save_tensors
from hesse.core.wrapped import unwrapped
from hesse.operators.algebra import Composed, Congruence, Conjugate, Scaled, Sum
from hesse.operators.base import LinearOperator
from hesse.operators.blocks import BlockDiagonal
from hesse.operators.dense import Dense
from hesse.operators.diagonal import Diagonal
from hesse.operators.encoding import Decoder, Encoder, Vector
from hesse.operators.identity import Identity
from hesse.operators.kronecker import Kronecker
from hesse.operators.low_rank import LowRank
from hesse.operators.restriction import DiagonalBlocks, Restriction
from hesse.operators.sparse import Sparse

_KIND = "operator"

StoringRule = Callable[[Any], dict[str, Any]]
storable: Registry[StoringRule] = Registry(
    "storing rule",
    "store its matrix, Dense(hesse.dense(A), A.in_space, A.out_space), or a low-rank part of it; or register a rule",
)


def save(A: LinearOperator, path: str | os.PathLike[str]) -> None:
    """Save an operator that holds tensors (dense, low-rank, diagonal, Kronecker, blocks, sums of such) to a safetensors file.

    The file holds the names, shapes and dtypes of the spaces, and the versions of the format and of hesse. It appears complete
    or not at all.

    Args:
        A: the operator, of a type with a rule: ``@storable.register(MyOperator)`` on a function that gives the arguments from
            which ``MyOperator(**arguments)`` (or its class method ``from_stored``, where it has one) makes it again, positional
            ones under the name ``"*"``: tensors, operators, spaces, tags, numbers, texts, and lists, tuples and dicts of such.
        path: of the file, ``"kfac.safetensors"``; one that is there is replaced.

    Raises:
        NoRuleError: an operator that is computed from a model or a function. MissingExtraError: safetensors is not installed.
    """
    encoder = Encoder(_describe)
    body = encoder.encode(A, "operator")
    save_tensors(path, encoder.tensors, _KIND, {"operator": body, "spaces": encoder.spaces})


def load(path: str | os.PathLike[str], *, like: Any = None, device: torch.device | str | None = None) -> LinearOperator:
    """Load an operator that `save` has written.

    Args:
        path: of the file.
        like: what the operator has to fit: a model (its parameters that require grad), a pair ``(f, params)``, a tree such as
            ``dict(model.named_parameters())``, a `Space` or an operator. It also tells the device and the nesting of the trees.
        device: where the tensors go; by default that of `like`, else the CPU.

    Returns:
        The operator. Without `like`, trees that are no nested dicts, lists and tuples come back as dicts ``{path: leaf}``.

    Raises:
        StructureError: the leaves of `like` have other names or shapes than those the operator acts on.
        DataError: a damaged file, one that hesse has not written, or one of a newer format.
        NoRuleError: an operator of a package that is not imported. MissingExtraError: safetensors is not installed.
    """
    wanted = None if like is None else space_of(like, "A stored operator is loaded for a model.")
    device = torch.device(device or ("cpu" if wanted is None else wanted.device))
    tensors, header = load_tensors(path, _KIND, device)
    try:
        operator = Decoder(_rebuild, tensors, header["spaces"], device, wanted).decode(header["operator"])
    except HesseError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            "hesse loads the operators that it has saved.",
            f"'{os.fspath(path)}' is not consistent ({error!r})",
            "save it again",
        ) from error
    if wanted is not None and operator.in_space != wanted:
        raise StructureError(
            "The loaded operator does not fit.",
            _difference(operator.in_space, wanted),
            "load it for the model it was made for, with the same parameters chosen",
        )
    return operator


def space_of(like: Any, asked: str) -> Space:
    """The space that a model (its parameters that require grad), a pair ``(f, params)``, a tree or an operator stands for.

    Args:
        like: one of these, or the space itself.
        asked: what for, in error messages.
    """
    if isinstance(like, nn.Module):
        like = {name: leaf for name, leaf in unwrapped(like, asked).named_parameters() if leaf.requires_grad}
    if isinstance(like, tuple) and len(like) == 2 and callable(like[0]):
        like = like[1]
    if isinstance(like, LinearOperator):
        return like.in_space
    return like if isinstance(like, Space) else Space.of(like)


def _difference(stored: Space, wanted: Space) -> str:
    stored_shapes, shapes = (dict(zip(space.names, space.shapes, strict=True)) for space in (stored, wanted))
    for name, shape in stored_shapes.items():
        if name not in shapes:
            return f"the file has a leaf '{name}', which is not there"
        if shapes[name] != shape:
            return f"'{name}' of shape {list(shape)} in the file, {list(shapes[name])} here"
    missing = [name for name in shapes if name not in stored_shapes]
    return f"no leaf '{missing[0]}' in the file" if missing else f"leaves in the order {list(stored_shapes)} in the file"


def _describe(A: LinearOperator) -> tuple[str, dict[str, Any]]:
    rule = storable.lookup(type(A))
    arguments = rule(A)
    if "mass" in vars(A):
        arguments = {**arguments, "mass": A.mass}
    return type(A).__qualname__, arguments


def _rebuild(name: str, arguments: dict[str, Any]) -> LinearOperator:
    cls: Any = next((known for known in storable if getattr(known, "__qualname__", None) == name), None)
    if cls is None:
        raise NoRuleError(
            f"hesse has no storing rule for {name}.",
            "an operator of that type in the file",
            "import the package that registers it",
        )
    mass = arguments.pop("mass", None)
    operator = getattr(cls, "from_stored", cls)(*arguments.pop("*", ()), **arguments)
    if mass is not None:
        operator.mass = mass
    return operator


def _spaces(A: LinearOperator) -> dict[str, Any]:
    return {"in_space": A.in_space, "out_space": A.out_space}


@storable.register(Dense)
def _dense(A: Dense) -> dict[str, Any]:
    return {"matrix": A.matrix, **_spaces(A), "tags": A.tags}


@storable.register(Kronecker)
def _kronecker(A: Kronecker) -> dict[str, Any]:
    return {"left": A.left, "right": A.right, **_spaces(A), "tags": A.tags}


@storable.register(LowRank)
def _low_rank(A: LowRank) -> dict[str, Any]:
    right: Tensor | None = None if A.right is A.left else A.right
    return {"left": A.left, "weights": A.weights, "right": right, **_spaces(A)}


@storable.register(Diagonal)
def _diagonal(A: Diagonal) -> dict[str, Any]:
    return {"entries": Vector(A.in_space, tree.leaves(A.entries)), "tags": A.tags}


@storable.register(Sparse)
def _sparse(A: Sparse) -> dict[str, Any]:
    return {"indices": A.indices, "values": A.values, **_spaces(A), "tags": A.tags}


@storable.register(Identity)
def _identity(A: Identity) -> dict[str, Any]:
    return {"space": A.in_space}


@storable.register(BlockDiagonal)
def _blocks(A: BlockDiagonal) -> dict[str, Any]:
    return {"blocks": A.blocks, **_spaces(A)}


@storable.register(Sum)
def _sum(A: Sum) -> dict[str, Any]:
    return {"*": A.terms}


@storable.register(Scaled)
def _scaled(A: Scaled) -> dict[str, Any]:
    return {"factor": A.factor, "operator": A.operator}


@storable.register(Composed)
def _composed(A: Composed) -> dict[str, Any]:
    return {"first": A.first, "second": A.second}


@storable.register(Congruence)
def _congruence(A: Congruence) -> dict[str, Any]:
    return {"outer": A.outer, "middle": A.middle}


@storable.register(Conjugate)
def _conjugate(A: Conjugate) -> dict[str, Any]:
    return {"operator": A.operator}


@storable.register(Restriction)
def _restriction(A: Restriction) -> dict[str, Any]:
    return {"operator": A.operator, **_spaces(A)}


@storable.register(DiagonalBlocks)
def _diagonal_blocks(A: DiagonalBlocks) -> dict[str, Any]:
    return {"whole": A.whole, "groups": A.groups}

"""A finding as a short program that needs torch and the function alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hesse.check.check_report import Finding
from hesse.core.tree import Tree

_WRITTEN = 64  # elements up to which a tensor is written out
_PRELUDE = """\
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

{function}

x = {x}

flat, spec = tree_flatten(x)
flat = [torch.tensor(t, dtype=torch.float64) if isinstance(t, float) else t for t in flat]
places = [i for i, t in enumerate(flat) if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]
leaves = [flat[i].detach().clone() for i in places]


def call(leaves):
    given = list(flat)
    for i, leaf in zip(places, leaves):
        given[i] = leaf
    torch.manual_seed(0)
    outputs = tree_flatten(f(tree_unflatten(given, spec)))[0]
    return [y for y in outputs if isinstance(y, torch.Tensor) and (y.is_floating_point() or y.is_complex())]


def pull(outputs, own, cotangents, **options):
    pairs = [(y, u) for y, u in zip(outputs, cotangents) if y.requires_grad]
    found = torch.autograd.grad([y for y, _ in pairs], own, [u for _, u in pairs], allow_unused=True, **options)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(own, found)]


def gradient(leaves, cotangents):
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    return pull(call(own), own, cotangents)


torch.manual_seed(1)
cotangents = [torch.randn_like(y) for y in call(leaves)]
"""
_COMPARE = """\
for a, b in zip(found, expected):
    print("largest difference", (a - b).abs().max().item(), "where the largest is", b.abs().max().item())
"""
_DIFFERENCE = """\
direction = [torch.zeros_like(t) for t in leaves]
{direction}


def loss(t):
    moved = [x + t * v for x, v in zip(leaves, direction)]
    return sum((u.conj() * y).sum().real.item() for u, y in zip(cotangents, call(moved)))


print("gradient  ", sum((g.conj() * v).sum().real.item() for g, v in zip(gradient(leaves, cotangents), direction)))
print("difference", (loss({step}) - loss(-{step})) / (2 * {step}))
"""
_FORWARD = """\
import torch.autograd.forward_ad as forward_ad

direction = [torch.zeros_like(t) for t in leaves]
{direction}
with forward_ad.dual_level():
    duals = [forward_ad.make_dual(x, v) for x, v in zip(leaves, direction)]
    tangents = [forward_ad.unpack_dual(y).tangent for y in call(duals)]
    print("forward", sum((u.conj() * t).sum().real.item() for u, t in zip(cotangents, tangents) if t is not None))
print("reverse", sum((g.conj() * v).sum().real.item() for g, v in zip(gradient(leaves, cotangents), direction)))
"""
_SECOND = """\
w, v = [torch.randn_like(t) for t in leaves], [torch.randn_like(t) for t in leaves]
own = [leaf.detach().requires_grad_() for leaf in leaves]
slopes = pull(call(own), own, cotangents, create_graph=True)
along = sum((a.conj() * b).sum().real for a, b in zip(w, slopes))
print("second pass", sum((a.conj() * b).sum().real.item() for a, b in zip(v, pull([along], own, [torch.ones_like(along)]))))


def slope(t):
    found = gradient([x + t * d for x, d in zip(leaves, v)], cotangents)
    return sum((a.conj() * b).sum().real.item() for a, b in zip(w, found))


print("difference ", (slope({step}) - slope(-{step})) / (2 * {step}))
"""
_LAYOUTS = {
    "transposed": "t.mT.contiguous().mT if t.dim() > 1 else t",
    "strided": "torch.stack([t, t], -1)[..., 1]",
    "offset": "torch.cat([t.new_ones(3), t.flatten()])[3:].view(t.shape)",
    "channels-last": "t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t",
    "expanded": "t.flatten()[:1].view((1,) * t.dim()).expand(t.shape)",
}
_USES = {
    "cotangent times": "found = gradient(leaves, [{factor} * u for u in cotangents])\n"
    "expected = [{factor} * g for g in gradient(leaves, cotangents)]",
    "zero cotangent": "found = gradient(leaves, [0 * u for u in cotangents])\nexpected = [0 * t for t in leaves]",
    "sum of cotangents": "other = [torch.randn_like(u) for u in cotangents]\n"
    "found = gradient(leaves, [a + b for a, b in zip(cotangents, other)])\n"
    "expected = [a + b for a, b in zip(gradient(leaves, cotangents), gradient(leaves, other))]",
    "second backward pass": "own = [leaf.detach().requires_grad_() for leaf in leaves]\noutputs = call(own)\n"
    "expected = [g.clone() for g in pull(outputs, own, cotangents, retain_graph=True)]\nfound = pull(outputs, own, cotangents)",
    "another call before": "expected = gradient(leaves, cotangents)\n"
    "own = [leaf.detach().requires_grad_() for leaf in leaves]\n"
    "outputs = call(own)\ngradient([1.1 * t for t in leaves], cotangents)\nfound = pull(outputs, own, cotangents)",
    "accumulation over two uses": "own = [leaf.detach().requires_grad_() for leaf in leaves]\n"
    "found = pull([*call(own), *call(own)], own, [*cotangents, *cotangents])\n"
    "expected = [2 * g for g in gradient(leaves, cotangents)]",
    "accumulation into": "own = [leaf.clone().requires_grad_() for leaf in leaves]\nfor _ in range(2):\n"
    "    torch.autograd.backward(call(own), cotangents)\nfound = [t.grad for t in own]\n"
    "expected = [2 * g for g in gradient(leaves, cotangents)]",
    "inputs unchanged": "expected = [t.clone() for t in leaves]\ngradient(leaves, cotangents)\nfound = leaves",
    "cotangents unchanged": "expected = [u.clone() for u in cotangents]\ngradient(leaves, cotangents)\nfound = cotangents",
    "own dtype": "found = gradient(leaves, cotangents)\n"
    "expected = gradient([t.double() for t in leaves], [u.double() for u in cotangents])  # if f runs in float64",
}


def reproducer(f: Callable[[Any], Any], x: Tree, names: list[str], finding: Finding) -> str:
    """A program that shows a finding with torch alone.

    Args:
        f, x: the function and its point.
        names: of the leaves.
        finding: to show.

    Returns:
        Python text. Where the function cannot be imported, or a leaf is large, it says what to fill in.
    """
    leaf = names.index(finding.leaf) if finding.leaf in names else None
    told = "".join(f"# {line}\n" for line in str(finding).splitlines())
    return f"{_PRELUDE.format(function=_function(f), x=written(x))}\n{told}{_body(finding.check, leaf, finding.index)}"


def _body(check: str, leaf: int | None, index: tuple[int, ...] | None) -> str:
    for start, use in _USES.items():
        if check.startswith(start):
            return use.replace("{factor}", check.rpartition(" ")[2]) + "\n" + _COMPARE
    layout, _, what = check.partition(" ")
    if layout in _LAYOUTS:
        return _layout(_LAYOUTS[layout], of_cotangent=what == "cotangent", spread=layout == "expanded")
    if leaf is None:
        direction = "direction = [torch.randn_like(t) for t in leaves]"
    else:
        direction = (
            f"direction[{leaf}][{index}] = 1.0"
            if index is not None
            else f"direction[{leaf}] = torch.randn_like(leaves[{leaf}])"
        )
    if check.startswith("forward"):
        return _FORWARD.format(direction=direction)
    if check.startswith("second order"):
        return _SECOND.format(step="1e-4")
    return _DIFFERENCE.format(direction=direction, step="1e-4")


def _layout(expression: str, *, of_cotangent: bool, spread: bool) -> str:
    define = f"def moved(t):\n    return {expression}\n\n\n"
    name = "cotangents" if of_cotangent else "leaves"
    plain = f"[moved(t).contiguous() for t in {name}]" if spread else name
    arguments = ("leaves, {}" if of_cotangent else "{}, cotangents").format
    found, expected = arguments(f"[moved(t) for t in {name}]"), arguments(plain)
    return f"{define}found = gradient({found})\nexpected = gradient({expected})\n{_COMPARE}"


def _function(f: Callable[[Any], Any]) -> str:
    """A line that imports the function, or says which one to fill in."""
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", "")
    if module and module != "__main__" and name.isidentifier() and inspect.isroutine(f):
        return f"from {module} import {name} as f"
    code = getattr(f, "__code__", None)
    where = f", {code.co_filename.rpartition('/')[2]} line {code.co_firstlineno}" if code is not None else ""
    return f"f = ...  # fill in: {name or type(f).__name__}{where}"


def written(x: Any) -> str:
    """A tree as Python text; large tensors as random ones of the same shape and type."""
    if isinstance(x, Tensor):
        return _tensor(x)
    if isinstance(x, dict):
        return "{" + ", ".join(f"{key!r}: {written(value)}" for key, value in x.items()) + "}"
    if type(x) is list:
        return "[" + ", ".join(map(written, x)) + "]"
    if type(x) is tuple:
        return "(" + "".join(f"{written(value)}, " for value in x).rstrip() + ")"
    if x is None or isinstance(x, (bool, int, float, complex, str)):
        return repr(x)
    return f"...  # fill in: the {type(x).__name__} that was checked\n"


def _tensor(x: Tensor) -> str:
    if x.layout is not torch.strided:
        return f"...  # fill in: the {x.layout} tensor of shape {tuple(x.shape)} that was checked\n"
    if x.numel() <= _WRITTEN:
        return f"torch.tensor({x.detach().cpu().tolist()!r}, dtype={x.dtype})"
    if x.is_floating_point() or x.is_complex():
        return f"torch.randn({tuple(x.shape)}, dtype={x.dtype}, generator=torch.Generator().manual_seed(0))"
    return f"torch.zeros({tuple(x.shape)}, dtype={x.dtype})"

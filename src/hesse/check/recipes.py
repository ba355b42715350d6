"""Programs that compare in one way each: pieces of the program that shows a finding."""

from __future__ import annotations

PRELUDE = """\
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

{function}

x = {x}

flat, spec = tree_flatten(x)
places = [i for i, t in enumerate(flat) if isinstance(t, torch.Tensor) and (t.is_floating_point() or t.is_complex())]
places = [i for i in places if flat[i].numel()]
leaves = [flat[i].detach().clone() for i in places]


def call(leaves):
    given = list(flat)
    for i, leaf in zip(places, leaves):
        given[i] = leaf
    torch.manual_seed(0)
    outputs = tree_flatten(f(tree_unflatten(given, spec)))[0]
    return [y for y in outputs if isinstance(y, torch.Tensor) and (y.is_floating_point() or y.is_complex())]


def pull(outputs, own, cotangents, **options):
    pairs = [(y, u) for y, u in zip(outputs, cotangents) if y.requires_grad and u is not None]
    if not pairs:
        return [torch.zeros_like(t) for t in own]
    found = torch.autograd.grad([y for y, _ in pairs], own, [u for _, u in pairs], allow_unused=True, **options)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(own, found)]


def gradient(leaves, cotangents):
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    return pull(call(own), own, cotangents)


cotangents = {cotangents}
"""
MODULE = """\
module = ...  # fill in: {name}


def f(leaves):
    dtypes = {{t.dtype for t in leaves.values() if t.is_floating_point()}}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    state = dict([*module.named_parameters(), *module.named_buffers()])
    state = {{name: t.detach().to(dtype if t.is_floating_point() else None, copy=True) for name, t in state.items()}}
    parameters = {{name: t for name, t in leaves.items() if not name.startswith("inputs.")}}
    args, named = {args}, {named}
    return torch.func.functional_call(module, {{**state, **parameters}}, args, named)

"""
COMPARE = """\
tried = {pairs}
a, b = max(tried, key=lambda pair: (pair[0] - pair[1]).abs().nan_to_num(torch.inf).max().item() if pair[0].numel() else 0.0)
place = (a - b).abs().nan_to_num(torch.inf).argmax()
print("found   ", a.reshape(-1)[place].item())
print("expected", b.reshape(-1)[place].item())
"""
ELEMENT = """\
print("found   ", found[{leaf}][{index}].item())
print("expected", expected[{leaf}][{index}].item())
"""
DIFFERENCE = """\
{direction}


def central(step):
    high, low = (call([x if v is None else x + t * v for x, v in zip(leaves, direction)]) for t in (step, -step))
    return sum((u.conj() * (a - b)).sum().real.item() for u, a, b in zip(cotangents, high, low)) / (2 * step)


def along(direction):
    pairs = [(g, v) for g, v in zip(gradient(leaves, cotangents), direction) if v is not None]
    return sum((v.conj() * g).sum().real.item() for g, v in pairs)


"""
ALONG = """\
print("gradient  ", along(direction) / {unit})
print("difference", (4 * central({step} / 2) - central({step})) / 3 / {unit})
"""
COMPLEX = """\
print("gradient  ", gradient(leaves, cotangents)[{leaf}][{index}].item())
parts = []
for unit in (1.0, 1j):
    direction[{leaf}][{index}] = {unit} * unit
    parts.append((4 * central({step} / 2) - central({step})) / 3 / {unit})
print("difference", complex(*parts))
"""
FORWARD = """\
import torch.autograd.forward_ad as forward_ad

{direction}
direction = [torch.zeros_like(x) if v is None else v for x, v in zip(leaves, direction)]
with forward_ad.dual_level():
    duals = [forward_ad.make_dual(x, v) for x, v in zip(leaves, direction)]
    tangents = [forward_ad.unpack_dual(y).tangent for y in call(duals)]
    total = sum((u.conj() * t).sum().real.item() for u, t in zip(cotangents, tangents) if t is not None)
    print("forward", total / {unit})
pairs = zip(gradient(leaves, cotangents), direction)
print("reverse", sum((v.conj() * g).sum().real.item() for g, v in pairs) / {unit})
"""
SECOND = """\
{direction}
direction = [torch.zeros_like(x) if v is None else v for x, v in zip(leaves, direction)]
w = [torch.randn_like(t) for t in leaves]
own = [leaf.detach().requires_grad_() for leaf in leaves]
slopes = pull(call(own), own, cotangents, create_graph=True)
along = sum((a.conj() * b).sum().real for a, b in zip(w, slopes))
second = pull([along], own, [torch.ones_like(along)])
print("second pass", sum((a.conj() * b).sum().real.item() for a, b in zip(direction, second)))


def slope(t):
    found = gradient([x + t * d for x, d in zip(leaves, direction)], cotangents)
    return sum((a.conj() * b).sum().real.item() for a, b in zip(w, found))


print("difference ", (slope({step}) - slope(-{step})) / (2 * {step}))
"""
_OWN = "own = [leaf.detach().requires_grad_() for leaf in leaves]\n"
_HOT = """\
found, expected, whole = [], [], gradient(leaves, cotangents)
for number, u in enumerate(cotangents):
    for place in range(min(u.numel(), 8)):
        hot = [torch.zeros_like(t) for t in cotangents]
        hot[number].view(-1)[place] = u.reshape(-1)[place]
        rest = [t - h for t, h in zip(cotangents, hot)]
        found += [a + b for a, b in zip(gradient(leaves, hot), gradient(leaves, rest))]
        expected += whole
"""
_VMAP = """\
points = [leaves, [1.1 * t for t in leaves]]
stacked = [torch.stack(ts, {axis}).requires_grad_() for ts in zip(*points)]
outputs = torch.vmap(lambda *ts: tuple(call(ts)), {axis}, randomness="same")(*stacked)
"""
USES = {
    "same value twice": "found, expected = call(leaves), call(leaves)",
    "cotangent times": "found = gradient(leaves, [{factor} * u for u in cotangents])\n"
    "expected = [{factor} * g for g in gradient(leaves, cotangents)]",
    "zero cotangent": "found = gradient(leaves, [0 * u for u in cotangents])\nexpected = [torch.zeros_like(t) for t in leaves]",
    "sum of cotangents": "other = [torch.randn_like(u) for u in cotangents]\n"
    "found = gradient(leaves, [a + b for a, b in zip(cotangents, other)])\n"
    "expected = [a + b for a, b in zip(gradient(leaves, cotangents), gradient(leaves, other))]",
    "one element of the cotangent": _HOT,
    "output '": "found = gradient(leaves, [u if i == {output} else None for i, u in enumerate(cotangents)])\n"
    "expected = gradient(leaves, [u if i == {output} else 0 * u for i, u in enumerate(cotangents)])",
    "second backward pass": f"{_OWN}outputs = call(own)\n"
    "expected = [g.clone() for g in pull(outputs, own, cotangents, retain_graph=True)]\nfound = pull(outputs, own, cotangents)",
    "gradient after a later pass": f"{_OWN}outputs = call(own)\nfound = pull(outputs, own, cotangents, retain_graph=True)\n"
    "expected = [g.clone() for g in found]\npull(outputs, own, cotangents)",
    "another call before": f"expected = gradient(leaves, cotangents)\n{_OWN}"
    "outputs = call(own)\ngradient([1.1 * t for t in leaves], cotangents)\nfound = pull(outputs, own, cotangents)",
    "accumulation over two uses": f"{_OWN}found = pull([*call(own), *call(own)], own, [*cotangents, *cotangents])\n"
    "expected = [2 * g for g in gradient(leaves, cotangents)]",
    "accumulation into": "expected = [1 + 2 * g for g in gradient(leaves, cotangents)]\n"
    "own = [leaf.clone().requires_grad_() for leaf in leaves]\n"
    "for t in own:\n    t.grad = torch.ones_like(t)\nfor _ in range(2):\n"
    "    pairs = [(y, u) for y, u in zip(call(own), cotangents) if y.requires_grad]\n"
    "    torch.autograd.backward([y for y, _ in pairs], [u for _, u in pairs])\nfound = [t.grad for t in own]",
    "the same tensors": "tensors = [t.clone() for t in leaves]\ngradient(tensors, cotangents)\n"
    "for t in tensors:\n    t.mul_(1.1)\nfound = gradient(tensors, cotangents)\n"
    "expected = gradient([t.clone() for t in tensors], cotangents)",
    "values of the same tensors": "tensors = [t.clone() for t in leaves]\ncall(tensors)\n"
    "for t in tensors:\n    t.mul_(1.1)\nfound = call(tensors)\nexpected = call([t.clone() for t in tensors])",
    "inputs unchanged by": "expected = [t.clone() for t in leaves]\ncall([t.detach().requires_grad_() for t in leaves])\n"
    "found = leaves",
    "inputs unchanged": "expected = [t.clone() for t in leaves]\ngradient(leaves, cotangents)\nfound = leaves",
    "cotangents unchanged": "expected = [u.clone() for u in cotangents]\ngradient(leaves, cotangents)\nfound = cotangents",
    "value under vmap": _VMAP + "found, expected = outputs, [torch.stack(ys) for ys in zip(*map(call, points))]",
    "gradient through vmap": _VMAP + "found = pull(outputs, stacked, [torch.stack([u, u]) for u in cotangents])\n"
    "expected = [torch.stack(gs, {axis}) for gs in zip(*(gradient(point, cotangents) for point in points))]",
    "values without recording": "with torch.no_grad():\n    found = call(leaves)\n"
    "expected = call([t.detach().requires_grad_() for t in leaves])",
    "recording off": "with torch.no_grad():\n    found = call(leaves)\n"
    "expected = call([t.detach().requires_grad_() for t in leaves])",
    "one tensor as": f"{_OWN}own[{{second}}] = own[{{first}}]\nfound = pull(call(own), [own[{{first}}]], cotangents)\n"
    "parts = gradient([leaves[{first}] if i == {second} else t for i, t in enumerate(leaves)], cotangents)\n"
    "expected = [parts[{first}] + parts[{second}]]",
    "repeated calls": "expected = gradient(leaves, cotangents)\nfor _ in range(100):\n"
    "    found = gradient(leaves, cotangents)\n"
    "    if not all(torch.equal(a, b) for a, b in zip(found, expected)):\n        break",
    "second order in the cotangent": "w = [torch.randn_like(t) for t in leaves]\n"
    "other = [torch.randn_like(u) for u in cotangents]\n"
    f"{_OWN}moved = [u.clone().requires_grad_() for u in cotangents]\n"
    "slopes = pull(call(own), own, moved, create_graph=True)\n"
    "total = sum((a.conj() * b).sum().real for a, b in zip(w, slopes))\n"
    "found = [sum((a.conj() * b).sum().real for a, b in zip(other, pull([total], moved, [torch.ones_like(total)])))]\n"
    "expected = [sum((a.conj() * b).sum().real for a, b in zip(w, gradient(leaves, other)))]",
    "own dtype": "found = gradient(leaves, cotangents)\n{widen}"
    "wide = [[t.to(torch.promote_types(t.dtype, torch.float64)) for t in ts] for ts in (leaves, cotangents)]\n"
    "expected = gradient(*wide)",
}
SUBSET = """\
expected, found = gradient(leaves, cotangents), []
subset = {subset}
own = [leaf.detach().requires_grad_(i in subset) for i, leaf in enumerate(leaves)]
found = list(expected)
for i, g in zip(subset, pull(call(own), [own[i] for i in subset], cotangents)):
    found[i] = g
"""
INSIDE = """\
def nodes(roots):
    seen = dict.fromkeys(roots)
    queue = list(seen)
    while queue:
        new = [n for n, _ in queue.pop().next_functions if n is not None and n not in seen]
        seen.update(dict.fromkeys(new))
        queue += new
    return seen


def inside(change):
    own = [leaf.detach().requires_grad_() for leaf in leaves]
    outputs = call(own)
    last = [y.grad_fn for y in outputs if y.grad_fn is not None]
    for node in nodes(last):
        if isinstance(node, torch.autograd.function.BackwardCFunction) and node not in last:
            node.register_prehook(lambda gs: tuple(None if g is None else change(g) for g in gs))
    return pull(outputs, own, cotangents)


"""
LAYOUTS = {
    "transposed": "t.mT.contiguous().mT if t.dim() > 1 and min(t.shape[-2:]) > 1 else t",
    "strided": "torch.stack([torch.ones_like(t), t], -1).flatten(-2)[..., 1::2] if t.numel() > 1 else t",
    "offset": "torch.cat([t.new_ones(3), t.flatten(), t.new_ones(4)])[3:-4].view(t.shape)",
    "channels-last": "t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t",
    "sliced": "torch.nn.functional.pad(t, (1, 1) * max(t.dim(), 1), value=1.0)[(slice(1, -1),) * t.dim()]",
    "sliced along": "torch.cat([torch.ones_like(t), t, torch.ones_like(t)], {axis}).chunk(3, {axis})[1]",
    "lazily conjugated": "torch.conj_physical(t.resolve_conj()).conj()",
    "expanded": "(t.narrow(0, 0, 1) if first else t.reshape(-1)[:1].view((1,) * t.dim())).expand(t.shape) if t.dim() else t",
}

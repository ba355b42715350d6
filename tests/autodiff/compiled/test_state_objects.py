"""Objects, classes, modules and tensors that a function reads: every change is noticed, tensors stay live."""

# ruff: noqa: E501  (programs as text)

from __future__ import annotations

from typing import Any

import pytest
import torch

from .test_state import program, recorded, run, sample

CONFIG = "class C:\n  rate = 2.0\nc = C()\n"
LAYERS = "torch.manual_seed(0); m = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2)).double()\nm.eval()\n"

CHANGES = {
    "attribute": (CONFIG + "c.s = 2.0\ndef f(x): return x.sum() * c.s", "c.s = 3.0", "global c.s changed: 2.0, now 3.0"),
    "attribute of an attribute": (
        CONFIG + "c.d = C(); c.d.s = 2.0\ndef f(x): return x.sum() * c.d.s",
        "c.d.s = 3.0",
        "global c.d.s",
    ),
    "another object": (CONFIG + "def f(x): return x.sum() * c.rate", "c = C(); c.rate = 5.0", "global c"),
    "class attribute": (CONFIG + "def f(x): return x.sum() * c.rate", "C.rate = 3.0", "C.rate"),
    "shadowed class attribute": (CONFIG + "def f(x): return x.sum() * c.rate", "c.rate = 3.0", "the attributes of global c"),
    "shadowed in a subclass": (
        "class A:\n  rate = 2.0\nclass B(A): pass\nb = B()\ndef f(x): return x.sum() * b.rate",
        "B.rate = 3.0",
        "the attributes of B",
    ),
    "class swapped": (
        CONFIG + "class D:\n  rate = 4.0\ndef f(x): return x.sum() * c.rate",
        "c.__class__ = D",
        "the class of global c",
    ),
    "bases swapped": (
        "class A:\n  rate = 2.0\nclass A2:\n  rate = 3.0\nclass B(A): pass\nb = B()\ndef f(x): return x.sum() * b.rate",
        "B.__bases__ = (A2,)",
        "the bases of B",
    ),
    "dictionary swapped": (
        CONFIG + "c.s = 2.0\ndef f(x): return x.sum() * c.s",
        "c.__dict__ = {'s': 3.0}",
        "the dictionary of global c",
    ),
    "hasattr": (CONFIG + "def f(x): return x.sum() if hasattr(c, 'q') else x.prod()", "c.q = 1", "the attributes of global c"),
    "getattr with a default": (
        CONFIG + "def f(x): return x.sum() * getattr(c, 'q', 1.0)",
        "c.q = 2.0",
        "the attributes of global c",
    ),
    "computed getattr": (
        CONFIG + "c.k2 = 2.0\ndef f(x): return x.sum() * getattr(c, 'k' + str(len('ab')))",
        "c.k2 = 3.0",
        "global c.k2",
    ),
    "computed getattr of what is absent": (
        CONFIG + "def f(x): return x.sum() * getattr(c, 'k' + str(len('ab')), 1.0)",
        "c.k2 = 3.0",
        "the attributes of global c",
    ),
    "getattr by a kept name": (
        CONFIG + "c.a = 2.0; c.b = 3.0; name = 'a'\ndef f(x): return x.sum() * getattr(c, name)",
        "name = 'b'",
        "global name",
    ),
    "vars": (CONFIG + "c.s = 2.0\ndef f(x): return x.sum() * sum(vars(c).values())", "c.t = 3.0", "the attributes of global c"),
    "__dict__": (CONFIG + "c.s = 2.0\ndef f(x): return x.sum() * sum(c.__dict__.values())", "c.s = 3.0", "global c.s"),
    "attrgetter": (
        CONFIG + "c.hidden = 2.0\ndef f(x): return x.sum() * operator.attrgetter('hid' + 'den')(c)",
        "c.hidden = 3.0",
        "global c.hidden",
    ),
    "kept attrgetter": (
        CONFIG + "c.hidden = 2.0; g = operator.attrgetter('hidden')\ndef f(x): return x.sum() * g(c)",
        "c.hidden = 3.0",
        "global c.hidden",
    ),
    "format with an attribute": (
        CONFIG + "c.s = 2\ndef f(x): return x.sum() * int('{0.s}'.format(c))",
        "c.s = 3",
        "global c.s",
    ),
    "class pattern": (
        "class C:\n  __match_args__ = ('s',)\nc = C(); c.s = 2.0\ndef f(x):\n  match c:\n    case C(s): return x.sum() * s",
        "c.s = 3.0",
        "global c.s",
    ),
    "copied": (
        CONFIG + "import copy\nc.s = [2.0]\ndef f(x): return x.sum() * copy.deepcopy(c).s[0]",
        "c.s[0] = 3.0",
        "global c.s",
    ),
    "attribute deleted": (
        CONFIG + "c.rate = 4.0\ndef f(x): return x.sum() * c.rate",
        "del c.rate",
        "global c",
    ),
    "method replaced": (
        "class C:\n  def g(self, x): return x * 2\nc = C()\ndef f(x): return c.g(x).sum()",
        "C.g = lambda self, x: x * 3",
        "C.g",
    ),
    "method of an instance": (
        "class C:\n  def g(self, x): return x * 2\nc = C()\ndef f(x): return c.g(x).sum()",
        "c.g = lambda x: x * 3",
        "the attributes of global c",
    ),
    "global of a method": (
        "S = 2.0\nclass C:\n  def g(self, x): return x * S\nc = C()\ndef f(x): return c.g(x).sum()",
        "S = 3.0",
        "global S",
    ),
    "super": (
        "S = 2.0\nclass A:\n  def g(self, x): return x * S\nclass B(A):\n  def g(self, x): return super().g(x)\nb = B()\n"
        "def f(x): return b.g(x).sum()",
        "S = 3.0",
        "global S",
    ),
    "bound method": (
        "class C:\n  s = 2.0\n  def g(self, x): return x.sum() * self.s\nc = C()\nf = c.g",
        "c.s = 3.0",
        "self",
    ),
    "callable object": (
        "class C:\n  def __call__(self, x): return x.sum() * self.s\nf = C(); f.s = 2.0",
        "f.s = 3.0",
        "self.s",
    ),
    "special method": (
        "class V:\n  def __init__(self, s): self.s = s\n  def __rmul__(self, x): return x * self.s\nv = V(2.0)\ndef f(x): return x.sum().item() * v",
        "V.__rmul__ = lambda self, x: x * 7",
        "V.__rmul__",
    ),
    "special method appears": (
        "class V: pass\nv = V()\ndef f(x): return x.sum() * (2 if v else 1)",
        "V.__len__ = lambda self: 0",
        "the attributes of V",
    ),
    "static and class methods": (
        "S = 2.0\nclass C:\n  @staticmethod\n  def g(x): return x * S\n  @classmethod\n  def h(cls, x): return cls.g(x)\n"
        "def f(x): return C.h(x).sum()",
        "S = 3.0",
        "global S",
    ),
    "property": (
        "class C:\n  @property\n  def s(self): return self.t * 2\nc = C(); c.t = 2.0\ndef f(x): return x.sum() * c.s",
        "c.t = 3.0",
        "global c.t",
    ),
    "property replaced": (
        "class C:\n  @property\n  def s(self): return 2.0\nc = C()\ndef f(x): return x.sum() * c.s",
        "C.s = 3.0",
        "C.s",
    ),
    "descriptor": (
        "class D:\n  k = 2.0\n  def __get__(self, o, t): return self.k\nclass C:\n  s = D()\nc = C()\ndef f(x): return x.sum() * c.s",
        "C.__dict__['s'].k = 3.0",
        "C.s",
    ),
    "computed attribute": (
        "class C:\n  def __getattr__(self, name): return self.table[name]\nc = C(); c.table = {'s': 2.0}\ndef f(x): return x.sum() * c.s",
        "c.table['s'] = 3.0",
        "global c.table['s']",
    ),
    "metaclass": (
        "class M(type):\n  @property\n  def s(cls): return cls.t\n  t = 2.0\nclass C(metaclass=M): pass\ndef f(x): return x.sum() * C.s",
        "M.t = 3.0",
        "M.t",
    ),
    "constructed class": (
        "class C:\n  s = 2.0\n  def __init__(self, k): self.k = k * self.s\ndef f(x): return x.sum() * C(3.0).k",
        "C.s = 5.0",
        "C.s",
    ),
    "data class with slots": (
        "@dataclasses.dataclass(slots=True)\nclass P:\n  s: float\np = P(2.0)\ndef f(x): return x.sum() * p.s",
        "p.s = 3.0",
        "global p.s",
    ),
    "slot filled later": (
        "class P:\n  __slots__ = ('s',)\np = P()\ndef f(x): return x.sum() * getattr(p, 's', 1.0)",
        "p.s = 3.0",
        "global p.s",
    ),
    "data class as a dictionary": (
        "@dataclasses.dataclass\nclass P:\n  s: float\np = P(2.0)\ndef f(x): return x.sum() * dataclasses.asdict(p)['s']",
        "p.s = 3.0",
        "global p.s",
    ),
    "enumeration": (
        "class E(enum.Enum):\n  A = 1\n  B = 2\nmode = E.A\ndef f(x): return x.sum() if mode is E.A else x.prod()",
        "mode = E.B",
        "global mode",
    ),
    "value of an enumeration": (
        "class E(enum.Enum):\n  A = (1, [2.0])\ndef f(x): return x.sum() * E.A.value[1][0]",
        "E.A.value[1][0] = 3.0",
        "_value_[1][0]",
    ),
    "dictionary with attributes": (
        "class D(dict):\n  __getattr__ = dict.__getitem__\nd = D(s=2.0)\ndef f(x): return x.sum() * d.s",
        "d['s'] = 3.0",
        "global d['s']",
    ),
    "list subclass": ("class L(list): pass\nl = L([1.0, 2.0])\ndef f(x): return x.sum() * l[1]", "l[1] = 3.0", "global l[1]"),
    "namespace": ("n = types.SimpleNamespace(s=2.0)\ndef f(x): return x.sum() * n.s", "n.s = 3.0", "global n.s"),
    "object in a dictionary": (
        CONFIG + "D = {'c': c}\ndef f(x): return x.sum() * D['c'].rate",
        "c.rate = 3.0",
        "global D['c']",
    ),
    "training mode": (
        LAYERS + "def f(x): return m(x).abs().sum()",
        "m.train(); torch.manual_seed(1)",
        ".training changed: False, now True",
    ),
    "sub-module swapped": (LAYERS + "def f(x): return m(x).sum()", "m[1] = nn.Tanh()", "global m.1"),
    "sub-module added": (LAYERS + "def f(x): return m(x).sum()", "m.append(nn.Tanh())", "the keys of global m._modules"),
    "forward hook": (
        LAYERS + "def f(x): return m(x).sum()",
        "m[0].register_forward_hook(lambda m, a, out: out * 2)",
        "_forward_hooks",
    ),
    "forward pre-hook": (
        LAYERS + "def f(x): return m(x).sum()",
        "m[0].register_forward_pre_hook(lambda m, a: a[0] * 2)",
        "_forward_pre_hooks",
    ),
    "global of a hook": (
        LAYERS + "S = 2.0\nm[0].register_forward_hook(lambda m, a, out: out * S)\ndef f(x): return m(x).sum()",
        "S = 3.0",
        "global S",
    ),
    "forward of a user module": (
        "class N(nn.Module):\n  s = 2.0\n  def forward(self, x): return x.sum() * self.s\nf = N()",
        "f.forward = lambda x: x.prod()",
        "the attributes of self",
    ),
    "forward of a torch module": (
        LAYERS + "def f(x): return m(x).sum()",
        "keep = nn.Linear.forward; nn.Linear.forward = lambda self, x: 2 * keep(self, x)",
        "Linear.forward",
    ),
    "number in a user module": (
        "class N(nn.Module):\n  def forward(self, x): return x.sum() * self.s\nf = N(); f.s = 2.0",
        "f.s = 3.0",
        "self.s",
    ),
    "number in a torch module": (
        "m = nn.LayerNorm(4).double()\ndef f(x): return (m(x) ** 2).sum()",
        "m.eps = 1.0",
        "global m.eps",
    ),
    "parameter removed": ("m = nn.Linear(4, 2).double()\ndef f(x): return m(x).sum()", "m.bias = None", "global m.bias"),
    "autograd function": (
        "S = 2.0\nclass D(torch.autograd.Function):\n  @staticmethod\n  def forward(ctx, x): return x * S\n"
        "  @staticmethod\n  def backward(ctx, g): return g * S\ndef f(x): return D.apply(x).sum()",
        "S = 3.0",
        "global S",
    ),
    "attribute of a tensor": ("W = torch.ones(4)\nW.s = 2.0\ndef f(x): return (x * W).sum() * W.s", "W.s = 3.0", "global W.s"),
    "attribute of a tensor appears": (
        "W = torch.ones(4)\ndef f(x): return (x * W).sum() * getattr(W, 's', 1.0)",
        "W.s = 3.0",
        "the attributes of global W",
    ),
    "tied tensors untied": (
        "W = torch.ones(4); V = W\ndef f(x): return (x * W * V).sum()",
        "V = torch.ones(4) * 2",
        "the same tensor",
    ),
    "distinct tensors tied": (
        "W = torch.ones(4); V = torch.ones(4)\ndef f(x): return (x * W * V).sum() * (2 if W is V else 1)",
        "V = W",
        "the same object",
    ),
    "tensor replaced by a number": ("W = torch.ones(4)\ndef f(x): return (x * W).sum()", "W = 2.0", "global W"),
    "tensor in place of a number": ("W = 2.0\ndef f(x): return (x * W).sum()", "W = torch.ones(4)", "global W"),
    "gradient of a leaf": (
        "W = torch.ones(4, requires_grad=True)\ndef f(x): return x.sum() * (1 if W.grad is None else 2)",
        "W.grad = torch.ones(4)",
        "global W.grad",
    ),
}
UNDO = {"forward of a torch module": "nn.Linear.forward = keep"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_and_named(name: str) -> None:
    source, change, expected = CHANGES[name]
    names = program(source)
    x = sample()
    state = recorded(names["f"], x)
    before = float(names["f"](x))
    assert state.check() is not None, state.difference()
    run(names, change)
    try:
        if name != "attribute deleted":
            assert float(names["f"](x)) != before
        assert state.check() is None
        assert expected in state.difference()
    finally:
        run(names, UNDO.get(name, ""))


# program, path of the tensor, statement that puts another tensor there
TENSORS = {
    "global": ("W = torch.ones(4)\ndef f(x): return (x * W).sum()", "global W", "W = NEW"),
    "global dictionary": ("D = {'a': torch.ones(4)}\ndef f(x): return (x * D['a']).sum()", "global D['a']", "D['a'] = NEW"),
    "another dictionary": ("D = {'a': torch.ones(4)}\ndef f(x): return (x * D['a']).sum()", "global D['a']", "D = {'a': NEW}"),
    "list": ("D = [torch.ones(4)]\ndef f(x): return (x * D[0]).sum()", "global D[0]", "D[0] = NEW"),
    "another tuple": ("D = (torch.ones(4), 2)\ndef f(x): return (x * D[0]).sum()", "global D[0]", "D = (NEW, 2)"),
    "attribute": ("class C: pass\nc = C(); c.w = torch.ones(4)\ndef f(x): return (x * c.w).sum()", "global c.w", "c.w = NEW"),
    "closure": (
        "def make():\n  W = torch.ones(4)\n  def f(x): return (x * W).sum()\n  def put(v):\n    nonlocal W\n    W = v\n  return f, put\n"
        "f, put = make()",
        "closure W",
        "put(NEW)",
    ),
    "default": ("def f(x, w=torch.ones(4)): return (x * w).sum()", "defaults of f[0]", "f.__defaults__ = (NEW,)"),
    "buffer": (
        "class N(nn.Module):\n  def __init__(self):\n    super().__init__()\n    self.register_buffer('w', torch.ones(4))\n"
        "  def forward(self, x): return (x * self.w).sum()\nf = N()",
        "self.w",
        "f.w = NEW",
    ),
    "slot": (
        "class P:\n  __slots__ = ('w',)\np = P(); p.w = torch.ones(4)\ndef f(x): return (x * p.w).sum()",
        "global p.w",
        "p.w = NEW",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_live(name: str) -> None:
    source, path, change = TENSORS[name]
    names: dict[str, Any] = program(source)
    state = recorded(names["f"], sample())
    assert [name for name, _ in state.tensors] == [path]
    old = state.tensors[0][1]
    old.mul_(3.0)
    present = state.check()
    assert present is not None and present[0] is old
    names["NEW"] = torch.full((4,), 7.0)
    run(names, change)
    present = state.check()
    assert present is not None, state.difference()
    assert present[0] is names["NEW"]


def test_parameters_of_layers_have_their_paths() -> None:
    names = program(LAYERS + "def f(x): return m(x).sum()")
    state = recorded(names["f"], sample())
    assert [name for name, _ in state.tensors] == [
        "global m.0.weight",
        "global m.0.bias",
        "global m.2.weight",
        "global m.2.bias",
    ]
    assert [tensor is own for (_, tensor), own in zip(state.tensors, names["m"].parameters(), strict=True)] == [True] * 4


def test_a_tensor_met_twice_is_one_input() -> None:
    names = program("W = torch.ones(4); V = W; D = [W]\ndef f(x): return (x * W * V * D[0]).sum()")
    state = recorded(names["f"], sample())
    assert len(state.tensors) == 1
    present = state.check()
    assert present is not None and present[0] is names["W"]


def test_objects_handed_over_as_arguments_are_watched() -> None:
    names = program("class C: pass\nc = C(); c.s = 2.0\ndef f(x, c): return x.sum() * c.s")
    state = recorded(names["f"], sample(), names["c"], c=names["c"])
    assert state.check() == []
    names["c"].s = 3.0
    assert state.check() is None
    assert state.difference() == "c.s changed: 2.0, now 3.0"


def test_a_class_may_name_the_fields_that_matter() -> None:
    source = "class C:\n  _state_fields_ = ('s',)\n  def __call__(self, x):\n    return x.sum() * self.s + 0 * self.calls\n"
    names = program(source + "f = C(); f.s = 2.0; f.calls = 0")
    state = recorded(names["f"], sample())
    names["f"].calls = 5
    assert state.check() == []
    names["f"].s = 3.0
    assert state.check() is None

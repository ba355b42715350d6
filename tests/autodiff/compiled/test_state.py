"""A changed closure, global, attribute, method or container fails the check, by name; what was not read does not."""

# ruff: noqa: E501  (programs as text)

from __future__ import annotations

import math
import sys
import textwrap
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hesse.autodiff.compiled.state import PythonState, StateRecorder

HEADER = """
import collections, dataclasses, enum, functools, itertools, math, operator, types, typing
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
"""


def program(source: str) -> dict[str, Any]:
    """The globals of a program written as text; it defines `f`."""
    module = ModuleType("a_user_program")
    sys.modules[module.__name__] = module
    exec(compile(HEADER + textwrap.dedent(source), "<a user program>", "exec"), vars(module))
    return vars(module)


def run(names: dict[str, Any], statement: str) -> None:
    exec(compile(textwrap.dedent(statement), "<a change>", "exec"), names)


def recorded(f: Any, *args: Any, **roots: Any) -> PythonState:
    recorder = StateRecorder(f, extra_roots=roots or None)
    with recorder:
        f(*args)
    return recorder.finish()


def sample() -> Tensor:
    return torch.linspace(-1.0, 2.0, 4, dtype=torch.float64)


# name -> (program, change, what the difference has to name); every change moves f's value
CHANGES = {
    "global float": ("RATE = 0.5\ndef f(x): return x.sum() * RATE", "RATE = 0.25", "global RATE changed: 0.5, now 0.25"),
    "global equal int": (
        "N = True\ndef f(x): return x.sum() * (2 if N is True else 3)",
        "N = 1",
        "global N changed: True, now 1",
    ),
    "minus zero": ("Z = 0.0\ndef f(x): return x.sum() * math.copysign(1, Z)", "Z = -0.0", "global Z"),
    "from nan": ("Z = math.nan\ndef f(x): return x.sum() * (0 if Z != Z else 1)", "Z = 1.0", "global Z"),
    "int becomes float": ("Z = 2\ndef f(x): return x.sum() * (7 // Z if isinstance(Z, int) else 7 / Z)", "Z = 2.0", "global Z"),
    "complex minus zero": (
        "Z = complex(1, 0.0)\ndef f(x): return x.sum() * math.copysign(1, Z.imag)",
        "Z = complex(1, -0.0)",
        "global Z",
    ),
    "text": ("KIND = 'a'\ndef f(x): return x.sum() if KIND == 'a' else x.prod()", "KIND = 'b'", "global KIND"),
    "none": ("M = None\ndef f(x): return x.sum() if M is None else x.prod()", "M = 1", "global M"),
    "dtype": ("D = torch.float32\ndef f(x): return x.to(D).exp().sum().double()", "D = torch.float64", "global D"),
    "tuple in a tuple": ("S = (1.0, (2.0, 'a'))\ndef f(x): return x.sum() * S[1][0]", "S = (1.0, (3.0, 'a'))", "global S"),
    "global deleted": (
        "E = 2.0\ndef f(x):\n  try: return x.sum() * E\n  except NameError: return x.prod()",
        "del E",
        "global E is gone",
    ),
    "global appears": (
        "def f(x):\n  try: return x.sum() * E\n  except NameError: return x.prod()",
        "E = 4.0",
        "global E",
    ),
    "builtin shadowed": ("def f(x): return x.sum() * abs(-2.0)", "def abs(x): return x", "builtin abs"),
    "closure": (
        "def make():\n  s = 2.0\n  def f(x): return x.sum() * s\n  def put(v):\n    nonlocal s\n    s = v\n  return f, put\nf, put = make()",
        "put(3.0)",
        "closure s changed: 2.0, now 3.0",
    ),
    "closure of a closure": (
        "def make():\n  s = 2.0\n  def g(x):\n    def h(y): return y * s\n    return h(x).sum()\n"
        "  def put(v):\n    nonlocal s\n    s = v\n  return (lambda x: g(x)), put\nf, put = make()",
        "put(3.0)",
        "closure s",
    ),
    "closure filled later": (
        "def make():\n  def f(x):\n    try: return x.sum() * s\n    except NameError: return x.prod()\n"
        "  def put(v):\n    nonlocal s\n    s = v\n  if False: s = 1\n  return f, put\nf, put = make()",
        "put(3.0)",
        "closure s",
    ),
    "default": ("def f(x, s=2.0): return x.sum() * s", "f.__defaults__ = (3.0,)", "defaults of f"),
    "default dictionary": ("def f(x, s={'a': 2.0}): return x.sum() * s['a']", "f.__defaults__[0]['a'] = 3.0", "defaults of f"),
    "keyword default": ("def f(x, *, s=2.0): return x.sum() * s", "f.__kwdefaults__['s'] = 3.0", "keyword defaults of f"),
    "code swapped": ("def f(x): return x.sum()", "f.__code__ = (lambda x: x.prod()).__code__", "the code of f"),
    "code of a helper swapped": (
        "def g(x): return x * 2\ndef f(x): return g(x).sum()",
        "g.__code__ = (lambda x: x * 3).__code__",
        "the code of global g",
    ),
    "helper replaced": ("def g(x): return x * 2\ndef f(x): return g(x).sum()", "def g(x): return x * 3", "global g"),
    "global of a helper": ("S = 2.0\ndef g(x): return x * S\ndef f(x): return g(x).sum()", "S = 3.0", "global S"),
    "helper in a list": (
        "S = 2.0\nG = [lambda x: x * S, lambda x: x]\ndef f(x): return G[0](x).sum()",
        "S = 3.0",
        "global S",
    ),
    "list of functions": (
        "G = [lambda x: x * 2]\ndef f(x):\n  for g in G: x = g(x)\n  return x.sum()",
        "G.append(abs)",
        "global G",
    ),
    "function attribute": ("def f(x): return x.sum() * f.scale\nf.scale = 2.0", "f.scale = 3.0", "f.scale"),
    "function attribute appears": (
        "def g(x): return x\ndef f(x): return g(x).sum() * getattr(g, 'scale', 1.0)",
        "g.scale = 3.0",
        "the attributes of global g",
    ),
    "recursion": ("D = 3\ndef f(x, d=0): return x.sum() if d >= D else 2 * f(x, d + 1)", "D = 4", "global D"),
    "decorator": (
        "S = 2.0\ndef scaled(g):\n  @functools.wraps(g)\n  def h(*a): return g(*a) * S\n  return h\n@scaled\ndef f(x): return x.sum()",
        "S = 3.0",
        "global S",
    ),
    "decorated": (
        "T = 2.0\ndef scaled(g):\n  @functools.wraps(g)\n  def h(*a): return g(*a) * 2\n  return h\n@scaled\ndef f(x): return x.sum() + T",
        "T = 3.0",
        "global T",
    ),
    "partial": (
        "P = {'s': 2.0}\ndef g(x, p): return x.sum() * p['s']\nf = functools.partial(g, p=P)",
        "P['s'] = 3.0",
        "self['p']['s'] changed",
    ),
    "cached function": (
        "S = 2.0\n@functools.lru_cache\ndef g(n): return n * S\ng(3)\ndef f(x): return x.sum() * g(3)",
        "S = 3.0; g.cache_clear()",
        "global S",
    ),
    "helper of a cached function": (
        "S = 2.0\ndef h(n): return n * S\n@functools.lru_cache\ndef g(n): return h(n)\ng(3)\ndef f(x): return x.sum() * g(3)",
        "S = 3.0; g.cache_clear()",
        "global S",
    ),
    "weak reference": (
        "import weakref\nclass C:\n  s = 2.0\nc = C(); w = weakref.ref(c)\ndef f(x): return x.sum() * w().s",
        "c.s = 3.0",
        "the attributes of global w",
    ),
    "comprehension": ("S = 2.0\ndef f(x): return sum([y * S for y in x])", "S = 3.0", "global S"),
    "generator": ("S = 2.0\ndef f(x): return sum(y * S for y in x)", "S = 3.0", "global S"),
    "class inside": ("S = 2.0\ndef f(x):\n  class A:\n    s = S\n  return x.sum() * A.s", "S = 3.0", "global S"),
    "import inside": (
        "def f(x):\n  import math as m\n  return x.sum() * m.e",
        "import math; keep = math.e; math.e = 2.0",
        "math.e",
    ),
    "attribute of a module": (
        "M = types.ModuleType('settings'); M.rate = 2.0\ndef f(x): return x.sum() * M.rate",
        "M.rate = 3.0",
        "global M.rate",
    ),
    "module kept": (
        "M = types.ModuleType('settings'); M.rate = 2.0\ndef f(x):\n  m = M\n  return x.sum() * m.rate",
        "M.rate = 3.0",
        "settings.rate",
    ),
    "module in an object": (
        "M = types.ModuleType('settings'); M.rate = 2.0\nclass C: pass\nc = C(); c.m = M\ndef f(x): return x.sum() * c.m.rate",
        "M.rate = 3.0",
        "settings.rate",
    ),
    "torch function replaced": ("def f(x): return F.relu(x).sum()", "keep = F.relu; F.relu = F.softplus", "global F.relu"),
    "torch function replaced, by alias": (
        "def f(x):\n  lib = torch\n  return lib.tanh(x).sum()",
        "keep = torch.tanh; torch.tanh = torch.sin",
        "torch.tanh",
    ),
    "list item": ("L = [1.0, 2.0]\ndef f(x): return x.sum() * L[1]", "L[1] = 3.0", "global L[1]"),
    "long list": ("L = [1.0] * 50\ndef f(x): return x.sum() * sum(L)", "L[40] = 3.0", "the items of global L"),
    "list grows": ("L = [1.0, 2.0]\ndef f(x): return x.sum() * sum(L)", "L.append(3.0)", "the length of global L"),
    "dictionary value": (
        "D = {'a': {'b': 2.0}}\ndef f(x): return x.sum() * D['a']['b']",
        "D['a']['b'] = 3.0",
        "global D['a']['b']",
    ),
    "dictionary grows": ("D = {'a': 2.0}\ndef f(x): return x.sum() * len(D)", "D['b'] = 2.0", "the keys of global D"),
    "dictionary order": (
        "D = {'a': 2.0, 'b': 5.0}\ndef f(x): return x.sum() * next(iter(D.values()))",
        "D['a'] = D.pop('a')",
        "the keys of global D",
    ),
    "dictionary key type": (
        "D = {1: 2.0}\ndef f(x): return x.sum() * (1 if next(iter(D)) is True else 2)",
        "D.clear(); D[True] = 2.0",
        "the keys of global D",
    ),
    "ordered dictionary": (
        "D = collections.OrderedDict(a=2.0, b=5.0)\ndef f(x): return x.sum() * list(D.values())[0]",
        "D.move_to_end('a')",
        "the keys of global D",
    ),
    "default factory": (
        "D = collections.defaultdict(lambda: 2.0)\ndef f(x):\n  v = D['q']\n  del D['q']\n  return x.sum() * v",
        "D.default_factory = lambda: 3.0",
        "the default of global D",
    ),
    "set": ("S = {'a'}\ndef f(x): return x.sum() * (2 if 'b' in S else 1)", "S.add('b')", "global S"),
    "deque": ("Q = collections.deque([1.0, 2.0])\ndef f(x): return x.sum() * Q[0]", "Q.rotate()", "global Q"),
    "mapping proxy": (
        "D = {'a': 2.0}\nM = types.MappingProxyType(D)\ndef f(x): return x.sum() * M['a']",
        "D['a'] = 3.0",
        "global M['a']",
    ),
    "numpy array in place": ("A = np.ones(3)\ndef f(x): return x.sum() * float(A[0])", "A[0] = 2.0", "global A"),
    "numpy scalar": ("A = np.float64(2)\ndef f(x): return x.sum() * float(A)", "A = np.float64(3)", "global A"),
    "named tuple": (
        "P = collections.namedtuple('P', 'a b')\np = P(1.0, [2.0])\ndef f(x): return x.sum() * p.b[0]",
        "p.b[0] = 3.0",
        "global p[1][0]",
    ),
    "global hook": (
        "m = nn.Linear(4, 1).double()\ndef f(x): return m(x).sum()",
        "keep = torch.nn.modules.module.register_module_forward_hook(lambda m, a, out: out * 2)",
        "global hooks",
    ),
}

UNDO = {
    "import inside": "import math; math.e = keep",
    "torch function replaced": "F.relu = keep",
    "torch function replaced, by alias": "torch.tanh = keep",
    "global hook": "keep.remove()",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_and_named(name: str) -> None:
    source, change, expected = CHANGES[name]
    names = program(source)
    x = sample()
    state = recorded(names["f"], x)
    before = float(names["f"](x))
    assert state.check() is not None, state.difference()
    assert state.difference() == ""
    run(names, change)
    try:
        assert float(names["f"](x)) != before
        assert state.check() is None
        assert expected in state.difference()
    finally:
        run(names, UNDO.get(name, ""))


# name -> (program, change); f gives the same afterwards and nothing it read is different
UNREAD = {
    "another global": ("A = 1.0; B = 1.0\ndef f(x): return x.sum() * A", "B = 2.0"),
    "another attribute": (
        "class C: pass\nc = C(); c.a = 1.0; c.b = 1.0\ndef f(x): return x.sum() * c.a",
        "c.b = 2.0; c.other = 5; del c.b",
    ),
    "another method": (
        "class C:\n  def a(self): return 1.0\n  def b(self): return 2.0\nc = C()\ndef f(x): return x.sum() * c.a()",
        "C.b = None",
    ),
    "a helper that did not run": ("S = 2.0\ndef g(x): return x * S\ndef f(x): return x.sum() if True else g(x)", "S = 3.0"),
    "an equal value": ("A = 1000.5\ndef f(x): return x.sum() * A", "A = float('1000.5')"),
    "nan for nan": ("A = math.nan\ndef f(x): return x.sum() * (1 if A != A else 2)", "A = float('nan')"),
    "an equal dictionary": ("D = {'a': 1.0}\ndef f(x): return x.sum() * D['a']", "D = {'a': float('1')}"),
    "an equal list": ("D = [1.0, [2.0]]\ndef f(x): return x.sum() * D[1][0]", "D = [float('1'), [2.0]]"),
    "an attribute of a module": ("def f(x): return x.sum() * math.pi", "math.not_pi = 3"),
    "mode of a layer without modes": ("m = nn.Linear(4, 2).double()\ndef f(x): return m(x).sum()", "m.eval()"),
    "an attribute of the function": ("def f(x): return x.sum()", "f.note = 'x'"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_was_not_read_may_change(name: str) -> None:
    source, change = UNREAD[name]
    names = program(source)
    x = sample()
    state = recorded(names["f"], x)
    before = names["f"](x)
    run(names, change)
    assert torch.equal(names["f"](x), before)
    assert state.check() is not None, state.difference()


def test_difference_is_empty_again_after_the_value_comes_back() -> None:
    names = program("RATE = 0.5\ndef f(x): return x.sum() * RATE")
    state = recorded(names["f"], sample())
    names["RATE"] = math.pi
    assert state.check() is None
    names["RATE"] = 0.5
    assert state.check() == []
    assert state.difference() == ""


def test_code_that_only_a_library_holds_is_found() -> None:
    names = program(
        """
        S = 2.0
        def hook(m, a, out): return out * S
        m = nn.Linear(4, 1).double()
        keep = torch.nn.modules.module.register_module_forward_hook(hook)
        def f(x): return m(x).sum()
        del hook
        """
    )
    try:
        state = recorded(names["f"], sample())
        assert state.check() is not None
        names["S"] = 3.0
        assert state.check() is None
        assert "global S" in state.difference()
    finally:
        names["keep"].remove()

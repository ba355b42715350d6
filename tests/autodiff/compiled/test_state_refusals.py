"""What a recorded graph cannot repeat is refused by name; what only looks like it is let through."""

# ruff: noqa: E501  (programs as text)

from __future__ import annotations

import sys
from typing import Any

import pytest

from hesse.autodiff.compiled.state import StateRecorder, Unrecordable

from .test_state import program, recorded, sample

REFUSED = {
    "time": ("import time\ndef f(x): return x.sum() * time.time()", "time"),
    "time by name": ("from time import perf_counter\ndef f(x): return x.sum() * perf_counter()", "perf_counter"),
    "date": ("import datetime\ndef f(x): return x.sum() * datetime.datetime.now().year", "now"),
    "random": ("import random\ndef f(x): return x.sum() * random.random()", "random"),
    "random by name": ("from random import random\ndef f(x): return x.sum() * random()", "random"),
    "random integer": ("from random import randint\ndef f(x): return x.sum() * randint(1, 5)", "andom"),
    "own generator": ("import random\nr = random.Random(3)\ndef f(x): return x.sum() * r.random()", "andom"),
    "numpy random": ("def f(x): return x.sum() * np.random.rand()", "np.random"),
    "numpy generator": ("g = np.random.default_rng(0)\ndef f(x): return x.sum() * g.random()", "global g"),
    "numpy random by name": ("from numpy.random import rand\ndef f(x): return x.sum() * rand()", "global rand"),
    "torch generator": ("g = torch.Generator()\ndef f(x): return (x * torch.rand(4, generator=g)).sum()", "global g"),
    "seed": ("def f(x):\n  torch.manual_seed(0)\n  return x.sum()", "manual_seed"),
    "system random": ("import os\ndef f(x): return x.sum() * os.urandom(1)[0]", "urandom"),
    "unique": ("import uuid\ndef f(x): return x.sum() * (uuid.uuid4().int % 7)", "urandom"),
    "print": ("def f(x):\n  print('x')\n  return x.sum()", "prints"),
    "open": ("def f(x):\n  open('/dev/null').close()\n  return x.sum()", "opens a file"),
    "file exists": ("import os\ndef f(x): return x.sum() if os.path.exists('/dev/null') else x.prod()", "stat"),
    "environment call": ("import os\ndef f(x): return x.sum() * len(os.getcwd())", "getcwd"),
    "eval": ("def f(x): return x.sum() * eval('2.0')", "evaluates text"),
    "globals": ("S = 2.0\ndef f(x): return x.sum() * globals()['S']", "globals"),
    "address": ("def f(x): return x.sum() * (id(x) % 2)", "address"),
    "data address": ("def f(x): return x.sum() * (x.data_ptr() % 3)", "address"),
    "iterator": ("it = iter([1.0, 2.0, 3.0])\ndef f(x): return x.sum() * next(it)", "global it"),
    "generator": ("it = (k for k in range(5))\ndef f(x): return x.sum() * next(it)", "global it"),
    "counter object": ("it = itertools.count()\ndef f(x): return x.sum() * next(it)", "global it"),
    "cycle in a loop": ("it = itertools.cycle([1.0, 2.0])\ndef f(x):\n  for k in it: return x.sum() * k", "global it"),
    "thread local": ("import threading\nt = threading.local(); t.s = 2.0\ndef f(x): return x.sum() * t.s", "global t"),
    "context variable": (
        "import contextvars\nv = contextvars.ContextVar('v', default=2.0)\ndef f(x): return x.sum() * v.get()",
        "ContextVar",
    ),
    "local generator": (
        "def f(x):\n  g = torch.Generator()\n  return (x * torch.rand(4, generator=g)).sum()",
        "torch.Generator",
    ),
    "thread": (
        "import threading\ndef f(x):\n  t = threading.Thread(target=abs, args=(1,))\n  t.start(); t.join()\n  return x.sum()",
        "thread",
    ),
    "name of the thread": (
        "import threading\ndef f(x): return x.sum() * len(threading.current_thread().name)",
        "which thread it runs on",
    ),
    "main thread": (
        "from threading import main_thread as m\ndef f(x): return x.sum() * len(m().name)",
        "which thread it runs on",
    ),
    "number of the thread": ("import threading\ndef f(x): return x.sum() * threading.get_ident()", "get_ident"),
    "large array": ("A = np.ones(100000)\ndef f(x): return x.sum() * float(A[3])", "global A"),
    "array of objects": ("A = np.array([[1.0], 2], dtype=object)\ndef f(x): return x.sum() * A[0][0]", "global A"),
    "bytes in place": ("A = bytearray(b'ab')\ndef f(x): return x.sum() * A[0]", "global A"),
    "large list": ("L = [1.0] * 30000\ndef f(x): return x.sum() * L[5]", "too large"),
    "tensor as a key": ("W = torch.ones(4)\nD = {W: 2.0}\ndef f(x): return x.sum() * D[W]", "a key of global D"),
    "list appended": ("L = []\ndef f(x):\n  L.append(1)\n  return x.sum()", "changes global L"),
    "list of losses": ("L = []\ndef f(x):\n  y = x.sum()\n  L.append(y.item())\n  return y", "changes global L"),
    "list in a closure": (
        "def make():\n  L = []\n  def f(x):\n    L.append(1)\n    return x.sum()\n  return f\nf = make()",
        "changes closure L",
    ),
    "list extended": ("L = []\ndef f(x):\n  global L\n  L += [1]\n  return x.sum()", "changes global L"),
    "global counter": ("N = 0\ndef f(x):\n  global N\n  N += 1\n  return x.sum() * N", "changes global N"),
    "global written": ("last = None\ndef f(x):\n  global last\n  last = x\n  return x.sum()", "changes global last"),
    "global created": ("def f(x):\n  global last\n  last = 2.0\n  return x.sum()", "changes global last"),
    "closure counter": (
        "def make():\n  n = 0\n  def f(x):\n    nonlocal n\n    n += 1\n    return x.sum()\n  return f\nf = make()",
        "changes closure n",
    ),
    "attribute counter": (
        "class C:\n  n = 0\n  def __call__(self, x):\n    self.n += 1\n    return x.sum()\nf = C()",
        "changes self.n",
    ),
    "class counter": ("class C:\n  n = 0\n  def __call__(self, x):\n    C.n += 1\n    return x.sum()\nf = C()", "n"),
    "tensor kept": ("class C:\n  def __call__(self, x):\n    self.y = x * 2\n    return x.sum()\nf = C()", "changes self.y"),
    "slot counter": (
        "class C:\n  __slots__ = ('n',)\n  def __call__(self, x):\n    self.n += 1\n    return x.sum()\nf = C(); f.n = 0",
        "changes self.n",
    ),
    "dictionary entry": ("D = {}\ndef f(x):\n  D['y'] = 1\n  return x.sum()", "changes global D['y']"),
    "cache by value": (
        "D = {}\ndef f(x):\n  k = round(x.sum().item(), 3)\n  if k not in D: D[k] = 2.0\n  return x.sum() * D[k]",
        "changes global D",
    ),
    "set grown": ("S = set()\ndef f(x):\n  S.add(1)\n  return x.sum()", "changes global S"),
    "array written": ("A = np.zeros(3)\ndef f(x):\n  A[0] += 1\n  return x.sum()", "changes global A"),
    "function attribute": ("def f(x):\n  f.n += 1\n  return x.sum()\nf.n = 0", "changes f.n"),
    "setattr": ("class C: pass\nc = C()\ndef f(x):\n  setattr(c, 'a' + 'b', 1)\n  return x.sum()", "changes global c.ab"),
    "module attribute": (
        "M = types.ModuleType('settings'); M.n = 0\ndef f(x):\n  M.n += 1\n  return x.sum()",
        "changes global M.n",
    ),
    "backward": ("W = torch.ones(4, requires_grad=True)\ndef f(x):\n  (W * 2).sum().backward()\n  return x.sum()", "backward"),
    "in a helper": ("import time\ndef g(x): return x * time.time()\ndef f(x): return g(x).sum()", "time"),
    "in a hook": (
        "import time\nm = nn.Linear(4, 1).double()\nm.register_forward_hook(lambda m, a, out: out * time.time())\ndef f(x): return m(x).sum()",
        "time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    source, expected = REFUSED[name]
    names = program(source)
    with pytest.raises(Unrecordable) as caught:
        recorded(names["f"], sample())
    assert expected in caught.value.reason


LET_THROUGH = {
    "own list": "def f(x):\n  L = []\n  L.append(x)\n  return torch.stack(L).sum()",
    "own dictionary": "def f(x):\n  D = {}\n  D['a'] = x\n  D.update(b=x)\n  return D['a'].sum()",
    "own iterator": "def f(x):\n  it = iter([1.0, 2.0])\n  return x.sum() * next(it)",
    "own object": "class C:\n  def __init__(self): self.n = 0\ndef f(x):\n  c = C()\n  c.n += 1\n  return x.sum() * c.n",
    "own nonlocal": "def f(x):\n  n = 0\n  def g():\n    nonlocal n\n    n += 1\n  g()\n  return x.sum() * n",
    "changed and put back": "L = [1.0]\ndef f(x):\n  L.append(2.0)\n  y = x.sum() * sum(L)\n  L.pop()\n  return y",
    "an unread random generator": "import random\nclass C: pass\nc = C(); c.r = random.Random(0); c.s = 2.0\ndef f(x): return x.sum() * c.s",
    "an unread large list": "class C: pass\nc = C(); c.l = [0.0] * 50000; c.s = 2.0\ndef f(x): return x.sum() * c.s",
    "text": "S = 'a,b'\ndef f(x): return x.sum() * len(S.upper().split(','))",
    "mathematics": "def f(x): return x.sum() * math.sqrt(2) * max(1, 2) * round(2.5) * sum(range(3)) * math.prod([2, 3])",
    "itertools": "def f(x): return sum(a * b for a, b in itertools.product(x, x)) + functools.reduce(operator.add, x)",
    "einsum": "def f(x): return torch.einsum('i,i->', x, x) + torch.stack([x, x]).sum()",
    "recurrent layer": "m = nn.LSTM(4, 3).double()\ndef f(x): return m(x[None])[0].sum()",
    "attention layer": "m = nn.MultiheadAttention(4, 2).double()\ndef f(x): return m(x[None], x[None], x[None])[0].sum()",
    "batch norm": "m = nn.BatchNorm1d(4).double().eval()\ndef f(x): return m(x[None]).sum()",
    "functional call": "m = nn.Linear(4, 2).double()\ndef f(x): return torch.func.functional_call(m, dict(m.named_parameters()), (x,)).sum()",
    "checkpoint": "from torch.utils.checkpoint import checkpoint\ndef f(x): return checkpoint(torch.sin, x, use_reentrant=False).sum()\nf(torch.ones(4))",
    "torch.func": "def f(x): return torch.func.vmap(torch.func.grad(lambda v: v ** 3))(x).sum()",
    "nested grad": "def f(x):\n  x = x.clone().requires_grad_()\n  return torch.autograd.grad((x ** 3).sum(), x, create_graph=True)[0].sum()",
    "no_grad": "def f(x):\n  with torch.no_grad(): s = x.max()\n  return (x - s).sum()",
    "lock": "import threading\nlock = threading.Lock()\ndef f(x):\n  with lock: return x.sum()",
    "logger": "import logging\nlog = logging.getLogger('quiet')\ndef f(x):\n  log.debug('x')\n  return x.sum()",
    "numpy": "A = np.ones(3)\ndef f(x): return x.sum() * float(np.sum(A) + np.sqrt(2.0))",
    "getattr of a module": "name = 'tanh'\ndef f(x): return getattr(torch, name)(x).sum()",
    "named tuple": "P = collections.namedtuple('P', 'a b')\ndef f(x):\n  p = P(x, 2)\n  return (p.a * p.b).sum()",
    "data class": "@dataclasses.dataclass\nclass P:\n  a: object\ndef f(x): return dataclasses.replace(P(x), a=x * 2).a.sum()",
    "match": "K = ('a', 2)\ndef f(x):\n  match K:\n    case ('a', n): return x.sum() * n\n  return x.prod()",
    "assert and raise": "def f(x):\n  assert x.dim() == 1, 'dim'\n  try:\n    raise ValueError('q')\n  except ValueError: return x.sum()",
    "type checks": "import typing\ndef f(x): return x.sum() if isinstance(x, torch.Tensor) and issubclass(int, object) else x",
    "abstract class": "import collections.abc\nL = [1.0]\ndef f(x): return x.sum() if isinstance(L, collections.abc.Sequence) else x",
    "generic class": "T = typing.TypeVar('T')\nclass B(typing.Generic[T]):\n  s = 2.0\nb = B()\ndef f(x): return x.sum() * b.s",
    "partial": "def g(x, k): return x * k\nh = functools.partial(g, k=2)\ndef f(x): return h(x).sum()",
    "attrgetter": "g = operator.attrgetter('s')\nclass C: pass\nc = C(); c.s = 2.0\ndef f(x): return x.sum() * g(c)",
    "copy": "import copy\nD = {'a': [1.0]}\ndef f(x): return x.sum() * copy.deepcopy(D)['a'][0]",
}


@pytest.mark.parametrize("name", LET_THROUGH)
def test_let_through(name: str) -> None:
    names = program(LET_THROUGH[name])
    state = recorded(names["f"], sample())
    assert state.check() is not None, state.difference()
    names["f"](sample())
    assert state.check() is not None, state.difference()


def test_the_profiler_is_put_back() -> None:
    def profiler(*_: Any) -> None:
        return None

    sys.setprofile(profiler)
    try:
        recorded(program("def f(x): return x.sum()")["f"], sample())
        assert sys.getprofile() is profiler
        with pytest.raises(ZeroDivisionError):
            recorded(program("def f(x): return 1 / 0")["f"], sample())
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)


def test_a_state_needs_a_run() -> None:
    with pytest.raises(Unrecordable):
        StateRecorder(program("def f(x): return x.sum()")["f"]).finish()

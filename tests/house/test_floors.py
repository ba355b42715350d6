"""The house stands: imports go downwards only, and one folder alone speaks to autograd."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from .source import Source, sources

FLOORS = {
    "core": 0,
    "operators": 1,
    "rules": 2, "linalg": 2,
    "autodiff": 3, "convolutions": 3,
    "sparse": 4, "parameters": 4,
    "derivatives": 5, "curvature": 5,
    "nn": 6, "check": 6, "debug": 6, "distributed": 6,
    "testing": 7,
    "report": 8,
    "cli": 9,
    "": 10,  # hesse/__init__.py
}  # fmt: skip

AUTOGRAD = ("torch.autograd.grad", "torch.autograd.backward", "torch.autograd.functional", "torch.func",
            "functorch", "torch.utils._python_dispatch", "torch.autograd.forward_ad")  # fmt: skip
AUTOGRAD_NAMES = {"TorchDispatchMode"}
AUTOGRAD_FOLDER = "autodiff"


def imported(source: Source) -> Iterator[tuple[int, str]]:
    """``(line, dotted name)`` of every import, wherever it stands; ``from a import b`` gives ``a.b``."""
    package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    for node in ast.walk(source.syntax):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain on a name, or the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def used(source: Source) -> Iterator[tuple[int, str]]:
    """``(line, dotted name)`` of everything imported or named, aliases of imports resolved."""
    aliases: dict[str, str] = {}
    for node in ast.walk(source.syntax):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    yield from imported(source)
    for node in ast.walk(source.syntax):
        if isinstance(node, (ast.Attribute, ast.Name)) and (name := dotted(node)):
            head, _, rest = name.partition(".")
            yield node.lineno, f"{aliases.get(head, head)}.{rest}".rstrip(".")


def breaches(source: Source) -> list[str]:
    """Imports of this file that the floors forbid."""
    wrong = []
    for line, name in imported(source):
        parts = name.split(".")
        if parts[0] != "hesse" or source.folder == "":
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""
        if target != source.folder and FLOORS[target] >= FLOORS[source.folder]:
            floors = f"floor {FLOORS[target]} from floor {FLOORS[source.folder]}"
            wrong.append(f"{source.path}:{line} imports {name}: {floors}")
    return wrong


def autograd_uses(source: Source) -> list[str]:
    """Places of this file that speak to autograd, outside the folder that may."""
    if source.folder == AUTOGRAD_FOLDER:
        return []
    return [
        f"{source.path}:{line} uses {name}"
        for line, name in used(source)
        if any(name == entry or name.startswith(f"{entry}.") for entry in AUTOGRAD) or name.split(".")[-1] in AUTOGRAD_NAMES
    ]


def test_every_folder_has_a_floor() -> None:
    assert {source.folder for source in sources()} <= set(FLOORS)


def test_imports_go_downwards_only() -> None:
    wrong = [breach for source in sources() for breach in breaches(source)]
    assert not wrong, "\n".join(wrong)


def test_only_autodiff_speaks_to_autograd() -> None:
    wrong = sorted({use for source in sources() for use in autograd_uses(source)})
    assert not wrong, "\n".join(wrong)


def source_of(text: str, module: str = "hesse.linalg.trace") -> Source:
    return Source(module, module.replace(".", "/") + ".py", text, ast.parse(text))


@pytest.mark.parametrize(
    "text",
    ["import hesse.linalg.solve", "from hesse.core import tree", "from hesse.operators.base import Tag",
     "from . import solve", "from .solve import solve", "from ..core import tree", "import torch"],
)  # fmt: skip
def test_the_test_lets_pass(text: str) -> None:
    assert not breaches(source_of(text))


@pytest.mark.parametrize(
    "text",
    ["import hesse.rules.forms", "from hesse import rules", "from hesse import dense", "import hesse",
     "from hesse.autodiff import linearize", "from ..rules.forms import Contract", "from .. import autodiff",
     "def f():\n    from hesse.curvature import ggn", "if TYPE_CHECKING:\n    from hesse.report import page"],
)  # fmt: skip
def test_the_test_catches_upward_imports(text: str) -> None:
    assert breaches(source_of(text))


@pytest.mark.parametrize(
    "text",
    ["torch.autograd.grad(y, x)", "from torch.func import jvp", "import torch.func as tf",
     "from torch import func", "from torch.autograd import grad as g\ng(y)",
     "import torch as t\nt.func.vmap(f)",
     "from torch.autograd import functional", "from torch.utils._python_dispatch import TorchDispatchMode",
     "import torch.autograd as ag\nag.grad(y, x)"],
)  # fmt: skip
def test_the_test_catches_autograd(text: str) -> None:
    assert autograd_uses(source_of(text))
    assert not autograd_uses(source_of(text, "hesse.autodiff.linearize"))


def test_custom_functions_are_allowed_anywhere() -> None:
    text = "class Square(torch.autograd.Function):\n    'no torch.func here'\ntorch.nn.functional.relu"
    assert not autograd_uses(source_of(text))

"""The reproducer of a finding with TARGET filled in: a file that runs as it is."""

from __future__ import annotations

import os
import re
from typing import Any

from hesse.check.written import written
from hesse.report.target import split_name

_MODULE = re.compile(r"^module = \.\.\.  # fill in: .*?(?:, (\.(?:train|eval)\(\)))?$", re.MULTILINE)
_FUNCTION = re.compile(
    r"^(?:f = \.\.\.  # fill in: .*|from \S+ import \S+ as f|from \S+ import \S+\n\nf = \S+\.apply)$",
    re.MULTILINE,
)


def from_target(name: str, seed: int) -> str:
    """Lines that define ``target`` as the function that TARGET names, with torch seeded as for `hesse check`.

    Args:
        name: TARGET as it was written.
        seed: of torch.

    Returns:
        Python text, to be put behind ``import torch``.
    """
    place, attribute, is_file = split_name(name)
    if is_file:
        path = os.path.abspath(place)
        folder, found = os.path.dirname(path), f"runpy.run_path({path!r})[{attribute!r}]"
        imported, define = ["import runpy", "import sys"], f"target = {found}"
    else:
        folder, imported, define = os.getcwd(), ["import sys"], f"from {place} import {attribute} as target"
    return "\n".join([*imported, "", f"sys.path.insert(0, {folder!r})", f"torch.manual_seed({seed})", define])


def filled(code: str, source: str) -> str:
    """A reproducer with what is left open in it filled in.

    Args:
        code: as `CheckReport.reproducer` gives it; what is checked is a ``module``, a function ``f`` or an operator ``A``.
        source: Python text that defines it.

    Returns:
        The program. What cannot be filled in stays as it is.
    """
    if code.startswith("hesse."):
        return f"import torch\n\nimport hesse\n\n{source}\n{code}\n"
    if module := _MODULE.search(code):
        mode = f"module{module[1]}" if module[1] else ""
        return _MODULE.sub(lambda _: "\n".join(filter(None, (source, mode))), code, count=1)
    if _FUNCTION.search(code):
        return _FUNCTION.sub(lambda _: source, code, count=1)
    return code


def of_loss(targets: Any) -> str:
    """Lines that define ``f`` as the loss of a triple by the model's output."""
    return f"targets = {written(targets)}\ncriterion = target()[1]\n\n\ndef f(output):\n    return criterion(output, targets)"


def of_pair(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Lines that define ``f`` as the function of a pair ``(function, parameters)`` by the parameters."""
    given = f"args, kwargs = {written(args)}, {written(kwargs)}"
    return f"{given}\nfunction = target()[0][0]\n\n\ndef f(parameters):\n    return function(parameters, *args, **kwargs)"

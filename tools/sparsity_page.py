"""Writes docs/reference/sparsity_rules.md: how each op is followed, and how many entries too many that gives, op by op.

python -m tools.sparsity_page
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.rules.sparsity.op_database import LARGEST, entries, jacobian, points, samples

from hesse.autodiff.dependence.following import name_of
from hesse.autodiff.dispatching import LightMode
from hesse.core.errors import HesseError
from hesse.rules.sparsity import families
from hesse.rules.sparsity.forms import sparsity_rules
from hesse.sparse.detect import sparsity

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "sparsity_rules.md"
SAMPLES = 40  # of an entry
WORDS = {
    "bags": "look-up and segments", "distances": "distances", "foreach": "lists of tensors", "indexing": "indexing",
    "interpolation": "interpolation", "lines": "along axes", "losses": "losses", "matrices": "linear algebra",
    "movement": "movement", "normalization": "normalization", "pooling": "pooling", "products": "products",
    "sparse": "sparse constants", "windows": "convolutions",
}  # fmt: skip


@dataclass
class Row:
    """What the samples of one entry gave."""

    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    larger: int = 0
    refused: str = ""
    size: int = 0
    nonzero: int = 0
    extra: int = 0


class Kinds(LightMode):
    """Notes how each op that runs is treated."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.found[kind_of(func)] += 1
        return func(*args, **kwargs)


def kind_of(func: Any) -> str:
    """How an op is treated, in words."""
    name = name_of(func)
    rule = sparsity_rules.get(name)
    if rule is not None:
        return WORDS[rule.__module__.rpartition(".")[2]]
    if name in families.FLAT:
        return "no slope"
    if torch.Tag.pointwise in func.tags or name in families.POINTWISE:
        return "element by element"
    return "view" if func.is_view or torch.Tag.inplace_view in func.tags else "no rule"


def measured(name: str) -> Row:
    """One entry."""
    row = Row(name)
    for sample in samples(name):
        if not 0 < sum(x.numel() for x in sample.inputs) <= LARGEST or row.samples >= SAMPLES:
            row.larger += 1
            continue
        try:
            exact, _, shapes = jacobian(sample, sample.inputs)
        except (RuntimeError, ValueError):
            continue
        if sum(shape.numel() for shape in shapes) > LARGEST:
            row.larger += 1
            continue
        try:
            found = sparsity(sample.f, sample.inputs)
        except HesseError as error:
            row.refused = type(error).__name__
            continue
        with Kinds() as mode:
            sample.f(sample.inputs)
        row.kinds += mode.found
        if found.fallbacks:
            row.kinds["no rule"] += 1
        else:
            del row.kinds["no rule"]  # ops that touched nothing of the input
        seen, known = exact != 0, found.pattern.to_dense()
        for point in points(sample)[1:]:
            try:
                other, _, _ = jacobian(sample, point)
            except (RuntimeError, ValueError):
                continue
            seen |= other != 0
        row.samples += 1
        row.size += known.numel()
        row.nonzero += int(seen.sum())
        row.extra += int((known & ~seen).sum())
    return row


def page(rows: list[Row]) -> str:
    """The whole page."""
    extra = sorted((r for r in rows if r.extra), key=lambda r: (-r.extra / max(1, r.size), r.name))
    exact = [r for r in rows if r.samples and not r.extra]
    refused = [r for r in rows if r.refused]
    compared = sum(r.samples for r in rows)
    lines = [HEAD.format(entries=len(rows), samples=compared, bound=LARGEST, larger=sum(r.larger for r in rows))]
    lines += [
        "| entry | followed as | samples | places | nonzero somewhere | in the pattern and never nonzero |",
        "|---|---|--:|--:|--:|--:|",
    ]
    lines += [f"| `{r.name}` | {kinds(r)} | {r.samples} | {r.size} | {r.nonzero} | {r.extra} |" for r in extra]
    lines += ["", f"## Exact in every sample: {len(exact)} entries", ""]
    groups: dict[str, list[str]] = {}
    for r in exact:
        groups.setdefault(kinds(r), []).append(f"`{r.name}`")
    lines += [f"* **{kind}**: {', '.join(names)}" for kind, names in sorted(groups.items())]
    lines += ["", "## Refused", ""]
    lines += [f"* `{r.name}`: {r.refused}" for r in refused]
    return "\n".join(lines) + "\n"


def kinds(row: Row) -> str:
    """What decided, in words: views and element-wise ops only where there was nothing else."""
    found = [kind for kind in sorted(row.kinds) if kind not in ("view", "element by element", "no slope")]
    return ", ".join(found or [kind for kind in ("element by element", "no slope", "view") if row.kinds[kind]])


HEAD = """# Sparsity, op by op

This page is measured: `python -m tools.sparsity_page` writes it.

`hesse.sparsity` runs a function once and follows every element of its input through the ops below autograd. Each op is
treated in one of these ways:

* **element by element**: an element of the result depends on the elements in its place, and PyTorch tags the op so (or hesse
  knows it to be so);
* **view**: nothing is computed; what belongs to memory stays with it, so views and writes through them need no rule;
* **movement** and **indexing**: the op runs a second time on the numbers of the elements and so says itself what went where;
  an index that depends on the input may point anywhere along its axis;
* **no slope**: the derivative is zero or there is none (`round`, `argmax`, random numbers, ...);
* a **rule** of a family: along axes, products, convolutions, pooling, linear algebra matrix by matrix, and so on;
* **no rule**: every element of every result is taken to depend on every element of every operand. That is never wrong, and
  the result names the op. Shapes alone cannot prove that an unknown op keeps samples apart, so hesse does not guess it; an op
  of your own takes a rule of a few lines.

Ops defined by `torch.library.custom_op` with `register_autograd`, like every `autograd.Function`, are followed through their
backward, since that is what derivatives run; a rule is for the op that runs there:

```python
import torch

from hesse.rules.sparsity.forms import Same, sparsity_rules


@sparsity_rules.register("mylib::blend_backward")  # the op's name; those of PyTorch without the library: "mm"
def blend_backward(call):
    return [(0, call["grad"], Same())]  # result 0 depends on the operand `grad` element by element, and on no other
```

A pattern holds at every point, so it cannot use what only some points have: the larger one of two numbers, the order of a
sort, a factor that happens to be zero. That, rounding, and linear algebra, which is followed matrix by matrix, is where the
entries too many come from.

## Entries too many

All {entries} entries of PyTorch's own database of ops that have derivatives in float64: {samples} samples with at most {bound}
elements of input and of output were compared ({larger} others, larger or past the 40th of an entry, were left out here;
`make test-all` compares every one, 24 rows of the Jacobian where it is larger). The Jacobian is that of plain autograd, row
by row, at three points. No sample had an entry outside of its pattern.
"""


def main() -> None:
    """Write the page."""
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in entries():
            rows.append(measured(name))
    PAGE.write_text(page(sorted(rows, key=lambda r: r.name)))


if __name__ == "__main__":
    main()

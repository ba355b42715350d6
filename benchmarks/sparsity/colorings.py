"""Color counts and times beside asdex's: ``python -m benchmarks.sparsity.colorings`` prints a Markdown table.

Each library runs in a process of its own. asdex takes columns and rows for Jacobians and keeps the fewer (its `mode=None`),
and star colorings for Hessians; hesse likewise by ``kind="auto"`` and ``kind="star"``, with its default time for the search.
Times are medians of CPU seconds, after a first run that compiles what is compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script: make `benchmarks` a package

from benchmarks.sparsity.patterns import PATTERNS  # noqa: E402

_LARGE = 2_000_000  # entries above which star colorings are left out
Counts = dict[str, tuple[int, float]]


def main() -> None:
    """Run both libraries, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("hesse", "asdex"), help="run one of them and print JSON")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.library:
        print(json.dumps(_counts(_ours() if args.library == "hesse" else _asdex(), args.repeats)))
        return
    from benchmarks.environments import default_torch, python_of

    found: dict[str, dict[str, Counts]] = {}
    for library, environment in (("hesse", "hesse"), ("asdex", "jax")):
        command = [str(python_of(environment, default_torch())), __file__, "--library", library, "--repeats", str(args.repeats)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
        found[library] = json.loads(output.splitlines()[-1])
    print(table(found["hesse"], found["asdex"]))


def _counts(ways: dict[str, Callable[[Any], int]], repeats: int) -> dict[str, Counts]:
    results: dict[str, Counts] = {}
    for name, make in PATTERNS.items():
        matrix, results[name] = make(), {}
        for kind, color in ways.items():
            if kind == "star" and (matrix.nnz > _LARGE or name.startswith("random")):
                continue
            color(matrix)
            times = []
            for _ in range(repeats):
                start = time.process_time()
                count = color(matrix)
                times.append(time.process_time() - start)
            results[name][kind] = count, statistics.median(times)
    return results


def _ours() -> dict[str, Callable[[Any], int]]:
    from hesse.sparse import coloring

    return {
        "Jacobian": lambda matrix: coloring(matrix).colors,
        "star": lambda matrix: coloring(matrix, kind="star").colors,
    }


def _asdex() -> dict[str, Callable[[Any], int]]:
    import warnings

    import asdex
    import numpy as np

    warnings.simplefilter("ignore", asdex.DenseColoringWarning)

    def pattern(matrix: Any) -> Any:
        coo = matrix.tocoo()
        return asdex.SparsityPattern(coo.row.astype(np.int32), coo.col.astype(np.int32), coo.shape)

    def jacobian(matrix: Any) -> int:
        found = pattern(matrix)
        return min(asdex.color_cols(found)[1], asdex.color_rows(found)[1])

    return {"Jacobian": jacobian, "star": lambda matrix: asdex.color_symmetric(pattern(matrix))[1]}


def table(ours: dict[str, Counts], theirs: dict[str, Counts]) -> str:
    """A Markdown table: colors and milliseconds, of Jacobians and Hessians."""
    lines = ["| pattern | Jacobian: hesse | asdex | Hessian: hesse | asdex |", "|---|---|---|---|---|"]
    for name in PATTERNS:
        cells = [_cell(results.get(name, {}).get(kind)) for kind in ("Jacobian", "star") for results in (ours, theirs)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: tuple[int, float] | None) -> str:
    return "" if found is None else f"{found[0]:,} ({1e3 * found[1]:,.1f} ms)"


if __name__ == "__main__":
    main()

"""What `import hesse` costs beyond torch's own import; `python benchmarks/import_time.py` prints it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

_PROBE = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import hesse
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""


def import_time(repeats: int = 7) -> dict[str, float] | None:
    """Median seconds of ``import torch`` and of the ``import hesse`` after it, over fresh processes; None if it fails.

    One more process is started first and not counted: it fills the file cache and writes missing bytecode.
    """
    seconds = []
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
        if done.returncode:
            return None
        seconds.append(json.loads(done.stdout))
    torch, hesse = (statistics.median(column) for column in zip(*seconds[1:], strict=True))
    return {"torch": torch, "hesse": hesse, "repeats": repeats}


if __name__ == "__main__":
    print(json.dumps(import_time()))

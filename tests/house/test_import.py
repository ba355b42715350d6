"""`import hesse` stays light: optional and heavy packages are loaded by what needs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "matplotlib",
    "rich",
    "click",
    "jinja2",
    "sklearn",
    "scipy",
    "torchvision",
    "safetensors",
)

PROGRAM = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import hesse
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def imported() -> dict:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported(imported: dict) -> None:
    loaded = [name for name in imported["modules"] if any(name == h or name.startswith(f"{h}.") for h in HEAVY)]
    assert not loaded


def test_import_time_is_shown(imported: dict, capsys: pytest.CaptureFixture[str]) -> None:
    own = sum(name.partition(".")[0] == "hesse" for name in imported["modules"])
    others = len(imported["modules"]) - own
    with capsys.disabled():
        print(f"\n  import hesse: {1000 * imported['seconds']:.0f} ms beyond torch's own; "
              f"{own} modules of hesse, {others} of others", end="")  # fmt: skip
    assert own >= 1


def test_import_prints_and_warns_nothing() -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-c", "import hesse"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

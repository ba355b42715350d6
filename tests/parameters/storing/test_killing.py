"""A writer that is killed at any call to the disk leaves complete chunks, and its successor ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killing.py")


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_and_resumed(tmp_path: Path, sweep_rng: random.Random) -> None:
    points = 50 if os.environ.get("HESSE_TEST_ALL", "") not in ("", "0") else 5
    seed = sweep_rng.randrange(2**32)
    print(f"seed {seed}, {points} points")
    command = [sys.executable, str(PROGRAM), str(tmp_path), str(seed), str(points)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert len(results) == points
    for result in results:
        print(result)
        first = result["kills"][0]
        assert first[2], "the first writer was not killed"
        assert not result["differ"], "other bytes than of the run that was not killed"
        assert (result["calls"] == 0) == result["complete"], "complete folders are left alone, others are gone on with"
        if result["there"] > 1 and not result["complete"]:
            assert result["calls"] < result["of"], "chunks that were there were written again"

"""Makes the benchmark package importable; its runner is a script, not part of the installed library."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

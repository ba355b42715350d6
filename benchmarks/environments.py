"""A virtual environment for each peer, so that none disturbs another; all with the same PyTorch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Peer:
    """What a peer needs. Its own list is not followed: some ask for torchvision, and none uses it here."""

    package: str
    needs: tuple[str, ...]

    @property
    def requirements(self) -> tuple[str, ...]:
        """What is installed without dependencies, after torch, numpy and scipy with theirs."""
        return (self.package, *self.needs)


_BACKPACK = "backpack-for-pytorch==1.7.1"
PEERS = {
    "curvlinops": Peer(
        "curvlinops-for-pytorch==3.0.1",
        (
            *(_BACKPACK, "unfoldNd", "packaging", "einops", "einconv", "linear_operator", "jaxtyping"),
            *("wadler-lindig", "tqdm", "opt_einsum"),
        ),
    ),
    "backpack": Peer(_BACKPACK, ("unfoldNd", "packaging", "einops")),
    "opacus": Peer("opacus==1.6.0", ("opt_einsum",)),
    "jax": Peer("jax==0.10.2", ("jaxlib==0.10.2", "ml_dtypes", "opt_einsum", "numba", "llvmlite", "asdex==0.5.1")),
    "hips": Peer("autograd==1.9.1", ()),
    "trak": Peer("traker==0.3.2", ("tqdm",)),
    "dattri": Peer("dattri==0.3.0", ("pyyaml", "tqdm")),
    "deepinv": Peer(
        "deepinv==0.5.0",
        (
            *("pillow", "einops", "tqdm", "natsort", "h5py"),
            *("packaging", "requests", "urllib3", "idna", "charset_normalizer", "certifi", "matplotlib", "contourpy", "cycler"),
            *("fonttools", "kiwisolver", "pyparsing", "python-dateutil", "six"),
        ),
    ),
}


class InstallError(Exception):
    """A peer's environment could not be made; says why in one line."""


def python_of(library: str, torch: str) -> Path:
    """The interpreter for `library`: the running one for hesse and torch.func, else that of its environment.

    Args:
        library: its name; environments are made in ``.venv-bench-<name>`` the first time, and again when
            what they should hold has changed.
        torch: what to ask pip for to get PyTorch: a requirement, or the path of a wheel.

    Raises:
        InstallError: if the environment cannot be made.
    """
    if library not in PEERS:
        return Path(sys.executable)
    folder = ROOT / f".venv-bench-{library}"
    python, stamp = folder / "bin" / "python", folder / ".installed"
    steps = install_steps(PEERS[library], torch, constraints())
    wanted = "\n".join(shlex.join(step) for step in steps)
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        stamp.unlink(missing_ok=True)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        for step in steps:
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
        stamp.write_text(wanted)
    return python


def install_steps(peer: Peer, torch: str, constraints: Path) -> list[list[str]]:
    """What pip is asked for, in order."""
    constrained = ["-c", str(constraints)]
    return [[*constrained, torch, "numpy", "scipy"], [*constrained, "--no-deps", *peer.requirements]]


def constraints() -> Path:
    """The constraints of the environment that hesse runs in, if it has its own, else those of the project."""
    own = Path(sys.prefix) / "constraints.txt"
    return own if own.exists() else ROOT / "constraints.txt"


def default_torch() -> str:
    """What PyTorch the peers get unless told: what ``make TORCH=...`` asked for, now or earlier."""
    asked = Path(sys.prefix) / ".installed-torch-wanted"
    return os.environ.get("TORCH") or (asked.read_text().strip() if asked.exists() else "") or "torch"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise InstallError((lines[-1] if lines else f"{command[0]} ended with {done.returncode}")[:300])

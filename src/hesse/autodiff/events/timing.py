"""The time of each op that runs, with the line of the user's code: the detailed profile of direct mode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hesse.autodiff.compiled.profile import OpKey, Profile
from hesse.autodiff.dispatching import LightMode
from hesse.autodiff.source_lines import SourceMap


class _Timed(LightMode):
    """Puts the clock around every op below autograd."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile, self.places = profile, SourceMap()

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source, phase = self.places.locate()
        started = time.perf_counter()
        outputs = func(*args, **kwargs)
        _wait(outputs)
        seconds = time.perf_counter() - started
        self.profile.op_at(OpKey(str(func), phase, source), seconds)
        return outputs


def _wait(outputs: Any) -> None:
    """Let the device finish, whose ops return before they have run."""
    first = outputs[0] if isinstance(outputs, (tuple, list)) and outputs else outputs
    if isinstance(first, Tensor) and first.device.type != "cpu":
        torch.accelerator.synchronize(first.device)


@contextmanager
def timed_ops(profile: Profile | None = None) -> Iterator[Profile]:
    """Time every op that runs inside, forward and backward.

    Args:
        profile: a detailed profile to feed; by default a new one.

    Yields:
        The profile; `report()` has the costliest ops with their lines and shares.

    Cost: for small tensors on a CPU about five times the op itself, mostly outside the measured spans (which hold one more
        dispatch); a device is waited for after each op.
    """
    profile = Profile("detailed") if profile is None else profile
    with _Timed(profile):
        yield profile

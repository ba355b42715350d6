"""Is there something to differentiate, and what does one gradient of it cost?"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from hesse.autodiff.cuts import diagnose
from hesse.check.replica import Model, Replica
from hesse.core.errors import DetachedError, NondeterministicError, NonFiniteError, NonScalarError
from hesse.report.user_code import user_code

_ASKED = "A report needs the loss of a model on a batch."
_TIMING_SECONDS = 0.5
_TIMING_REPEATS = (5, 50)  # at least, at most


def check_loss(replica: Replica) -> float:
    """The loss, after checking that it can be differentiated.

    Raises:
        NonScalarError, NonFiniteError: as the names say.
        NondeterministicError: two evaluations differ.
        DetachedError: it does not depend on the parameters; says where the graph was cut.
        UserCodeError: the model or the loss raised.

    Cost: 2 evaluations.
    """
    with user_code("computing the loss of the model on the batch"):
        value, again = replica.values(2)
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise NonScalarError(_ASKED, f"loss(output, target) is {found}", "reduce it: .mean() or .sum()")
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteError(_ASKED, f"the loss is {value.item()}", "look at the inputs, the parameters and the loss")
    if not bool(value == again):
        raise NondeterministicError(
            "Derivatives need a function that gives one answer.",
            f"the same loss twice: {value.item():.9g} and {again.item():.9g}{_random_layers(replica.model)}",
            "call model.eval(), or take the randomness out of the model",
        )
    if not value.requires_grad:
        why = diagnose(replica.value, list(replica.leaves.values()))
        remedy = "compute the loss from the parameters with torch operations that have a derivative"
        raise DetachedError("The loss must depend on the parameters.", str(why), remedy)
    return value.item()


def _random_layers(model: Model) -> str:
    if not isinstance(model, nn.Module):
        return ""
    active = [name for name, m in model.named_modules() if m.training and "Dropout" in type(m).__name__]
    return f" (dropout in train mode: {', '.join(active[:4])})" if active else ""


def time_gradient(replica: Replica) -> float:
    """Median seconds of one forward and backward pass, after one that warms up.

    Cost: 6 gradients, or as many as fit into half a second (at most 51).
    """
    def once() -> float:
        began = time.perf_counter()
        replica.gradient()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    least, most = _TIMING_REPEATS
    times: list[float] = []
    while len(times) < least or (sum(times) < _TIMING_SECONDS and len(times) < most):
        times.append(once())
    return statistics.median(times)

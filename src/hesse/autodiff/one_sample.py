"""The check of every new graph: the row of one sample against that sample differentiated plainly and alone.

Shapes and masks cannot see a statistic of the batch that was detached; a run without the other samples can.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hesse.autodiff.capture import Captured, Forward, plain_row, run_forward
from hesse.autodiff.model import select_rows
from hesse.core.errors import MixedSamplesError, NondeterministicError


def check_one_sample(forward: Forward, captured: Captured, cotangent: Tensor, asked: str) -> None:
    """Compare one captured row with plain autograd on a batch that holds no other sample.

    A model that draws random numbers is run again from the same random state, on a batch in which the sample stands in every
    place, so that it meets the same draws.

    Raises:
        MixedSamplesError: the sample's output or row depends on the other samples.
        NondeterministicError: the model gives another output when run again.

    Cost: one forward and backward pass on one sample (one batch for models that draw random numbers).
    """
    sample = forward.count // 2
    copies = forward.count if forward.drew_random_numbers else 1
    place = sample if forward.drew_random_numbers else 0
    alone = _run(forward, sample, copies, asked)
    own = _share(forward.output, sample, forward.count)
    other = _share(alone.output, place, copies)
    if not _close(own, other):
        _refuse(forward, sample, asked)
    root = torch.zeros_like(alone.output).reshape(copies, -1)
    root[place] = cotangent.reshape(forward.count, -1)[sample]
    expected = plain_row(alone, root.reshape(alone.output.shape))
    scale = max((float(row.norm()) for row in expected.values()), default=0.0)
    for name, row in expected.items():
        found = torch.zeros_like(row)
        for form in captured.forms[name]:
            found = found + form.dense(slice(sample, sample + 1)).reshape(row.shape)
        if not _close(found, row, scale):
            off = float((found - row).norm() / max(float(row.norm()), 1e-30))
            raise MixedSamplesError(
                asked,
                f"the row of sample {sample} for '{name}' differs by {off:.2g} from that sample alone: samples "
                "influence each other through something detached from the graph",
                "use statistics of each sample only, or the batch quantities (loss_hessian, ggn) instead",
            )


def _run(forward: Forward, sample: int, copies: int, asked: str) -> Forward:
    inputs = select_rows(forward.inputs, torch.full((copies,), sample))
    devices = [forward.model.device] if forward.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if forward.drew_random_numbers:
            forward.restore_random_state()
        return run_forward(forward.model, inputs, copies, asked)


def _share(output: Tensor, sample: int, count: int) -> Tensor:
    return output.detach().reshape(count, -1)[sample]


def _close(first: Tensor, second: Tensor, scale: float = 0.0) -> bool:
    eps = torch.finfo(first.dtype).eps
    size = max(float(first.norm()), float(second.norm()), 1e-3 * scale)
    return bool(float((first - second).norm()) <= 4 * eps**0.5 * size) or bool(torch.equal(first, second))


def _refuse(forward: Forward, sample: int, asked: str) -> None:
    again = _run(forward, sample, 1, asked)
    twice = _run(forward, sample, 1, asked)
    if not forward.drew_random_numbers and not _close(_share(again.output, 0, 1), _share(twice.output, 0, 1)):
        raise NondeterministicError(asked, "the same sample gave two outputs", "fix the randomness, or call model.eval()")
    names = [
        f"'{name}' ({type(part).__name__})"
        for name, part in (forward.model.module or nn.Module()).named_modules()
        if "Norm" in type(part).__name__ and part.training
    ]
    raise MixedSamplesError(
        asked,
        f"the output of sample {sample} depends on the other samples of the batch"
        + (f"; in train mode: {', '.join(names[:3])}" if names else ""),
        "use statistics of each sample only (model.eval() for normalization), or the batch quantities (loss_hessian, ggn)",
    )

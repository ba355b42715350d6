"""The check of every new graph: the row of one sample against that sample differentiated plainly and alone.

Shapes and masks cannot see a statistic of the batch that was detached; a run without the other samples can. Nor can they see
samples that data put in another order; a run on samples in another order can.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hesse.autodiff.alone import close, plain_row, same_output
from hesse.autodiff.forward import Forward, run_samples
from hesse.core.errors import MixedSamplesError, NondeterministicError
from hesse.rules.forms import Form

RowOf = Callable[[int], dict[str, Tensor]]


def check_one_sample(forward: Forward, row_of: RowOf, cotangent: Tensor, asked: str) -> str:
    """Compare one captured row with plain autograd on a batch that holds no other sample.

    A model that draws random numbers is run again from the same random state, on a batch in which the sample stands in every
    place, so that it meets the same draws.

    Returns:
        What differs, "" if nothing does. The outputs agree then, so that samples run one by one give the rows.

    Raises:
        MixedSamplesError: a sample's output depends on the other samples.
        NondeterministicError: the model gives another output when run again.

    Cost: one forward and backward pass on one sample (one batch for models that draw random numbers), and one forward pass on
    the batch in another order.
    """
    sample = _telling_sample(cotangent, forward.count)
    copies = forward.count if forward.drew_random_numbers else 1
    place = sample if forward.drew_random_numbers else 0
    alone = _run(forward, torch.full((copies,), sample), asked)
    eps = forward.walk.rounding()
    if not same_output(forward.output, sample, forward.count, alone.output, place, copies, eps):
        _refuse(forward, sample, asked)
    if not forward.drew_random_numbers:
        _check_order(forward, eps, asked)
    root = torch.zeros_like(alone.output).reshape(copies, -1)
    root[place] = cotangent.reshape(forward.count, -1)[sample]
    expected = plain_row(alone, root.reshape(alone.output.shape))
    scale = max((float(row.norm()) for row in expected.values()), default=0.0)
    rows = row_of(sample)
    for name, row in expected.items():
        found = rows[name].reshape(row.shape) if name in rows else torch.zeros_like(row)
        if not close(found, row, scale, eps):
            off = float((found - row).norm() / max(float(row.norm()), 1e-30))
            return f"the row of sample {sample} for '{name}' differs by {off:.2g} from that sample alone"
    return ""


def row_of_forms(forms: Mapping[str, Sequence[Form]], sample: int) -> dict[str, Tensor]:
    """The row of one sample: name -> its gradient, of the parameters that are used."""
    s = slice(sample, sample + 1)
    return {name: torch.stack([form.dense(s).flatten() for form in uses]).sum(0) for name, uses in forms.items() if uses}


def _telling_sample(cotangent: Tensor, count: int) -> int:
    """A sample in the middle, unless its cotangent is zero (an ignored target): then the one with the largest."""
    sizes = cotangent.reshape(count, -1).abs().sum(1)
    return count // 2 if bool(sizes[count // 2] != 0) else int(sizes.argmax())


def _check_order(forward: Forward, eps: float, asked: str) -> None:
    """The output of samples in another order has to be the output in that order."""
    order = torch.arange(forward.count).roll(1)
    other = _run(forward, order, asked).output.detach().reshape(forward.count, -1)
    own = forward.output.detach().reshape(forward.count, -1)[order.to(other.device)]
    if not close(own, other, eps=eps):
        _refuse(forward, int(order[(own - other).abs().sum(1).argmax()]), asked)


def _run(forward: Forward, samples: Tensor, asked: str) -> Forward:
    devices = [forward.model.device] if forward.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if forward.drew_random_numbers:
            forward.restore_random_state()
        return run_samples(forward, samples, asked)


def _refuse(forward: Forward, sample: int, asked: str) -> None:
    alone = torch.tensor([sample])
    first, second = _run(forward, alone, asked).output, _run(forward, alone, asked).output
    same = same_output(first, 0, 1, second, 0, 1) or bool(torch.isnan(first).any())
    if not forward.drew_random_numbers and not same:
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

"""All modules of torch.nn that compute something: the catalog, the classes left out, and what torch lacks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from . import stock_layers, stock_losses
from .stock_entry import Catalog, Entry

LEFT_OUT = {
    "Buffer": "a tensor",
    "Container": "the old name of Module",
    "DataParallel": "needs several accelerators",
    "LinearCrossEntropyOptions": "options of LinearCrossEntropyLoss",
    "Module": "the base class",
    "ModuleDict": "holds modules, has no forward",
    "ModuleList": "holds modules, has no forward",
    "Parameter": "a tensor",
    "ParameterDict": "holds parameters, has no forward",
    "ParameterList": "holds parameters, has no forward",
    "RNNBase": "the base class of RNN, LSTM and GRU",
    "RNNCellBase": "the base class of the cells",
    "SyncBatchNorm": "needs a process group on accelerators",
    "UninitializedBuffer": "a tensor without a shape",
    "UninitializedParameter": "a tensor without a shape",
}
NO_BFLOAT16 = {
    "AvgPool3d(": "avg_pool3d_out_frame",
    "LPPool3d(": "avg_pool3d_out_frame",
    "LocalResponseNorm(2, alpha=0.5": "avg_pool3d_out_frame",
    "MultiMarginLoss(": "multi_margin_loss_cpu_kernel",
    "MultiLabelMarginLoss(": "multilabel_margin_loss_forward_out_frame",
    "CTCLoss(": "ctc_loss_cpu",
    "LogSoftmax, CTCLoss(": "ctc_loss_cpu",
}
WRONG_IN_TORCH = {
    "CTCLoss()": "its gradient supposes inputs that stay normalized: right only after log_softmax",
    "CrossMapLRN2d(": "its forward pass does not sum over the window that its backward pass differentiates",
    "LinearCrossEntropyLoss(3, 5, options": "in chunks, its forward-mode derivative is zero",
}
ROUNDED_IN_TORCH = {
    "Hardsigmoid(": "its backward pass multiplies by a sixth in single precision, in float64 too",
}
NO_CHANNELS_LAST = {
    "NLLLoss()": "its backward pass raises for images of log-probabilities in channels-last format",
    "NLLLoss2d()": "its backward pass raises for images of log-probabilities in channels-last format",
}
NO_EMPTY_BATCH = {
    "PixelShuffle(": "its backward pass raises for an empty batch, its forward pass does not",
    "PixelUnshuffle(": "its backward pass raises for an empty batch, its forward pass does not",
}
FAMILIES = (
    stock_layers.activations,
    stock_layers.linear,
    stock_layers.convolutions,
    stock_layers.pooling,
    stock_layers.normalizations,
    stock_layers.shapes,
    stock_layers.dropouts,
    stock_losses.regression,
    stock_losses.classification,
    stock_losses.distances,
    stock_losses.recurrent,
    stock_losses.attention,
)


def catalog() -> list[Entry]:
    """Every entry, in the order of the families."""
    add = Catalog()
    for family in FAMILIES:
        family(add)
    return add.entries


def classes(entries: Iterable[Entry]) -> set[str]:
    """The names of all classes of torch.nn within the entries' modules, as they are made."""
    return {type(part).__name__ for entry in entries for part in entry.make().modules()}


def computing() -> set[str]:
    """The names of the classes of torch.nn that are not left out."""
    return {name for name in dir(nn) if isinstance(getattr(nn, name), type)} - set(LEFT_OUT)


def defect(entry: Entry, *, full: bool = False) -> str:
    """What is wrong with a derivative in torch itself (2.13), as torch itself confirms; empty if nothing is known.

    Args:
        entry: any.
        full: count also what only a check at level full can see.
    """
    known = {**WRONG_IN_TORCH, **ROUNDED_IN_TORCH, **NO_CHANNELS_LAST, **(NO_EMPTY_BATCH if full else {})}
    return next((why for start, why in known.items() if entry.name.startswith(start)), "")


def lacks(entry: Entry, dtype: torch.dtype) -> str:
    """Torch's reason why it cannot run an entry in a dtype on the CPU; empty if it can."""
    if dtype is not torch.bfloat16:
        return ""
    kernel = next((kernel for start, kernel in NO_BFLOAT16.items() if entry.name.startswith(start)), "")
    return f'"{kernel}" not implemented for' if kernel else ""

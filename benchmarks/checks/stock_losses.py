"""Stock modules of several inputs: losses, distances, recurrent networks, attention and transformers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stock_entry import Catalog, constant, labels, log_probabilities, normal, probabilities, signs, uniform

WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 1.5])
REDUCTIONS = ("mean", "sum", "none")


def regression(add: Catalog) -> None:
    pair = (normal(4, 3), normal(4, 3))
    for reduction in REDUCTIONS:
        for kind in (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss):
            add(pair, kind, reduction=reduction)
        add((log_probabilities(4, 3), probabilities(4, 3)), nn.KLDivLoss, reduction=reduction)
        add((normal(4, 3), uniform(4, 3, high=4)), nn.PoissonNLLLoss, reduction=reduction)
        add((normal(4, 3), normal(4, 3), uniform(4, 3, low=0.3, high=2)), nn.GaussianNLLLoss, reduction=reduction)
        add((normal(4, 3), signs(4, 3)), nn.SoftMarginLoss, reduction=reduction)
        add((normal(4, 3), signs(4, 3)), nn.HingeEmbeddingLoss, reduction=reduction)
    add(pair, nn.SmoothL1Loss, beta=0.3)
    add(pair, nn.HuberLoss, delta=2.0)
    add((log_probabilities(4, 3), log_probabilities(4, 3)), nn.KLDivLoss, reduction="batchmean", log_target=True)
    add((uniform(4, 3, low=0.2, high=3), uniform(4, 3, high=4)), nn.PoissonNLLLoss, log_input=False, full=True)
    add((normal(4, 3), normal(4, 3), uniform(4, 1, low=0.3, high=2)), nn.GaussianNLLLoss, full=True)
    add((normal(4, 3), signs(4, 3)), nn.HingeEmbeddingLoss, margin=0.4)


def classification(add: Catalog) -> None:
    logits, target = normal(5, 4), labels(4, 5)
    for reduction in REDUCTIONS:
        add((logits, target), nn.CrossEntropyLoss, reduction=reduction)
        add((log_probabilities(5, 4), target), nn.NLLLoss, reduction=reduction)
        add((logits, target), nn.MultiMarginLoss, reduction=reduction)
        add((logits, labels(2, 5, 4)), nn.MultiLabelSoftMarginLoss, reduction=reduction)
        add((logits, multilabels), nn.MultiLabelMarginLoss, reduction=reduction)
        add((uniform(4, 3, low=0.05, high=0.95), uniform(4, 3)), nn.BCELoss, reduction=reduction)
        add((normal(4, 3), uniform(4, 3)), nn.BCEWithLogitsLoss, reduction=reduction)
    add((logits, target), nn.CrossEntropyLoss, weight=WEIGHTS, label_smoothing=0.2)
    add((logits, target), nn.CrossEntropyLoss, ignore_index=1)
    add((logits, probabilities(5, 4)), nn.CrossEntropyLoss, label_smoothing=0.1)
    add((normal(2, 4, 3), labels(4, 2, 3)), nn.CrossEntropyLoss, weight=WEIGHTS)
    add((normal(2, 4, 3, 2), labels(4, 2, 3, 2)), nn.CrossEntropyLoss, ignore_index=3)
    add((log_probabilities(5, 4), target), nn.NLLLoss, weight=WEIGHTS, ignore_index=2)
    add((normal(2, 4, 3, 2), labels(4, 2, 3, 2)), nn.NLLLoss)
    add((normal(2, 4, 3, 2), labels(4, 2, 3, 2)), nn.NLLLoss2d)
    add((logits, target), nn.MultiMarginLoss, p=2, margin=0.7, weight=WEIGHTS)
    add((logits, labels(2, 5, 4)), nn.MultiLabelSoftMarginLoss, weight=WEIGHTS)
    add((uniform(5, 4, low=0.05, high=0.95), uniform(5, 4)), nn.BCELoss, weight=WEIGHTS)
    add((logits, uniform(5, 4)), nn.BCEWithLogitsLoss, pos_weight=WEIGHTS)
    add((normal(8, 6), labels(20, 8)), nn.AdaptiveLogSoftmaxWithLoss, 6, 20, [4, 10])
    add((normal(8, 6), labels(20, 8)), nn.AdaptiveLogSoftmaxWithLoss, 6, 20, [4, 10], div_value=2.0, head_bias=True)
    add((normal(6, 3), labels(5, 6)), nn.LinearCrossEntropyLoss, 3, 5)
    add((normal(6, 3), labels(5, 6)), nn.LinearCrossEntropyLoss, 3, 5, bias=True, reduction="sum", label_smoothing=0.1)
    chunked = nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    add((normal(6, 3), labels(5, 6)), nn.LinearCrossEntropyLoss, 3, 5, options=chunked)
    aligned = (labels(5, 3, 4, low=1), constant(7, 6, 7), constant(4, 2, 3))
    add((log_probabilities(7, 3, 5), *aligned), nn.CTCLoss)
    for options in ({"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "none"}, {"zero_infinity": True}):
        named = ", ".join(f"{key}={value!r}" for key, value in options.items())
        add.add(
            f"LogSoftmax, CTCLoss({named})",
            lambda options=options: Normalized(nn.CTCLoss(**options)),
            (normal(7, 3, 5), *aligned),
        )


class Normalized(nn.Module):
    """A loss of log-probabilities as a function of scores."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, scores: Tensor, *others: Tensor) -> Tensor:
        return self.loss(scores.log_softmax(-1), *others)


def multilabels(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Distinct labels, then -1."""
    target = torch.stack([torch.randperm(4, generator=generator) for _ in range(5)])
    target[:, 2:] = -1
    return target


def distances(add: Catalog) -> None:
    pair = (normal(4, 5), normal(4, 5))
    add(pair, nn.PairwiseDistance)
    add(pair, nn.PairwiseDistance, p=1.0, keepdim=True)
    add(pair, nn.PairwiseDistance, p=3.0)
    add(pair, nn.CosineSimilarity)
    add((normal(2, 3, 5), normal(2, 3, 5)), nn.CosineSimilarity, dim=0)
    sign = lambda dtype, g: signs(4)(torch.int64, g)  # noqa: E731
    for reduction in REDUCTIONS:
        add((*pair, sign), nn.CosineEmbeddingLoss, margin=0.2, reduction=reduction)
        add((normal(4), normal(4), signs(4)), nn.MarginRankingLoss, margin=0.3, reduction=reduction)
        add((*pair, normal(4, 5)), nn.TripletMarginLoss, reduction=reduction)
        add((*pair, normal(4, 5)), nn.TripletMarginWithDistanceLoss, reduction=reduction)
    add((*pair, normal(4, 5)), nn.TripletMarginLoss, margin=0.2, p=1, swap=True)
    add((*pair, normal(4, 5)), nn.TripletMarginWithDistanceLoss, distance_function=_distance, swap=True, margin=0.5)


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(x, y)


def recurrent(add: Catalog) -> None:
    sequence, cell = normal(4, 2, 3), normal(4, 3)
    for kind in (nn.RNN, nn.LSTM, nn.GRU):
        add(sequence, kind, 3, 5)
        add(sequence, kind, 3, 4, num_layers=2, bidirectional=True, batch_first=True)
        add(sequence, kind, 3, 4, num_layers=2, dropout=0.3, bias=False)
        add(normal(4, 3), kind, 3, 4)
    add(sequence, nn.RNN, 3, 4, nonlinearity="relu")
    add(sequence, nn.LSTM, 3, 5, proj_size=2)
    add((sequence, normal(1, 2, 5)), nn.GRU, 3, 5)
    for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        add(cell, kind, 3, 5)
        add(cell, kind, 3, 4, bias=False)
    add((cell, normal(4, 5)), nn.GRUCell, 3, 5)
    add((cell, normal(4, 4)), nn.RNNCell, 3, 4, nonlinearity="relu")


def attention(add: Catalog) -> None:
    target, memory = normal(3, 2, 4), normal(5, 2, 4)
    add((target, memory, memory), nn.MultiheadAttention, 4, 2)
    add((target, memory, memory), nn.MultiheadAttention, 4, 2, dropout=0.3, bias=False)
    add((target, target, target), nn.MultiheadAttention, 4, 1, add_bias_kv=True, add_zero_attn=True)
    add((normal(2, 3, 4), normal(2, 5, 3), normal(2, 5, 6)), nn.MultiheadAttention, 4, 2, kdim=3, vdim=6, batch_first=True)
    encoder = {"d_model": 4, "nhead": 2, "dim_feedforward": 6}
    add(target, nn.TransformerEncoderLayer, **encoder)
    add(normal(2, 3, 4), nn.TransformerEncoderLayer, **encoder, activation="gelu", batch_first=True, norm_first=True)
    add(normal(2, 3, 4), nn.TransformerEncoderLayer, **encoder, dropout=0.0, batch_first=True, bias=False)
    add((target, memory), nn.TransformerDecoderLayer, **encoder)
    add((target, memory), nn.TransformerDecoderLayer, **encoder, dropout=0.0, norm_first=True)
    add.add("TransformerEncoder(2 layers)", lambda: _stack(nn.TransformerEncoder, nn.TransformerEncoderLayer), target)
    add.add("TransformerDecoder(2 layers)", lambda: _stack(nn.TransformerDecoder, nn.TransformerDecoderLayer), (target, memory))
    add((memory, target), nn.Transformer, 4, 2, 1, 1, 6)


def _stack(stack: type[nn.Module], layer: type[nn.Module]) -> nn.Module:
    if stack is nn.TransformerDecoder:
        return stack(layer(4, 2, 6, dropout=0.1), 2, norm=nn.LayerNorm(4))
    return stack(layer(4, 2, 6, dropout=0.1), 2, norm=nn.LayerNorm(4), enable_nested_tensor=False)

"""Programs that are networks: layers, losses, training-time behavior."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from .suite import Draw, Made, changing, parameters, program, watched


@program("second")
def nested_mlp(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> Tensor:
        for layer in params["hidden"]:
            x = torch.tanh(x @ layer["W"] + layer["b"])
        return -(F.log_softmax(x @ params["out"][0] + params["out"][1], -1) * y).sum() / len(x)

    hidden = [{"W": d.normal(4, 5), "b": d.normal(5)}, {"W": d.normal(5, 3), "b": d.normal(3)}]
    params = {"hidden": hidden, "out": (d.normal(3, 2), d.normal(2))}
    return f, (params, d.normal(d.n, 4), F.one_hot(d.integers(2, d.n), 2).to(d.dtype)), {}


@program("second")
def conv_net(d: Draw) -> Made:
    first = {"kernel_size": (3, 2), "stride": (1, 2), "padding": 1}
    module = d.module(lambda: nn.Sequential(
        nn.Conv2d(2, 3, **first), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 4)))  # fmt: skip

    def f(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(module, params, (x,)), y)

    return f, (parameters(module), d.normal(d.n, 2, 6, 7), d.integers(4, d.n)), {}


@program()
def conv_net_max_pool(d: Draw) -> Made:
    module = d.module(lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2, padding_mode="reflect", padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)))  # fmt: skip

    def f(params: Any, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,)).square().mean()

    return f, (parameters(module), d.normal(d.n, 2, 6, 5)), {}


@program("second")
def transposed_convolution(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        w, b = params
        return torch.sigmoid(F.conv_transpose1d(x, w, b, stride=2, padding=1, output_padding=1)).sum()

    return f, ([d.normal(2, 3, 4), d.normal(3)], d.normal(d.n, 2, 5)), {}


@program("second")
def lstm_cell_loop(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = c = x.new_zeros(x.shape[1], 4)
        for t in range(x.shape[0]):
            i, o, g, k = (torch.cat([x[t], h], 1) @ params["W"] + params["b"]).chunk(4, 1)
            c = torch.sigmoid(k + 1) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return (h @ params["V"]).square().mean(), h

    params = {"W": d.normal(7, 16, scale=0.4), "b": d.normal(16), "V": d.normal(4, 2)}
    return f, (params, d.normal(5, d.n, 3)), {}


def _recurrent(d: Draw, module: nn.Module) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        out, _ = functional_call(module, params, (x,))
        return out.square().mean()

    return f, (parameters(module), d.normal(d.n, 4, 3)), {}


@program()
def lstm_module(d: Draw) -> Made:
    return _recurrent(d, d.module(lambda: nn.LSTM(3, 2, num_layers=2, bidirectional=True, batch_first=True)))


@program()
def gru_module(d: Draw) -> Made:
    return _recurrent(d, d.module(lambda: nn.GRU(3, 2, batch_first=True)))


@program()
def attention_fused(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        q, k, v = (x @ params["qkv"]).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).square().sum()

    return f, ({"qkv": d.normal(5, 24, scale=0.4)}, d.normal(d.n, 6, 5)), {}


@program("second")
def attention_by_hand(d: Draw) -> Made:
    def f(params: Any, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = x @ params["q"], x @ params["k"], x @ params["v"]
        scores = (q @ k.mT / 2.0).masked_fill(~mask, float("-inf"))
        return (torch.softmax(scores, -1) @ v).square().mean()

    params = {name: d.normal(5, 4) for name in "qkv"}
    return f, (params, d.normal(d.n, 6, 5), torch.ones(6, 6, dtype=torch.bool).tril()), {}


@program("random")
def transformer_layer(d: Draw) -> Made:
    module = d.module(lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True, norm_first=True))

    def f(params: Any, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,)).square().mean()

    return f, (parameters(module), d.normal(d.n, 5, 4)), {}


@program("mutates")
def batch_norm_train(d: Draw) -> Made:
    module = d.module(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Softplus()))

    def f(params: Any, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,)).square().mean()

    return watched(f, lambda: list(module.buffers())), (parameters(module), d.normal(d.n + 2, 4)), {}


@program("second")
def batch_norm_eval(d: Draw) -> Made:
    module = d.module(lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))).eval()

    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(functional_call(module, params, (x,))).sum()

    def change() -> None:
        module[1].running_mean += 0.5
        module[1].running_var *= 2

    return changing(f, change), (parameters(module), d.normal(d.n, 4)), {}


@program("random")
def train_then_eval(d: Draw) -> Made:
    module = d.module(lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2)))

    def f(params: Any, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,)).square().mean()

    return changing(f, lambda: module.train(not module.training)), (parameters(module), d.normal(d.n, 4)), {}


@program("second")
def layer_norm(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return F.gelu(F.layer_norm(x, (5,), params["weight"], params["bias"])).square().sum()

    return f, ({"weight": d.normal(5), "bias": d.normal(5)}, d.normal(d.n, 4, 5)), {}


@program("second")
def group_and_instance_norm(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        y = F.group_norm(x, 2, params[0], params[1])
        return torch.tanh(F.instance_norm(y) * params[2]).sum()

    return f, ([d.normal(4), d.normal(4), d.normal(5)], d.normal(d.n, 4, 5)), {}


@program("random")
def dropout(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.dropout(torch.relu(x @ params["W"]), 0.4, training=True)
        return h.square().sum(), h

    return f, ({"W": d.normal(4, 6)}, d.normal(d.n, 4)), {}


@program("random", "second")
def reparameterized_noise(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        mean, spread = (x @ params["W"]).chunk(2, -1)
        z = mean + torch.randn_like(mean) * torch.exp(0.3 * spread)
        return (z.square() + torch.rand(3, dtype=x.dtype)).sum()

    return f, ({"W": d.normal(4, 6)}, d.normal(d.n, 4)), {}


@program("second")
def embedding_padding(d: Draw) -> Made:
    def f(params: Any, index: Tensor) -> Tensor:
        rows = F.embedding(index, params["table"], padding_idx=1)
        return torch.tanh(rows.mean(1) @ params["W"]).sum()

    return f, ({"table": d.normal(6, 4), "W": d.normal(4, 2)}, d.integers(6, d.n, 5)), {}


@program()
def embedding_bag(d: Draw) -> Made:
    def f(params: Any, index: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
        bags = F.embedding_bag(index, params, offsets, mode="sum", per_sample_weights=weight)
        return bags.square().sum()

    return f, (d.normal(6, 4), d.integers(6, d.n + 5), torch.tensor([0, 2, 2]), d.normal(d.n + 5)), {}


@program("second")
def cross_entropy_weights(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ params, y, weight, ignore_index=1, label_smoothing=0.1)

    y = d.integers(4, d.n + 3)
    y[0] = 0
    return f, (d.normal(3, 4), d.normal(d.n + 3, 3), y, d.uniform(4) + 0.1), {}


@program()
def ctc_loss(d: Draw) -> Made:
    def f(params: Any, x: Tensor, target: Tensor) -> Tensor:
        lengths = torch.full((x.shape[1],), 8), torch.full((x.shape[1],), 3)
        return F.ctc_loss(F.log_softmax(x @ params, -1), target, *lengths)

    return f, (d.normal(4, 5), d.normal(8, d.n, 4), d.integers(4, d.n, 3) + 1), {}


@program("second")
def several_losses(d: Draw) -> Made:
    def f(params: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = x @ params
        divergence = F.kl_div(F.log_softmax(out, -1), F.softmax(y, -1), reduction="batchmean")
        huber = F.huber_loss(out, y, delta=0.7)
        nll = F.gaussian_nll_loss(out, y, out.square() + 0.1)
        return divergence + huber + nll, divergence, huber

    return f, (d.normal(4, 3), d.normal(d.n, 4), d.normal(d.n, 3)), {}


@program()
def weight_norm(d: Draw) -> Made:
    module = d.module(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))

    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(functional_call(module, params, (x,))).sum()

    return f, (parameters(module), d.normal(d.n, 4)), {}


@program("mutates")
def spectral_norm(d: Draw) -> Made:
    module = d.module(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)))

    def f(params: Any, x: Tensor) -> Tensor:
        return functional_call(module, params, (x,)).square().sum()

    return watched(f, lambda: list(module.buffers())), (parameters(module), d.normal(d.n, 4)), {}


@program()
def checkpointed(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        def block(h: Tensor, w: Tensor) -> Tensor:
            return torch.tanh(h @ w)

        for w in params:
            x = checkpoint(block, x, w, use_reentrant=False)
        return x.square().sum()

    return f, ([d.normal(4, 5), d.normal(5, 3)], d.normal(d.n, 4)), {}


@program("second")
def tied_autoencoder(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        code = torch.sigmoid(F.linear(x, params["W"], params["b"]))
        return F.mse_loss(F.linear(code, params["W"].T, params["c"]), x)

    return f, ({"W": d.normal(3, 5), "b": d.normal(3), "c": d.normal(5)}, d.normal(d.n, 5)), {}


@program("fixed", "half")
def autocast_bfloat16(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = torch.relu(x @ params["W"]) @ params["V"]
        return out.float().square().mean()

    real = torch.float32
    params = {"W": d.normal(4, 6, dtype=real), "V": d.normal(6, 2, dtype=real)}
    return f, (params, d.normal(d.n, 4, dtype=real)), {}


@program("fixed", "half")
def float16_network(d: Draw) -> Made:
    def f(params: Any, x: Tensor) -> Tensor:
        return torch.tanh(x @ params["W"] + params["b"]).float().square().mean()

    half = torch.float16
    return f, ({"W": d.normal(4, 3, dtype=half), "b": d.normal(3, dtype=half)}, d.normal(d.n, 4, dtype=half)), {}


@program("fixed", "half")
def bfloat16_network(d: Draw) -> Made:
    half = torch.bfloat16
    weights = torch.tensor([1.0, -2.0, 3.0], dtype=half)  # without them the gradient would be nothing but rounding

    def f(params: Any, x: Tensor) -> Tensor:
        return (F.softplus(F.layer_norm(x @ params["W"], (3,))) * weights).mean()

    return f, ({"W": d.normal(4, 3, dtype=half)}, d.normal(d.n, 4, dtype=half)), {}

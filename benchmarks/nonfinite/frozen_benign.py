"""Harmless programs that nobody read who wrote what is measured."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nonfinite.fault import Benign, Step, harmless, trained

BENIGN: list[Benign] = []
benign = harmless(BENIGN)
NAN, INF = float("nan"), float("inf")


@benign("scaled_dot_product_attention of a sequence that is all padding: zeros by definition")
def fused_all_masked() -> Step:
    model = nn.Linear(8, 24)
    x, keep = torch.randn(2, 1, 4, 8), torch.ones(2, 1, 1, 4, dtype=torch.bool)
    keep[1] = False

    def loss() -> Tensor:
        q, k, v = model(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).square().mean()

    return trained(loss, model.parameters())


@benign("nn.Transformer with the mask that it generates itself")
def transformer_own_mask() -> Step:
    net = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    source, target = torch.randn(2, 3, 8), torch.randn(2, 4, 8)

    def loss() -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(4)
        return net(source, target, tgt_mask=mask, tgt_is_causal=True).square().mean()

    return trained(loss, net.parameters())


@benign("the forward algorithm in log space: -inf where no path leads")
def paths_in_log_space() -> Step:
    emission = nn.Parameter(torch.randn(5, 3))
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]).log()

    def loss() -> Tensor:
        log_p = emission.log_softmax(-1)
        alpha = log_p[0]
        for t in range(1, 5):
            alpha = torch.logsumexp(alpha[:, None] + transition, 0) + log_p[t]
        return -alpha[2]

    return trained(loss, [emission])


@benign("logaddexp of a finite number and -inf")
def addition_in_log_space() -> Step:
    x = nn.Parameter(torch.randn(4))

    def loss() -> Tensor:
        total = torch.tensor(-INF)
        for k in range(4):
            total = torch.logaddexp(total, x[k])
        return total

    return trained(loss, [x])


@benign("logsumexp with some -inf")
def partial_logsumexp() -> Step:
    weight = torch.randn(3, 5, requires_grad=True)
    x, mask = torch.randn(4, 3), torch.tensor([0, 1, 0, 1, 0]).bool()

    def loss() -> Tensor:
        scores = (x @ weight).masked_fill(mask, -INF)
        return scores.logsumexp(-1).mean()

    return trained(loss, [weight])


@benign("rows of an empty tensor written in a loop")
def empty_written_in_a_loop() -> Step:
    cell = nn.GRUCell(3, 4)
    x = torch.randn(6, 2, 3)

    def loss() -> Tensor:
        out = torch.empty(6, 2, 4)
        h = torch.zeros(2, 4)
        for t in range(6):
            h = cell(x[t], h)
            out[t] = h
        return out.square().mean()

    return trained(loss, cell.parameters())


@benign("a tensor of NaN that is overwritten altogether")
def nan_overwritten() -> Step:
    model = nn.Linear(3, 2)
    x = torch.randn(6, 3)

    def loss() -> Tensor:
        out = torch.full((6, 2), NAN)
        order = torch.tensor([4, 0, 2, 1, 5, 3])
        out[order[:3]] = model(x[:3])
        out[order[3:]] = model(x[3:])
        return out.square().mean()

    return trained(loss, model.parameters())


@benign("padding of NaN that pack_padded_sequence leaves out")
def padding_left_out() -> Step:
    rnn = nn.GRU(3, 4, batch_first=True)
    x, lengths = torch.randn(3, 5, 3), torch.tensor([5, 3, 2])
    x[1, 3:], x[2, 2:] = NAN, NAN

    def loss() -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(rnn(packed)[0], batch_first=True)
        return out.square().mean()

    return trained(loss, rnn.parameters())


@benign("labels of NaN: the difference is NaN there, and where() takes zero")
def missing_labels_by_where() -> Step:
    model = nn.Linear(3, 2)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    y[1, 0], y[3, 1] = NAN, NAN

    def loss() -> Tensor:
        difference = model(x) - y
        difference = torch.where(torch.isnan(y), torch.zeros_like(difference), difference)
        return difference.square().sum() / (~torch.isnan(y)).sum()

    return trained(loss, model.parameters())


@benign("rows with a NaN dropped")
def rows_dropped() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(6, 3)
    x[2, 1] = NAN

    def loss() -> Tensor:
        whole = x[~x.isnan().any(1)]
        return model(whole).square().mean()

    return trained(loss, model.parameters())


@benign("GradScaler: the first scale overflows, the step is skipped")
def skipped_by_the_scaler() -> Step:
    net = nn.Linear(4, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(8, 4) * 10

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            y = net(x)
        loss = y.float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    return step


@benign("mixed precision that does not overflow")
def scaled_and_fine() -> Step:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(3, 1, 4, 4)

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = net(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@benign("segments' maxima begin at -inf; empty segments are set to zero")
def segment_maximum() -> Step:
    model = nn.Linear(3, 1)
    x, graph = torch.randn(6, 3), torch.tensor([0, 0, 1, 3, 3, 3])

    def loss() -> Tensor:
        h = model(x)[:, 0]
        start = torch.full((4,), -INF)
        best = start.scatter_reduce(0, graph, h, "amax", include_self=True)
        best = torch.where(best == -INF, torch.zeros_like(best), best)
        return best.square().sum()

    return trained(loss, model.parameters())


@benign("exp(-inf) is zero: the kernel of points that are not connected")
def kernel_of_unconnected() -> Step:
    weight = nn.Parameter(torch.randn(3))
    distance = torch.tensor([[0.0, 1.0, INF], [1.0, 0.0, INF], [INF, INF, 0.0]])

    def loss() -> Tensor:
        kernel = torch.exp(-distance)
        return weight @ kernel @ weight

    return trained(loss, [weight])


@benign("tanh of infinity is 1, without gradient")
def saturated_features() -> Step:
    model = nn.Linear(3, 1)
    gap = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])

    def loss() -> Tensor:
        closeness = torch.tanh(1 / gap)
        return model(closeness).square().mean()

    return trained(loss, model.parameters())


@benign("beam search begins with scores of -inf")
def beam_search() -> Step:
    model = nn.Linear(4, 5)
    x = torch.randn(3, 4)

    def step() -> Tensor:
        with torch.no_grad():
            scores = torch.full((2,), -INF)
            scores[0] = 0
            for t in range(3):
                every = scores[:, None] + model(x[t]).log_softmax(-1)
                scores, chosen = every.flatten().topk(2)
        loss = F.cross_entropy(model(x), chosen[:1].expand(3) % 5)
        loss.backward()
        return loss

    return step


@benign("gradients of NaN made zero by a hook")
def hook_that_cleans() -> Step:
    model = nn.Linear(3, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    x = torch.randn(4, 3)

    def loss() -> Tensor:
        h = model(x)
        h.register_hook(lambda grad: torch.nan_to_num(grad, 0.0, 0.0, 0.0))
        return h.square().sum(1).sqrt().mean()

    return trained(loss, model.parameters())


@benign("a custom Function whose backward removes its own infinities")
def function_that_cleans() -> Step:
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.sqrt()

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            slope = 0.5 / x.sqrt()
            return torch.where(x > 0, grad * slope, torch.zeros_like(grad))

    x = nn.Parameter(torch.tensor([1.0, 0.0, 4.0]))
    return trained(lambda: Root.apply(x).sum(), [x])


@benign("a softmax over nothing, whose rows are replaced, and its gradient stopped at the mask")
def nothing_replaced() -> Step:
    weight = torch.randn(4, 4, requires_grad=True)
    x, mask = torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    mask[2] = True

    def loss() -> Tensor:
        scores = (x @ weight).masked_fill(mask, -INF)
        attention = torch.nan_to_num(scores.softmax(-1))
        return (attention @ torch.arange(4.0)).square().mean()

    return trained(loss, [weight])


@benign("a compiled function with a mask of -inf (backend aot_eager)")
def compiled_mask() -> Step:
    weight = nn.Parameter(torch.randn(4, 4))
    x, future = torch.randn(4, 4), torch.ones(4, 4).triu(1).bool()

    @torch.compile(backend="aot_eager")
    def attention(h: Tensor) -> Tensor:
        return (h @ h.T).masked_fill(future, -INF).softmax(-1) @ h

    return trained(lambda: attention(x @ weight).square().mean(), [weight])


@benign("per-sample gradients by vmap over grad")
def plain_per_sample() -> Step:
    weight, x = torch.randn(3), torch.randn(4, 3)

    def sample_loss(w: Tensor, row: Tensor) -> Tensor:
        scores = torch.where(row > 0, w * row, -INF)
        return torch.logsumexp(torch.cat([scores, torch.zeros(1)]), 0)

    def step() -> Tensor:
        grads = torch.vmap(torch.func.grad(sample_loss), (None, 0))(weight, x)
        weight.sub_(0.1 * grads.mean(0))
        return grads

    return step


@benign("the norm at zero by the library, and its penalty")
def library_norm_at_zero() -> Step:
    weight = nn.Parameter(torch.zeros(3, 2))
    x = torch.randn(4, 3)

    def loss() -> Tensor:
        return (x @ weight).norm(dim=1).sum() + weight.norm() + F.normalize(x @ weight, dim=1).sum()

    return trained(loss, [weight])


@benign("a plain network, Adam with amsgrad, dropout, schedule and clipping")
def plain_training() -> Step:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, amsgrad=True)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))

    def step() -> float:
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step(loss.item())
        return loss.item()

    return step


@benign("a schedule in tensors whose first value is infinite and then cut")
def schedule_cut() -> Step:
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    count = torch.zeros(())

    def step() -> Tensor:
        rate = torch.minimum(count.pow(-0.5), count * 1e-3 + 1e-4)
        loss = model(x).square().mean()
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p.sub_(rate * g)
        count.add_(1)
        return loss

    return step

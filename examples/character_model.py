"""Character models of two stacked recurrent layers: LSTM, GRU and fast weights, with `hesse.grad`.

Run it with::

    python examples/character_model.py [FIGURE] [--epochs N] [--models LSTM GRU FW] [--compile off|replay|native]

The models read *Pride and Prejudice* in parallel streams, a window at a time; the state goes on from window to window, the
gradient does not (truncated back-propagation through time). Dropout stands at three places: after the table of characters,
between the layers and before the scores (Zaremba, Sutskever, Vinyals 2014). Plain gradient descent on gradients clipped to a
global norm; the rate is halved whenever the validation perplexity gets better by less than a tenth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear, nll_loss

import hesse
import ngrams
from drawing import BLUE, GRAY, GREEN, ORANGE, panels, save, style
from hesse.nn import models
from text import characters, decode, encode, split
from training import Options, read_options

STREAMS, WINDOW, FEATURES = 64, 16, 32
MAX_NORM, DROPOUT = 0.5, 0.1
NETWORKS = {
    "LSTM": models.RecurrentLSTMNetwork,
    "GRU": models.RecurrentGRUNetwork,
    "FW": partial(models.RecurrentFWNetwork, rate=0.002),  # with a larger one A h drowns the input: |h|² is about hidden / 2
}
HIDDEN, RATES = {"LSTM": 64, "GRU": 64, "FW": 40}, {"LSTM": 8.0, "GRU": 8.0, "FW": 4.0}
COLORS = {"LSTM": BLUE, "GRU": ORANGE, "FW": GREEN}


@dataclass
class Run:
    """A model, its parameters, and perplexities and learning rates by epoch."""

    name: str
    layers: tuple[Callable[..., Any], ...]
    params: dict[str, Any]
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    test: float = 0.0


def build(name: str, hidden: int | None = None) -> Run:
    """Two recurrent layers between a table with a row for each character and scores for each character."""
    count, hidden, generator = len(characters()), hidden or HIDDEN[name], torch.Generator().manual_seed(0)
    pairs = [NETWORKS[name](width, hidden, output_type="all", generator=generator) for width in (FEATURES, hidden)]
    table = torch.randn(count, FEATURES, generator=generator)
    scores = {"weight": 0.1 * (2 * torch.rand(count, hidden, generator=generator) - 1), "bias": torch.zeros(count)}
    params = {"table": table, "layers": [part for _, part in pairs], "scores": scores}
    return Run(name, tuple(layer for layer, _ in pairs), params)


def make_loss(layers: tuple[Callable[..., Any], ...], p: float) -> Callable[..., tuple[Tensor, list[Any]]]:
    """``loss(params, x, y, states)``: (mean negative log-likelihood, new states), dropout `p`; x and y are ``[streams, T]``."""

    def loss(params: dict[str, Any], x: Tensor, y: Tensor, states: list[Any]) -> tuple[Tensor, list[Any]]:
        log_p, states = predict(layers, params, x, states, p)
        return nll_loss(log_p.flatten(0, 1), y.flatten()), states

    return loss


def predict(
    layers: tuple[Callable[..., Any], ...], params: dict[str, Any], x: Tensor, states: list[Any], p: float = 0.0
) -> tuple[Tensor, list[Any]]:
    """Log-probabilities of the next character ``[streams, T, characters]``, and the new states."""
    z, after = dropout(params["table"][x], p), []
    for layer, part, state in zip(layers, params["layers"], states, strict=True):
        z, state = layer(part, z, state)
        z = dropout(z, p)
        after.append(state)
    return torch.log_softmax(linear(z, params["scores"]["weight"], params["scores"]["bias"]), 2), after


def windows(codes: Tensor, streams: int, length: int = WINDOW) -> Iterator[tuple[Tensor, Tensor]]:
    """The text in parallel streams, a window after the other: (characters, characters after them), ``[streams, length]``."""
    steps = (len(codes) - 1) // streams // length * length
    x = codes[: streams * steps].reshape(streams, steps)
    y = codes[1 : streams * steps + 1].reshape(streams, steps)
    return zip(x.split(length, 1), y.split(length, 1), strict=True)


def leaves(tree: Any) -> Iterator[Tensor]:
    """The tensors of nested dicts and lists, in order."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(part)


def descend(params: Any, grads: Any, rate: float, max_norm: float = MAX_NORM) -> float:
    """One step down the gradient, clipped to `max_norm` over all leaves together; gives the norm before clipping."""
    total = torch.nn.utils.get_total_norm(list(leaves(grads))).item()
    for parameter, gradient in zip(leaves(params), leaves(grads), strict=True):
        parameter -= rate * min(1.0, max_norm / max(total, 1e-12)) * gradient
    return total


def perplexity(run: Run, codes: Tensor) -> float:
    """exp of the mean negative log-likelihood of a text, without dropout."""
    states, total, count = [None] * len(run.layers), 0.0, 0
    for x, y in windows(codes, 32, 100):
        log_p, states = predict(run.layers, run.params, x, states)
        total += nll_loss(log_p.flatten(0, 1), y.flatten(), reduction="sum").item()
        count += y.numel()
    return float(torch.tensor(total / count).exp())


def zero_states(run: Run, streams: int) -> list[Any]:
    """The states before the first character."""
    _, states = predict(run.layers, run.params, torch.zeros(streams, 1, dtype=torch.int64), [None] * len(run.layers))
    return [{name: torch.zeros_like(value) for name, value in state.items()} for state in states]


def train(run: Run, parts: list[Tensor], options: Options) -> None:
    """Train for some epochs, and take the perplexities down."""
    training, validation, test = parts
    df, rate, start = hesse.grad(make_loss(run.layers, DROPOUT), compile=options.compile), RATES[run.name], time.perf_counter()
    torch.manual_seed(0)
    for epoch in range(1, options.epochs + 1):
        states, losses = zero_states(run, STREAMS), []
        for x, y in windows(training, STREAMS):
            grads, value, states = df(run.params, x, y, states)
            descend(run.params, grads, rate)
            losses.append(value)
        run.rates.append(rate)
        run.training.append(torch.stack(losses).mean().exp().item())
        run.validation.append(perplexity(run, validation))
        if epoch > 1 and run.validation[-1] > 0.9 * run.validation[-2]:
            rate /= 2
        print(f"{run.name} epoch {epoch}: perplexity {run.training[-1]:.2f}, validation {run.validation[-1]:.2f}")
    run.seconds, run.test = time.perf_counter() - start, perplexity(run, test)


def write(run: Run, beginning: str, length: int = 200) -> str:
    """What the model writes after some characters: each drawn from its distribution."""
    generator, written = torch.Generator().manual_seed(0), beginning
    log_p, states = predict(run.layers, run.params, encode(beginning)[None], [None] * len(run.layers))
    for _ in range(length):
        code = torch.multinomial(log_p[0, -1].exp(), 1, generator=generator)
        written += decode(code)
        log_p, states = predict(run.layers, run.params, code[None], states)
    return written


def draw(runs: list[Run], counted: dict[str, float], path: Path) -> None:
    """Perplexities and learning rates by epoch."""
    figure, (curves, rates) = panels((1.6, 1.0))
    for run in runs:
        epochs = range(1, len(run.validation) + 1)
        curves.plot(epochs, run.validation, "o-", markersize=3.5, color=COLORS[run.name], label=f"{run.name}, validation")
        curves.plot(epochs, run.training, ":", color=COLORS[run.name], label=f"{run.name}, training (dropout)")
        rates.plot(epochs, run.rates, "o-", markersize=3.5, color=COLORS[run.name], drawstyle="steps-mid")
    for name, value in counted.items():
        curves.axhline(value, color=GRAY, linewidth=1, linestyle="--")
        place = {"xycoords": ("axes fraction", "data"), "va": "top", "ha": "left"}
        curves.annotate(name, (0.01, value), color=GRAY, fontsize=8, **place)
    style(curves, "perplexity per character", "epoch", "perplexity")
    style(rates, "learning rate", "epoch", "rate")
    for axes in (curves, rates):
        axes.xaxis.get_major_locator().set_params(integer=True)
    curves.legend(frameon=False, labelcolor=GRAY, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.7))
    save(figure, path)


def main(options: Options) -> list[Run]:
    """Train the models, print their perplexities beside those of counting, let the best write, draw."""
    parts, count = split(), len(characters())
    runs = [build(name) for name in options.models]
    for run in runs:
        train(run, parts, options)
    names = ("single characters", "pairs", "triples")
    counted = {f"counting {name}": ngrams.perplexity(parts[0], parts[2], order, count) for order, name in enumerate(names)}
    print(f"{'perplexity per character':28}{'validation':>11}{'test':>7}{'seconds':>9}")
    for run in runs:
        print(f"{run.name:28}{run.validation[-1]:11.2f}{run.test:7.2f}{run.seconds:9.1f}")
    for name, value in counted.items():
        print(f"{name:28}{'':11}{value:7.2f}")
    best = min(runs, key=lambda run: run.validation[-1])
    print(f"{best.name} writes:\n{write(best, 'It is a truth universally ')}")
    draw(runs, counted, options.path)
    return runs


if __name__ == "__main__":
    main(read_options("character_model.png", epochs=3, models=tuple(NETWORKS)))

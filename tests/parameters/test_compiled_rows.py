"""Replayed per-sample quantities are those of loops over samples, whatever the model, the loss and the call."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import hesse
from hesse.autodiff.compiled.mode import CompileNotice
from hesse.autodiff.compiled.state import StateRecorder
from hesse.autodiff.compiled.unrecordable import Unrecordable
from hesse.core.errors import DataError, NonFiniteError, StructureError
from hesse.parameters.compile_rows import compile_rows
from hesse.parameters.compiled_rows import CompiledRows
from tests.parameters import oracle, varied
from tests.parameters.test_sweep import _case as drawn_case  # pyright: ignore[reportPrivateUsage]

N = 6
QUIET = pytest.mark.filterwarnings("ignore::hesse.autodiff.compiled.mode.CompileNotice")
Batch = tuple[Any, Any]


def every(J: Any) -> Any:
    """All that is asked of a Jacobian, in one record."""
    return J.norms("layer"), J.clipped_sum(0.5), J.sum_of_squares(), J.variance(), J.gram(), J.as_dict(), J.mass


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double().eval()


def batch(seed: int = 0, count: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (count,), generator=generator)


def assert_same(found: Any, expected: Any, rtol: float = 1e-10) -> None:
    mine, one = pytree.tree_flatten(found)
    its, other = pytree.tree_flatten(expected)
    assert one == other
    for a, b in zip(mine, its, strict=True):
        if isinstance(b, Tensor):
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max() + 1e-30) if b.numel() else 0.0)
        else:
            assert a == pytest.approx(b) if isinstance(b, float) else a == b


def update(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def jiggled(value: Any, seed: int) -> Any:
    """Other numbers of the same shapes."""
    generator = torch.Generator().manual_seed(seed)

    def other(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return x + 0.3 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x[torch.randperm(len(x), generator=generator)]

    return pytree.tree_map(other, value)


def check_rows(found: Any, rows: Tensor, tolerance: float = 1e-9) -> None:
    """``(norms, clipped sum at 0.5, sum of squares, rows)`` against rows from loops."""
    norms, clipped, squares, dense = found
    size = rows.norm().clamp(min=1e-12)
    expected = rows.norm(dim=1)
    assert float((dense - rows).norm() / size) < tolerance
    assert float((norms - expected).norm() / size) < tolerance
    scale = (0.5 / expected).clamp(max=1)
    assert float((torch.cat([t.flatten() for t in clipped.values()]) - scale @ rows).norm()) < tolerance
    total = torch.cat([t.flatten() for t in squares.values()])
    assert float((total - rows.square().sum(0)).norm() / size.square().clamp(min=1e-12)) < tolerance


def four(J: Any) -> Any:
    return J.norms(), J.clipped_sum(0.5), J.sum_of_squares(), J.dense()


def squares(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


BY_LOOPS = {
    "weight_norm by hooks": "it changes self.model",
    "branch on .item()": "",
    "boolean routing": "one by one",
    "routing past the parameters": "one by one",
    "packed sequences": "one by one",
    "sorted inside": "one by one",
    "flipped and back": "one by one",
}  # models whose every call differs in something that a record cannot stand for, with the reason


@QUIET
def test_models_in_training(sweep: Callable[[Any, int], Any]) -> None:
    fixed = ["weight_norm", "batch norm without positions", "convolution", "tied linears", "unused", "boolean routing"]
    for name in {*fixed, *sweep(list(varied.EVERY), 5)}:
        model, inputs = varied.make(name)
        rows = compile_rows(model, nn.MSELoss(reduction="sum"), four)
        for step in range(4):
            inputs = inputs if "bits" in str(varied.EVERY[name][1]) else jiggled(inputs, step)
            targets = varied.targets(model, inputs, seed=step)
            update(model, step)
            check_rows(rows((inputs, targets)), oracle.loss_rows(model, squares, inputs, targets))
        assert rows.replays == (0 if name in BY_LOOPS else 2), (name, rows.direct)
        assert BY_LOOPS.get(name, "") in rows.direct


@QUIET
def test_drawn_modules_and_losses(sweep: Callable[[Any, int], Any]) -> None:
    replays = 0
    for seed in sweep(range(5000, 5300), 5):
        model, drawn, loss, inputs, targets = drawn_case(seed)
        if drawn.refused:
            continue
        rows, generator = compile_rows(model, loss.loss, four), torch.Generator().manual_seed(seed)
        for step in range(4):
            inputs, targets = jiggled(inputs, step), targets[torch.randperm(len(targets), generator=generator)]
            update(model, step)
            expected = oracle.loss_rows(model, loss.by_sample, inputs, targets)
            try:
                check_rows(rows((inputs, targets)), expected)
            except AssertionError as error:
                raise AssertionError(f"case {seed}: {drawn.layer} with {loss.label}") from error
        replays += rows.replays
    assert replays > 0


def test_dropout_draws_what_the_direct_way_draws() -> None:
    model, loss = network().train(), nn.CrossEntropyLoss()
    rows, drawn = compile_rows(model, loss, lambda J: J.dense()), []
    for seed in range(4):
        torch.manual_seed(seed)
        found, after = rows(batch(seed)), torch.get_rng_state()
        torch.manual_seed(seed)
        assert_same(found, hesse.parameter_jacobian(model, loss, batch(seed)).dense())
        if rows.replays:
            assert torch.equal(after, torch.get_rng_state())
        torch.manual_seed(100)
        drawn.append(rows(batch(0)))
        assert_same(drawn[-1], drawn[0])
    assert rows.replays >= 5
    model.eval()
    assert_same(rows(batch(7)), hesse.parameter_jacobian(model, loss, batch(7)).dense())


def test_batches_of_other_kinds() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, every)
    for seed in range(3):
        rows(batch(seed))
    x, y = batch(9)
    turned = x.T.contiguous().T
    kinds: list[Batch] = [batch(8, 4), (turned, y), (x[::2], y[::2]), (x.expand(6, 5), y.to(torch.int32).long())]
    for kind in kinds * 2:
        assert_same(rows(kind), every(hesse.parameter_jacobian(model, loss, kind)))
    model.float()
    assert_same(rows((x.float(), y)), every(hesse.parameter_jacobian(model, loss, (x.float(), y))), 1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            assert_same(rows((x.float(), y)), every(hesse.parameter_jacobian(model, loss, (x.float(), y))), 1e-4)
    assert not rows.direct


def test_errors_are_those_of_the_direct_way() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, every)
    for seed in range(4):
        rows(batch(seed))
    x, y = batch(5)
    with pytest.raises(NonFiniteError, match="NaN in input"):
        rows((x.index_fill(1, torch.tensor(2), float("nan")), y))
    with pytest.raises(DataError, match=r"target\[\d\] = \d .*3 classes"):
        rows((x, y + 2))
    model.train()
    model[3] = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    with pytest.raises(hesse.HesseError, match="batch normalization"):
        rows((x, y))
    model[3] = nn.Linear(4, 3).double()
    model.eval()
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN at '3\.weight'"):
        rows((x, y))


def test_arguments_of_the_quantity() -> None:
    model, loss, shift = network(), nn.CrossEntropyLoss(), [1.0]

    def quantity(J: Any, weights: Tensor, bound: float) -> Any:
        return {"sum": J.clipped_sum(bound, weights=weights), "more": (J.norms() + shift[0], J.count, J.paths)}

    rows = compile_rows(model, loss, quantity)
    for seed in range(5):
        weights, bound = torch.rand(N, dtype=torch.float64), 0.5 if seed < 4 else 0.7
        if seed == 3:
            shift[0] = 2.0
        expected = quantity(hesse.parameter_jacobian(model, loss, batch(seed)), weights, bound)
        assert_same(rows(batch(seed), weights, bound), expected)
    assert rows.replays == 2


def test_results_that_are_to_be_differentiated_are_captured_directly() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    weights = torch.rand(N, dtype=torch.float64, requires_grad=True)
    rows = compile_rows(model, loss, lambda J, w: J.norms() @ w)
    with pytest.warns(CompileNotice, match="can be differentiated"):
        rows(batch(), weights)
    (slope,) = torch.autograd.grad(rows(batch(), weights), weights)
    assert_same(slope, hesse.parameter_jacobian(model, loss, batch()).norms())
    with torch.no_grad():
        for _ in range(3):
            rows(batch(), weights)
    assert rows.replays > 0


def test_what_cannot_be_recorded_runs_directly_and_says_so_once() -> None:
    model, loss, seen = network(), nn.CrossEntropyLoss(), []

    def counting(output: Tensor, target: Tensor) -> Tensor:
        seen.append(len(output))
        return loss(output, target)

    rows = compile_rows(model, counting, lambda J: J.norms())
    with pytest.warns(CompileNotice, match="it changes") as notices:
        for seed in range(5):
            expected = hesse.parameter_jacobian(model, loss, batch(seed)).norms()
            assert_same(rows(batch(seed)), expected)
    assert len(notices) == 1
    assert rows.replays == 0
    assert "changes" in rows.direct
    whole = compile_rows(model, loss, lambda J: J)
    with pytest.warns(CompileNotice, match="returns a ParameterJacobian"):
        whole(batch())
        whole(batch())
    assert isinstance(whole(batch()), hesse.ParameterJacobian)


def test_functions_outputs_and_selections() -> None:
    model = network()
    f, params = hesse.functional(model)
    x, y = batch(1)
    loss = nn.CrossEntropyLoss()
    pair = compile_rows((f, params), loss, lambda J: J.norms())
    some = compile_rows(model, loss, lambda J: J.norms(), params=iter(["3.weight"]), output=lambda out: 2 * out)
    plain = compile_rows(model, None, lambda J: (J.dense(), J.gram()), outputs=[0, 2])
    named = compile_rows(model, loss, lambda J: J.norms())
    for step in range(4):
        with torch.no_grad():
            params["0.weight"].mul_(1.1)
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in params.items()}
        terms = [loss(f(leaves, x[i : i + 1]), y[i : i + 1]) for i in range(N)]
        expected = torch.stack([oracle.gradient(term, list(leaves.values())) for term in terms])
        assert_same(pair((x, y)), expected.norm(dim=1))
        update(model, step)
        doubled = oracle.loss_rows(model, lambda out, t: loss(2 * out, t), x, y)
        assert_same(some((x, y)), doubled[:, -15:-3].norm(dim=1))
        every_output = oracle.output_rows(model, x, N)[:, [0, 2]]
        assert_same(plain(x), (every_output, torch.einsum("ncd,mkd->ncmk", every_output, every_output)))
        assert_same(named(({"input": x}, y)), oracle.loss_rows(model, loss, x, y).norm(dim=1))
    assert min(rows.replays for rows in (pair, some, plain, named)) >= 2


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def test_settings_and_contexts() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: J.norms())
    contexts: list[Callable[[], Any]] = [torch.no_grad, torch.enable_grad, _default_dtype, lambda: hesse.memory("1GiB")]
    for context in contexts:
        with ExitStack() as stack:
            stack.enter_context(context())
            before = rows.replays
            for seed in range(3):
                expected = hesse.parameter_jacobian(model, loss, batch(seed)).norms()
                assert_same(rows(batch(seed)), expected)
            assert (rows.replays > before) == (context is not contexts[-1])
    assert not rows.direct
    before = rows.replays
    with hesse.memory("1GiB"):
        rows(batch())
    assert rows.replays == before


def test_threads_share_a_record() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, four)
    for seed in range(3):
        rows(batch(seed))
    expected = [four(hesse.parameter_jacobian(model, loss, batch(seed))) for seed in range(4)]
    wrong: list[int] = []

    def check(seed: int) -> None:
        for _ in range(10):
            pairs = zip(pytree.tree_leaves(rows(batch(seed))), pytree.tree_leaves(expected[seed]), strict=True)
            if any((a - b).abs().max() > 1e-12 for a, b in pairs):
                wrong.append(seed)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_record_that_another_thread_disturbs_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    f, params = hesse.functional(model)
    enter, finish = StateRecorder.__enter__, StateRecorder.finish
    rows, seen = compile_rows(model, loss, four), list[int]()

    def beside(recorder: StateRecorder) -> Any:
        if len(seen) < 6:
            thread = threading.Thread(target=f, args=(params, batch()[0]))
            thread.start()
            thread.join()
        return enter(recorder)

    def refused(recorder: StateRecorder) -> Any:
        if len(seen) < 6:
            raise Unrecordable("it changes a parameter")
        return finish(recorder)

    monkeypatch.setattr(StateRecorder, "__enter__", beside)
    monkeypatch.setattr(StateRecorder, "finish", refused)
    for seed in range(10):
        assert_same(rows(batch(seed)), four(hesse.parameter_jacobian(model, loss, batch(seed))))
        seen.append(seed)
    assert not rows.direct and rows.replays


@pytest.mark.parametrize("own", [True, False])
def test_inputs_that_require_gradients_change_nothing(own: bool) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: J.norms())
    for seed in range(6):
        x, y = batch(seed)
        given = x.requires_grad_() if own else x.clone().requires_grad_() * 1
        J = hesse.parameter_jacobian(model, loss, (given, y))
        assert set(J.paths.values()) == {"rule"}
        expected = oracle.loss_rows(model, loss, x.detach(), y).norm(dim=1)
        assert_same(rows((given, y)), expected)
        assert_same(J.norms(), expected)
        assert x.grad is None
    assert rows.replays >= 3 and not rows.direct


def test_results_are_new_tensors_and_nothing_is_left_behind(untouched: None) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, every)
    x, y = batch(0)
    for _ in range(3):
        rows((x, y))
    first = rows((x, y))
    for leaf in pytree.tree_leaves(rows((x, y))):
        if isinstance(leaf, Tensor):
            leaf.zero_()
    assert_same(rows((x, y)), first)
    assert_same((x, y), batch(0))
    assert all(p.grad is None and not p._backward_hooks for p in model.parameters())
    assert set(vars(model)) == set(vars(nn.Sequential()))


def test_native() -> None:
    model, loss = nn.Linear(5, 3).double(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: J.norms(), compile="native")
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        for seed in range(5):
            update(model, seed)
            assert_same(rows(batch(seed)), oracle.loss_rows(model, loss, *batch(seed)).norm(dim=1))
    refused = [str(notice.message) for notice in notices if issubclass(notice.category, UserWarning)]
    assert all("C++ compiler" in text for text in refused), refused
    assert rows.replays >= 3
    assert rows.compile_seconds > 0


def test_off_and_what_is_refused() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: J.norms(), compile="off")
    assert isinstance(rows, CompiledRows)
    for seed in range(3):
        assert_same(rows(batch(seed)), hesse.parameter_jacobian(model, loss, batch(seed)).norms())
    assert (rows.replays, rows.compile_seconds, rows.direct) == (0, 0.0, "")
    assert repr(rows).endswith("of Sequential, off)")
    with pytest.raises(StructureError, match="choose one of"):
        compile_rows(model, loss, lambda J: J.norms(), compile="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="pass a function"):
        compile_rows(model, loss, "norms")  # pyright: ignore[reportArgumentType]
    with pytest.raises(StructureError, match="one batch"):
        rows([batch(0), batch(1), batch(2)])


def test_inside_a_transform() -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, lambda J: J.norms())
    for seed in range(4):
        rows(batch(seed))
    before = rows.replays
    given = batch(1)
    outer = hesse.grad(lambda p: (rows(given) * p).sum(), compile="replay")
    norms = oracle.loss_rows(model, loss, *given).norm(dim=1)
    for _ in range(3):
        assert_same(outer(torch.ones(N, dtype=torch.float64)).grads, norms)
    assert rows.replays == before


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda rows: pickle.loads(pickle.dumps(rows))])
def test_a_copy_records_anew_and_leaves_the_original_alone(way: Callable[[CompiledRows], CompiledRows]) -> None:
    model, loss = network(), nn.CrossEntropyLoss()
    rows = compile_rows(model, loss, every)
    for seed in range(3):
        rows(batch(seed))
    replays, before = rows.replays, hesse.parameter_jacobian(model, loss, batch(7))
    expected = every(before)
    made = way(rows)
    assert made.replays == 0 and rows.replays == replays > 0
    if way is not copy.copy:
        update(model, 5)  # a deep copy has a model of its own
    for _ in range(3):
        assert_same(made(batch(7)), expected)
    assert made.replays > 0
    assert_same(rows(batch(8)), every(hesse.parameter_jacobian(model, loss, batch(8))))


def test_a_copy_shares_the_model_with_what_is_copied_beside_it() -> None:
    model = network()
    rows, own = copy.deepcopy((compile_rows(model, nn.CrossEntropyLoss(), every), model))
    rows(batch(0))
    update(own, 3)
    assert_same(rows(batch(1)), every(hesse.parameter_jacobian(own, nn.CrossEntropyLoss(), batch(1))))

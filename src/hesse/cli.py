"""The command line: arguments in, text out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NoReturn

from hesse.core.errors import HesseError, MissingExtraError, TargetError

try:
    import click
    import torch
    from rich.console import Console

    from hesse.autodiff.model import is_one_batch
    from hesse.core.memory import parse_budget
    from hesse.core.progress import progress
    from hesse.distributed.dealt import deal, start_processes, take_gpu
    from hesse.report import (
        Report,
        Settings,
        UserCodeError,
        call_target,
        check_target,
        graph_target,
        hunt_target,
        load_target,
        make_report,
        print_check,
        print_details,
        print_hunt,
        print_summary,
        write_check,
        write_files,
        write_graph,
        write_hunt,
        write_pictures,
    )
    from hesse.report.panels import PANELS, SPECTRAL
    from hesse.report.report import choose_panels
except ModuleNotFoundError as _error:
    _missing = (_error.name or "").partition(".")[0]
    if _missing not in ("click", "jinja2", "markupsafe", "matplotlib", "rich"):
        raise
    sys.exit(str(MissingExtraError("The command hesse needs its extra.", f"no {_missing}", "pip install 'hesse[report]'")))

_ORDERS: dict[str, Literal[0, 1, 2]] = {"0": 0, "1": 1, "2": 2}
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _DeviceType(click.ParamType):
    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> torch.device:
        try:
            return torch.empty(0, device=value).device
        except (RuntimeError, AssertionError) as error:
            self.fail(f"{value!r} cannot be used: {str(error).splitlines()[0]}", param, ctx)


class _PanelsType(click.ParamType):
    name = "names"

    def __init__(self, among: tuple[str, ...]) -> None:
        self.among = among

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value  # the default
        keys = tuple(key.strip() for key in str(value).split(",") if key.strip())
        try:
            choose_panels(keys, self.among)
        except HesseError as error:
            self.fail(f"{error.found}; {error.remedy}", param, ctx)
        return keys


class _MemoryType(click.ParamType):
    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            parse_budget(value)
        except HesseError as error:
            self.fail(f"{value!r}; {error.remedy}", param, ctx)
        return value


_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def _target(command: str) -> _Decorator:
    """The argument and the option that all commands have."""
    folder = click.Path(file_okay=False, writable=True)
    out = click.option("--out", default=f"hesse-{command}", show_default=True, type=folder, help="Folder for the files.")
    return lambda function: click.argument("target")(out(function))


def _options(command: str, panels: tuple[str, ...]) -> _Decorator:
    """The argument and the options of a command that makes a report of these panels."""
    options = (
        _target(command),
        click.option("--panels", default=panels, type=_PanelsType(panels), help=f"Some of {', '.join(panels)}; default: all."),
        click.option("--seed", default=0, show_default=True, help="Of random directions, and of torch before TARGET runs."),
        click.option("--device", type=_DeviceType(), help="cpu, cuda, cuda:1, ...; where the model is if not given."),
        click.option("--dtype", type=click.Choice(list(_DTYPES)), help="The model's own if not given."),
        click.option("--memory", type=_MemoryType(), help="Budget: 2GiB, or 0.5 of what is free (the default)."),
    )

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hesse")
def main() -> None:
    """Derivatives of a PyTorch model beyond the plain gradient."""
    take_gpu()  # before a command reads --device


@main.command(short_help="Report on the derivatives of a model.")
@_options("report", tuple(PANELS))
def report(
    target: str, out: str, panels: tuple[str, ...], seed: int, device: torch.device | None, dtype: str | None,
    memory: str | None,
) -> None:
    """Write a derivative report of a model: report.html and report.json, and a summary in the terminal.

    TARGET is path.py:function or module:function; the function takes no arguments and returns (model, loss, data): an
    nn.Module or a pair (f, params); loss(output, target); one batch (inputs, targets) or an iterable of batches.

    Under torchrun, the batches are dealt out to the processes; the first one writes and prints.

    Exit code: 0; 1 where hesse refuses something; 2 where TARGET cannot be used or the code behind it raises.
    """
    settings = Settings(panels, seed, device, None if dtype is None else _DTYPES[dtype], memory)
    made, files = _make("report", target, out, settings)
    print_summary(made, Console())
    _finish(made, files)


@main.command(short_help="Show the curvature of a loss.")
@_options("spectrum", SPECTRAL)
def spectrum(
    target: str, out: str, panels: tuple[str, ...], seed: int, device: torch.device | None, dtype: str | None,
    memory: str | None,
) -> None:
    """Show the curvature of a model's loss: spectrum.html, spectrum.json, a PNG of every figure, and text in the terminal.

    The spectral densities of the Hessian and of the Gauss-Newton matrix, the effective dimension as a function of the damping,
    and the error of Kronecker factors by layer: the panels of this name of `hesse report`, alone.

    TARGET and exit code: as for `hesse report`.
    """
    settings = Settings(panels, seed, device, None if dtype is None else _DTYPES[dtype], memory)
    made, files = _make("spectrum", target, out, settings)
    console = Console()
    print_summary(made, console)
    print_details(made, console)
    _finish(made, [*files, *write_pictures(made, out)])


@main.command(short_help="Check derivatives.")
@_target("check")
@click.option("--level", type=click.Choice(["quick", "full"]), default="full", show_default=True, help="How much is compared.")
@click.option("--seed", default=0, show_default=True, help="Of directions, and of torch before TARGET runs.")
def check(target: str, out: str, level: Literal["quick", "full"], seed: int) -> None:
    """Check derivatives: check.html and check.json, what is wrong in the terminal, and reproduce.py, which shows it.

    TARGET is path.py:function or module:function; the function takes no arguments and returns (module, inputs), (function,
    point), an operator, or (model, loss, data), of which the model is checked on some samples, and the loss by itself.

    Exit code: 0 where everything is confirmed; 1 where something is wrong, undecided or refused; 2 where TARGET cannot be
    used or the code behind it raises.
    """
    with _refusals(target, out):
        torch.manual_seed(seed)
        returned = call_target(target)
        with progress():
            checked = check_target(target, returned, level=level, seed=seed)
        files = write_check(checked, out)  # first: a pipe may be closed while it is read
        print_check(checked, Console())
        _written(files)
        sys.exit(0 if checked.ok else 1)


@main.command(short_help="Find the first NaN or infinity.")
@_target("nan")
@click.option("--steps", default=100, show_default=True, type=click.IntRange(1), help="How many training steps at most.")
@click.option("--seed", default=0, show_default=True, help="Of torch, before TARGET runs.")
def nan(target: str, out: str, steps: int, seed: int) -> None:
    """Find the first NaN or infinity of a training run: nan.html, nan.json and nan.dot, and the line in the terminal.

    TARGET is path.py:function or module:function, a function of no arguments: it is one training step itself; or it returns a
    function that runs one step, which is called again and again; or it returns (model, loss, data), of which each batch is run
    forward and backward.

    Exit code: 0 where all stayed finite; 1 where something did not, or is refused; 2 where TARGET cannot be used or raises.
    """
    with _refusals(target, out):
        torch.manual_seed(seed)
        with progress():
            hunted = hunt_target(target, steps=steps, seed=seed)
        files = write_hunt(hunted, out)
        print_hunt(hunted, Console())
        _written(files)
        sys.exit(1 if hunted.report.found else 0)


@main.command(short_help="Draw a function and its derivative.")
@_target("graph")
@click.option("--order", type=click.Choice(["0", "1", "2"]), default="1", show_default=True, help="Backward passes in it.")
@click.option("--seed", default=0, show_default=True, help="Of torch, before TARGET runs.")
def graph(target: str, out: str, order: str, seed: int) -> None:
    """Draw the graph of a function and its derivative: graph.html to explore, graph.dot, and a summary in the terminal.

    Where GraphViz is installed, and the graph has at most 1,000 nodes, graph.svg too.

    TARGET is path.py:function or module:function; the function takes no arguments and returns (module, inputs), (function,
    inputs), or (model, loss, data), of which the loss of the first batch is drawn.

    Exit code: 0; 1 where hesse refuses something; 2 where TARGET cannot be used or the code behind it raises.
    """
    with _refusals(target, out):
        torch.manual_seed(seed)
        returned = call_target(target)
        traced = graph_target(target, returned, order=_ORDERS[order])
        files = write_graph(traced, out)
        click.echo(str(traced))
        _written(files)


def _make(command: str, target: str, out: str, settings: Settings) -> tuple[Report, list[Path]]:
    """The report of a target, and the files written; leaves with an exit code where there is none."""
    with _refusals(target, out):
        torch.manual_seed(settings.seed)
        case = load_target(target)
        with _processes(case.data) as (data, is_first), progress() if is_first else nullcontext():
            made = make_report(case.model, case.loss, data, settings=settings, name=case.name, command=command)
        if is_first:
            return made, list(write_files(made, out))
        sys.exit(1 if made.refused else 0)  # the first process writes and prints
    raise AssertionError  # _refusals has left


@contextmanager
def _processes(data: Any) -> Iterator[tuple[Any, bool]]:
    """The data, dealt out to the processes that torchrun started, and whether this is the first of them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield data, True
        return
    if is_one_batch(data):  # nothing to deal out: the first process does it all
        if os.environ.get("RANK", "0") != "0":
            sys.exit(0)
        yield data, True
        return
    made = start_processes()
    try:
        dealt = deal(data)
        yield dealt, dealt.rank == 0
    finally:
        if made:
            torch.distributed.destroy_process_group()


@contextmanager
def _refusals(target: str, out: str) -> Iterator[None]:
    """Make the folder; leave with an exit code where something is refused, or the user's code raises."""
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        _stop(f"{out} cannot be made: {error.strerror}", 1)
    try:
        yield
    except UserCodeError as error:
        _stop(f"{error.traceback}\nThis was raised by the code behind {target}, {error.doing}.", 2)
    except TargetError as error:
        _stop(str(error), 2)
    except HesseError as error:
        _stop(str(error), 1)


def _finish(made: Report, files: list[Path]) -> NoReturn:
    _written(files)
    sys.exit(1 if made.refused else 0)


def _written(files: Sequence[Path]) -> None:
    *first, last = map(str, files)
    click.echo(f"Written: {', '.join(first)} and {last}" if first else f"Written: {last}")


def _stop(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)

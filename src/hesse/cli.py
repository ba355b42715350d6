"""The command line: arguments in, text out."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from hesse.core.errors import HesseError, MissingExtraError, TargetError

try:
    import click
    import torch
    from rich.console import Console

    from hesse.core.memory import parse_budget
    from hesse.core.progress import progress
    from hesse.report import (
        Report,
        Settings,
        UserCodeError,
        load_target,
        make_report,
        print_details,
        print_summary,
        write_files,
        write_pictures,
    )
    from hesse.report.panels import PANELS, SPECTRAL
    from hesse.report.report import choose_panels
except ModuleNotFoundError as _error:
    _missing = (_error.name or "").partition(".")[0]
    if _missing not in ("click", "jinja2", "markupsafe", "matplotlib", "rich"):
        raise
    sys.exit(str(MissingExtraError("The command hesse needs its extra.", f"no {_missing}", "pip install 'hesse[report]'")))

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


def _options(command: str, panels: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The argument and the options of a command that makes a report of these panels."""
    folder = click.Path(file_okay=False, writable=True)
    options = (
        click.argument("target"),
        click.option("--out", default=f"hesse-{command}", show_default=True, type=folder, help="Folder for the files."),
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


@main.command()
@_options("report", tuple(PANELS))
def report(
    target: str, out: str, panels: tuple[str, ...], seed: int, device: torch.device | None, dtype: str | None,
    memory: str | None,
) -> None:
    """Write a derivative report of a model: report.html and report.json, and a summary in the terminal.

    TARGET is path.py:function or module:function; the function takes no arguments and returns (model, loss, data): an
    nn.Module or a pair (f, params); loss(output, target); one batch (inputs, targets) or an iterable of batches.

    Exit code: 0; 1 where hesse refuses something; 2 where TARGET cannot be used or the code behind it raises.
    """
    settings = Settings(panels, seed, device, None if dtype is None else _DTYPES[dtype], memory)
    made, files = _make("report", target, out, settings)
    print_summary(made, Console())
    _finish(made, files)


@main.command()
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


def _make(command: str, target: str, out: str, settings: Settings) -> tuple[Report, list[Path]]:
    """The report of a target, and the files written; leaves with an exit code where there is none."""
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        _stop(f"{out} cannot be made: {error.strerror}", 1)
    try:
        torch.manual_seed(settings.seed)
        case = load_target(target)
        with progress():
            made = make_report(case.model, case.loss, case.data, settings=settings, name=case.name, command=command)
        return made, list(write_files(made, out))
    except UserCodeError as error:
        _stop(f"{error.traceback}\nThis was raised by the code behind {target}, {error.doing}.", 2)
    except TargetError as error:
        _stop(str(error), 2)
    except HesseError as error:
        _stop(str(error), 1)


def _finish(made: Report, files: list[Path]) -> NoReturn:
    listed = [str(file) for file in files]
    click.echo(f"Written: {', '.join(listed[:-1])} and {listed[-1]}")
    sys.exit(1 if made.refused else 0)


def _stop(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)

"""The command line: arguments in, text out."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

from hesse.core.errors import HesseError, MissingExtraError, TargetError

try:
    import click
    import torch
    from rich.console import Console

    from hesse.core.memory import parse_budget
    from hesse.core.progress import progress
    from hesse.report import Settings, UserCodeError, load_target, make_report, print_summary, write_files
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

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        keys = tuple(key.strip() for key in str(value).split(",") if key.strip())
        try:
            choose_panels(keys)
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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hesse")
def main() -> None:
    """Derivatives of a PyTorch model beyond the plain gradient."""


@main.command()
@click.argument("target")
@click.option("--out", default="hesse-report", show_default=True, help="Folder for report.html and report.json.",
              type=click.Path(file_okay=False, writable=True))
@click.option("--panels", type=_PanelsType(), help="Some of check,samples,layers,curvature; all if not given.")
@click.option("--seed", default=0, show_default=True, help="Of every random direction, and of torch before TARGET runs.")
@click.option("--device", type=_DeviceType(), help="cpu, cuda, cuda:1, ...; where the model is if not given.")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), help="The model's own if not given.")
@click.option("--memory", type=_MemoryType(), help="Budget: 2GiB, or 0.5 of what is free (the default).")
def report(
    target: str, out: str, panels: tuple[str, ...] | None, seed: int, device: torch.device | None, dtype: str | None,
    memory: str | None,
) -> None:
    """Write a derivative report of a model.

    TARGET is path.py:function or module:function; the function takes no arguments and returns (model, loss, data): an
    nn.Module or a pair (f, params); loss(output, target); one batch (inputs, targets) or an iterable of batches.

    Exit code: 0; 1 where hesse refuses something; 2 where TARGET cannot be used or the code behind it raises.
    """
    settings = Settings(panels, seed, device, None if dtype is None else _DTYPES[dtype], memory)
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        _stop(f"{out} cannot be made: {error.strerror}", 1)
    try:
        torch.manual_seed(seed)
        case = load_target(target)
        with progress():
            made = make_report(case.model, case.loss, case.data, settings=settings, name=case.name)
        page, numbers = write_files(made, out)
    except UserCodeError as error:
        _stop(f"{error.traceback}\nThis was raised by the code behind {target}, {error.doing}.", 2)
    except TargetError as error:
        _stop(str(error), 2)
    except HesseError as error:
        _stop(str(error), 1)
    print_summary(made, Console())
    click.echo(f"Written: {page} and {numbers}")
    sys.exit(1 if made.refused else 0)


def _stop(message: str, code: int) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(code)

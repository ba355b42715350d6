"""A report: panels run one after the other on one case, each with its cost; an error of one stops none of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hesse.check.replica import Model
from hesse.core import tree
from hesse.core.errors import HesseError, StructureError
from hesse.core.memory import memory
from hesse.core.progress import track
from hesse.distributed.dealt import Dealt
from hesse.report.case import Case, Settings, make_case
from hesse.report.page import made_with
from hesse.report.panel import Cost, Numbers, Panel, PanelResult, View
from hesse.report.panels import PANELS
from hesse.report.user_code import perhaps_user_code


@dataclass(frozen=True)
class Report:
    """What was found about a model.

    Attributes:
        about: the case in the form of JSON: target, model, data, dtype, versions, the price of one gradient.
        results: one entry a panel, in the order of the page.
        command: what it is the outcome of, ``hesse COMMAND``; the name of its files.
    """

    about: Numbers
    results: tuple[PanelResult, ...]
    command: str = "report"

    @property
    def refused(self) -> tuple[PanelResult, ...]:
        """The panels that ended in an error."""
        return tuple(result for result in self.results if result.view.status == "refused")

    @property
    def seconds(self) -> float:
        """What all panels cost."""
        return sum(result.cost.seconds for result in self.results)


def make_report(
    model: Model, loss: Callable[[Any, Any], Any], data: Any, *, settings: Settings | None = None, name: str = "",
    command: str = "report",
) -> Report:
    """Run the panels on private copies of a model and its loss; the user's own stay as they are.

    Args:
        model: a module, or a pair (f, params).
        loss: ``loss(output, target)``.
        data: one batch (inputs, targets), an iterable of batches that can be read again, or `hesse.distributed.deal` of such.
        settings: which panels, seed, device, dtype, memory.
        name: how the page calls the model.
        command: what the report is made for, see `Report`.

    Raises:
        HesseError: data that cannot be used, a loss without derivative, an unknown panel.
        UserCodeError: the model, the loss or the data raised.

    Cost: that of its panels, stated by each.
    """
    settings = settings or Settings()
    panels = choose_panels(settings.panels)
    with nullcontext() if settings.memory is None else memory(settings.memory):
        case = make_case(model, loss, data.whole if isinstance(data, Dealt) else data, settings)
        if isinstance(data, Dealt):
            case = replace(case, data=data.like(case.data))
        results = tuple(_run(panel, case) for panel in track(panels, "panels"))
    return Report(_about(case, name or type(model).__name__), results, command)


def choose_panels(keys: Iterable[str] | None, among: Iterable[str] = tuple(PANELS)) -> list[Panel]:
    """The panels of these keys (None: all).

    Args:
        keys: of the panels, in the order of the page.
        among: the keys that may be chosen.

    Raises:
        StructureError: an unknown key.
    """
    known = list(among)
    chosen = known if keys is None else list(dict.fromkeys(keys))
    unknown = [key for key in chosen if key not in known]
    if unknown or not chosen:
        found = f"no panel '{unknown[0]}'" if unknown else "no panel at all"
        raise StructureError("A report consists of known panels.", found, f"choose among {', '.join(known)}")
    return [PANELS[key] for key in chosen]


def _run(panel: Panel, case: Case) -> PanelResult:
    began = time.perf_counter()
    try:
        with perhaps_user_code(f"working on the panel '{panel.key}'"):
            numbers = panel.measure(case)
        view = None
    except HesseError as error:
        numbers = {
            "error": {"kind": type(error).__name__, "asked": error.asked, "found": error.found, "remedy": error.remedy}
        }
        view = View(status="refused", headline=f"Refused. {error.asked}")
    seconds = time.perf_counter() - began
    return PanelResult(
        panel=panel, numbers=numbers, notes=tuple(numbers.get("notes", ())), view=view or panel.show(case, numbers),
        cost=Cost(seconds, seconds / case.gradient_seconds),
    )


def _about(case: Case, name: str) -> Numbers:
    model = case.model
    params = list(model.parameters()) if isinstance(model, nn.Module) else tree.leaves(model[1])
    trained = [p for p in params if p.requires_grad]
    return {
        "target": name,
        "model": type(model).__name__ if isinstance(model, nn.Module) else getattr(model[0], "__name__", "function"),
        "loss": getattr(case.loss, "__name__", type(case.loss).__name__),
        "parameters": sum(p.numel() for p in trained),
        "frozen_parameters": sum(p.numel() for p in params) - sum(p.numel() for p in trained),
        "samples": case.samples,
        "batches": case.batches,
        "loss_value": case.value,
        "gradient_seconds": case.gradient_seconds,
        "dtype": str(trained[0].dtype).removeprefix("torch."),
        "device": _device_name(trained[0].device),
        "seed": case.settings.seed,
        **made_with(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

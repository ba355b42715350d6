"""The panels of the report: one file each; `PANELS` lists them in the order of the page."""

from hesse.report.panel import Panel
from hesse.report.panels import check, curvature, dimension, kfac, layers, samples, spectrum

PANELS: dict[str, Panel] = {
    panel.key: panel
    for panel in (
        check.PANEL, samples.PANEL, layers.PANEL, curvature.PANEL, spectrum.PANEL, dimension.PANEL, kfac.PANEL,
    )
}
SPECTRAL = ("spectrum", "dimension", "kfac")  # the panels of the command `hesse spectrum`

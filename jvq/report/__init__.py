"""Reports: one dict, shown on the terminal and written as ``report.json`` and ``report.md``."""

from jvq.report.tables import figures_of, markdown, row_cells, site_cells
from jvq.report.terminal import Console, show, show_plan, show_sites
from jvq.report.write import SCHEMA, claim, write

__all__ = [
    "SCHEMA",
    "Console",
    "claim",
    "figures_of",
    "markdown",
    "row_cells",
    "show",
    "show_plan",
    "show_sites",
    "site_cells",
    "write",
]

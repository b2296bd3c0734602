"""Reports: one dict, shown on the terminal and written as ``report.json``, ``report.md`` and ``report.html``."""

from jvq.report.attention import draw_attention
from jvq.report.groups import draw_allocation, draw_error, draw_fronts, draw_grouping
from jvq.report.maps import draw_maps
from jvq.report.page import html
from jvq.report.partial import clear_partial, write_partial
from jvq.report.tables import cost_cells, figures_of, markdown, row_cells, row_head, site_cells
from jvq.report.terminal import Console, show, show_plan, show_sites
from jvq.report.training import draw_training
from jvq.report.widths import draw_joint, draw_widths
from jvq.report.write import SCHEMA, claim, write

__all__ = [
    "SCHEMA",
    "Console",
    "claim",
    "clear_partial",
    "cost_cells",
    "draw_allocation",
    "draw_attention",
    "draw_error",
    "draw_fronts",
    "draw_grouping",
    "draw_joint",
    "draw_maps",
    "draw_training",
    "draw_widths",
    "figures_of",
    "html",
    "markdown",
    "row_cells",
    "row_head",
    "show",
    "show_plan",
    "show_sites",
    "site_cells",
    "write",
    "write_partial",
]

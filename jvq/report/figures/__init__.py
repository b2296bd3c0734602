"""Figures of a report's page: one a file, each a data type, what draws it as SVG, and its caption."""

from jvq.report.figures import attention, canvas, damaged, errors, front, groups, ranges, weights

__all__ = ["attention", "canvas", "damaged", "errors", "front", "groups", "ranges", "weights"]

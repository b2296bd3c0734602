"""A report as one HTML file that needs nothing else: no network, no other files."""

from jvq.report.page.run import html

__all__ = ["html"]

"""What the compilers made of each case is listed at the end of a run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for key in ("passed", "failed") for report in terminalreporter.getreports(key)]
    lines = [line for report in reports for name, line in report.user_properties if name == "compiled"]
    if lines:
        terminalreporter.section("compiled ahead of time")
        for line in lines:
            terminalreporter.write_line(line)

"""The tables of a report as text cells, and the whole report as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

ROW_HEAD = ("model", "top-1 %", "agrees %", "KL", "size", "GBOPs")
SITE_HEAD = ("address", "quantiser", "bits", "groups", "relative error")


def row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One model's line under ``ROW_HEAD``."""
    top1 = "-" if row["top1"] is None else f"{100 * row['top1']:.2f}"
    size = f"{row['bytes'] / 1024:.0f} KiB" if row["bytes"] < 2**23 else f"{row['bytes'] / 2**20:.1f} MiB"
    return (row["name"], top1, f"{100 * row['agreement']:.2f}", f"{row['kl']:.4f}", size, f"{row['bops'] / 1e9:.3f}")


def site_cells(address: str, site: Mapping[str, Any]) -> tuple[str, ...]:
    """One operand's line under ``SITE_HEAD``."""
    groups = "" if site["groups"] is None else str(site["groups"])
    return (address, site["quantizer"], str(site["bits"]), groups, f"{site['relative_error']:.2e}")


def figures_of(report: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences: each method against min-max and against float."""
    rows = {row["name"]: row for row in report["rows"]}
    method, float_row = rows.get(report["method"]), rows["float"]
    if method is None or method is float_row:
        return []
    size = f"{float_row['bytes'] / method['bytes']:.1f} times smaller"
    work = f"{float_row['bops'] / method['bops']:.0f} times fewer bit-operations"
    lines = [f"{method['name']} is {size} than float and needs {work}."]
    if method["top1"] is not None:
        lines[0] = lines[0][:-1] + f", at {100 * (method['top1'] - float_row['top1']):+.2f} points of top-1."
        if "minmax" in rows and method["name"] != "minmax":
            plain = rows["minmax"]
            gain = 100 * (method["top1"] - plain["top1"])
            cost = 100 * (method["bops"] / plain["bops"] - 1)
            lines.append(f"Against min-max at the same widths: {gain:+.2f} points for {cost:+.1f} % bit-operations.")
    return lines


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    data, seconds = report["data"], report["seconds"]
    labels = "" if report["rows"][0]["top1"] is not None else " without labels"
    parts = [
        f"# {report['method']} on {report['model']['name']}",
        f"`{report['command']}`",
        f"{data['images']} images of {data['name']} ({data['split']}){labels}, seed {report['seed']}, "
        f"{report['device']}, {sum(seconds.values()):.0f} s.",
        *figures_of(report),
        table(ROW_HEAD, [row_cells(row) for row in report["rows"]]),
        "top-1: right predictions. agrees: same prediction as the float model. KL: of the predictions, float against "
        f"the model, nats an image. Bit-operations: {report['bops_formula']}.",
        "## Protocol",
        "\n".join(f"- {name}: {value}" for name, value in report["protocol"].items()),
        "## Seconds",
        ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items()),
    ]
    if report["sites"]:
        parts += [
            f"## Sites of {report['method']}",
            table(SITE_HEAD, [site_cells(*x) for x in report["sites"].items()]),
        ]
    if report["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in report["warnings"])]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))

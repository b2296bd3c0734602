"""The tables of a report as text cells, and the whole report as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

COST_HEAD = ("model", "GMACs", "products GBOPs", "min/max %", "assignment %", "partial sums %", "together %")
SITE_HEAD = ("address", "quantiser", "bits", "groups", "relative error", "order of rows")
SITE_TEXT = (
    "Relative error: of the float model's operand. Order of rows: Kendall's tau of attention rows, before they "
    "are quantised themselves, float model against this one."
)


class Column(NamedTuple):
    """A number of a row: its heading, how it is written, its factor, what it says, and which way is better."""

    head: str
    form: str
    factor: float
    says: str
    larger: bool  # is better


class Chosen(str):
    """A cell that stands out among those of its line."""


class Table(NamedTuple):
    """Lines of text cells under a heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Part(NamedTuple):
    """A part of a report below its title, in this order; ``name`` is for links to it."""

    name: str
    title: str
    lines: Sequence[str] = ()
    text: Sequence[str] = ()
    table: Table | None = None


COLUMNS = {  # every number that an evaluation gives, by its name in the row; a table has those that its rows have
    "top1": Column("top-1 %", ".2f", 100, "top-1: right predictions.", True),
    "agreement": Column("agrees %", ".2f", 100, "agrees: same prediction as the float model.", True),
    "kl": Column("KL", ".4f", 1, "KL: of the predictions, float against the model, nats an image.", False),
    "correlation": Column(
        "corr.", ".4f", 1, "corr.: correlation of a map with the float model's, mean over images.", True
    ),
    "median_correlation": Column("median", ".4f", 1, "median: of these correlations.", True),
    "mae": Column("MAE", ".4f", 1, "MAE: mean absolute difference of the maps.", False),
    "iou": Column("IoU", ".3f", 1, "IoU: of what lies above 0.5, intersection over union, mean over the images.", True),
    "nmse": Column("NMSE", ".4f", 1, "NMSE: squared error of the backbone's features over their square.", False),
    "oscillating": Column(
        "oscillates %", ".2f", 100, "oscillates: weights whose codes went back and forth when training ended.", False
    ),
}


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """The columns that the rows fill."""
    return {name: column for name, column in COLUMNS.items() if any(name in row for row in rows)}


def row_head(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The heading of the table of the rows."""
    return ("model", *(column.head for column in columns(rows).values()), "size", "GBOPs")


def row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One model's line; a number that comes with a spread over seeds is followed by it."""
    spread = row.get("spread", {})
    numbers = []
    for name, (_, form, factor, _, _) in columns([row]).items():
        text = "-" if row[name] is None else f"{factor * row[name]:{form}}"
        numbers.append(f"{text} ±{factor * spread[name]:{form}}" if name in spread else text)
    return (row["name"], *numbers, size_cell(row["bytes"]), f"{row['bops'] / 1e9:.3f}")


def size_cell(size: int) -> str:
    """A number of bytes with a fitting unit."""
    return f"{size / 1024:.0f} KiB" if size < 2**23 else f"{size / 2**20:.1f} MiB"


def site_cells(address: str, site: Mapping[str, Any]) -> tuple[str, ...]:
    """One operand's line under ``SITE_HEAD``."""
    groups = "" if site["groups"] is None else str(site["groups"])
    order = "" if site.get("order") is None else f"{site['order']:.3f}"
    return (address, site["quantizer"], str(site["bits"]), groups, f"{site['relative_error']:.2e}", order)


def cost_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One model's line under ``COST_HEAD``: work at run time in % of the products' bit-operations."""
    cost = row["cost"]
    extra = [cost[part] for part in ("find", "choose", "add")]
    shares = (f"{100 * x / cost['base']:.2f}" for x in (*extra, sum(extra)))
    return (row["name"], f"{cost['macs'] / 1e9:.4f}", f"{cost['base'] / 1e9:.3f}", *shares)


def allocation_table(allocation: Mapping[str, Any]) -> Table:
    """The chosen number of groups of every operand, and the divergence that each candidate causes alone."""
    offered = sorted({g for site in allocation["sites"].values() for g in site["candidates"]})
    lines = []
    for address, site in allocation["sites"].items():
        kl = dict(zip(site["candidates"], site["kl"], strict=True))
        cells = (f"{kl[g]:.1e}" if g in kl else "" for g in offered)
        marked = (Chosen(x) if g == site["groups"] and x else x for g, x in zip(offered, cells, strict=True))
        lines.append((address, str(site["groups"]), *marked))
    return Table(("address", "groups", *(f"KL of {g}" for g in offered)), lines)


def widths_table(mixed: Mapping[str, Any]) -> Table:
    """The chosen width of every module, and its sensitivity at each candidate."""
    lines = []
    for name, module in mixed["modules"].items():
        cells = zip(mixed["candidates"], (f"{x:.2e}" for x in module["loss"]), strict=True)
        marked = (Chosen(text) if bits == module["bits"] else text for bits, text in cells)
        lines.append((name, str(module["bits"]), f"{module['parameters']:,}", *marked))
    return Table(("module", "bits", "weights", *(f"at {bits} bits" for bits in mixed["candidates"])), lines)


def search_table(search: Mapping[str, Mapping[str, Any]]) -> Table:
    """What the search of every product's intervals came to."""

    def parts(x: Any) -> str:
        return ", ".join(parts(y) for y in x) if isinstance(x, list) else f"{x:.3f}"

    lines = []
    for site, s in search.items():
        scores = f"{s['score']:.6f}", f"{s['start']:.6f}", f"{s['gain']:.4f}"
        lines.append((site, parts(s["left"]), parts(s["right"]), *scores, str(s["rounds"])))
    return Table(("site", "left interval", "right interval", "score", "at the start", "gain", "rounds"), lines)


def joint_table(joint: Mapping[str, Any]) -> Table:
    """The chosen width and number of groups of every product."""
    lines = []
    for site, s in joint["sites"].items():
        groups = "" if s["groups"] is None else str(s["groups"])
        lines.append((site, str(s["bits"]), groups, f"{s['kl']:.1e}", f"{s['bops'] / 1e6:.2f}"))
    return Table(("site", "bits", "groups", "KL", "MBOPs"), lines)


def order_table(order: Sequence[Mapping[str, Any]]) -> Table:
    """Pairs of rows that should differ, with the gain of the better one and its 95 % interval."""
    measures = [name for name in order[0] if name not in ("width", "worse", "better")]
    head = ("width", "worse", "better", *(f"{name}: gain [95 %]" for name in measures), *(f"{m}" for m in measures))
    lines = []
    for pair in order:
        gains, verdicts = [], []
        for name in measures:
            m = pair[name]
            said = "holds" if m["low"] > 0 else "turned round" if m["high"] < 0 else "open"
            gains.append(f"{m['gain']:+.5f} [{m['low']:+.5f}, {m['high']:+.5f}]")
            verdicts.append(f"{said}, {m['seeds']} of {m['of']} seeds")
        lines.append((pair["width"], pair["worse"], pair["better"], *gains, *verdicts))
    return Table(head, lines)


def figures_of(report: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences: each method against min-max and against float."""
    rows = {row["name"]: row for row in report["rows"]}
    method, float_row = rows.get(report["method"]), rows["float"]
    if method is None or method is float_row:
        return []
    size = f"{float_row['bytes'] / method['bytes']:.1f} times smaller"
    work = f"{float_row['bops'] / method['bops']:.0f} times fewer bit-operations"
    lines = [f"{method['name']} is {size} than float and needs {work}."]
    if method.get("top1") is not None:
        lines[0] = lines[0][:-1] + f", at {100 * (method['top1'] - float_row['top1']):+.2f} points of top-1."
        if "minmax" in rows and method["name"] != "minmax":
            plain = rows["minmax"]
            gain = 100 * (method["top1"] - plain["top1"])
            cost = 100 * (method["bops"] / plain["bops"] - 1)
            lines.append(f"Against min-max at the same widths: {gain:+.2f} points for {cost:+.1f} % bit-operations.")
    return lines


def subject_of(report: Mapping[str, Any]) -> str:
    """What was evaluated, where, and how long it took, in a line."""
    data = report["data"]
    labels = " without labels" if report["rows"][0].get("top1", 0) is None else ""
    return (
        f"{data['images']} images of {data['name']} ({data['split']}){labels}, seed {report['seed']}, "
        f"{report['device']}, {sum(report['seconds'].values()):.0f} s."
    )


def parts_of(report: Mapping[str, Any]) -> list[Part]:
    """What a report has beside rows, protocol and sites, which differs from method to method."""
    parts = [Part("costs", "Bit-operations", table=Table(COST_HEAD, [cost_cells(row) for row in report["rows"]]))]
    if report.get("order"):
        parts.append(Part("order", "Order, tested in pairs of images", table=order_table(report["order"])))
    if "allocation" in report:
        found = report["allocation"]
        unit = {"bops": "bit-operations at run time", "mean_groups": "groups, summed over the operands"}
        text = (
            f"Budget: {found['limit']:,} {unit[found['budget']]}, as with a fixed number of groups; spent "
            f"{found['spent']:,}. Mean {found['mean_groups']:.2f} groups an operand. KL of the predictions of "
            "calibration images, each operand quantised alone; the chosen one in bold."
        )
        parts.append(Part("allocation", "Number of groups", (), [text], allocation_table(found)))
    if "joint" in report:
        found = report["joint"]
        text = (
            f"Budget: {found['limit']:,} bit-operations, as at one width and number of groups; spent "
            f"{found['spent']:,}. KL of the predictions of calibration images, each operand quantised alone, summed."
        )
        parts.append(Part("joint", "Widths and groups of products", (), [text], joint_table(found)))
    if "mixed" in report:
        found = report["mixed"]
        text = (
            f"Budget: {found['limit']:,.0f} bytes of weights, as at {found['target']} bits everywhere; spent "
            f"{found['size']:,.0f}. Numbers: {found['unit']}, each module quantised alone; the chosen one in bold."
        )
        parts.append(Part("mixed", "Widths of modules", (), [text], widths_table(found)))
    if "operations" in report:
        found, stored = report["operations"], report["operations"]["stored"]
        text = [
            f"{stored['kernels']} binary kernels of the body: {stored['plain']:,} bytes as float32, "
            f"{stored['packed']:,} packed with their scales, {stored['plain'] / stored['packed']:.1f} times fewer."
        ]
        parts.append(Part("operations", "Operations", found["lines"], text if stored["kernels"] else []))
    if report.get("search"):
        text = (
            "Intervals as parts of where the search began. Score: what was maximised, mean over images. Gain: "
            "cov(quantised, float) / var(float) of the product, which the score does not see."
        )
        parts.append(Part("search", "Searched intervals", (), [text], search_table(report["search"])))
    return parts


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    rows = report["rows"]
    parts = [
        f"# {report['method']} on {report['model']['name']}",
        f"`{report['command']}`",
        subject_of(report),
        *figures_of(report),
        table(row_head(rows), [row_cells(row) for row in rows]),
        legend(report),
        "## Protocol",
        "\n".join(f"- {name}: {value}" for name, value in report["protocol"].items()),
        "## Seconds",
        ", ".join(f"{stage} {value:.1f}" for stage, value in report["seconds"].items()),
    ]
    for part in parts_of(report):
        parts.append(f"## {part.title}")
        parts += ["\n".join(f"- {line}" for line in part.lines)] if part.lines else []
        parts += [*part.text, *([table(*part.table)] if part.table else [])]
    if report.get("pictures"):
        parts += ["## Pictures", "\n\n".join(f"![{name}]({name})" for name in report["pictures"])]
    if report["sites"]:
        sites = [site_cells(*x) for x in report["sites"].items()]
        parts += [f"## Sites of {report['method']}", SITE_TEXT, table(SITE_HEAD, sites)]
    if report["warnings"]:
        parts += ["## Warnings", "\n".join(f"- {line}" for line in report["warnings"])]
    return "\n\n".join(parts) + "\n"


def legend(report: Mapping[str, Any]) -> str:
    """What the columns of the table of rows say."""
    says = " ".join(column.says for column in columns(report["rows"]).values())
    return f"{says} Bit-operations: {report['bops_formula']}."


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    marked = ([f"**{cell}**" if isinstance(cell, Chosen) else cell for cell in row] for row in rows)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *marked))

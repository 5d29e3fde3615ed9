"""Numbers and tables of report.md."""


def number(value, digits=3):
    """With three significant digits, no exponent; a dash for none."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value != value:
        return "–"
    if value == 0:
        return "0"
    magnitude = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    if abs(value) < 1:
        return f"{value:.{digits}g}"
    return f"{value:,.{max(0, digits - magnitude)}f}"


def ratio(torch, own):
    return f"{torch / own:.2f}x" if torch and own else "–"


def cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def table(head, rows, left=1):
    """Markdown; the first `left` columns are words, the others numbers."""
    marks = ["---"] * left + ["---:"] * (len(head) - left)
    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in [head, *rows]]
    lines.insert(1, "|" + "|".join(marks) + "|")
    return lines + [""]


def seconds(row):
    """Seconds of a generation, in either program's line."""
    value = row.get("median_s", row.get("seconds")) if row else None
    return value if isinstance(value, (int, float)) and value > 0 else None


def bench_line(row):
    """A line of `lacuna bench` (docs/benchmarks.md) with the names and units that the tables of PyTorch's lines have too."""
    if row.get("schema") != 1 or row.get("who") != "lacuna":
        return row
    row = dict(row)
    if isinstance(row.get("seconds"), list):
        row["all_seconds"], row["seconds"] = row["seconds"], row.get("median_s")
    for new, old, unit in (
        ("flops_per_s", "tflop_per_s", 1e12),
        ("bytes_per_s", "gb_per_s", 1e9),
        ("tokens_per_s", "tokens_per_second", 1),
    ):
        if row.get(new) is not None:
            row[old] = row[new] / unit
    return row

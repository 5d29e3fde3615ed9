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

"""Results go between two markers of a document."""


def insert(document, name, text):
    """Puts the text between the markers of that name."""
    markers = [f"<!-- {name}: {word} -->" for word in ("begin", "end")]
    old = document.read_text()
    begin, end = (old.find(marker) for marker in markers)
    if not 0 <= begin < end or any(old.count(marker) != 1 for marker in markers):
        raise SystemExit(f"{document}: expected the lines {markers[0]} and {markers[1]} once each, in this order")
    document.write_text(old[: begin + len(markers[0])] + "\n" + text + "\n" + old[end:])

"""A folder of runs belongs to the settings that its first run had."""

import json


def hold_to(work, ours, start=True):
    """Leaves the settings in the folder, or fails where its runs were started with others.

    Without start nothing is written: not by a dry run, nor where runs are only read.
    """
    path = work / "settings.json"
    if path.exists():
        theirs = json.loads(path.read_text())
        differ = [f"{k}: {theirs.get(k)} there, {ours[k]} asked for" for k in ours if theirs.get(k) != ours[k]]
        if differ:
            raise SystemExit(f"{work} has runs with other settings ({'; '.join(differ)}): name another with --work")
    elif start:
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ours, indent=1) + "\n")

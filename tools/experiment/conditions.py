"""What the adaptation experiment compares, and how each condition is drawn."""

# Colours of Okabe and Ito, which colour-blind readers tell apart; styles and marks tell the lines apart without.
CONDITIONS = [
    {"key": "recipe", "label": "shift + annealing", "command": "adapt", "flags": [], "anneals": True,
     "paper": 1, "colour": "#0072B2", "line": "-", "mark": "o"},
    {"key": "no-anneal", "label": "no annealing", "command": "adapt", "flags": ["--no-anneal"], "anneals": False,
     "paper": 2, "colour": "#D55E00", "line": (0, (6, 2)), "mark": "s"},
    {"key": "no-shift", "label": "no shift", "command": "adapt", "flags": ["--no-shift"], "anneals": True,
     "paper": 3, "colour": "#007A5E", "line": (0, (6, 2, 1, 2)), "mark": "^"},
    {"key": "scratch", "label": "from scratch", "command": "pretrain", "flags": [], "anneals": False,
     "paper": 4, "colour": "#555555", "line": (0, (1, 1.3)), "mark": "D"},
]  # fmt: skip

CONFIDENCE = 0.95
PARTS = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}

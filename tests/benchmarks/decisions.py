"""Measures the decisions that values and ratings are for.

    python tests/benchmarks/decisions.py [part] …       all parts, or some of them

    means         coverage and width of intervals for means, beside those of ratings alone      means.py
    selection     what picking the best of n by value is worth                                  selection.py
    suggestions   labels needed where the texts to rate are chosen, beside random choice        suggestions.py
    drift         alarms where texts are of another kind, and where they are not                drift.py

The files take further options by themselves.
"""

import subprocess
import sys
from pathlib import Path

FILES = ("means", "selection", "suggestions", "drift")

if __name__ == "__main__":
    for part in sys.argv[1:] or FILES:
        subprocess.run([sys.executable, str(Path(__file__).with_name(f"{part}.py"))], check=True)

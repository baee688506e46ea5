"""Compares two programs by the ratings of a few answers and the values of all.

    program A ─┐                   ┌─► values of all ──────────────────────────────┐
    program B ─┴► answers, kept ───┴─► a sheet of some, drawn at random ─► ratings ┴─► which is better, and how sure

`sheet.py` writes the file that people fill in, and reads it; `comparison.py` runs the programs, draws the questions and
holds the result. The figures are those of `certainty.difference`.

Contract: each program is run once. Raters do not see whose answer they rate. A failure is rated without
raters, as the lowest rating that the value function learned from, or as the caller says.
"""

from dspy_qvl.comparison.comparison import Answered, ProgramComparison, compare

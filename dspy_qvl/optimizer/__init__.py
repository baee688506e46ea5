"""Fits the value functions and rerankers inside a DSPy program.

    program  ─► copy ─► modules that are meant, by name ─┐
    trainset ─► rated texts, or judged passages ─────────┴─► each is fitted ─► copy of the program, report

`optimizer.py` holds `FitValue`; `modules.py` finds and copies modules; `readers.py` reads examples: a new kind of
trainset is a new reader there.

Contract: the student is never changed; no module but those that are meant changes by a bit; every example is read and
checked before anything is fitted; an error leaves the earlier report.
"""

from dspy_qvl.optimizer.optimizer import FitValue

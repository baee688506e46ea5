"""Ridge regression with an intercept, as plain functions on arrays."""

from dspy_qvl.ridge.line import LeaveOneOut, Linear, predict
from dspy_qvl.ridge.regression import Search, fit, leave_one_out, out_of_fold, search

__all__ = ["LeaveOneOut", "Linear", "Search", "fit", "leave_one_out", "out_of_fold", "predict", "search"]

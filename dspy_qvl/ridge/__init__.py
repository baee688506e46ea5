"""Ridge regression with an intercept, as plain functions on arrays."""

from dspy_qvl.ridge.banded import LEVELS, WIDE, block_scales, choose_weights
from dspy_qvl.ridge.line import LeaveOneOut, Linear, predict
from dspy_qvl.ridge.moments import Folds
from dspy_qvl.ridge.posterior import Posterior, posterior_of
from dspy_qvl.ridge.regression import Search, fit, leave_one_out, out_of_fold, search
from dspy_qvl.ridge.solve import solve_path
from dspy_qvl.ridge.updates import RecursiveKernelRidge, RecursiveRidge, begin

__all__ = ["LeaveOneOut", "Linear", "Search", "fit", "leave_one_out", "out_of_fold", "predict", "search"]

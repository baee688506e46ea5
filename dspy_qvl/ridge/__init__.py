"""Ridge regression with an intercept, as plain functions on arrays.

    minimise over w, b:   sum_i s_i (y_i - x_i w - b)^2 + alpha |w|^2,      X: (n, d), y: (n,) or (n, k)

The intercept is not penalised, so centring X and y over the rows removes it; with the weights' roots taken into
the rows, Xc and yc,

    w = (Xc'Xc + alpha I)^-1 Xc'yc,      b = mean(y) - mean(X) w            (primal, a system of size d)
    w = Xc' (Xc Xc' + alpha I)^-1 yc                                        (dual, a system of size n)

Both give the same w; the smaller system is solved. One factorisation of a system serves every penalty: up to 2,000
rows and columns its tridiagonal form, beyond that a few Choleskys and a projection (`solve_path`). The model that
never saw a fold comes by subtracting the fold's moments from the whole (`moments.py`, `primal.py`, `dual.py`).

Rows with sparse columns (`vectors.MixedRows`) have too many columns for a primal system. Up to 1,000 rows a target
they are solved by the dual; more rows only by products with X and X', in a Krylov space that serves every penalty
(`krylov.py`). Their leave-one-out residuals come from the dual, for at most 4,000 rows.

    search          which penalty: the error of each on each fold, and the fit with the best, from one pass
    fit             the fit with one penalty
    leave_one_out   the residual of each row under a fit that never saw it, without refitting
    out_of_fold     the value of each row under the fit that never saw its fold, for every penalty
    predict         the values of rows
    choose_weights  how much each block of columns counts (`banded.py`, `weigher.py`)
    begin           a fit that is kept up to date, row by row (`updates.py`, `kernel_updates.py`)
    posterior_of    how uncertain a value is (`posterior.py`, `bounds.py`, `projected.py`)
    WithoutGroups   values and residuals under the fits that never saw a group of rows (`groups.py`)

Rows are float32 at rest; every sum and every solve is float64. Products of many rows are float32, where that is
good enough, and what a fit keeps is refined to rounding.

A fit is the same bits on one machine. BLAS sums in another order with another number of threads, and on another
processor: coefficients then differ by rounding (3e-14 of the largest, 300 texts, 1 and 2 threads), and penalties whose
errors do not differ by more count as tied.
"""

from dspy_qvl.ridge.banded import LEVELS, START_POWER, WIDE, choose_weights
from dspy_qvl.ridge.groups import Shifts, WithoutGroups
from dspy_qvl.ridge.kernel_updates import RecursiveKernelRidge
from dspy_qvl.ridge.krylov import EXACT
from dspy_qvl.ridge.line import LeaveOneOut, Linear, predict
from dspy_qvl.ridge.moments import Folds
from dspy_qvl.ridge.posterior import Posterior, posterior_of
from dspy_qvl.ridge.regression import Search, fit, has_leave_one_out, leave_one_out, out_of_fold, search
from dspy_qvl.ridge.solve import solve_path
from dspy_qvl.ridge.updates import RecursiveRidge, WarmStartedRidge, begin
from dspy_qvl.ridge.weigher import block_scales

__all__ = ["LeaveOneOut", "Linear", "Search", "fit", "leave_one_out", "out_of_fold", "predict", "search"]

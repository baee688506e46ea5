"""How far the values of all rated texts would move if one rating were left out, in closed form.

With H the matrix that turns scores into fitted values, e the residuals of the fit and h the diagonal of H, leaving out
row i moves the fitted values by  -H[:, i] e_i / (1 - h_i): the column times the leave-one-out residual.

Source: Cook & Weisberg (1982), Residuals and Influence in Regression, 3.2.
"""

from dataclasses import dataclass

import numpy as np

from dspy_qvl.ridge import Posterior
from dspy_qvl.vectors import Array, Matrix

MOST = 4000  # rows: the work grows with the cube of their number


@dataclass(frozen=True, eq=False)
class Influence:
    """The influence of each rating on the values.

    Attributes:
        changes: root mean square change of the values of all rated texts if the rating were left out, (n,), in the
            units of the scores; NaN for a row that no other bears on.
        shares: h, how much of its own fitted value each rating decides, (n,), in (0, 1].
    """

    changes: Array
    shares: Array


def influence(posterior: Posterior, X: Matrix) -> Influence | None:
    """The influence of each of at most 4,000 ratings; None beyond, or where the posterior is not exact.

    Args:
        posterior: that of the fit.
        X: the rows as the fit saw them, (n, d).
    """
    if posterior.loo is None or len(X) > MOST:
        return None
    residuals, leverages = posterior.loo
    return Influence(np.abs(residuals) * np.sqrt(posterior.hat_squares(X) / len(X)), leverages)

"""The mean rating of many texts, of which people rated some and a value function valued all; and differences of two.

    values, ratings (NaN where nobody rated) ─► mean_value    ─► Mean         value, interval, what either alone says
    the same of two programs                 ─► difference    ─► Difference   and whether one is better
    columns, ratings                         ─► honest_values ─► values that may stand beside the ratings learned from

The ratings say where the mean is, and the values take away noise (prediction-powered inference): with y the ratings, v
the values, and a power lambda,

    mean = mean of y over the rated rows - lambda (mean of v over the rated rows - mean of v over all rows)

Contract: which rows are rated was decided by chance, with the probabilities that `inclusion` holds, else equal ones;
then the mean has no bias whatever the values are worth, in large samples. The interval is for the mean of all texts
like these, not of these rows alone. Rows of one group are alike; groups are independent.

The values must not come from a fit that saw the ratings they stand beside. Such a fit follows its ratings: v - y is
small on the rated rows and not on the others, so the interval is too narrow, and the mean is off by what was followed.
Take a value function that learned from other texts, or `honest_values`.
"""

from dspy_qvl.certainty.means.honest import honest_values
from dspy_qvl.certainty.means.results import Difference, Interval, Mean, difference, mean_value

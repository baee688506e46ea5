"""How far a value can be trusted, as functions on arrays and lists of texts.

    of a new text     intervals   an interval that a rater's score lies in, with a stated confidence
                      support     the share of rated texts that are as unlike the others as the text: a p-value
    of all values     examine     figures out of fold beside baselines, length, the learning curve, and a verdict
                      selection   of what a judge gains by taking the best of n, the share that values gain
    of a rating       suspects    those most at odds with the others
                      influence   how far values would move without it
    of many texts     mean_value  their mean rating, from ratings of some and values of all; honest_values for values
                                  that were learned from these ratings
                      difference  of the mean ratings of two programs
                      DriftTest   an alarm once they are no longer of the kind that was rated
    of an unrated one suggest     those that tell most, and a random share of the others

Contract: columns are those that the fit sees (weighed), dense or `vectors.MixedRows`. Rows of one group are never
split. The penalty and the weights of blocks stay as they are; they were chosen on the same ratings, so figures out of
fold are a little too good. Tests for noise use columns whose weights no rating chose. The same rows and seed give the
same bits, whatever the batch, the order or the thread; but for the last digits of `jackknife_plus`.
"""

from dspy_qvl.certainty.drift import WEALTH, Drift, DriftTest, betting, smoothed_ranks
from dspy_qvl.certainty.influences import Influence, influence
from dspy_qvl.certainty.intervals import Intervals, fewest, intervals_of, jackknife_plus
from dspy_qvl.certainty.means import Difference, Interval, Mean, difference, honest_values, mean_value
from dspy_qvl.certainty.picking import (
    SIZES,
    BestOf,
    Selection,
    gain_of_best,
    noise_of_copies,
    selection,
    selection_within,
)
from dspy_qvl.certainty.suggestion import Suggestion, suggest
from dspy_qvl.certainty.support import SIGNALS, SUPPORTED, Support, Wording, left_out_distances, repeated_share
from dspy_qvl.certainty.suspicion import Suspect, suspects
from dspy_qvl.certainty.verdict import (
    MOST_EXAMINED,
    VERDICTS,
    BeyondLength,
    Comparison,
    Estimate,
    Examination,
    LearningCurve,
    RatedRows,
    Verdict,
    beside_baselines,
    beyond_length,
    examine,
    learning_curve,
    verdict_on,
)

"""Is a value function of any use? One of five verdicts, and the figures that decide it.

    RatedRows ─► beside_baselines values out of fold, and those of the baselines
              ─► beyond_length    how much of the values is length, and a test of what is beyond it
              ─► learning_curve   figures by the number of rated texts
              ─► verdict_on       the verdict, with the numbers that decide
    `examine` does all four.

Every figure is an `Estimate`: with its interval, over bootstrap draws of whole groups.
"""

from dspy_qvl.certainty.verdict.comparison import Comparison, beside_baselines
from dspy_qvl.certainty.verdict.curve import LearningCurve, learning_curve
from dspy_qvl.certainty.verdict.estimate import Estimate
from dspy_qvl.certainty.verdict.examination import MOST_EXAMINED, Examination, examine
from dspy_qvl.certainty.verdict.length import BeyondLength, beyond_length
from dspy_qvl.certainty.verdict.rated_rows import RatedRows
from dspy_qvl.certainty.verdict.verdict import VERDICTS, Verdict, verdict_on

"""The worth of picking by value: of what a judge who knows the ratings gains by taking the best of n, the share.

y, values ─► gain_of_best        of picking by values, and by ratings            (`expected.py`)
          ─► the ceiling         the part of the judge's gain that is no luck    (`luck.py`)
          ─► selection           the share at each n with its interval, in words (`shares.py`, `report.py`)
             selection_within    the same among the drafts of one question
"""

from dspy_qvl.certainty.picking.expected import gain_of_best
from dspy_qvl.certainty.picking.luck import noise_of_copies
from dspy_qvl.certainty.picking.report import BestOf, Selection
from dspy_qvl.certainty.picking.shares import SIZES, selection, selection_within

"""From columns and scores to a fit, and how good it is."""

from dspy_qvl.fitting.folds import check_groups, check_scores_differ, copies, folded, make_folds, members_of
from dspy_qvl.fitting.permutation import LEVEL, noise_warning
from dspy_qvl.fitting.tuning import Fitted, check_alpha, check_alphas, refit
from dspy_qvl.fitting.validation import choose_alpha, validate

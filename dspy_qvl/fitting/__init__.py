"""From columns and scores to a fit, and to figures of how good it is.

    table, scores ─► folds ─► weights of blocks and penalty (`tune`) ─► Fitted: a line over the plain columns
                 └─► rows held out (`validate`), all rows (`choose_alpha`) ─► figures, baselines, permutation test

`folds.py` says which rows go where, `tuning.py` fits, `validation.py` measures, `baselines.py` holds the table of
baselines, `permutation.py` the test for noise.

Contract: rows of one group are never split, nor copies of a text. Every figure of rows that were held out carries its
standard error. The same rows, settings and seed give the same fit, bit for bit, on one machine.

Three words for the multiplier of a block of columns:

    weight   what cross-validation chooses: how much the block counts, beside 1 for the first one's (the embedding's),
             once all blocks have the same variance; 0 where the block is left out
    scale    what gives the block the variance of the first one (`ridge.block_scales`)
    factor   weight x scale: what its columns are multiplied with for the fit, those of hashed words also with their
             inverse document frequencies (`frequencies.py`)
"""

from dspy_qvl.fitting.baselines import BASELINES
from dspy_qvl.fitting.folds import (
    Members,
    check_group_list,
    check_groups,
    check_scores_differ,
    copies,
    folded,
    make_folds,
    members_of,
    sample,
)
from dspy_qvl.fitting.frequencies import Frequencies
from dspy_qvl.fitting.permutation import LEVEL, noise_warning, permutation_test, variances_of, without_line
from dspy_qvl.fitting.tuning import (
    ALPHA_RANGE,
    Fitted,
    Weights,
    check_alpha,
    check_alphas,
    prior_weights,
    refit,
    weighed,
)
from dspy_qvl.fitting.validation import ENOUGH, choose_alpha, left_out, validate

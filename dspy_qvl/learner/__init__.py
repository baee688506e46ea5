"""`Qwen3EmbeddingValueLearner`: a value function learned from rated texts, as a DSPy module.

    rated texts ─► Columns ─► training ─► Fit ─┬─► predict: a row of X times the coefficients
                                               └─► Inspection: standard deviation, interval, support, neighbours

Reading order:

    learner, trainable                   the public class: made and saved; learns
    examined, value_function             how sure it is of a text; values of texts
    columns, vectorizer                  items -> rows of X, by an embedding model and blocks of features
    training_set, updating               a fit of all rated texts; the same fit after some came or went
    head, learned, fit, fit_state        the DSPy Parameter, all it has learned at one moment, one fit, its saved form
    inspection, supporting, neighbors    how sure a fit is of a text; rated texts as support; the most alike
    diagnosis, groups                    the report on a value function; rated texts that depend on each other
    migration, saving                    another embedding model; files
    memo                                 a lock and a memo that survive deepcopy and pickle

Contract: `Fit` and `Learned` never change. A reader takes `RidgeHead.now` once and answers by that, without waiting; a
change holds `RidgeHead.changing` from reading `now` until `swap`, which happens in one step or not at all.
"""

from dspy_qvl.learner.fit import Fit
from dspy_qvl.learner.head import RidgeHead
from dspy_qvl.learner.inspection import Inspection
from dspy_qvl.learner.learned import Examples
from dspy_qvl.learner.learner import Qwen3EmbeddingValueLearner
from dspy_qvl.learner.memo import KeptTexts

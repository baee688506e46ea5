"""The metric for DSPy's optimizers and evaluation, made of a value function.

    example, prediction ─► item ─► value ─► score ─► what the caller needs: float, bool, Prediction, Reward
                                └► judgement ─► feedback

`metric.py` holds the class that a language model may be shown, `scores.py` its state. `items.py` reads the text that
is valued; `judgement.py` scores and judges it; `scale.py` maps values to (0, 1). Every sentence of feedback is in
`feedback.py`. `calls.py` records what was scored and what failed; `log_file.py` writes judgements to a file;
`agreement.py` compares values with ratings over a whole devset; `reward.py` and `filter.py` are forms that single
optimizers need.

Contract: a text has the same score in any order, thread or process; scores lie in (0, 1), and 0 is a failure; what the
learner learns later does not reach a metric; a failing embedding model is an error and never a low score.
"""

from dspy_qvl.metric.agreement import Agreement, Answers, check_program, groups_of
from dspy_qvl.metric.judgement import Judgement
from dspy_qvl.metric.metric import ValueMetric
from dspy_qvl.metric.reward import Reward

"""`ValueMetric`: one metric for `dspy.Evaluate` and every optimizer, made of a value function.

    caller                                    call                                         answer
    Evaluate, MIPROv2, COPRO, SIMBA, ReAnchor  metric(example, pred)                        float in [0, 1)
    Bootstrap*, InferRules, KNNFewShot         metric(example, pred, trace)                 bool
    GEPA                                       metric(gold, pred, trace, name, pred_trace)  Prediction(score, feedback)
    BestOfN, Refine                            metric(kwargs, pred)                         float in [0, 1)
                                               metric.reward(kwargs, pred)                  Reward(score, feedback)

The bool is `score >= threshold`, and overrides a `metric_threshold` of Bootstrap*: True passes any.

`Refine` shows a language model the source of the reward, and its result: of `reward_fn=metric` this class and the
number, of `reward_fn=metric.reward` one method, the score and why. So the class holds the call and nothing else, in
words without machinery; everything it calls is in `ValueScores`.
"""

from typing import Any

import dspy

from dspy_qvl.metric.scores import ValueScores


class ValueMetric(ValueScores):
    """Scores a prediction by how people who rated texts like it would rate its text: from 0, the worst, to 1.

    The score is a function of the text alone, learned from their ratings. It cannot check facts.
    """

    def __call__(
        self, example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
    ) -> Any:
        """The score; with a trace, whether it is good enough; with the name of a predictor, also why."""
        if pred_name is not None:
            return self.explained(example, pred)
        if trace is not None:
            return self.score(example, pred) >= self.threshold
        if self.objectives is not None:
            return self._with_objectives(dspy.Prediction(score=self.score(example, pred)), example, pred)
        return self.score(example, pred)

"""Puts the passages of a query in order, best first.

    query, passages ─► columns ─► learned order ─► scores ─► Prediction(passages, scores, indices)
    judged queries  ─► columns ─► ranking (ridge on differences within a query) ─► learned order, report

`reranker.py` holds the DSPy module. `passages.py` reads passages in the forms retrievers give them; `columns.py` makes
their columns and scores; `judged.py` holds judged queries and finds out whether a first stage put their passages in
order; `learning.py` chooses blocks and fits, by the mathematics of `ranking.py`, an `Order`; `head.py` saves and loads
it. `sketch.py` bounds the width of what is learned of a vector.

Contract: a passage gets the same score in any batch, thread or process; a call sees one learner and one order,
whatever is learned or loaded meanwhile; a learned order is, out of fold, never worse than cosine or the first stage.
"""

from dspy_qvl.reranker.judged import JudgedQuery
from dspy_qvl.reranker.passages import SCORE, SCORES, as_list, checked_scores, passage_text, scores_within
from dspy_qvl.reranker.reranker import RankedPassage, Reranker

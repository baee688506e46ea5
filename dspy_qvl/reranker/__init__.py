"""Passages of a query, best first."""

from dspy_qvl.reranker.judged import SCORE, JudgedQuery, checked_scores, scores_within
from dspy_qvl.reranker.passages import as_list, passage_text
from dspy_qvl.reranker.reranker import RankedPassage, Reranker

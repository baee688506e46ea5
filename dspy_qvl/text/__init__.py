"""Rated texts, and how examples are written as texts."""

from dspy_qvl.text.metadata import check_metadata
from dspy_qvl.text.quoting import plain, quoted
from dspy_qvl.text.ratings import REASON, Item, Pair, RankingExample, query_of, rated_text, text_of
from dspy_qvl.text.reading import FromExample, checked_examples, taken
from dspy_qvl.text.rendering import AsText, Rendering, is_blank

"""Rated texts, and the one way from an example or a prediction to the text that is valued.

    example, prediction ─► Rendering ─► text ─► learned from, or scored
    rated rows ─► rated_text ─► RankingExample: text, score, metadata, query

`rendering.py` takes fields and writes format strings, with `field_values.py` for values that are no strings;
`ratings.py` holds rated texts, with `metadata.py` for what is saved beside them; `reading.py` reads lists of examples;
`quoting.py` makes a stranger's text safe to print or to put into a prompt.
"""

from dspy_qvl.text.field_values import as_string
from dspy_qvl.text.metadata import check_metadata
from dspy_qvl.text.quoting import plain, quoted
from dspy_qvl.text.ratings import REASON, Item, Pair, RankingExample, query_of, rated_text, text_of
from dspy_qvl.text.reading import FromExample, checked_examples, taken
from dspy_qvl.text.rendering import AsText, Rendering, is_blank

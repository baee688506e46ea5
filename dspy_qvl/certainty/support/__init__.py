"""How well the rated texts support a value of a text.

    rated texts ─► Wording: words, their order, characters ─┐
                ─► left_out_distances: nearest other text ──┴─► Support: signals of a text ─► a p-value, in (0, 1]

`pairs.py` counts words beside each other. A new signal is a column of the left-out signals of rated texts, and a reason
in words in `support.py`.
"""

from dspy_qvl.certainty.support.nearest import apart, left_out_distances
from dspy_qvl.certainty.support.support import SUPPORTED, Support
from dspy_qvl.certainty.support.wording import SIGNALS, Wording, repeated_share, words_of

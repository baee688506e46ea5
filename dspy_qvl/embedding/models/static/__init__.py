"""Static embeddings in this process: a text's vector is the mean of its tokens' vectors, read from a table.

    a folder, or a name on the hub ─► recognition.py: is it static, and how was it saved (its identity)
    texts ─► static.py ─► doors.py: model2vec, or sentence-transformers ─► table.py: tokens ─► mean ─► (n, d) float32
                          files.py: where texts are cut; a damaged folder is told from one that a package cannot read

Contract: no torch, unless sentence-transformers is the only package that can read the model, or `backend="torch"` asks
for it. Both packages only read the files: the arithmetic is `table.py`, so vectors are equal. A text has the same bits
in any batch and thread; one without a token that the model knows is a row of zeros.
"""

from dspy_qvl.embedding.models.static.recognition import SETTINGS_FILES, STATIC, saved_in, saved_on_hub
from dspy_qvl.embedding.models.static.static import StaticEmbeddingModel

"""Embedding models: built in, hosted, in this process, a caller's own, or a table of vectors.

    name, settings ─► ModelSpec ─► EmbeddingModel ─► embed: list of texts ─► (n, d), a row a text
                       spec.py      model.py          ├─ lexical.py      hashed words, nothing to download
                                                      ├─ hosted/         a provider, through litellm
                                                      ├─ local/          sentence-transformers, in this process
                                                      ├─ static/         model2vec, in this process, without torch
                                                      ├─ custom.py       a `dspy.Embedder` or callable of the caller
                                                      └─ precomputed.py  vectors that exist already, by text, or by
                                                                         id in an index (stored_vectors.py)

A `ModelSpec` is a choice, pickled without secrets; no weights are loaded and no text is sent until `embed` is called,
though the hub may be asked whether a name that is not on this machine is a static model. An `EmbeddingModel` is one
model at one address: its identity tells the vectors of one model from those of another, so it holds all that changes
vectors and nothing else. A text without a usable vector is a `Refused`, or is told by a `TextsRefusedError`.

To add a hosted provider, see `hosted/providers.py`; another pooling, `local/pooling.py`; a new kind of model in this
process, `spec.py`.
"""

from dspy_qvl.embedding.models.custom import is_plain_route
from dspy_qvl.embedding.models.hosted import ask_for_embedder, check_options, failure_of, without_secrets
from dspy_qvl.embedding.models.lexical import LexicalModel
from dspy_qvl.embedding.models.model import EmbeddingModel, Refused, Unusable, Usage
from dspy_qvl.embedding.models.precomputed import Precomputed
from dspy_qvl.embedding.models.spec import DEFAULT_MODEL, LEXICAL, LEXICAL_DIM, ModelSpec

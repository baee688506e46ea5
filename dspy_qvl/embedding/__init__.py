"""Texts -> unit vectors, each text paid for once.

The way of a text that nobody has asked for yet, 14 stops:

    texts ─► Encoder ─► memory ─► disk ─► Source ─► Coalescer ─► Source ─► CheckedModel ─► dspy.Embedder ─► the model
                    (cache)               costs     a batch      probe                                      (models) │
    rows  ◄─ Encoder ◄─ Source ◄───────── Coalescer ◄─────────── cache ◄─ CheckedModel ◄─────────────────────────────┘
             refusals                     to all callers         stored   checked
             raised

A text in memory goes no further than the second stop, one on disk than the third. From `CheckedModel` up to `Encoder`,
a text is a vector, a `Refused` with the reason, or an error; the encoder alone raises `TextsRefusedError`, which names
the refused texts by position.

    Embedding      one model and its settings; `encoder(expect, instruct=)` is how its vectors are asked for
    Encoder        texts -> (n_texts, dim) float32, from threads and event loops alike
    Source         the vectors of the model at one address; checks that it is still the same model (`probe`)
    Coalescer      many callers, few batches (`batching`, `callers`)
    CheckedModel   one batch behind `dspy.Embedder`, validated (`embedder`)

The order of files: loops, instruction, probe, truncation, tables, cache, models, embedder, callers, batching, source,
encoder, embedding.
"""

from dspy_qvl.embedding.cache import EmbeddingCache, MemoryCache
from dspy_qvl.embedding.embedding import Embedding
from dspy_qvl.embedding.encoder import Encoder
from dspy_qvl.embedding.loops import result_of
from dspy_qvl.embedding.models import DEFAULT_MODEL, LEXICAL, LexicalModel, ModelSpec, Precomputed, Usage, check_options
from dspy_qvl.embedding.probe import IDENTITY, PROBE, Probe, dumped_probe, other_model

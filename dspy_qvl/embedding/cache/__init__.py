"""The cache of vectors: no text is embedded twice, in any process.

    text ─► key ─► `memory` (cut, unit length) ─► `store` (full, on disk) ─► the model ─► add: store, then memory

- `cache`: `EmbeddingCache`, both layers for one model; makes the key of a text from the model's identity.
- `memory`: vectors in memory, the least recently used ones dropped first.
- `store`: what the cache needs of a store, and the one place where it is made; begin there to keep vectors elsewhere.
- `sqlite_store`: one SQLite file for all models and processes. `connections`: a connection for each thread, none across
  a fork. `database`: its tables and transactions. `rows`: encoded vectors and their checksums.
- `pruning`: counts stored vectors and removes old ones. `exporting`: carries them to another machine.
"""

from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.cache.memory import MemoryCache

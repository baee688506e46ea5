"""The cache of vectors: no text is embedded twice, in any process.

    text ─► key ─► `memory` (cut, unit length) ─► `store` (full, on disk) ─► the model ─► add: store, then memory

- `cache`: `EmbeddingCache`, both layers for one model; makes the key of a text from the model's identity.
- `memory`: vectors in memory, the least recently used ones dropped first.
- `store`: one SQLite file for all models and processes. `connections`: a connection for each thread, none across a
  fork. `database`: its tables and transactions. `rows`: encoded vectors and their checksums.
- `pruning`: counts stored vectors and removes old ones. `exporting`: carries them to another machine.

To keep vectors elsewhere (Redis, files), write a class in place of `VectorStore` with these three:

    read(keys) -> {key: vector, (d,) float32 and read-only}         missing and damaged ones left out
    write(keys, vectors, (n, d)) -> {key: vector as it is stored}   of those that differ from the given ones
    path                                                            named in messages

Contract of both: no exception when the store fails (warn, and answer with fewer vectors); the first vector of a key
stays. `info`, `prune`, `export` and `import_` are SQL on the file of `VectorStore`, through its `attempt`.
"""

from dspy_qvl.embedding.cache.cache import EmbeddingCache
from dspy_qvl.embedding.cache.memory import MemoryCache

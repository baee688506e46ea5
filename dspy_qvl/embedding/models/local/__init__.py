"""Embedding models in this process, by sentence-transformers: the way of a forward pass.

    settings ─► precision.py ─► loading.py ─► pooling.py ─► forward.py: one model for all threads
                                folder or hub  tokens ─► one vector      │
    texts ─► local.py ─► "cut":  tokens ─► forward pass ─────────────────┤
                    └──► "mean": long_text.py ─► windows ─► forward pass ┴─► (n, d) float32

    folder.py   the identity of a model in a folder; code in it is refused

Contract: torch is imported at the first text. A model is loaded once per process and setting, and shared by threads;
code that comes with weights never runs; a model that cannot be loaded raises `ModelUnavailableError`, which names the
ways out.
"""

from dspy_qvl.embedding.models.local.folder import WEIGHTS, check_unchanged, identity_of, is_static
from dspy_qvl.embedding.models.local.forward import PROCESS
from dspy_qvl.embedding.models.local.loading import (
    HUB_NAME,
    HUB_SECONDS,
    ModelRequest,
    ask_hub,
    brief,
    in_hub_seconds,
    load,
    refuse_path,
    repository_of,
    unavailable,
)
from dspy_qvl.embedding.models.local.local import LocalModel

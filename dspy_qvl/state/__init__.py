"""Saved states: written so that they can be read again, and read as if a stranger had written them.

    object ─► encode_array, sealed ─► dict of JSON ─► write_file ─► one file, whole or not at all
    one file ─► read_file ─► dict of JSON ─► load, by a `Record` ─► checked object

- `entries`: arrays as JSON, parts of a state sealed as one string, the schemas that can be read.
- `fields`: the reader of states. A `Record` names the fields of a dict, each with its type, bounds and shape; whoever
  owns an object keeps its record beside it (`learner/fit_state.py`, `reranker/head.py`, `embedding/probe.py`).
- `bounded_json`: JSON that is measured before memory is spent on it.
- `files`: one file with a header and a checksum, and checks of paths. `drafts`: the file beside it while it is written.

Contract: what cannot be used is refused with a StateError before anything changes. A path is an InputError. No pickle.
"""

from dspy_qvl.state.drafts import replacing
from dspy_qvl.state.entries import SCHEMA, Sealed, decode_array, encode_array, sealed
from dspy_qvl.state.fields import (
    STRING,
    Record,
    Sizes,
    array,
    count,
    listed,
    load,
    named,
    number,
    of,
    opened,
    optional,
    take,
)
from dspy_qvl.state.files import checked_path, checked_target, opened_plain, read_file, write_bytes, write_file

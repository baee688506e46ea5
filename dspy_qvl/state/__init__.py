"""What is saved, and how it is read."""

from dspy_qvl.state.drafts import draft_of, sweep
from dspy_qvl.state.entries import SCHEMA, check_schema, decode_array, encode_array, opened, sealed, take
from dspy_qvl.state.files import checked_path, checked_target, read_file, write_file

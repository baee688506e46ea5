"""What is read of somebody else's file, and how much memory that may take."""

import hashlib
import json
import os
import random
import time
import tracemalloc

import pytest

from dspy_qvl import InputError, Qwen3EmbeddingValueLearner, RidgeHead, StateError
from dspy_qvl.state import bounded_json
from dspy_qvl.state.entries import SCHEMA
from tests.conftest import rated


def signed(body: bytes) -> bytes:
    """A file with a right checksum."""
    return f"dspy_qvl {SCHEMA} {hashlib.blake2b(body, digest_size=16).hexdigest()}\n".encode() + body


def marks_outside(text):
    """The marks outside of strings, letter by letter."""
    count, inside, escaped = 0, False, False
    for letter in text:
        if escaped:
            escaped = False
        elif inside and letter == "\\":
            escaped = True
        elif letter == '"':
            inside = not inside
        elif not inside:
            count += letter in ",:[{"
    return count


def test_marks_are_counted_outside_of_strings_only_wherever_a_chunk_ends(monkeypatch):
    rng = random.Random(0)
    for _ in range(1000):
        monkeypatch.setattr(bounded_json, "CHUNK", rng.choice([1, 2, 3, 7, 50]))
        odd = "".join(rng.choices(['"', "\\", ",", "[", "{", ":", "a", "é", "😀"], k=rng.randrange(30)))
        text = json.dumps({odd: [odd, 1, {odd: []}], "a": odd}, ensure_ascii=False)
        assert sum(bounded_json._marks_outside(text)) == marks_outside(text)


@pytest.mark.parametrize("entry", ["[],", '{"":0},', '"ab",'])
def test_json_that_would_fill_memory_is_refused_before_it_is_parsed(tmp_path, entry):
    n = bounded_json.MOST_MARKS // sum(map(entry.count, ",:[{")) + 1
    body = ('{"settings":[' + entry * n + "0]}").encode()
    (tmp_path / "m").write_bytes(signed(body))
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    state = {**RidgeHead().dump_state(), "examples": body.decode()}
    for load in (lambda: learner.load_model(tmp_path / "m"), lambda: RidgeHead().load_state(state)):
        tracemalloc.start()
        with pytest.raises(StateError, match=r"has more than 10,000,000 lists, dicts and entries, .* raise dspy_qvl"):
            load()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5 * len(body) + 2**27


def test_texts_full_of_marks_are_texts():
    content = {"texts": ['[{,:"\\' * (bounded_json.MOST_MARKS // 4 + 1), "a"]}
    assert bounded_json.from_json(bounded_json.to_json(content, "this"), "this") == content


def test_header_and_size_of_a_file_are_looked_at_before_the_rest(tmp_path):
    learner = Qwen3EmbeddingValueLearner("lexical", cache_dir=None)
    for start, message in [
        (signed(b"{}")[:45], r"m has 21,474,836,4\d\d bytes, more than the 2,147,483,648 that are read"),
        (b"\x80\x04", "is a pickle"),
        (b"", "was not written by save_model"),
        (b"dspy_qvl 99 " + b"0" * 32 + b"\n", "has schema 99"),
    ]:
        with open(tmp_path / "m", "wb") as file:
            file.write(start)
            file.truncate(20 * 2**30)
        begun = time.monotonic()
        with pytest.raises(StateError, match=message):
            learner.load_model(tmp_path / "m")
        assert time.monotonic() - begun < 1


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.symlink("/dev/zero", tmp_path / "zero")
    os.symlink(tmp_path / "pipe", tmp_path / "link")
    for name in ("pipe", "zero", "link", "."):
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"cannot be read \(it is no regular file\)"):
            Qwen3EmbeddingValueLearner("lexical", cache_dir=None).load_model(tmp_path / name)
        assert time.monotonic() - begun < 1


def test_what_could_not_be_read_again_is_not_written(tmp_path, monkeypatch):
    learner = Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None)
    learner.add_training_examples(rated(20))
    learner.train()
    learner.save_model(tmp_path / "m")
    good = (tmp_path / "m").read_bytes()
    for limit, message in [
        ("LARGEST_JSON", "cannot be saved: it has .* bytes, more than the 50 that are read"),
        ("MOST_MARKS", "cannot be saved: it has more than 50 lists, dicts and entries"),
    ]:
        with monkeypatch.context() as lowered:
            lowered.setattr(bounded_json, limit, 50)
            for save, name in ((learner.save_model, "m"), (learner.save, "m.json")):
                with pytest.raises(InputError, match=message):
                    save(tmp_path / name)
            assert (tmp_path / "m").read_bytes() == good
            with pytest.raises(StateError, match=rf"raise dspy_qvl\.state\.bounded_json\.{limit}"):
                Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None).load_model(tmp_path / "m")
        Qwen3EmbeddingValueLearner("lexical", 64, cache_dir=None).load_model(tmp_path / "m")

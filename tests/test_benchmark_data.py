"""Each converter of benchmark data reads a small clone; DATA.md says which were compared with the originals."""

import gzip
import io
import json
import tarfile

import pytest

from tests.benchmarks.data import CONVERTERS, bm25, drawn, main

QUESTION = """<question id="1.1"><questionText>Why
 so?</questionText><referenceAnswers><referenceAnswer id="r"> Because. </referenceAnswer></referenceAnswers>
<studentAnswers><studentAnswer id="a1"><response>No
 idea </response><response_feedback>Try.</response_feedback><score>0.5</score></studentAnswer>
</studentAnswers></question>"""
ABSTRACTS = [
    {"doc_id": number, "title": f"On {word}", "abstract": [f"{word} {word}", "grows."]}
    for number, word in enumerate(["moss", "rust", "fern"])
]
FILES = {
    "emobank": {
        "corpus/emobank.csv": 'id,split,V,A,D,text\na_1,train,3.0,3.1,3.2,"Hm, so\xa0it is"\na_2,test,1.0,2.0,3.0,Hm\n',
        "corpus/meta.tsv": "id\tdocument\tcategory\tsubcategory\na_1\ta\tblog\t \na_2\ta\tblog\t \n",
        "corpus/reader.csv": '"id","V"\n"a_1","2.5"\n"a_2","1.0"\n',
        "corpus/writer.csv": '"id","V"\n"a_1","3.5"\n"a_2","1.0"\n',
    },
    "ukp": {
        "data/UKPConvArg1-Ranking-CSV/tea_yes.csv": "#id\trank\targument\na1\t0.2\tIt is warm.<br/>\na2\t0.9\tNo\n",
        "data/UKPConvArg1-Ranking-CSV/tea_no.csv": "#id\trank\targument\na3\t0.1\tIt is wet\n",
    },
    "saf": {"data/training/english/1.xml": QUESTION},
    "trecqa": {
        f"data/anssel/wang/{split}.csv": f"qtext,label,atext\nWho {split} ?,1,He\nWho {split} ?,0,It\nWhy ?,0,So\n"
        for split in ("train", "dev", "test")
    },
    "summeval": {
        "reproduce/data/summarization/summeval.json": json.dumps(
            [
                {
                    "doc_id": "d1",
                    "system_id": "M1",
                    "source": "An article.",
                    "system_output": "A summary.",
                    "scores": {
                        "coherence": 4 / 3,
                        "consistency": 5.0,
                        "fluency": 5.0,
                        "relevance": 2.0,
                        "overall": 3.3,
                    },
                }
            ]
        )
    },
    "scifact": {
        "data/corpus.jsonl": "".join(json.dumps(row) + "\n" for row in ABSTRACTS),
        "data/claims_train.jsonl": '{"id": 7, "claim": "Rust grows.", "evidence": {}, "cited_doc_ids": [2]}\n',
        "data/claims_dev.jsonl": '{"id": 3, "claim": "Moss", "evidence": {}, "cited_doc_ids": [0]}\n',
    },
}
EXPECTED = {
    "emobank": ("emobank", {"text": "Hm, so it is", "score": 3.0, "V_writer": 3.5, "group": "blog", "dup": False}),
    "ukp": ("ukp_convarg_rank", {"id": "a3", "score": -0.1, "score_pct": 0.5, "debate": "tea", "group": "tea_no"}),
    "saf": ("saf", {"query": "Why so?", "reference": "Because.", "text": "No idea", "score": 0.5, "split": "train"}),
    "trecqa": ("trecqa_wang", {"passage_id": "train-0", "label": 1, "clean": True, "query": "Who train ?"}),
    "summeval": ("summeval", {"id": "d1:M1", "query": "An article.", "coherence": 1.3333, "score": 3.3333}),
    "scifact": ("scifact", {"query": "Rust grows.", "passage_id": "1", "bm25_rank": 1, "label": 0}),
    "vader": ("vader_amazon", {"id": "1_1", "text": "good & cheap", "score": 1.5, "sd": 0.5, "n": 2, "group": "1"}),
}


@pytest.fixture
def clone(tmp_path):
    """A function from a name to the folder of a small clone."""

    def make(name):
        for path, content in FILES.get(name, {}).items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(content, encoding="utf-8")
        if name == "vader":
            (tmp_path / "additional_resources").mkdir()
            with tarfile.open(tmp_path / "additional_resources" / "hutto_ICWSM_2014.tar.gz", "w:gz") as archive:
                for source in ("tweets", "amazonReviewSnippets"):
                    for kind, last in (("GroundTruth", " good &amp; cheap"), ("anonDataRatings", "0.5\t[1, 2]")):
                        raw = "".join(f"{key}\t1.5\t{last}\r\n" for key in ("1_1", "2_1")).encode("utf-8-sig")
                        entry = tarfile.TarInfo(f"hutto_ICWSM_2014/{source}_{kind}.txt")
                        entry.size = len(raw)
                        archive.addfile(entry, io.BytesIO(raw))
        return tmp_path

    return make


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_clone_becomes_rows(clone, name):
    folder, (file, expected) = clone(name), EXPECTED[name]
    main([name, str(folder), "--out", str(folder / "out")])
    with gzip.open(folder / "out" / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert {key: rows[0][key] for key in expected} == expected
    assert all(row["split"] for row in rows)


def test_a_sentence_of_two_reviews_is_kept_once_and_a_tweet_always(clone):
    sets = CONVERTERS["vader"](clone("vader"))
    assert [len(sets[name]) for name in ("vader_amazon", "vader_tweets")] == [1, 2]


def test_a_cited_abstract_that_bm25_does_not_find_is_a_candidate_too(clone):
    sets = CONVERTERS["scifact"](clone("scifact"))
    found = [row for row in sets["scifact"] if row["query_id"] == "7"]
    assert [row["passage_id"] for row in found] == ["1", "0", "2"]
    assert [row["bm25_rank"] for row in found] == [1, 2, 3]
    assert [row["label"] for row in found] == [0, 0, 1]
    assert sets["scifact"][-1] == {**sets["scifact"][-1], "query": "Moss", "split": "test", "label": 1}
    assert len(sets["scifact.corpus"]) == 3


@pytest.mark.parametrize("name", CONVERTERS)
def test_another_folder_is_refused_with_a_way_on(tmp_path, capsys, name):
    with pytest.raises(SystemExit, match=r"\A2\Z"):
        main([name, str(tmp_path), "--out", str(tmp_path / "out")])
    assert f"DATA.md says which repository '{name}' stands for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_split_is_drawn_from_the_key_alone():
    parts = (700, "train"), (800, "dev"), (1000, "test")
    splits = [drawn(f"vader_tweets:{key}", *parts) for key in range(1, 4201)]
    assert [splits.count(split) for _, split in parts] == [2975, 436, 789]  # as published


def test_bm25_by_hand():
    ranked = bm25({"a": "a rare word", "b": "a word, a word", "c": "nothing"})
    assert ranked("rare word") == ["a", "b"]
    assert ranked("unknown") == []

"""Turns clones of public repositories into the data sets that the benchmarks read.

    python -m tests.benchmarks.data saf path/to/clone --out data

Writes one gzipped file of JSON lines for each data set, in the folder `data` of the checkout (or wherever
DSPY_QVL_DATA points to). DATA.md beside this file says which repository each name stands for, under which licence, and
how far the result was checked. Only the standard library is used. The data are for measuring: none are in this project.
"""

import argparse
import csv
import gzip
import hashlib
import html
import json
import math
import re
import statistics
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Sets = dict[str, list[Row]]  # name of a data set -> its rows


def drawn(key: str, *parts: tuple[int, str]) -> str:
    """The split of a key: the first part whose upper bound exceeds the key's place among 1000, by SHA-1.

    The same key is always in the same split, on every machine, and all rows of one document share a key.
    """
    place = int(hashlib.sha1(key.encode()).hexdigest()[:8], 16) % 1000
    return next(split for bound, split in parts if place < bound)


# The converters: each takes the folder of a clone and returns data sets by name


def vader(clone: Path) -> Sets:
    """Sentiment of 4,200 tweets and of 3,697 sentences of product reviews: mean and all ratings, -4 to 4."""
    parts = (700, "train"), (800, "dev"), (1000, "test")
    sets: Sets = {}
    with tarfile.open(clone / "additional_resources" / "hutto_ICWSM_2014.tar.gz") as archive:
        for name, source in (("vader_tweets", "tweets"), ("vader_amazon", "amazonReviewSnippets")):
            texts, ratings = (
                [line.split("\t") for line in read.decode("utf-8-sig").splitlines()]
                for read in (
                    archive.extractfile(f"hutto_ICWSM_2014/{source}_{kind}.txt").read()  # type: ignore[union-attr]
                    for kind in ("GroundTruth", "anonDataRatings")
                )
            )
            text_of = {row[0]: html.unescape(row[2]).strip() for row in texts}
            seen: set[str] = set()
            rows = []
            for key, *_, listed in ratings:
                text, given = text_of[key], json.loads(listed)
                group = key.split("_")[0] if name == "vader_amazon" else None  # the review
                if group is not None and text.lower() in seen:  # a sentence that another review has too
                    continue
                seen.add(text.lower())
                row = {
                    "id": key,
                    "text": text,
                    "score": round(statistics.fmean(given), 4),
                    "sd": round(statistics.pstdev(given), 4),
                    "n": len(given),
                    "split": drawn(f"{name}:{group or key}", *parts),
                    "ratings": given,
                }
                rows.append(row if group is None else {**row, "group": group})
            sets[name] = rows
    return sets


def emobank(clone: Path) -> Sets:
    """Valence (the score), arousal and dominance of 10,062 sentences, 1 to 5, with the official split."""
    meta = _table(clone / "corpus" / "meta.tsv", delimiter="\t")
    category = {row["id"]: row["category"] for row in meta}
    reader, writer = (
        {row["id"]: float(row["V"]) for row in _table(clone / "corpus" / f"{side}.csv")}
        for side in ("reader", "writer")
    )
    seen: set[str] = set()
    rows = []
    for row in _table(clone / "corpus" / "emobank.csv"):
        key, text = row["id"], row["text"].replace("\xa0", " ")
        valence, arousal, dominance = (float(row[name]) for name in "VAD")
        rows.append(
            {
                "id": key,
                "text": text,
                "score": valence,
                "V": valence,
                "A": arousal,
                "D": dominance,
                "V_reader": reader[key],
                "V_writer": writer[key],
                "split": row["split"],
                "dup": text in seen,
                "group": category[key],
            }
        )
        seen.add(text)
    return {"emobank": rows}


def ukp(clone: Path) -> Sets:
    """Convincingness of 1,052 arguments in 32 debates: rank by crowd comparisons, and its percentile in the debate."""
    rows = []
    for path in sorted((clone / "data" / "UKPConvArg1-Ranking-CSV").glob("*.csv")):
        lines = path.read_text(encoding="utf-8").split("\n")[1:]
        listed = [line.split("\t") for line in lines if line.strip()]
        order = sorted(range(len(listed)), key=lambda row: -float(listed[row][1]))
        percentile = {row: round((place + 0.5) / len(listed), 4) for place, row in enumerate(order)}
        debate = path.stem.split("_")[0]
        for number, (key, rank, text) in enumerate(listed):
            rows.append(
                {
                    "id": key,
                    "text": text.replace("<br/>", "\n").strip(),
                    "score": -float(rank),
                    "rank_raw": float(rank),
                    "group": path.stem,
                    "debate": debate,
                    "split": drawn(f"ukp:{debate}", (300, "test"), (1000, "train")),
                    "score_pct": percentile[number],
                }
            )
    return {"ukp_convarg_rank": rows}


def saf(clone: Path) -> Sets:
    """2,112 answers of students to 22 English questions, with an expert's score (0 to 1) and written feedback."""
    rows = []
    for split, folder in (
        ("train", "training"),
        ("test_answers", "unseen_answers"),
        ("test_questions", "unseen_questions"),
    ):
        for path in sorted((clone / "data" / folder / "english").glob("*.xml")):
            question = ET.parse(path).getroot()
            query, reference = (
                _words(question.findtext(where)) for where in ("questionText", "referenceAnswers/referenceAnswer")
            )
            for answer in question.iter("studentAnswer"):
                rows.append(
                    {
                        "id": answer.get("id"),
                        "query": query,
                        "reference": reference,
                        "text": _words(answer.findtext("response")),
                        "score": float(answer.findtext("score") or "nan"),
                        "reason": _words(answer.findtext("response_feedback")),
                        "group": question.get("id"),
                        "split": split,
                    }
                )
    return {"saf": rows}


def trecqa(clone: Path) -> Sets:
    """7,383 pairs of a question and a sentence that answers it or does not; `clean` where a question has both kinds."""
    rows = []
    for split in ("train", "dev", "test"):
        listed = _table(clone / "data" / "anssel" / "wang" / f"{split}.csv")
        labels = defaultdict(set)
        for row in listed:
            labels[row["qtext"]].add(row["label"])
        for number, row in enumerate(listed):
            query = row["qtext"]
            rows.append(
                {
                    "query_id": f"{split}-{hashlib.md5(query.encode()).hexdigest()[:8]}",
                    "query": query,
                    "passage_id": f"{split}-{number}",
                    "passage": row["atext"],
                    "label": int(row["label"]),
                    "split": split,
                    "clean": len(labels[query]) == 2,
                }
            )
    return {"trecqa_wang": rows}


def summeval(clone: Path) -> Sets:
    """1,600 summaries of 100 articles by 16 systems: the experts' means of four qualities (1 to 5) and their mean."""
    listed = json.loads((clone / "reproduce" / "data" / "summarization" / "summeval.json").read_text(encoding="utf-8"))
    rows = []
    for row in listed:
        qualities = {
            name: round(row["scores"][name], 4) for name in ("coherence", "consistency", "fluency", "relevance")
        }
        rows.append(
            {
                "id": f"{row['doc_id']}:{row['system_id']}",
                "query": row["source"],
                "text": row["system_output"],
                "score": round(sum(qualities.values()) / 4, 4),
                **qualities,
                "system": row["system_id"],
                "group": row["doc_id"],
                "split": drawn(f"summeval:{row['doc_id']}", (600, "train"), (1000, "test")),
            }
        )
    return {"summeval": rows}


def scifact(clone: Path) -> Sets:
    """1,109 claims with the abstracts they cite, among 5,183: BM25's first 20, and the cited ones beyond them."""
    folder = clone / "data"
    corpus = {
        str(row["doc_id"]): f"{row['title']}\n{' '.join(sentence.strip() for sentence in row['abstract'])}"
        for row in _lines(folder / "corpus.jsonl")
    }
    claims = []
    for name in ("train", "dev"):
        for row in _lines(folder / f"claims_{name}.jsonl"):
            key = str(row["id"])
            split = drawn(f"scifact:{key}", (150, "dev"), (1000, "train")) if name == "train" else "test"
            claims.append((key, row["claim"], [str(passage) for passage in row["cited_doc_ids"]], split))
    claims.sort(key=lambda claim: (claim[3] == "test", int(claim[0])))
    ranked = bm25(corpus)
    pairs, judged = [], []
    for key, claim, cited, split in claims:
        order = ranked(claim)
        rank = {passage: place for place, passage in enumerate(order[:1000], 1)}
        found = [*order[:20], *(passage for passage in cited if passage not in order[:20])]
        judged += [{"query_id": key, "passage_id": passage, "label": 1, "split": split} for passage in cited]
        pairs += [
            {
                "query_id": key,
                "query": claim,
                "passage_id": passage,
                "passage": corpus[passage],
                "label": int(passage in cited),
                "bm25_rank": rank.get(passage),
                "split": split,
            }
            for passage in found
        ]
    texts = [{"passage_id": key, "passage": passage} for key, passage in corpus.items()]
    return {"scifact": pairs, "scifact.corpus": texts, "scifact.qrels": judged}


CONVERTERS: dict[str, Callable[[Path], Sets]] = {
    "vader": vader,
    "emobank": emobank,
    "ukp": ukp,
    "saf": saf,
    "trecqa": trecqa,
    "summeval": summeval,
    "scifact": scifact,
}


def bm25(corpus: dict[str, str], k1: float = 1.2, b: float = 0.75) -> Callable[[str], list[str]]:
    """A function from a query to the ids of the passages that share a word with it, best first.

    score = Σ over the query's words of idf · tf / (tf + k1 (1 - b + b · length / mean length)),
    idf = log(1 + (n - df + ½) / (df + ½)). Source: Robertson & Zaragoza (2009), with Lucene's idf.
    """
    counts = {key: Counter(re.findall(r"[a-z0-9]+", text.lower())) for key, text in corpus.items()}
    lengths = {key: sum(count.values()) for key, count in counts.items()}
    mean = statistics.fmean(lengths.values())
    weights: dict[str, dict[str, float]] = defaultdict(dict)  # word -> passage -> tf part
    for key, count in counts.items():
        for word, tf in count.items():
            weights[word][key] = tf / (tf + k1 * (1 - b + b * lengths[key] / mean))

    def ranked(query: str) -> list[str]:
        scores: dict[str, float] = defaultdict(float)
        for word in re.findall(r"[a-z0-9]+", query.lower()):
            df = len(weights.get(word, ()))
            idf = math.log(1 + (len(corpus) - df + 0.5) / (df + 0.5))
            for key, weight in weights.get(word, {}).items():
                scores[key] += idf * weight
        return sorted(scores, key=lambda key: -scores[key])

    return ranked


def write(sets: Sets, folder: Path) -> None:
    """Write each data set as folder/name.jsonl.gz, the same bytes for the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in sets.items():
        path = folder / f"{name}.jsonl.gz"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(f"{path}: {len(rows):,} rows, by split {dict(Counter(row.get('split', 'all') for row in rows))}")


def _table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def _lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _words(text: str | None) -> str:
    return " ".join((text or "").split())


def main(arguments: Iterable[str] | None = None) -> None:
    """Convert one clone."""
    parser = argparse.ArgumentParser(
        description="Turn a clone of a public repository into benchmark data; see DATA.md."
    )
    parser.add_argument("name", choices=CONVERTERS)
    parser.add_argument("clone", type=Path, help="folder of the clone")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        sets = CONVERTERS[options.name](options.clone)
    except FileNotFoundError as error:
        parser.error(f"{error.filename} is not there; DATA.md says which repository {options.name!r} stands for.")
    if not all(sets.values()):
        parser.error(f"{options.clone} holds no rows; DATA.md says which repository {options.name!r} stands for.")
    write(sets, options.out)


if __name__ == "__main__":
    main()

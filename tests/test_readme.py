"""The README is run: every Python block, top to bottom, and what it prints."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(BLOCK.findall(README))))
def test_a_block_of_the_readme_runs_and_prints_what_it_says(folder, number):
    code, expected = BLOCK.findall(README)[number]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    lines = printed.getvalue().split("\n")
    assert "\n".join(line for line in lines if "\r" not in line) == expected  # less DSPy's progress bars


def test_the_quickstart_runs_from_any_folder(folder):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "scores equal to the last bit: True" in done.stdout
    assert "value function" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == ["examples"]


@pytest.mark.parametrize("name", ["mine.csv", "mine.csv.gz", "mine.jsonl", "mine.jsonl.gz"])
def test_the_quickstart_takes_the_users_own_ratings(folder, name):
    import csv
    import gzip
    import json

    with (folder / "examples" / "reviews.csv").open(encoding="utf-8", newline="") as file:
        rows = [{"body": row["text"], "stars": row["score"]} for row in csv.DictReader(file)][:60]
    opener = gzip.open if name.endswith(".gz") else open
    with opener(folder / name, "wt", encoding="utf-8", newline="") as file:
        if "csv" in name:
            writer = csv.DictWriter(file, ["body", "stars"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    command = [sys.executable, ROOT / "examples" / "quickstart.py", "--data", name]
    columns = ["--text-column", "body", "--score-column", "stars"]
    done = subprocess.run([*command, *columns], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("60 rated texts, model lexical")
    refused = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "has the columns: body, stars; name yours with --text-column and --score-column" in refused.stderr


def test_the_promise_of_the_readme_takes_twelve_lines():
    promise = next(code for code, _ in BLOCK.findall(README) if "dspy.GEPA" in code)
    assert len([line for line in promise.splitlines() if line.strip()]) <= 12


@pytest.mark.parametrize("optimizer", ["gepa", "mipro", "simba", "bootstrap"])
def test_the_example_optimizes_saves_and_loads(folder, optimizer):
    command = [sys.executable, ROOT / "examples" / "optimize_with_value.py", "--optimizer", optimizer]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    before = float(done.stdout.split("before: ")[1].split()[0])
    after = float(done.stdout.split("\nafter ")[1].split(": ")[1].split()[0])
    assert after > before + 15
    assert "the same answer to the last bit: True" in done.stdout
    assert done.stderr == ""


def test_the_rag_example_learns_saves_and_loads(folder):
    command = [sys.executable, ROOT / "examples" / "rag_rerank.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    cosine, learned = (float(done.stdout.split(f"  {name} ")[1].split()[0]) for name in ("cosine", "learned"))
    assert learned > cosine + 0.1
    assert "the same passages to the last bit: True" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == ["examples"]


def test_the_example_refuses_what_it_cannot_read(folder):
    (folder / "mine.csv").write_text("question,reply\nWho?,Me.\n")
    command = [sys.executable, ROOT / "examples" / "optimize_with_value.py", "--data", "mine.csv"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert "score" in done.stderr


def test_the_readme_links_to_files_that_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target

"""The README and the guides of the packages are run: every Python block, top to bottom, and what it prints.

A block of the README stands by itself; the blocks of a guide continue each other, so that each guide learns once.
"""

import contextlib
import io
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*(ROOT / "dspy_qvl").rglob("README.md"), ROOT / "tests" / "benchmarks" / "README.md"])
}
PAGES = {"README.md": README, **GUIDES}
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
MOST_LINES, MOST_BYTES = 250, 14_336


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the examples, for a block that runs as a reader would run it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def check(code, expected, names):
    """Run one block in a namespace, and compare what it prints, less DSPy's progress bars."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "a Python block", "exec"), names)
    assert "\n".join(line for line in printed.getvalue().split("\n") if "\r" not in line) == expected, code


@pytest.mark.parametrize("number", range(len(BLOCK.findall(README))))
def test_a_block_of_the_readme_runs_and_prints_what_it_says(folder, number):
    code, expected = BLOCK.findall(README)[number]
    check(code, expected, {"__name__": "readme"})


@pytest.mark.parametrize("guide", [path for path, page in GUIDES.items() if BLOCK.search(page)])
def test_the_blocks_of_a_guide_continue_each_other_and_print_what_they_say(folder, guide):
    names = {"__name__": "guide"}
    for code, expected in BLOCK.findall(GUIDES[guide]):
        check(code, expected, names)


def test_the_quickstart_runs_from_any_folder(folder):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert "scores equal to the last bit: True" in done.stdout
    assert "value function" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in folder.iterdir()) == ["examples"]


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


# The pages


def anchors(page):
    """The anchors of the headings of a page, as code-hosting pages make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_to_files_and_headings_that_are_there(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES[page])
    links += re.findall(r"src(?:set)?=\"([^\"]+)\"", PAGES[page])
    for link in links:
        target, _, heading = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        assert not heading or heading in anchors(path.read_text(encoding="utf-8")), link


def test_the_readme_leads_to_every_guide():
    assert {guide for guide in GUIDES if f"]({guide})" not in README} == set()


def test_the_readme_keeps_to_its_size():
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.encode()) <= MOST_BYTES


@pytest.mark.parametrize("page", PAGES)
def test_a_page_speaks_of_no_house(page):
    assert re.findall(r"\b(?:rooms?|floors?)\b", PAGES[page], re.IGNORECASE) == []


def test_the_readme_has_the_two_commands_that_are_run_in_fresh_environments():
    commands = re.findall(r"^pip install -e .* && (.*)$", README, re.MULTILINE)
    assert commands == ["python examples/quickstart.py", "pytest"]


def test_the_figures_under_the_picture_are_those_that_it_is_drawn_from(tmp_path, monkeypatch, capsys):
    script = ROOT / "notebooks" / "overview.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    value, nearest, length = re.findall(r": Spearman 0(\.\d\d) ± 0(\.\d\d)", printed)
    told = f"Spearman {value[0]} ± {value[1]} with the ratings, where the five nearest rated replies reach {nearest[0]}"
    assert f"{told} and length alone {length[0]}" in README
    for name in ("overview-light.png", "overview-dark.png"):
        assert imread(tmp_path / name).shape == imread(ROOT / "notebooks" / name).shape

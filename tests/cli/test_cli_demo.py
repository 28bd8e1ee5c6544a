"""`batcher demo`, and the wheel that it comes in."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_demo_runs_on_real_data(batcher, lines, tmp_path):
    ended = batcher("demo", "--dir", "here", "--rpm", 60_000)
    assert (ended.code, ended.out) == (0, "")
    assert "rows      3,708: 3,708 succeeded" in ended.err
    (accuracy,) = re.findall(r"accuracy  (\d+\.\d)% of 3,708 answers", ended.err)
    assert 50 < float(accuracy) < 100
    assert "export OPENAI_API_KEY=" in ended.err
    assert len(lines(tmp_path / "here" / "sentiment.results.jsonl")) == 3708
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]


def test_the_wheel_carries_what_the_package_reads(tmp_path):
    for name in ("batcher", "jobs", "README.md", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "batcher = batcher.cli:main" in packed.read(entry_points).decode()
    needed = (
        "jobs/amazon_reviews.jsonl",
        "jobs/README.md",
        "store/schema.sql",
        "store/queries.sql",
        "py.typed",
    )
    assert {f"batcher/{name}" for name in needed} <= names
    modules = {f"batcher/{path.relative_to(ROOT / 'batcher')}" for path in (ROOT / "batcher").rglob("*.py")}
    assert modules <= names
    assert not [name for name in names if name.startswith("tests/")]

"""What an import costs, and that the public names are there."""

import subprocess
import sys

import pytest

#: Whatever takes long to import: only the command that uses it may.
HEAVY = {"aiosqlite", "anyio", "asyncio", "genai_prices", "msgspec", "openai", "orjson", "tqdm", "uvloop"}


@pytest.mark.parametrize("statement", ["import batcher", "import batcher.cli"])
def test_nothing_heavy_is_imported_early(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_help_imports_no_command():
    code = (
        "import sys, batcher.cli\n"
        "sys.argv = ['batcher', '--help']\n"
        "try:\n    batcher.cli.main()\n"
        "except SystemExit:\n    print('modules', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.rsplit("modules ", 1)[1].split())
    assert {name for name in modules if name.startswith("batcher.cli.")} == set()
    assert not HEAVY & modules


def test_a_run_does_not_import_the_official_client():
    code = "import batcher.job, batcher.cli.run, batcher.cli.report, sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "openai" not in done.stdout.split()


@pytest.mark.parametrize("first", ["batcher.job", "batcher.loop", "batcher.progress", "batcher.testing"])
def test_run_is_the_function_whatever_was_imported_before(first):
    code = f"import inspect, {first}, batcher\nassert inspect.iscoroutinefunction(batcher.run), batcher.loop"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

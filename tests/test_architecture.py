"""The rooms' rules, read from the syntax trees: imports point one way, and the method needs no orchestration."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"ssl_core", "analysis", "tune_jobs"}
ORCHESTRATION = {"ray", "mlflow", "optuna", "pydantic", "typer", "rich"}
FORBIDDEN = {
    "ssl_core": ORCHESTRATION | {"analysis", "tune_jobs", "tests", "pandas", "matplotlib"},
    "analysis": ORCHESTRATION | {"tune_jobs", "tests"},
    "tune_jobs": {"tests"},
}


def imported(source: str) -> Iterator[str]:
    """Top-level names that any import statement of the source names, at module level or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "importlib.import_module"):
            yield from (a.value.split(".")[0] for a in node.args if isinstance(a, ast.Constant))


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert files(room)
    wrong = {(f.name, name) for f in files(room) for name in imported(f.read_text()) if name in FORBIDDEN[room]}
    assert not wrong


def test_the_import_rule_sees_imports_inside_functions() -> None:
    source = "def f():\n    from ray.train import report\n    importlib.import_module('mlflow.pytorch')"
    assert {"ray", "mlflow"} <= set(imported(source))


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_no_file_outgrows_one_noun(room: str) -> None:
    long = {f.name: n for f in files(room) if (n := len(f.read_text().splitlines())) > 420}
    assert not long, "most files stay under 250 lines; what is far beyond holds more than one noun"


def test_what_help_and_dry_run_import_is_light(tmp_path: Path) -> None:
    heavy = {"torch", "ray", "mlflow", "sklearn", "matplotlib", "pandas"}
    code = (
        "import sys\n"
        "sys.argv = ['intermoco', 'ablate', 'quickstart', '--dry-run', '--output', sys.argv[1]]\n"
        "from tune_jobs.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout

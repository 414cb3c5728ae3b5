"""The house rules that a tool can check: packages, walls, sizes."""

import ast
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "trainer", "modeling", "data", "serve")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 300


def _sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_resolve_to_this_tree_and_are_typed(package: str) -> None:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    assert Path(found.origin).resolve() == ROOT / package / "__init__.py"
    assert (ROOT / package / "py.typed").is_file()


def test_gitignore_does_not_hide_a_package_from_ray() -> None:
    lines = [line for line in (ROOT / ".gitignore").read_text().splitlines() if not line.startswith("#")]
    hidden = {line.strip("/") for line in lines} & {*PACKAGES, "benchmarks"}
    assert not hidden, "Ray honours .gitignore when it ships the working directory"


def test_no_file_is_named_like_a_package_or_a_dependency() -> None:
    taken = set(PACKAGES) | set(sys.stdlib_module_names)
    for requirement in importlib.metadata.requires("farsight") or []:
        name = requirement.split(";")[0].split("[")[0]
        for sign in "<>=!~ ":
            name = name.split(sign)[0]
        taken.add(name.replace("-", "_"))
    taken |= {"faiss", "ray", "yaml"}
    # Inside a package a module may share a name with the standard library; with a dependency it may not.
    inside = taken - set(sys.stdlib_module_names)
    strays = [file for file in _sources(*PACKAGES) if file.stem in inside]
    strays += [
        place
        for place in ROOT.iterdir()
        if place.stem in taken and place.name not in PACKAGES and place.suffix == ".py"
    ]
    strays += [place for place in (ROOT / "tests").iterdir() if place.stem in taken]
    assert not strays


def test_package_files_hold_a_docstring_and_nothing_else() -> None:
    for file in _sources(*PACKAGES, "benchmarks"):
        if file.name == "__init__.py":
            body = ast.parse(file.read_text()).body
            assert len(body) == 1, file
            assert ast.get_docstring(ast.parse(file.read_text())), file


def test_no_import_rebinds_the_name_of_a_package() -> None:
    for file in _sources(*PACKAGES, "benchmarks", "tests"):
        # Where several floors' `run` are called in one file, their dotted names tell them apart.
        dotted_is_allowed = file.relative_to(ROOT).parts[0] in ("benchmarks", "tests")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names if not (dotted_is_allowed and "." in alias.name)}
                assert not {name.split(".")[0] for name in names} & set(PACKAGES), f"{file}:{node.lineno}"
            if isinstance(node, ast.ImportFrom) and node.module == "ray":
                assert not {alias.name for alias in node.names} & set(PACKAGES), f"{file}:{node.lineno}"


def test_functions_and_files_stay_short() -> None:
    too_long = []
    for file in _sources(*PACKAGES, "benchmarks"):
        text = file.read_text()
        if text.count("\n") > MAX_FILE_LINES:
            too_long.append(f"{file.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long


def test_constraints_pin_every_stated_dependency_and_no_place_of_one_machine() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert all("/" not in line and "@" not in line and "+" not in line for line in lines)
    stated = (requirement for requirement in importlib.metadata.requires("farsight") or [] if "gpu" not in requirement)
    names = {requirement.replace("[", "<").replace(">", "<").replace(";", "<").split("<")[0] for requirement in stated}
    assert {name.strip().lower() for name in names} <= {name.lower() for name in pins}


def _lint(tree: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env={"PYTHONPATH": str(tree)}, check=False)


@pytest.mark.parametrize(
    ("file", "line", "wall"),
    [
        ("serve/settings.py", "import trainer.settings", "trainer and serve never meet"),
        ("modeling/losses.py", "import ray", "pure torch"),
        ("serve/answer.py", "import faiss", "faiss"),
        ("data/encode.py", "import torch", "neither torch nor ray"),
        ("cluster/cli.py", "import data.batch", "The roof"),
    ],
)
def test_import_walls_catch_a_planted_violation(tmp_path: Path, file: str, line: str, wall: str) -> None:
    for source in [*_sources(*PACKAGES), ROOT / "pyproject.toml"]:
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    planted = tmp_path / file
    planted.write_text(planted.read_text() + f"\n{line}\n")
    ran = _lint(tmp_path)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    broken = [row for row in ran.stdout.splitlines() if "BROKEN" in row]
    assert any(wall in row for row in broken), ran.stdout

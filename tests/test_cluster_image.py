"""The image: its Dockerfile, what goes into it, and its scripts."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "cluster" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text(encoding="utf-8")


def lint(dockerfile: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "Dockerfile"
    file.write_text(dockerfile)
    program = Path(sys.executable).with_name("hadolint")  # installed beside Python, which need not be on the PATH
    return subprocess.run([program, "--no-color", str(file)], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile_and_something_in_a_worse_one(tmp_path: Path) -> None:
    ran = lint(DOCKERFILE, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "")
    worse = DOCKERFILE.replace("python:3.11.14-slim-bookworm", "python").replace("--no-install-recommends ", "")
    found = lint(worse, tmp_path)
    assert found.returncode == 1
    assert {"DL3006", "DL3015"} & set(re.findall(r"DL\d+", found.stdout))
    assert lint(DOCKERFILE.replace("WORKDIR /src", "WORKDIRS /src"), tmp_path).returncode == 1


def test_it_runs_as_a_numbered_user_from_a_tagged_base() -> None:
    instructions = re.findall(r"^(\w+) (.+)$", DOCKERFILE, re.MULTILINE)
    users = [words for name, words in instructions if name == "USER"]
    assert users == ["1000:1000"]
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    bases = [words.split()[0] for name, words in instructions if name == "FROM"]
    assert set(bases) == {"${PYTHON_IMAGE}"}
    # In the last stage, after that line: what checks the image runs as whoever uses it.
    assert DOCKERFILE.index("USER 1000") < DOCKERFILE.index("check.sh bash") < DOCKERFILE.index("CMD")


def test_the_context_holds_the_packages_and_nothing_that_is_not_named() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    assert kept == packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
            assert name == "." or name.split("/")[0] in kept


@pytest.mark.parametrize("script", sorted(IMAGE.glob("*.sh")), ids=lambda script: script.name)
def test_a_script_is_bash_that_stops_at_the_first_error(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n#")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111
    assert script.name in DOCKERFILE


def test_an_accelerator_that_there_is_no_build_for_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    command = ["bash", str(IMAGE / "dependencies.sh"), str(tmp_path / "venv"), "tpu"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "error: accelerator 'tpu', expected cpu or gpu\n"
    assert not (tmp_path / "venv").exists()


def test_every_kind_of_image_has_its_extra_and_its_pins() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pins = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for accelerator in ("cpu", "gpu"):
        assert {requirement.split(">")[0] for requirement in extras[accelerator] + extras["redis"]} <= pins

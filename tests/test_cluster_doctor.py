"""Doctor: fit machines pass, and what is broken is named with what to do."""

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from cluster import doctor
from cluster.cli import cli

ROOT = Path(__file__).resolve().parents[1]


def test_this_machine_is_fit(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    found = {row["check"]: row for row in report["checks"]}
    assert report["ok"]
    assert found["tree"]["found"] == str(ROOT)
    assert found["accelerator"]["found"].endswith(importlib.metadata.version("torch"))
    assert found["faiss"]["state"] == "ok"
    assert not list(tmp_path.iterdir()), "doctor leaves nothing behind"


def test_a_broken_machine_exits_with_6_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # A file stands where a folder should be: true of root as well, who may write anywhere.
    monkeypatch.setattr(doctor, "_accelerator", lambda: doctor.Check("accelerator", "ok", "not asked"))
    result = CliRunner().invoke(cli, ["doctor", str(ROOT / "Makefile" / "runs")])
    assert result.exit_code == 6
    assert "broken" in result.stdout
    assert "give doctor, and the recipe, a place" in result.stdout
    assert result.stderr.startswith("error: this machine lacks")


def test_a_missing_and_an_old_package_are_broken_and_an_untested_one_is_a_note() -> None:
    missing = doctor._requirement(Requirement("no-such-package-here>=1"), None)
    old = doctor._requirement(Requirement("numpy>=9999"), None)
    untested = doctor._requirement(Requirement("numpy>=1"), "1.0.0")
    assert missing is not None
    assert old is not None
    assert untested is not None
    assert (missing.state, old.state, untested.state) == ("broken", "broken", "note")
    assert missing.advice == "pip install 'no-such-package-here>=1'"
    assert "tested with 1.0.0" in untested.advice
    version = importlib.metadata.version("numpy")
    assert doctor._requirement(Requirement("numpy>=1"), version) is None


def test_a_build_tag_is_the_tested_version() -> None:
    version = importlib.metadata.version("torch").partition("+")[0]
    assert doctor._requirement(Requirement("torch>=2"), version) is None


@pytest.mark.parametrize(
    ("wheels", "state", "advice"),
    [
        (["faiss-cpu"], "ok", ""),
        ([], "broken", "farsight[cpu]"),
        (["faiss-cpu", "faiss-gpu"], "broken", "exactly one of the extras"),
    ],
)
def test_exactly_one_faiss_is_wanted(
    wheels: list[str], state: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"faiss": wheels})
    check = doctor._faiss()
    assert check.state == state
    assert advice in check.advice


def test_standing_in_another_copy_of_the_tree_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "cli.py").touch()
    monkeypatch.chdir(tmp_path)
    check = doctor._tree()
    assert check.state == "broken"
    assert str(ROOT) in check.found


def test_a_torch_that_does_not_import_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "TORCH_PROBE", "raise ImportError('libcudart.so.13 is missing')")
    check = doctor._accelerator()
    assert check.state == "broken"
    assert "libcudart.so.13 is missing" in check.found


def test_a_torch_that_hangs_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    monkeypatch.setattr(doctor, "TORCH_PROBE", "import time; time.sleep(5)")
    assert doctor._accelerator().state == "broken"


def test_constraints_are_read_as_pins() -> None:
    assert doctor.tested_versions("# note\nPyYAML==6.0\n\nray_x==1.2  # why\n") == {"pyyaml": "6.0", "ray-x": "1.2"}


def test_makefile_targets_exist_and_say_what_they_do() -> None:
    ran = subprocess.run(["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "check", "clean"):
        assert f"{target} " in ran.stdout

"""Jobs before they are handed in: profiles, what is shipped, and the line that says the same as the request."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli import cli
from cluster.doctor import PACKAGES
from cluster.job import SECTIONS_OF, Job
from cluster.jobs import exit_status
from cluster.profiles import EntrypointSettings, Profile, read_profile, shipped_profiles
from cluster.recipe_files import read_recipe
from cluster.shipping import Shipment, check_shipment, default_excludes, plan_shipment, shipped_files
from data.errors import RecipeError
from data.settings import SECTIONS, read_section
from trainer.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "http://head:8265"
# Of no use to a shell, to JSON and to a file name.
TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), min_size=1, max_size=12)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree with our five packages, as small as it can be."""
    place = tmp_path / "tree"
    for package in PACKAGES:
        (place / package).mkdir(parents=True)
        (place / package / "__init__.py").touch()
    (place / "pyproject.toml").touch()
    (place / "mine.yaml").write_text("simulate: {num_users: 7}\n")
    return place


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_shipped_profiles_lay_over_a_recipe_is_valid(name: str) -> None:
    recipe = read_recipe("smoke", read_profile(name).overrides(SECTIONS))
    train = read_section(recipe, "train", TrainSettings)
    gpus = {"laptop": 0, "1xgpu": 1, "8xgpu": 8, "2x8gpu": 16}[name]
    assert train.workers.use_gpu == bool(gpus)
    assert train.workers.num_workers == (gpus or 2)  # the recipe's own two
    kinds = {key: value for each in SECTIONS_OF.values() for key, value in each.items() if value and key != "pipeline"}
    for section, kind in kinds.items():
        module, _, found = kind.partition(":")
        read_section(recipe, section, getattr(importlib.import_module(module), found))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("descripton: x", "descripton: Extra inputs are not permitted"),
        ("env: {WANDB_API_KEY: abc123}", "env: WANDB_API_KEY looks like a secret; list its name under secrets"),
        ("secrets: ['WANDB_API_KEY=abc123']", "expected names of environment variables, not values"),
        ("env: {'A B': x}", "'A B' is no name of an environment variable"),
        ("recipe: {trian: {epochs: 3}}", "unknown section 'trian'"),
    ],
)
def test_a_wrong_profile_is_refused_and_no_secret_of_it_is_shown(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        read_profile(str(file))
    assert message in str(caught.value)
    assert "abc123" not in str(caught.value)


def test_an_unknown_profile_is_named_with_those_there_are() -> None:
    with pytest.raises(
        RecipeError, match=r"9xgpu: no such profile; give a path that ends in \.yaml, or one of 1xgpu, 2x8"
    ):
        read_profile("9xgpu")


def _read_by_ray(line: str, secrets: dict[str, str]) -> dict[str, Any]:
    """What Ray's own command would hand in if a shell ran the line."""
    from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args
    from ray.dashboard.modules.job.cli import submit

    script = f'ray() {{ printf "%s\\0" "$@"; }}\n{line}'
    environment = {"PATH": os.environ["PATH"], **secrets}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=True)
    words = ran.stdout.decode().split("\0")[2:-1]
    found = submit.make_context("submit", words).params
    named = {
        "entrypoint_resources": json.loads(found["entrypoint_resources"] or "null"),
        "entrypoint_label_selector": json.loads(found["entrypoint_label_selector"] or "null"),
        "entrypoint_num_cpus": found["entrypoint_num_cpus"],
        "entrypoint_num_gpus": found["entrypoint_num_gpus"],
        "entrypoint_memory": found["entrypoint_memory"],
    }
    return {
        "entrypoint": shlex.join(found["entrypoint"]),
        "runtime_env": parse_runtime_env_args(found["runtime_env"], found["runtime_env_json"], found["working_dir"]),
        "submission_id": found["submission_id"],
        **{name: value for name, value in named.items() if value is not None},
    }


@settings(max_examples=25)
@given(
    words=st.lists(TEXT, max_size=3),
    value=TEXT,
    folder=TEXT.filter(lambda text: "/" not in text),
    memory=st.sampled_from([0.0, 0.5, 3.0]),
    amount=st.sampled_from([0.0, 0.25, 2.0]),
)
def test_a_shell_and_ray_read_the_printed_line_as_the_job_that_is_handed_in(
    words: list[str], value: str, folder: str, memory: float, amount: float
) -> None:
    secrets = {"FARSIGHT_TEST_TOKEN": "s3cr3t-0123"}
    job = Job(
        address=ADDRESS,
        entrypoint=("python", "-m", "cluster.cli", *words),
        shipment=Shipment(Path("/", folder), (Path("/code/data"),), None),
        env={"PLAIN": value},
        secrets=tuple(secrets),
        reserved=EntrypointSettings(
            num_cpus=amount, memory_gib=memory, resources={"spot": 1.0}, label_selector={"zone": folder}
        ),
        submission_id="my own",
    )
    line, request = job.line({}), job.request(secrets)
    assert "s3cr3t" not in line
    assert request["runtime_env"]["env_vars"]["FARSIGHT_TEST_TOKEN"] == "s3cr3t-0123"
    assert _read_by_ray(line, secrets) == request


def test_the_line_puts_aside_what_would_overrule_its_address() -> None:
    job = Job(ADDRESS, ("python",), Shipment(None, (), None), {}, (), EntrypointSettings())
    assert job.line({"RAY_ADDRESS": "10.0.0.1:6379"}).startswith("env -u RAY_ADDRESS \\\n    ray job submit ")
    assert job.line({"RAY_API_SERVER_ADDRESS": ADDRESS}).startswith("ray job submit ")


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "the secret MY_KEY is not set here; export it"), ('a"b', "holds a quote, a backslash or a character")],
)
def test_a_secret_that_cannot_be_passed_is_refused_by_name(value: str | None, message: str) -> None:
    job = Job(ADDRESS, ("python",), Shipment(None, (), None), {}, ("MY_KEY",), EntrypointSettings())
    with pytest.raises(RecipeError, match=message):
        job.request({} if value is None else {"MY_KEY": value})


def test_from_a_source_tree_the_tree_is_shipped_and_from_a_wheel_the_recipes_folder(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plays").mkdir()
    own = tmp_path / "plays" / "plays.yaml"
    own.write_text("simulate: {num_users: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert plan_shipment("smoke", tree=tree) == Shipment(tree, (), "smoke")
    assert plan_shipment(None, tree=tree) == Shipment(tree, (), None)
    assert plan_shipment("tree/mine.yaml", tree=tree) == Shipment(tree, (), "mine.yaml")
    modules = tuple(tree / name for name in PACKAGES)
    assert plan_shipment("plays/plays.yaml", tree=tree) == Shipment(own.parent, modules, "plays.yaml")
    assert plan_shipment("plays/plays.yaml", working_dir=".", tree=tree) == Shipment(
        tmp_path, modules, "plays/plays.yaml"
    )
    (tree / "pyproject.toml").unlink()  # as in site-packages
    assert plan_shipment("smoke", tree=tree) == Shipment(None, (), "smoke")
    assert plan_shipment("plays/plays.yaml", tree=tree) == Shipment(own.parent, (), "plays.yaml")


def test_a_recipe_that_would_not_come_along_is_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plays").mkdir()
    (tmp_path / "base.yaml").touch()
    (tmp_path / "plays" / "plays.yaml").write_text("extends: ../base.yaml\n")
    with pytest.raises(RecipeError, match=r"base.yaml: lies outside .*/plays, which is what the job takes along"):
        plan_shipment("plays/plays.yaml", tree=tree)
    assert plan_shipment("plays/plays.yaml", working_dir=".", tree=tree).working_dir == tmp_path
    shutil.copytree(ROOT / "cluster", tmp_path / "copy" / "cluster")
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(RecipeError, match="but you stand in another copy"):
        plan_shipment("smoke", tree=tree)


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (".gitignore", "data/", r"data/__init__.py would not reach the cluster: a .gitignore or .rayignore in"),
        (".rayignore", "serve", r"serve/__init__.py would not reach"),
        (".gitignore", "*.py", r"cluster/__init__.py and 4 more files would not reach"),
        (".gitignore", "mine.yaml", r"mine.yaml would not reach"),
    ],
)
def test_code_or_a_recipe_that_ray_would_leave_out_is_refused(tree: Path, file: str, line: str, message: str) -> None:
    shipment = Shipment(tree, (), "mine.yaml")
    assert check_shipment(shipment, tree=tree).files == 7
    (tree / file).write_text(f"{line}\n")
    with pytest.raises(RecipeError, match=message):
        check_shipment(shipment, tree=tree)


def test_our_own_tree_arrives_whole_and_is_small() -> None:
    load = check_shipment(plan_shipment("smoke"))
    assert load.num_bytes < 20 * 2**20


def test_a_directory_larger_than_ray_takes_is_refused_with_its_largest_parts(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.runtime_env import packaging

    (tree / "weights").mkdir()
    (tree / "weights" / "old.bin").write_bytes(bytes(3 * 2**20))
    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 2 * 2**20)
    with pytest.raises(
        RecipeError, match="3 MiB would be shipped, and Ray takes 2 MiB; the largest parts are weights 3"
    ):
        check_shipment(Shipment(tree, (), None), tree=tree)
    (tree / ".rayignore").write_text("weights\n")
    check_shipment(Shipment(tree, (), None), tree=tree)


def test_the_files_that_are_looked_at_are_those_that_ray_zips(tree: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    (tree / ".gitignore").write_text("*.log\n/runs/\n")
    (tree / "runs").mkdir()
    for name in ("a.log", "runs/x.txt", "data/deep.log", "data/runs.txt", "kept.txt"):
        (tree / name).touch()
    (tree / ".git").mkdir()
    (tree / ".git" / "HEAD").touch()
    zipped = tmp_path / "package.zip"
    create_package(str(tree), zipped, include_gitignore=True, excludes=default_excludes())
    with zipfile.ZipFile(zipped) as package:
        names = {name for name in package.namelist() if not name.endswith("/")}
    assert {str(path.relative_to(tree)) for path in shipped_files(tree, default_excludes())} == names
    assert "data/runs.txt" in names
    assert "data/deep.log" not in names


def _submit(*words: str) -> Any:
    chosen = ["--profile", "laptop"] if "--profile" not in words else []
    return CliRunner().invoke(cli, ["submit", *words, *chosen, "--dry-run", "--json"])


def test_the_command_line_overrules_the_profile_which_overrules_the_recipe() -> None:
    result = _submit("smoke", "train.workers.num_workers=3", "--profile", "8xgpu", "--storage", "/mnt/far sight")
    assert result.exit_code == 0, result.output
    words = shlex.split(json.loads(result.stdout)["line"].split(" -- ")[1])
    assert words[:6] == ["python", "-m", "cluster.cli", "--storage", "/mnt/far sight", "train"]
    recipe = read_recipe(words[6], words[7:])
    assert recipe["train"]["workers"]["num_workers"] == 3
    assert recipe["train"]["workers"]["use_gpu"] is True
    assert recipe["train"]["epochs"] == 2  # the recipe's own


def test_a_command_gets_what_it_reads_and_reserves_what_it_needs() -> None:
    line = json.loads(_submit("smoke", "--command", "ingest", "--profile", "8xgpu", "--storage", "/s").stdout)["line"]
    assert line.endswith("-- python -m cluster.cli --storage /s ingest smoke")
    assert "--entrypoint-num-cpus 1 " in line
    asked = "evaluate --artifact a --dataset d"
    line = json.loads(_submit("--command", asked, "--profile", "1xgpu", "--storage", "/s").stdout)["line"]
    assert line.endswith(f"-- python -m cluster.cli --storage /s {asked}")
    assert "--entrypoint-num-gpus 1 " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smoke", "--profile", "8xgpu"], "--storage is missing: name a directory that all nodes of the cluster share"),
        (["smoke", "trian.epochs=3"], "unknown section 'trian'"),
        (["smoke", "train.epoks=3"], "train.epoks: Extra inputs are not permitted"),
        (["--command", "train"], "train.dataset: Field required"),
        (["smoke", "--command", "jobs list"], "expected one of simulate, import"),
        (["smoke", "--command", "gaps runs/dataset"], "farsight gaps takes no RECIPE"),
        (["smoke", "--env", "MY_TOKEN=abc"], "env: MY_TOKEN looks like a secret"),
        (["smoke", "--secret", "a=b"], "expected names of environment variables"),
        (["nowhere.yaml"], "nowhere.yaml: no such recipe file"),
    ],
)
def test_a_job_that_could_not_run_is_refused_before_anything_is_sent(words: list[str], message: str) -> None:
    result = _submit(*words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 6), ("STOPPED", None, 130)],
)
def test_the_status_of_a_job_is_the_status_of_who_follows_it(status: str, code: int | None, expected: int) -> None:
    assert exit_status({"status": status, "exit_code": code}) == expected


def test_a_profile_of_the_command_line_adds_to_that_of_the_file() -> None:
    profile = Profile(secrets=("A",), env={"X": "1"}).with_own(["B"], {"X": "2", "Y": "3"})
    assert profile.secrets == ("A", "B")
    assert profile.env == {"X": "2", "Y": "3"}

"""What trackers are told of ingest, evaluate and index, and the page that W&B shows a project on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import data.tracking.workspace
import serve.build
import trainer.evaluate
from data.dataset import PreparedDataset
from data.errors import MachineError, RecipeError
from data.tracking.contract import AXES
from data.tracking.figures import FIGURES, RANKING_METRICS
from data.tracking.jsonl import FILE_NAME
from data.tracking.published import Published
from data.tracking.settings import TrackingSettings
from data.tracking.steps import FOLDER, alert, check, track
from data.tracking.workspace import SECTIONS, definition, workspace
from modeling.artifact import Artifact
from tests.small_world import write_artifact, write_dataset
from tests.wandb_files import offline_runs

RECIPE: dict[str, Any] = {"tracking": {"to": ["jsonl"]}, "index": {"num_recall_queries": 8}, "evaluate": {"ks": [10]}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreparedDataset, Artifact]:
    """A dataset and an artifact of it, in one folder."""
    folder = tmp_path_factory.mktemp("steps")
    dataset = write_dataset(folder / "dataset")
    return folder, dataset, write_artifact(folder / "artifact", dataset)


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FOLDER / FILE_NAME).read_text().splitlines()]


def test_the_lineage_of_a_release_reads_dataset_artifact_index_release(
    world: tuple[Path, PreparedDataset, Artifact],
) -> None:
    folder, dataset, artifact = world
    recipe = {**RECIPE, "tracking": {"to": ["jsonl", "wandb"], "group": "shop"}}
    track("ingest", recipe, {"directory": str(dataset.directory)})
    built = serve.build.run(str(artifact.directory), str(folder / "release"), recipe)
    assert track("index", recipe, built) == {"problems": {}}
    runs: dict[str, dict[str, str]] = {}
    for event in _events(folder):
        if event["event"] == "start":
            runs[step := event["step"]] = {}
        elif event["event"] in ("used", "made"):
            runs[step][f"{event['event']} {event['kind']}"] = event["content_hash"]
    release = Published.of(folder / "release")
    assert set(runs) == {"ingest", "index", "release"}
    assert runs["ingest"] == {"made dataset": Published.of(dataset.directory).content_hash}
    # The copy inside the release is the artifact that training wrote: content names it, not its place.
    assert runs["index"]["used artifact"] == artifact.content_hash
    assert runs["index"]["made index"] == runs["release"]["used index"]
    assert runs["release"]["made release"] == release.content_hash == built["release_id"]
    found = {run.job_type: run for run in offline_runs(folder / FOLDER)}
    assert (found["index"].used[0].name, found["index"].made[0].name) == ("shop-artifact", "shop-index")
    assert found["release"].used[0].digest == found["index"].made[0].digest
    paths = {entry.path for entry in found["release"].made[0].manifest.contents}
    assert paths >= {"manifest.json", "index/index.faiss", "artifact/items.safetensors"}
    assert found["index"].history[0]["index/recall"] == built["recall"]["value"]


def test_the_same_release_again_goes_on_with_the_same_runs(
    world: tuple[Path, PreparedDataset, Artifact], tmp_path: Path
) -> None:
    _, _, artifact = world
    built = serve.build.run(str(artifact.directory), str(tmp_path / "release"), RECIPE)
    for _ in range(2):
        track("index", RECIPE, built)
    ids = [event["run_id"] for event in _events(tmp_path) if event["event"] == "start"]
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]


def test_an_evaluation_tells_the_models_metrics_with_intervals_beside_the_baselines(
    world: tuple[Path, PreparedDataset, Artifact],
) -> None:
    folder, dataset, artifact = world
    measured = trainer.evaluate.run(str(artifact.directory), str(dataset.directory), recipe=RECIPE)
    track("evaluate", RECIPE, measured, artifact=str(artifact.directory))
    events = _events(folder)
    start = [event for event in events if event["event"] == "start"][-1]
    assert (start["step"], start["config"]["artifact"]) == ("evaluate", artifact.content_hash)
    assert start["config"]["protocol"]["split"] == "test"
    figures, table = events[-3]["figures"], events[-2]
    row = measured["rows"][-1]
    assert figures["eval/ndcg_at_10"] == row["ndcg@10"]
    assert figures["eval/ndcg_at_10_low"] <= row["ndcg@10"] <= figures["eval/ndcg_at_10_high"]
    assert (table["name"], [line["ranking"] for line in table["rows"]]) == ("rankings", ["popularity", "model"])
    assert table["rows"][1]["recall@10"] == row["recall@10"]


def test_an_alert_of_a_pipeline_reaches_its_trackers(tmp_path: Path) -> None:
    for _ in range(2):
        alert(RECIPE, str(tmp_path / FOLDER), "Held back", "ndcg@10 fell from 0.20 to 0.10")
    events = _events(tmp_path)
    assert [event["event"] for event in events] == ["start", "alert", "finish"] * 2
    assert (events[1]["title"], events[1]["text"]) == ("Held back", "ndcg@10 fell from 0.20 to 0.10")
    assert events[0]["run_id"] == events[3]["run_id"]  # of one pipeline
    assert events[2]["failed"]


def test_nothing_is_told_where_nobody_is_to_be_told(tmp_path: Path) -> None:
    for tracking in ({"to": []}, {"to": ["jsonl"], "steps": ["train"]}):
        recipe = {"tracking": tracking}
        assert track("index", recipe, {"release": str(tmp_path / "nowhere")}) == {"problems": {}}
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match=r"tracking\.wandb\.mode"):
        check({"tracking": {"wandb": {"mode": "sometimes"}}})


def test_every_figure_of_the_wandb_page_is_one_that_runs_report() -> None:
    ends = ("", "_low", "_high")
    known = {*FIGURES, *(f"eval/{name}_at_10{end}" for name in RANKING_METRICS for end in ends)}
    for section in SECTIONS:
        for plot in section.plots:
            assert set(plot.y) <= known, plot
            assert plot.x in AXES
    assert {section.name for section in SECTIONS} == {"Quality", "Training", "Throughput", "System"}


def test_the_wandb_page_is_built_without_a_network() -> None:
    pytest.importorskip("wandb_workspaces", reason="pip install 'farsight[tracking]'")
    page = workspace(TrackingSettings(project="shop"), entity="team")
    assert (page.entity, page.project, page.name) == ("team", "shop", "Farsight")
    assert [section.name for section in page.sections] == [section.name for section in SECTIONS]
    loss = page.sections[1].panels[0]
    assert (loss.x, loss.y, loss.title) == ("global_step", ["train/loss"], "loss")
    assert page.sections[0].panels[-2].table_name == "examples"


def test_offline_the_wandb_page_is_a_file_and_online_it_needs_an_owner_and_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pages" / "wandb.json"
    result = data.tracking.workspace.run({"tracking": {"project": "shop"}}, out=str(out))
    assert (result["url"], result["definition"]) == (None, str(out))
    assert json.loads(out.read_text()) == json.loads(json.dumps(definition(TrackingSettings(project="shop"))))
    for name in ("WANDB_ENTITY", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    online: dict[str, Any] = {"mode": "online"}
    with pytest.raises(MachineError, match=r"the user or team that owns the project; set tracking\.wandb\.entity=NAME"):
        data.tracking.workspace.run({"tracking": {"wandb": online}})
    # In a process of its own: one that has spoken to W&B once remembers the key and the address.
    words = ["dashboards", "wandb", "tracking.wandb.mode=online", "tracking.wandb.entity=team"]
    command = [sys.executable, "-m", "cluster.cli", *words]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == MachineError.exit_code, refused.stderr
    assert "W&B did not take the workspace" in refused.stderr
    assert "No API key" in refused.stderr
    assert "log in with wandb login" in refused.stderr

"""Stages on Ray Train, what may follow what, and weights that move recall from one objective to another."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import trainer.evaluate
import trainer.train
from data.batch import Batch, collate
from data.cases import Cases
from data.dataset import PreparedDataset
from data.encode import EncodedHistories
from data.errors import ArtifactMismatch, DatasetError, RecipeError
from data.settings import read_section
from modeling.artifact import Artifact, save_artifact
from modeling.build import build_retriever
from modeling.objectives import BlockTable
from modeling.objectives_settings import ObjectivesSettings
from modeling.retriever import Retriever
from modeling.settings import ModelSettings
from tests.ports import free_port
from tests.ranks import join_ranks
from tests.small_world import NUM_ITEMS, write_dataset
from tests.training_runs import recipe
from trainer.engine import plain_weights, start_engine
from trainer.evaluation import RetrieverScorer, evaluate_cases, query_scales
from trainer.ranks import Ranks
from trainer.settings import EngineSettings, EvaluateSettings, OptimizerSettings, TrainSettings
from trainer.stages import check_objectives, check_stage, validated
from trainer.step import train_step

OBJECTIVES = {"names": ["exposure", "conversion"], "actions": {"conversion": ["like"]}, "neurons": 12, "free_mass": 0.4}


PARTS = ("read", "write", "project")
SMALL = {
    "width": 16,
    "max_events": 8,
    "dropout": 0.0,
    "encoder": {"kind": "transformer", "blocks": 1, "feedforward_width": 16},
    "negatives": {"kind": "all"},
}


def stage_recipe(directory: Path, stage: str, name: str, *, begins: Path, **objectives: Any) -> dict[str, Any]:
    stated = recipe(directory, run_dir=str(directory / name), start_from=str(begins), epochs=2, events_per_batch=128)
    stated["train"]["optimizer"] = {"learning_rate": 0.02, "weight_decay": 0.1, "warmup_steps": 1}
    stated["train"]["workers"] = {"num_workers": 1, "threads_per_worker": 1}
    stated["model"]["objectives"] = {**OBJECTIVES, "stage": stage, **objectives}
    return stated


def first_artifact(directory: Path, dataset: PreparedDataset, **objectives: Any) -> Artifact:
    """What a first stage leaves, untrained."""
    stated = stage_recipe(directory, "exposure", "x", begins=directory, **objectives)
    settings = ModelSettings.model_validate(stated["model"])
    torch.manual_seed(0)
    retriever = build_retriever(settings, num_rows=NUM_ITEMS + 1, num_actions=2)
    return save_artifact(directory / "first", retriever.state_dict(), settings, dataset)


def table_of(retriever: Retriever) -> BlockTable:
    assert isinstance(retriever.items, BlockTable)
    return retriever.items


def answers(artifact: Artifact, dataset: PreparedDataset, width: int) -> torch.Tensor:
    """Scores of every item by the first coordinates of the vectors."""
    retriever = artifact.load_retriever()
    with torch.inference_mode():
        vectors_ND = retriever.query_vectors(random_batch())[:, :width]
        return vectors_ND @ retriever.catalogue_vectors()[:, :width].T


def random_batch() -> Batch:
    random = np.random.default_rng(3)
    return windows_of(random.integers(1, NUM_ITEMS, (16, 9)), np.zeros((16, 9), np.int64))


def windows_of(items_BN: np.ndarray[Any, Any], actions_BN: np.ndarray[Any, Any]) -> Batch:
    rows, length = items_BN.shape[0], items_BN.shape[1] - 1
    nothing = np.zeros(rows * length, np.int64)
    return collate(
        EncodedHistories(
            items_E=items_BN[:, :-1].flatten(),
            times_E=nothing,
            actions_E=nothing,
            requests_E=nothing - 1,
            offsets_B1=np.arange(rows + 1) * length,
            query_times_B=np.zeros(rows, np.int64),
            next_items_B=items_BN[:, -1],
            next_requests_B=np.full(rows, -1, np.int64),
            next_actions_B=actions_BN[:, -1],
            users_B=np.arange(rows),
        )
    )


@pytest.mark.long
def test_a_later_stage_leaves_the_earlier_one_as_it_was_through_ray_train(tmp_path: Path, ray_session: None) -> None:
    dataset = write_dataset(tmp_path / "dataset", num_users=60)
    first = first_artifact(tmp_path, dataset)
    recovery = stage_recipe(tmp_path, "exposure", "recovered", begins=first.directory, recover=True)
    recovered = Artifact.open(trainer.train.run(recovery)["artifact"])
    last = stage_recipe(tmp_path, "conversion", "last", begins=recovered.directory)
    last["train"]["engine"] = {"zero_stage": 2}
    conversion = Artifact.open(trainer.train.run(last)["artifact"])
    earlier, later = recovered.weights(), conversion.weights()
    owners = (earlier["objectives.owners_F"], later["objectives.owners_F"])
    assert set(owners[0].tolist()) == {0, 1}
    assert set(owners[1].tolist()) == {1, 2}
    assert torch.equal(owners[0] == 1, owners[1] == 1)
    changed = {name for name in earlier if not torch.equal(earlier[name], later[name])}
    layers = {f"objectives.parts.1.{layer}.weight" for layer in PARTS}
    assert changed == {"objectives.owners_F", "items.blocks.1.weight", *layers}
    assert not torch.equal(first.weights()["items.blocks.0.weight"], earlier["items.blocks.0.weight"])
    assert torch.equal(answers(recovered, dataset, 4), answers(conversion, dataset, 4))
    # And evaluation takes the weights: the first stage alone ranks as its own artifact does.
    rows = {}
    for artifact, weights in ((recovered, None), (conversion, {"exposure": 1.0}), (conversion, {"conversion": 1.0})):
        section = {"ks": [10], "baselines": [], "target_actions": ["click", "like"], "objective_weights": weights}
        report = trainer.evaluate.run(str(artifact.directory), str(dataset.directory), recipe={"evaluate": section})
        rows[(artifact.content_hash, str(weights))] = {**report["rows"][0], "artifact": None}
        assert report["protocol"]["target_actions"] == ("click", "like")
    alone, again, other = rows.values()
    assert alone == again
    assert other["users"] == alone["users"] > 0


def _rank(rank: int, port: int, directory: str) -> None:
    """A second stage under each ZeRO stage; rank 1 has no event of its objective in its first batch."""
    join_ranks(rank, 2, port)
    stated = OptimizerSettings(learning_rate=0.05, weight_decay=0.1, warmup_steps=0)
    for zero in (1, 3):
        retriever = _second_stage()
        engine = start_engine(retriever, EngineSettings(zero_stage=zero), stated, total_steps=10)
        for step in range(3):
            items, actions = conflicting_world(8, 10 * step + rank)
            batch = windows_of(items, np.ones_like(actions) if rank and not step else actions)
            generator = torch.Generator().manual_seed(step)
            train_step(engine, batch, generator=generator, ranks=Ranks(rank, 2), where="", measure_norm=False)
        weights = plain_weights(engine)
        if rank == 0:
            torch.save(weights, Path(directory, f"zero-{zero}.pt"))
    torch.distributed.destroy_process_group()


def _second_stage() -> Retriever:
    model = ModelSettings.model_validate({**SMALL, "objectives": {**OBJECTIVES, "stage": "conversion"}})
    torch.manual_seed(0)
    counts = np.ones(49, np.int64)
    retriever = build_retriever(model, num_rows=49, num_actions=2, actions=["click", "like"], train_counts=counts)
    assert retriever.objectives is not None
    retriever.objectives.begin(1, table_of(retriever), recover=False, free_mass=0.3)
    return retriever


def test_two_ranks_under_zero_leave_the_first_stage_bit_by_bit(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # the spawned ranks import this file by its name
    mp.spawn(_rank, args=(free_port(), str(tmp_path)), nprocs=2)  # type: ignore[no-untyped-call]
    before = _second_stage().state_dict()
    split, whole = (torch.load(tmp_path / f"zero-{zero}.pt", weights_only=True) for zero in (3, 1))
    assert split.keys() == whole.keys() == before.keys()
    learnt = {"items.blocks.1.weight", *(f"objectives.parts.1.{layer}.weight" for layer in PARTS)}
    for name, value in before.items():
        assert torch.equal(split[name], value.float()) is (name not in learnt), name
        torch.testing.assert_close(split[name], whole[name], atol=1e-4, rtol=1e-3)


def conflicting_world(users: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four tastes of six shown and six bought items: one event in four is a purchase (action 2), the others are not."""
    random = np.random.default_rng(seed)
    tastes, bought = random.integers(0, 4, (users, 1)), random.random((users, 9)) < 0.25
    items = 1 + 12 * tastes + random.integers(0, 6, (users, 9)) + 6 * bought
    return items, np.where(bought, 2, 1)


def trained_in_stages() -> tuple[ModelSettings, Retriever]:
    before: Retriever | None = None
    generator = torch.Generator().manual_seed(0)
    for place, stage in enumerate(("exposure", "conversion")):
        model = ModelSettings.model_validate({**SMALL, "objectives": {**OBJECTIVES, "stage": stage}})
        torch.manual_seed(place)
        counts = np.ones(49, np.int64)
        retriever = build_retriever(model, num_rows=49, num_actions=2, actions=["click", "like"], train_counts=counts)
        if before is not None and retriever.objectives is not None:
            retriever.load_state_dict(before.state_dict())
            retriever.objectives.begin(1, table_of(retriever), recover=False, free_mass=0.3)
        asked = [parameter for parameter in retriever.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(asked, lr=0.01)
        for step in range(150):
            optimizer.zero_grad()
            retriever(windows_of(*conflicting_world(64, step)), generator)["loss"].backward()
            optimizer.step()
        before = retriever.eval()
    assert before is not None
    return model, before


def test_weights_towards_conversion_raise_its_recall_and_lower_that_of_exposure() -> None:
    model, retriever = trained_in_stages()
    items, actions = conflicting_world(400, 1_000)
    nothing = [np.zeros(8, np.int64)] * len(items)
    recalls: dict[str, list[float]] = {"bought": [], "shown": []}
    for share in (0.0, 0.02, 0.05, 0.1, 0.2, 1.0):
        scales = query_scales(model, {"exposure": 1 - share, "conversion": share})
        scorer = RetrieverScorer(retriever, max_events=8, train_events_V=np.ones(49, np.int64), scales=scales)
        for name, own in (("bought", actions[:, -1] == 2), ("shown", actions[:, -1] == 1)):
            rows = items[own]
            targets = [row[-1:] for row in rows]
            count = len(rows)
            cases = Cases(
                user_ids=[str(user) for user in range(count)],
                user_keys=list(range(count)),
                items=[row[:-1] for row in rows],
                times=nothing[:count],
                actions=nothing[:count],
                query_times=[0] * count,
                targets=targets,
                following=targets,
            )
            totals = evaluate_cases(scorer, [cases], num_rows=49, ks=(6,), remove_seen=False)
            recalls[name].append(totals.means()["recall@6"])
    assert recalls["bought"] == sorted(recalls["bought"])
    assert recalls["shown"] == sorted(recalls["shown"], reverse=True)
    assert recalls["bought"][-1] > recalls["bought"][0] + 0.5
    assert recalls["shown"][0] > recalls["shown"][-1] + 0.5


STAGES = {"names": ("a", "b", "c"), "actions": {"b": ("x",), "c": ("y",)}}


def at(stage: str | None, **changes: Any) -> ObjectivesSettings:
    return ObjectivesSettings.model_validate({**STAGES, "stage": stage, **changes})


@pytest.mark.parametrize(
    ("before", "wanted", "problem"),
    [
        (at("a"), at("b"), None),
        (at("a"), at("a"), None),
        (at("b"), at("b", recover=True), None),
        (at(None), at(None), None),
        (None, None, None),
        (
            at("a"),
            at("c"),
            "stage is c, but DIR stands at stage a; a stage goes on from itself or from the one before it",
        ),
        (at("b"), at("a"), "stage is a, but DIR stands at stage b"),
        (at("a"), at("b", recover=True), "stage is b with recover, but DIR stands at stage a"),
        (at(None), at("c"), "stage is c, but DIR stands at stage None"),
        (at("c"), at(None), "stage is None, but DIR stands at stage c"),
        (None, at("a"), "model.objectives is set, but DIR was trained without objectives"),
        (at("a"), None, "model.objectives is not set, but DIR was trained with objectives"),
        (at("a"), at("b", neurons=7), "model.objectives.neurons is 7, but DIR has 128; keep the artifact's"),
    ],
)
def test_a_stage_begins_only_with_what_stands_right_before_it(
    before: ObjectivesSettings | None, wanted: ObjectivesSettings | None, problem: str | None
) -> None:
    if problem is None:
        check_stage("DIR", before, wanted)
        return
    with pytest.raises(ArtifactMismatch, match=problem):
        check_stage("DIR", before, wanted)


@pytest.mark.parametrize(
    ("objectives", "train", "error", "problem"),
    [
        ({"stage": "conversion"}, {}, RecipeError, "goes on from the artifact of stage exposure; set train.start_from"),
        (
            {"stage": "exposure", "recover": True},
            {},
            RecipeError,
            "with recover goes on from the artifact of stage exp",
        ),
        ({}, {"item_table": {"kind": "sharded"}}, RecipeError, "keep the table replicated"),
        ({"actions": {"conversion": ["buy"]}}, {}, DatasetError, "names buy, and the log has click, like; name its"),
        ({"stage": "exposure"}, {}, None, ""),
    ],
)
def test_objectives_that_do_not_fit_the_run_are_refused(
    tmp_path: Path, objectives: dict[str, Any], train: dict[str, Any], error: type[Exception] | None, problem: str
) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    model = ModelSettings.model_validate({"objectives": {**OBJECTIVES, **objectives}})
    section = TrainSettings.model_validate({"dataset": "d", "run_dir": "r", **train})
    if error is None:
        check_objectives(section, model, dataset)
        return
    with pytest.raises(error, match=problem):
        check_objectives(section, model, dataset)


def test_a_stage_in_bf16_after_one_in_fp32_is_refused_because_it_would_round_what_is_frozen(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    first = first_artifact(tmp_path, dataset)
    model = ModelSettings.model_validate({"objectives": {**OBJECTIVES, "stage": "conversion"}})
    stated = {"dataset": "d", "run_dir": "r", "start_from": str(first.directory), "engine": {"precision": "bf16"}}
    with pytest.raises(RecipeError, match=r"bf16 would round the weights of earlier stages, which .* has in fp32"):
        check_objectives(TrainSettings.model_validate(stated), model, dataset)


def test_a_stage_is_validated_on_the_events_of_its_objective_unless_others_are_stated(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    model = ModelSettings.model_validate({"objectives": {**OBJECTIVES, "stage": "conversion"}})
    plain = read_section({}, "evaluate", EvaluateSettings)
    assert validated(plain, model, dataset).target_actions == ("like",)
    stated = plain.model_copy(update={"target_actions": ("click",)})
    assert validated(stated, model, dataset).target_actions == ("click",)
    assert validated(plain, ModelSettings.model_validate({"objectives": OBJECTIVES}), dataset).target_actions is None
    assert validated(plain, ModelSettings(), dataset) == plain


@pytest.mark.parametrize(
    ("objectives", "weights", "problem"),
    [
        (None, {"click": 1.0}, "trained without model.objectives; leave them out"),
        (OBJECTIVES, {"click": 1.0}, "evaluate.objective_weights: found click, expected some of exposure, conversion"),
    ],
)
def test_wrong_weights_of_an_evaluation_are_refused(objectives: Any, weights: dict[str, float], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        query_scales(ModelSettings.model_validate({"objectives": objectives}), weights)

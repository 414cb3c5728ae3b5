"""Beginning with an artifact's weights: what is taken over, what is fresh, what is refused."""

import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional

from data.dataset import PreparedDataset
from data.errors import ArtifactMismatch, TrainingError
from modeling.artifact import ITEM_WEIGHT, ITEMS, Artifact, save_artifact
from modeling.build import build_retriever
from modeling.hashed_table import HashedTable, id_hashes, row_hashes
from modeling.retriever import Retriever
from modeling.settings import ConditionSettings, HashedItems, ModelSettings, PredictionSettings
from modeling.table_files import BLOCK
from tests.ports import free_port
from tests.ranks import join_ranks
from tests.small_world import ACTIONS, NUM_ITEMS, write_artifact, write_dataset
from trainer.settings import OptimizerSettings, ShardedTableSettings
from trainer.start import check_start, start_from
from trainer.table import Table, start_table

MANY_ITEMS = 4 * BLOCK + 5  # of two ranks one has three of the five blocks
GROWN_ITEMS = MANY_ITEMS + 2 * BLOCK


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return write_dataset(tmp_path_factory.mktemp("start") / "dataset")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, dataset: PreparedDataset) -> Artifact:
    return write_artifact(tmp_path_factory.mktemp("start") / "artifact", dataset)


def fresh(settings: ModelSettings, dataset: PreparedDataset) -> Retriever:
    torch.manual_seed(7)
    return build_retriever(settings, num_rows=NUM_ITEMS + 1, num_actions=len(ACTIONS), catalogue=dataset.catalogue())


def test_what_both_have_is_taken_over_and_new_parts_are_fresh(dataset: PreparedDataset, artifact: Artifact) -> None:
    update = {"prediction": PredictionSettings(heads=2), "condition": ConditionSettings()}
    settings = artifact.settings.model_copy(update=update)
    assert check_start(str(artifact.directory), settings, dataset) == artifact.content_hash
    retriever, untouched = fresh(settings, dataset), fresh(settings, dataset).state_dict()
    start_from(str(artifact.directory), retriever, frozen="nothing")
    found, old = retriever.state_dict(), artifact.load_retriever().state_dict()
    for name, value in found.items():
        if name.startswith("branches.1."):  # a head that the artifact lacks begins as its first
            assert torch.equal(value, old[name.replace("branches.1.", "branches.0.")])
        elif name in old:
            assert torch.equal(value, old[name])
        else:
            assert name.startswith("conditioning.")
            assert torch.equal(value, untouched[name])
    assert all(parameter.requires_grad for parameter in retriever.parameters())


def test_a_frozen_backbone_leaves_the_branch_and_the_conditions_to_learn(
    dataset: PreparedDataset, artifact: Artifact
) -> None:
    retriever = fresh(artifact.settings.model_copy(update={"condition": ConditionSettings()}), dataset)
    start_from(str(artifact.directory), retriever, frozen="backbone")
    learning = {name.split(".")[0] for name, value in retriever.named_parameters() if value.requires_grad}
    assert learning == {"branches", "conditioning"}


def test_another_shape_or_vocabulary_is_refused(dataset: PreparedDataset, artifact: Artifact, tmp_path: Path) -> None:
    wider = artifact.settings.model_copy(update={"width": 32})
    with pytest.raises(ArtifactMismatch, match=r"model.width is 32, but .* has 16; keep the artifact's"):
        check_start(str(artifact.directory), wider, dataset)
    other = write_dataset(tmp_path / "other", num_items=NUM_ITEMS - 1)
    with pytest.raises(ArtifactMismatch, match=r"does not begin with that of .*; ingest with ingest.items_from="):
        check_start(str(artifact.directory), artifact.settings, other)


def test_items_that_are_new_since_the_artifact_begin_fresh_and_the_others_go_on(
    artifact: Artifact, tmp_path: Path
) -> None:
    grown = write_dataset(tmp_path / "grown", num_items=NUM_ITEMS + 5)
    assert check_start(str(artifact.directory), artifact.settings, grown) == artifact.content_hash
    torch.manual_seed(7)
    retriever = build_retriever(artifact.settings, num_rows=NUM_ITEMS + 6, num_actions=len(ACTIONS))
    fresh_VD = retriever.item_vectors(torch.arange(NUM_ITEMS + 6))
    start_from(str(artifact.directory), retriever, frozen="nothing")
    found_VD = retriever.item_vectors(torch.arange(NUM_ITEMS + 6))
    old_VD = artifact.load_retriever().item_vectors(torch.arange(NUM_ITEMS + 1))
    assert torch.equal(found_VD[: NUM_ITEMS + 1], old_VD)
    assert torch.equal(found_VD[NUM_ITEMS + 1 :], fresh_VD[NUM_ITEMS + 1 :])


HASHED = HashedItems(kind="hashed", quotient_rows=6, remainder_rows=8)


def test_hashed_items_go_on_and_a_new_item_has_the_vector_of_its_id(dataset: PreparedDataset, tmp_path: Path) -> None:
    begun = write_artifact(tmp_path / "hashed", dataset, items=HASHED)
    grown = write_dataset(tmp_path / "grown", num_items=NUM_ITEMS + 5)
    check_start(str(begun.directory), begun.settings, grown)
    item_ids = grown.vocabulary().item_ids
    torch.manual_seed(7)
    retriever = build_retriever(
        begun.settings, num_rows=NUM_ITEMS + 6, num_actions=len(ACTIONS), item_hashes=row_hashes(item_ids)
    )
    start_from(str(begun.directory), retriever, frozen="backbone")
    old = begun.load_retriever()
    rows = torch.arange(NUM_ITEMS + 6)
    assert torch.equal(retriever.item_vectors(rows[: NUM_ITEMS + 1]), old.item_vectors(rows[: NUM_ITEMS + 1]))
    assert isinstance(old.items, HashedTable)
    of_ids = old.items.compose(torch.from_numpy(id_hashes(item_ids[NUM_ITEMS:])))
    assert torch.equal(retriever.item_vectors(rows[NUM_ITEMS + 1 :]), functional.normalize(of_ids, dim=-1))
    learning = {name.split(".")[0] for name, value in retriever.named_parameters() if value.requires_grad}
    assert learning == {"branches"}


def test_rows_and_hashed_items_do_not_go_on_with_each_other(dataset: PreparedDataset, artifact: Artifact) -> None:
    hashed = artifact.settings.model_copy(update={"items": HASHED})
    with pytest.raises(
        ArtifactMismatch, match=r"model.items is .*'hashed'.*, but .* has .*'rows'.*; keep the artifact"
    ):
        check_start(str(artifact.directory), hashed, dataset)


def _sharded(artifact: Artifact, num_items: int, *, seed: int = 3) -> tuple[Table, Retriever]:
    """This rank's part of a fresh run over so many items."""
    table = start_table(
        ShardedTableSettings(kind="sharded"),
        OptimizerSettings(),
        num_rows=num_items + 1,
        width=artifact.settings.width,
        seed=seed,
        device=torch.device("cpu"),
    )
    assert table is not None
    retriever = build_retriever(artifact.settings, num_rows=num_items + 1, num_actions=len(ACTIONS), items=table.rows)
    return table, retriever


def _rows(table: Table) -> Tensor:
    """The rows of all ranks, in order."""
    with torch.no_grad():
        return table.rows.hold(torch.arange(table.rows.num_rows)).vectors_UD


def _learn(table: Table, retriever: Retriever) -> None:
    """One step that pushes every row of the table."""
    rows = torch.arange(table.rows.num_rows)
    loss = (retriever.item_vectors(rows) * torch.arange(1.0, 17)).sum()
    if loss.requires_grad:
        loss.backward()
    table.learn(0.1, complete=True)


def _begin_on_two_ranks(rank: int, port: int, directory: str) -> None:
    join_ranks(rank, 2, port)
    place = Path(directory)
    artifact, dataset = Artifact.open(place / "artifact"), PreparedDataset.open(place / "dataset")
    found = {}
    frozen: Literal["nothing", "backbone"]
    for frozen in ("nothing", "backbone"):
        table, retriever = _sharded(artifact, MANY_ITEMS)
        start_from(str(artifact.directory), retriever, frozen=frozen)
        found[f"{frozen}-bytes"] = table.rows.vectors_RD.nbytes
        found[f"{frozen}-begun"] = _rows(table)
        _learn(table, retriever)
        found[f"{frozen}-learned"] = _rows(table)
        if frozen == "nothing":
            (place / "files").mkdir(exist_ok=True)
            table.rows.save(place / "files")
    torch.distributed.barrier()  # the files of both ranks stand
    if rank == 0:
        save_artifact(place / "again", artifact.dense_weights(), artifact.settings, dataset, table=place / "files")
    torch.distributed.barrier()
    for name, source in (("replicated", artifact.directory), ("sharded", place / "again")):
        table, retriever = _sharded(artifact, GROWN_ITEMS)
        found["fresh"] = _rows(table)
        start_from(str(source), retriever, frozen="nothing")
        found[f"grown-{name}"] = _rows(table)
        found[f"dense-{name}"] = retriever.encoder.positions.weight.detach()
    torch.save(found, place / f"found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two_ranks")
    write_artifact(directory / "artifact", write_dataset(directory / "dataset", num_items=MANY_ITEMS))
    sys.path.insert(0, str(Path(__file__).parent))  # the spawned ranks import this file by its name
    mp.spawn(_begin_on_two_ranks, args=(free_port(), str(directory)), nprocs=2)  # type: ignore[no-untyped-call]
    return directory


def test_two_ranks_begin_with_their_rows_of_the_artifact_and_a_frozen_table_never_learns(two_ranks: Path) -> None:
    expected_VD = Artifact.open(two_ranks / "artifact").weights()[ITEM_WEIGHT]
    found = [torch.load(two_ranks / f"found-{rank}.pt") for rank in range(2)]
    blocks = [part["nothing-bytes"] // (BLOCK * expected_VD.shape[1] * 4) for part in found]
    assert blocks == [3, 2]
    for frozen in ("nothing", "backbone"):
        assert torch.equal(found[0][f"{frozen}-begun"], expected_VD)
    assert torch.equal(found[0]["backbone-learned"], expected_VD)
    moved_V = (found[0]["nothing-learned"] != expected_VD).any(1)
    assert moved_V[1:].all()
    assert not moved_V[0]


@pytest.mark.parametrize("source", ["replicated", "sharded"])
def test_a_sharded_table_that_has_grown_keeps_the_old_rows_and_draws_the_new_ones(two_ranks: Path, source: str) -> None:
    found = torch.load(two_ranks / "found-1.pt")
    written = Artifact.open(two_ranks / {"replicated": "artifact", "sharded": "again"}[source])
    old_VD = written.weights()[ITEM_WEIGHT]
    assert torch.equal(old_VD, found["backbone-begun" if source == "replicated" else "nothing-learned"])
    assert torch.equal(found[f"grown-{source}"][: MANY_ITEMS + 1], old_VD)
    assert torch.equal(found[f"grown-{source}"][MANY_ITEMS + 1 :], found["fresh"][MANY_ITEMS + 1 :])
    assert not torch.equal(found["fresh"][: MANY_ITEMS + 1], old_VD)
    positions = written.dense_weights()["encoder.positions.weight"]
    assert torch.equal(found[f"dense-{source}"], positions)


def test_a_table_larger_than_the_sharded_one_is_refused(artifact: Artifact) -> None:
    table, _ = _sharded(artifact, NUM_ITEMS - 1)
    with pytest.raises(TrainingError, match=r"items.safetensors: holds rows of a table of 61 x 16 .* may grow"):
        table.rows.begin(artifact.directory / ITEMS, ITEM_WEIGHT)

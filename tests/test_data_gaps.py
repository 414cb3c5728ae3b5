"""How long a burst lasts: from requests where the log names them, otherwise from the valley of the gaps."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.dataset import PreparedDataset
from data.errors import DatasetError
from data.gaps import NUM_BINS, find_valley, histogram, lower_edges, measure_gaps
from modeling.settings import ModelSettings
from tests.small_world import write_dataset
from trainer import gaps as command
from trainer.gaps import with_gap

START = 1_700_000_000


def dataset_with(directory: Path, gaps: list[list[int]], requests: list[list[int]] | None = None) -> PreparedDataset:
    """A prepared dataset in which user u's training events stand `gaps[u]` seconds apart; two more events are held."""
    dataset = write_dataset(directory, num_users=len(gaps))
    [shard] = dataset.shards
    rows = pq.read_table(shard).to_pylist()
    for number, row in enumerate(rows):
        times = [START, *(START + np.cumsum(gaps[number])).tolist()]
        times += [times[-1] + 1, times[-1] + 2]  # validation and test, which do not count
        known = requests[number] if requests else [-1] * (len(times) - 2)
        row.update(
            items=[1] * len(times),
            times=times,
            actions=[0] * len(times),
            requests=[*known, known[-1], known[-1]],
            weights=[1.0] * len(times),
            num_train=len(times) - 2,
            num_validation=1,
            num_test=1,
        )
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(shard)), shard)
    return PreparedDataset.open(directory)


@given(st.lists(st.integers(0, 2**25), min_size=1, max_size=50))
def test_every_gap_is_counted_once_and_where_it_belongs(seconds: list[int]) -> None:
    counts_H = histogram(np.array(seconds, np.int64))
    assert counts_H.sum() == pytest.approx(len(seconds))
    edges_H = lower_edges()
    for bound in (1, 2, 64, 2**20):  # edges that are whole seconds
        [place] = np.flatnonzero(edges_H == bound)
        assert counts_H[:place].sum() == pytest.approx(sum(gap < bound for gap in seconds))


def test_the_valley_is_the_lowest_point_between_the_two_humps() -> None:
    random = np.random.default_rng(0)
    short = np.exp(random.normal(np.log(8), 0.5, 6000)).astype(np.int64)
    long = np.exp(random.normal(np.log(20_000), 1.0, 3000)).astype(np.int64)
    found = find_valley(histogram(np.concatenate([short, long])))
    assert found is not None
    assert 40 < found < 2000
    assert find_valley(histogram(short)) is None
    assert find_valley(np.zeros(NUM_BINS)) is None


def test_equal_seconds_are_a_hump_of_their_own() -> None:
    """As in ratings that a page sends together, and in logs that know the day alone."""
    random = np.random.default_rng(0)
    pages = np.exp(random.normal(np.log(25), 0.4, 5000)).astype(np.int64)
    assert 1 <= (find_valley(histogram(np.concatenate([np.zeros(5000, np.int64), pages]))) or 0) <= 6
    days = 86_400 * random.integers(1, 400, 5000)
    assert 1 <= (find_valley(histogram(np.concatenate([np.zeros(5000, np.int64), days]))) or 0) < 86_400


def test_requests_part_the_gaps_where_the_log_names_them(tmp_path: Path) -> None:
    gaps = [[3, 5, 200, 4, 6, 900, 2]] * 8  # no valley that few events could show
    dataset = dataset_with(tmp_path / "named", gaps, [[0, 0, 0, 1, 1, 1, 2, 2]] * 8)
    measured = measure_gaps(dataset)
    assert measured.source == "requests"
    assert 7 <= measured.seconds < 200
    facts = measured.facts()
    assert facts["neighbours"] == 56  # training events alone
    assert facts["share_in_one_request"] == pytest.approx(5 / 7)
    assert facts["share_within_gap"] == pytest.approx(5 / 7)
    picture = tmp_path / "gaps.png"
    assert command.run(str(dataset.directory), str(picture))["picture"] == str(picture)
    assert picture.stat().st_size > 5000


def test_an_open_gap_is_estimated_and_a_stated_one_is_kept(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "dataset", [[1, 1, 900] * 5] * 9)
    open_one = ModelSettings.model_validate({"prediction": {"hidden": "strict"}})
    settled = with_gap(open_one, dataset, tmp_path / "run")
    assert isinstance(settled.prediction.gap, int)
    assert 1 < settled.prediction.gap < 900
    assert (tmp_path / "run" / "gaps.png").is_file()
    stated = ModelSettings.model_validate({"prediction": {"hidden": "strict", "gap": 0}})
    assert with_gap(stated, dataset, tmp_path / "run") == stated
    plain = ModelSettings()
    assert with_gap(plain, dataset, tmp_path / "run") == plain


def test_a_log_whose_gaps_show_no_bursts_is_told_what_to_set(tmp_path: Path) -> None:
    dataset = dataset_with(tmp_path / "dataset", [[60] * 20] * 5)
    with pytest.raises(DatasetError, match=r"no valley.*set model.prediction.gap to a number of seconds"):
        measure_gaps(dataset)

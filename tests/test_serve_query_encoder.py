"""Query vectors at another precision, and from compiled shapes: the same up to rounding."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling.settings import ConditionSettings
from serve.answer import EncodedQuery, Query
from serve.build import run
from serve.engine import Engine
from serve.golden import check_golden
from serve.instructions import Wish
from serve.query_encoder import QueryEncoder
from serve.settings import CompiledShapes, Encoding
from tests.small_world import START, item_id, write_artifact, write_dataset

NOW = START + 400_000


@pytest.fixture(scope="module", params=["plain", "conditioned"])
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp(request.param)
    condition = ConditionSettings() if request.param == "conditioned" else None
    artifact = write_artifact(place / "artifact", write_dataset(place / "dataset"), condition=condition)
    run(str(artifact.directory), str(place / "release"), {"index": {}})
    return place / "release"


def queries_of(engine: Engine, counts: list[int]) -> list[EncodedQuery]:
    """Histories of so many events; every second asks for two categories where it can."""
    queries = []
    for number, count in enumerate(counts):
        ids = [item_id(1 + (number + place) % 60) for place in range(count)]
        times = [START + 1_000 * place for place in range(count)]
        wishes = [Wish(["even"]), Wish(["odd"])] if engine.takes_conditions and number % 2 else []
        queries.append(engine.encode(Query(ids, 5, NOW, timestamps=times, wishes=wishes)))
    return queries


def test_bf16_moves_vectors_by_thousandths_and_answers_stay_golden(release: Path) -> None:
    whole, half = Engine.open(release), Engine.open(release, encoding=Encoding(precision="bf16"))
    queries = queries_of(whole, [1, 3, 7, 2])
    expected_ND, found_ND = whole.query_vectors(queries), half.query_vectors(queries)
    assert found_ND.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), 1, atol=1e-5)
    assert ((expected_ND * found_ND).sum(axis=1) > 0.999).all()
    assert not np.array_equal(expected_ND, found_ND)  # it did compute at another precision
    check_golden(half, half.golden)
    rows_N = np.arange(1, 5)
    np.testing.assert_array_equal(half.item_vectors(rows_N), whole.item_vectors(rows_N))  # as the index has them


def test_compiled_shapes_give_the_vectors_of_the_model_as_it_is(release: Path) -> None:
    """In a process of its own: here calls are checked for shapes, and torch.compile cannot look through that."""
    if "conditioned" in str(release):
        pytest.skip("compiles as long again, and differs only in what is called")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.test_serve_query_encoder", str(release)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["compiled", "True", "True", "False", "False"]


def compare_compiled(release: str) -> None:
    """Print for each of some batches whether it took compiled code, all vectors being right."""
    shapes = CompiledShapes(histories=(4,), events=(6,), instructions=(2,))
    plain, engine = Engine.open(release), Engine.open(release, encoding=Encoding(compiled=shapes))
    engine.prepare()
    check_golden(engine, engine.golden)
    print("compiled")
    for counts in ([3], [1, 6, 2, 4], [7, 1], [1, 2, 3, 4, 5]):  # the last two fit into no compiled shape
        queries = queries_of(plain, counts)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            found_ND = engine.query_vectors(queries)
        np.testing.assert_allclose(found_ND, plain.query_vectors(queries), atol=1e-5)
        print(any("Compiled" in event.key for event in profile.key_averages()))


def test_a_batch_goes_into_the_smallest_shape_that_holds_it(release: Path) -> None:
    engine = Engine.open(release)
    shapes = CompiledShapes(histories=(1, 8), events=(4, 99), instructions=(1, 2))
    encoder = QueryEncoder(engine._retriever, Encoding(compiled=shapes), "cpu", 10)
    assert encoder._holding((1, 1, 1)) is None  # nothing is compiled yet
    encoder._compiled = True
    assert encoder._holding((1, 4, 1)) == (1, 4, 1)
    assert encoder._holding((2, 5, 1)) == (8, 10, 1)  # no shape is longer than a history can be
    assert encoder._holding((9, 1, 1)) is None
    two = (1, 4, 2) if encoder.takes_conditions else (1, 4, 1)
    assert encoder._holding((1, 2, 2)) == two


if __name__ == "__main__":
    compare_compiled(sys.argv[1])

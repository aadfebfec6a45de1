"""A second mixture run in the folder of an older one: it takes the bounds, but no checkpoints of other settings."""

import asyncio
import json

import pytest

from longshort.backends import ray_cluster
from longshort.mixture.run import run_mixture
from longshort.types import LongShortError
from tests.support.mixture_world import make_world, mixture_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def constant(world, tmp_path_factory):
    """A run with constant weights, and what it measured; its bounds are then used by the tests."""
    output = tmp_path_factory.mktemp("constant")
    stop = ray_cluster.start(mixture_config(world, output))
    yield output, asyncio.run(run_mixture(mixture_config(world, output, {"weighting": "constant"})))
    stop()


def test_constant_weights_never_move(constant):
    rows = (constant[0] / "mixture" / "trajectory.jsonl").read_text().splitlines()
    assert {json.loads(row)["alpha_short"] for row in rows} == {0.5}


def test_checkpoints_of_another_weighting_are_refused(world, constant):
    said = r"checkpoint-9 was made with mixture\.weighting = 'constant', now 'dynamic'"
    with pytest.raises(LongShortError, match=said):
        asyncio.run(run_mixture(mixture_config(world, constant[0])))


def test_bounds_on_other_problems_are_refused(world, constant):
    changed = mixture_config(world, constant[0], {"weighting": "constant", "dev_problems": 5})
    with pytest.raises(LongShortError, match=r"bounds\.json was made with mixture\.dev_problems = 6, now 5"):
        asyncio.run(run_mixture(changed))

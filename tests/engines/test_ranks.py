"""Ranks of a learner in Ray: a rank that dies is named, and more ranks than devices are refused."""

import signal

import pytest

from longshort.backends import ray_cluster
from longshort.types import LONG, LongShortError
from tests.support.deepspeed_ranks import recipe
from tests.support.learning_cases import save_tiny
from tests.support.lost_ranks import update_that_loses_a_rank

THERE = {"CPU": 4.0, "GPU": 3.0}


def test_a_rank_that_dies_ends_the_update_and_is_named(cluster, tmp_path):
    message = r"the long learner died: rank 1 of 2: .*; resume from the last checkpoint"
    with pytest.raises(LongShortError, match=message):
        update_that_loses_a_rank(save_tiny(tmp_path), signal.SIGKILL, timeout_s=15.0)


def test_more_ranks_than_cpus_are_refused_with_both_numbers():
    with pytest.raises(LongShortError, match=r"learner.ranks is 5 but the cluster has 4 CPUs"):
        ray_cluster.check_devices(recipe(learner={"ranks": 5}), THERE)


def test_more_ranks_than_gpus_are_refused_with_both_numbers():
    message = "2 learners of 2 ranks with 1 GPU each and engines with 0 take 4 GPUs but the cluster has 3"
    with pytest.raises(LongShortError, match=message):
        ray_cluster.check_devices(recipe(learner={"ranks": 2}, learner_gpus=1), THERE)


def test_as_many_ranks_as_gpus_are_taken():
    ray_cluster.check_devices(recipe(learner={"ranks": 3}, learner_gpus=1, protocol={"name": "solo"}), THERE)


def test_a_learner_of_more_ranks_than_the_cluster_has_is_refused(cluster):
    with pytest.raises(LongShortError, match=r"learner.ranks is 1000 but the cluster has"):
        ray_cluster.make_learner(LONG, "unused", recipe(learner={"ranks": 1000}), 4)

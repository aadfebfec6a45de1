"""What vLLM says when there is no memory for it."""

import asyncio

import pytest

from longshort.backends import ray_cluster
from longshort.miniature.tokenizer import build_tokenizer
from longshort.types import LONG, LongShortError
from tests.support import tiny_models


def test_no_memory_for_an_engine_is_explained(tmp_path):
    models = tiny_models.make(tmp_path)
    huge = tiny_models.role(models[LONG], kv_cache_gib=5000.0)
    config = tiny_models.config(tmp_path, models, long=huge)

    async def go():
        engine = ray_cluster.make_engine(LONG, models[LONG], config, build_tokenizer(LONG))
        try:
            await engine.start()
        finally:
            engine.close()

    stop = ray_cluster.start(config)
    try:
        with pytest.raises(
            LongShortError, match=r"long engine \(vllm, .*did not start.*lower long.engine.kv_cache_gib \(5000.0\)"
        ):
            asyncio.run(go())
    finally:
        stop()

"""A text embedded by one process, by two of its shards, and by Ray Data on two nodes."""

import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as arrow
import pyarrow.dataset
import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, SMALL, TOLERANCE, relative_error, script_environment, write_random_model

from elmo_jax import read_embeddings

PIPELINE = """
import os, sys, uuid
import pyarrow as arrow
import ray
from ray.cluster_utils import Cluster
from elmo_jax import EmbeddingColumn

model, texts, output, pooled, loaded = sys.argv[1:]


class Noted(EmbeddingColumn):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.actor = uuid.uuid4().hex
        with open(os.path.join(loaded, self.actor), "w") as file:
            file.write(ray.get_runtime_context().get_node_id())

    def __call__(self, batch):
        return super().__call__(batch).append_column("actor", arrow.array([self.actor] * len(batch)))


node = {"num_cpus": 2, "resources": {"accelerator": 1}, "object_store_memory": 10**8}
head = node | {"include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
try:
    cluster.add_node(**node)
    ray.init(cluster.address)
    ray.data.DataContext.get_current().wait_for_min_actors_s = 100
    dataset = ray.data.read_parquet(texts).repartition(target_num_rows_per_block=200)
    placed = {"resources": {"accelerator": 1}, "compute": ray.data.ActorPoolStrategy(size=2), "batch_size": 64}
    vectors = dataset.map_batches(
        Noted, fn_constructor_args=(model, "tokens", "vectors"), batch_format="pyarrow", **placed
    )
    vectors.write_parquet(output)
    means = dataset.map_batches(
        EmbeddingColumn,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={"pool": "mean", "dtype": "float16"},
        batch_format="pyarrow",
        **placed,
    )
    means.write_parquet(pooled)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
def test_one_process_two_shards_and_ray_agree(tmp_path):
    model = write_random_model(tmp_path / "model", SMALL)
    generator = np.random.default_rng(0)
    sentences = [[f"w{word}" for word in generator.integers(500, size=generator.integers(60))] for _ in range(3000)]
    for name in ("texts", "loaded"):
        (tmp_path / name).mkdir()
    for first in range(0, len(sentences), 300):
        part = range(first, first + 300)
        table = arrow.table({"tokens": sentences[first : first + 300], "id": part})
        parquet.write_table(table, tmp_path / "texts" / f"{first:04}.parquet")

    command = [sys.executable, "-m", "elmo_jax", "embed", "--model", model, "--input", tmp_path / "texts/*.parquet"]
    command += ["--batch_size", "4"]
    environment = script_environment()
    for output, *more in (("one.parquet",), ("two.parquet", "--shard", "0/2"), ("two.parquet", "--shard", "1/2")):
        embed = [*command, "--output", tmp_path / output, *more]
        subprocess.run(embed, cwd=ROOT, env=environment, check=True, timeout=300)
    # A path of its own, as that of a socket in it has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:
        folders = [tmp_path / name for name in ("ray.parquet", "means.parquet", "loaded")]
        pipeline = [sys.executable, "-c", PIPELINE, model, tmp_path / "texts", *folders]
        environment |= {"RAY_TMPDIR": temporary, "RAY_USAGE_STATS_ENABLED": "0"}
        subprocess.run(pipeline, cwd=ROOT, env=environment, check=True, timeout=500)
        until = time.monotonic() + 30
        while temporary in (left := subprocess.check_output(["ps", "-A", "-o", "args"], text=True)):
            assert time.monotonic() < until, left
            time.sleep(0.1)

    by_ray, means = (
        pyarrow.dataset.dataset(folder, format="parquet").to_table().sort_by("id").to_pydict() for folder in folders[:2]
    )
    with read_embeddings(tmp_path / "one.parquet") as one, read_embeddings(tmp_path / "two.parquet") as two:
        assert len(one) == len(two) == len(sentences)
        assert min(map(len, two.shards)) > 500
        for number, expected in enumerate(one):
            assert one.tokens(number) == two.tokens(number) == by_ray["tokens"][number] == sentences[number]
            assert (two[number] == expected).all()
            assert relative_error(np.reshape(by_ray["vectors"][number], expected.shape), expected) <= TOLERANCE
            mean = expected.mean(0) if len(expected) else np.zeros(expected.shape[1])
            assert np.abs(means["embedding"][number] - mean).max() <= 2e-3
    # On each node one actor, which has loaded the model once and embedded a part.
    nodes = {file.name: file.read_text() for file in (tmp_path / "loaded").iterdir()}
    assert set(by_ray["actor"]) == set(nodes)
    assert len(nodes) == len(set(nodes.values())) == 2

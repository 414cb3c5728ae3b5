"""A driver of its own: trains on a cluster of three nodes on this machine, and kills one that has a worker.

python -m tests.node_death RECIPE.json SUMMARY.json
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.training_runs import checkpoints, training_workers

TIMEOUT_SECONDS = 300


def kill_a_node(cluster: Cluster, run_dir: Path) -> None:
    """Once a checkpoint stands, kill a node that has a training worker and is not the head: raylet, workers, all."""
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in cluster.worker_nodes}
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        busy = [raylet for raylet in training_workers().values() if raylet in nodes] if checkpoints(run_dir) else []
        if busy:
            cluster.remove_node(nodes[busy[0]], allow_graceful=False)
            return
        time.sleep(0.1)


def main(recipe_file: str, summary_file: str) -> None:
    """Train on nodes of two CPUs, each of which one worker fills, beside a head whose one CPU is Ray Data's."""
    recipe = json.loads(Path(recipe_file).read_text())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    threading.Thread(target=kill_a_node, args=(cluster, Path(recipe["train"]["run_dir"])), daemon=True).start()
    import trainer.train

    summary = trainer.train.run(recipe)
    Path(summary_file).write_text(json.dumps({**summary, "nodes": len(cluster.list_all_nodes())}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])

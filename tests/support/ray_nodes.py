"""A cluster of Ray on this machine, whose workers and nodes can be killed."""

import contextlib
import os
import pathlib
import signal
import time

from ray.cluster_utils import Cluster

NODE = {"object_store_memory": 80 * 2**20}  # about the smallest that Ray accepts
# So that Ray soon notices that a node has ended.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000}
SECONDS = 300  # for a process to be started again, on a busy machine
TITLE = b"BartGenerator"  # in the title of a process that generates


@contextlib.contextmanager
def nodes(cpus):
    """Start a node for each number of CPUs, the first as the head; stop all at the end."""
    cluster = Cluster()
    try:
        cluster.add_node(**NODE, num_cpus=cpus[0], include_dashboard=False, _system_config=HEALTH)
        for count in cpus[1:]:
            cluster.add_node(**NODE, num_cpus=count)
        yield cluster
    finally:
        cluster.shutdown()


def workers(node):
    """Return the ids of a node's processes that generate."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.process.pid and TITLE in title:
                found.append(int(process.name))
    return found


def kill_worker(cluster, but):
    """Kill a process that generates as soon as there is one that is not in `but`; return its id."""
    end = time.monotonic() + SECONDS
    while not (found := {pid for node in cluster.list_all_nodes() for pid in workers(node)} - but):
        assert time.monotonic() < end
        time.sleep(0.1)
    pid = found.pop()
    os.kill(pid, signal.SIGKILL)
    return pid


def kill_node(cluster):
    """Kill a node, besides the head, preferably one that generates; wait until Ray knows."""
    node = max(cluster.worker_nodes, key=lambda node: len(workers(node)))
    cluster.remove_node(node, allow_graceful=False)
    cluster.wait_for_nodes(SECONDS)

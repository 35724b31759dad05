"""The command in several processes: one run, of which each process is a rank.

torchrun starts them, or Slurm through submitit (`launcher=slurm`). The first rank writes, prints and says what went wrong; the
others are quiet, and end as it ends.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime, timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from spectral import collectives, distributed

# Of a collective: who is gone is known by signs of life, and training may take as long as it likes.
PATIENCE = timedelta(days=30)
LAST = 20.0  # seconds that a rank waits for the others to end too: they see within a few that it has failed


def join() -> None:
    """Become a rank of the processes that were started together; nothing where there is one, or in a group already."""
    if of_a_job() and "WORLD_SIZE" not in os.environ:
        _from_submitit()
    if int(os.environ.get("WORLD_SIZE") or 1) == 1 or "RANK" not in os.environ or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0) % torch.cuda.device_count())
    store, rank, ranks = next(rendezvous("env://", timeout=PATIENCE))
    store.set_timeout(PATIENCE)
    # torchrun's store outlives an attempt, and the addresses in it those processes
    store = dist.PrefixStore(f"attempt {attempt()}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=PATIENCE)
    if not distributed.leads():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process lives)


def of_a_job() -> bool:
    """Whether submitit has started this process, for a command that waits for what it returns."""
    return bool(os.environ.get("SUBMITIT_EXECUTOR"))


def _from_submitit() -> None:
    """The tasks of a job as torchrun would tell them."""
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()


def attempt() -> int:
    """How often these processes were started before: by `torchrun --max-restarts`, or by Slurm, after one of them had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or os.environ.get("SLURM_RESTART_COUNT") or 0)


def begun() -> datetime:
    """When the first rank began, at its first attempt: the folders of a run are named by it, so that they are the same."""

    def first() -> str:
        now, store = datetime.now().isoformat(), getattr(dist.group.WORLD, "get_group_store", lambda: None)()
        while isinstance(store, dist.PrefixStore):  # that of this attempt; torchrun's own outlives it
            store = store.underlying_store
        return now if store is None else str(store.compare_set("spectral/begun", "", now).decode())

    return datetime.fromisoformat(distributed.by_first(first))


def leave(text: str, code: int) -> None:
    """End this process after a failure: the first rank says it, and nobody before."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher stops all others as soon as one has ended
    if distributed.leads():
        print(text, file=sys.stderr, flush=True)
    if not collectives.end(LAST) and not distributed.leads():
        print(text, file=sys.stderr, flush=True)
    sys.stderr.flush()
    os._exit(code)  # a group that has lost a rank cannot be taken down


def done() -> None:
    """End this process after success."""
    if dist.is_initialized():
        collectives.end()
        dist.destroy_process_group()

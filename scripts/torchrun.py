"""torchrun for the launchers of finetune/, with one-line errors: python scripts/torchrun.py [flags] PROGRAM ..

With `--rdzv_backend machines --rdzv_endpoint ADDRESS:PORT --rdzv_conf rank=N` each machine starts its processes without
waiting for the others. PROGRAM waits (`engines.initialize`), since it can name a missing rank.
"""

import os
import sys

from torch.distributed import DistError, PrefixStore, TCPStore, run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousStoreInfo, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint


class Machines(StaticTCPRendezvous):
    """torchrun's static rendezvous, changed so that no machine waits for the others before it starts."""

    def get_backend(self):
        return "machines"

    def next_rendezvous(self):
        if self._store is None:
            where = {"host_name": self.master_addr, "port": self.master_port, "is_master": self.rank == 0}
            self._store = TCPStore(**where, timeout=self.timeout, multi_tenant=True, wait_for_workers=False)
        address = RendezvousStoreInfo(self.master_addr, self.master_port)
        return RendezvousInfo(PrefixStore(self.run_id, self._store), self.rank, self.world_size, address)


def machines(parameters):
    """Return the Machines that torchrun's flags describe."""
    os.environ["TORCH_ELASTIC_WORKER_IDENTICAL"] = "1"  # equal numbers of processes, so ranks need no communication
    address, port = parse_rendezvous_endpoint(parameters.endpoint, 29500)
    rank, timeout = parameters.get_as_int("rank"), parameters.get_as_int("timeout", 600)
    return Machines(address, port, rank, parameters.max_nodes, parameters.run_id, timeout)


def main():
    """Run the processes of this machine; return the exit code of the first that failed, else 0."""
    rendezvous_handler_registry.register("machines", machines)
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        print(f"error: rank {rank} {ended}; what it had to say stands above", file=sys.stderr)
        sys.exit(code if code > 0 else 1)
    except SignalException as error:
        print(f"stopped by signal {error.sigval.value}", file=sys.stderr)
        sys.exit(128 + error.sigval.value)
    except DistError as error:
        reason = str(error).splitlines()[0]
        print(f"error: machine 0 (MASTER_ADDR, MASTER_PORT) cannot be reached: {reason}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

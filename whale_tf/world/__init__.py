"""The world: all processes of one run, and what they must know of one another. Imports no TensorFlow.

Tensors go over MPI. What is said here is small and must not get lost: who takes part, whether all have the same plan,
who died. It goes over one TCP star:

    whale run ─ Hub ◀── Member of rank 0       Members exchange bytes, compare digests, report failures
                 ▲ ◀─── Member of rank 1       a socket that ends without goodbye is a death: the kernel tells it
                 └───── runner of each rank    output, exit code and signal of the process; only under `whale run`

Without `whale run` the hub is a thread of rank 0, and the caller brings its address to the other ranks:

    environment = read_environment(os.environ)              # Environment(rank=2, size=4, source="PMI_RANK, PMI_SIZE")
    address, hub = read_address(os.environ), None           # None: not under `whale run`
    if address is None and environment.size > 1:
        if environment.rank == 0:
            hub = Hub(environment.size)
            address = hub.start()
        address = Address.parse(bytes_of_rank_0(str(address or "").encode()).decode())
    member = join(environment, address=address, on_abort=end_pending_operations, hub=hub)   # None in a world of one
    plans = member.exchange("fingerprint of the plan", fingerprint, read_timeout(os.environ))
"""

from whale_tf.world.address import Address
from whale_tf.world.environment import Environment, read_address, read_environment, read_timeout
from whale_tf.world.hub import Hub
from whale_tf.world.joining import join
from whale_tf.world.member import Member

__all__ = ["Address", "Environment", "Hub", "Member", "join", "read_address", "read_environment", "read_timeout"]

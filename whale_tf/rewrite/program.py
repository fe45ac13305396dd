"""What will run, as data: the main graph of one group of replicas, or one process's part of it, and what it calls.

The nodes of the main graph carry the device they run on. Besides TensorFlow's operations it has

| op          | inputs | meaning                                                                              |
|-------------|--------|--------------------------------------------------------------------------------------|
| `Call`      | values | one action: runs function `function`; `action`, `replica`, `phase`                   |
| `Place`     |        | who `member` of the devices `mesh` is in its collectives, and their `number`         |
| `Send`      | value  | to device `to` under `key`                                                           |
| `Recv`      |        | what device `source` sent under `key`                                                |
| `AllReduce` | values | `scale` times the `reduction` over the processes `ranks`, which call it by `label`   |
| `AllGather` | values | the rows of the processes `ranks`, one after another                                 |
| `Broadcast` | values | those of the process at place `root` of `ranks`                                      |
| `Reduce`    | values | sums over nodes on `devices` of one process, by a collective; the owner's are used   |
| `WhaleSum`  | values | `scale` times the sum of each `parts` of them, one after another                     |
| `Read`      |        | the value of variable `variable` when the step begins                                |
| `Assign`    | value  | the new value of variable `variable`                                                 |
| `Take`      |        | the argument of the step with this `index`                                           |
| `Outside`   |        | tensor number `index` from outside the step                                          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.rewrite.cut import StageFunction

BETWEEN_GROUPS = frozenset({"AllReduce", "AllGather", "Broadcast"})
COLLECTIVES = BETWEEN_GROUPS | {"Reduce"}
OF_MEMBERS = frozenset({"AllReduce", "AllGather", "AllToAll", "ReduceScatter"})  # in stage functions, of a mesh


@dataclass(frozen=True)
class Program:
    """A step over the devices of one group of replicas.

    Attributes:
      main: the graph that holds every device's actions; its outputs are those of the step.
      functions: stage functions by name.
      devices: names of the devices that nodes refer to by index.
      inline: whether calls may be inlined into the main graph.
      ordered: whether each call waits for the one before it on its device; else the data alone gives the order.
      processes: the process of each device; empty if there is only one.
      fed: whether each process takes its own replicas' examples only, in the place of the global batch.
      present: the processes whose devices it holds; the outputs come once for each.
      whole: where the step's own tensors are that there is one value of, in every process that has it.
    """

    main: Graph
    functions: Mapping[str, StageFunction]
    devices: tuple[str, ...]
    inline: bool
    ordered: bool
    processes: tuple[int, ...] = ()
    fed: bool = False
    present: tuple[int, ...] = (0,)
    whole: Mapping[Ref, tuple[Ref, ...]] = field(default_factory=dict)

    @property
    def host(self) -> int:
        """The first device of the first of its processes."""
        return self.processes.index(self.present[0]) if self.processes else 0

    def gradients(self, step: Graph) -> dict[str, Ref]:
        """Where the gradients of variables are, over all examples, by the names of their nodes in the step."""
        markers = [node.name for node in step if node.op == "Gradient" and node.attrs["variable"]]
        return {name: self.whole[Ref(name)][0] for name in markers if self.whole.get(Ref(name))}

    def process_of(self, node: Node) -> int:
        """The process that runs a node of the main graph."""
        return self.processes[node.device] if self.processes else 0

    def crosses(self, node: Node) -> bool:
        """Whether a Send or Recv goes to or comes from another process."""
        other = node.attrs["to" if node.op == "Send" else "source"]
        return bool(self.processes) and self.processes[node.device] != self.processes[other]

    def outputs_of(self, process: int) -> tuple[Ref, ...]:
        """The step's outputs in one of its processes."""
        count, place = len(self.main.outputs) // len(self.present), self.present.index(process)
        return self.main.outputs[place * count : (place + 1) * count]

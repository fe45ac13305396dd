"""What will run, as data: one main graph over all devices, and the functions it calls.

The nodes of the main graph carry the device they run on. Besides TensorFlow's operations it has

| op        | inputs | meaning                                                              |
|-----------|--------|----------------------------------------------------------------------|
| `Call`    | values | one action: runs function `function`; `action`, `replica`, `phase`   |
| `Send`    | value  | to device `to` under `key`; between processes under the number `id`   |
| `Recv`    |        | what device `source` sent under `key`                                |
| `AllReduce` | values | `scale` times the sums over the nodes of the same `id`, in `ranks`   |
| `Reduce` | values | the same over nodes on `devices` of one process, by a collective; the owner's are used |
| `WhaleSum` | values | `scale` times the sum of each `parts` of them, one after another         |
| `Read`    |        | the value of variable `variable` when the step begins                |
| `Assign`  | value  | the new value of variable `variable`                                 |
| `Take`    |        | the argument of the step with this `index`                           |
| `Outside` |        | tensor number `index` from outside the step                          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.rewrite.cut import StageFunction


@dataclass(frozen=True)
class Program:
    """A step over several devices.

    Attributes:
      main: the graph that holds every device's actions; its outputs are those of the step.
      functions: stage functions by name.
      devices: names of the devices that nodes refer to by index.
      inline: whether calls may be dissolved into the main graph, since no order among actions has to be kept.
      processes: the process of each device; empty if there is only one. The outputs then come once for each process.
      fed: whether each process takes its own replicas' examples only, in the place of the global batch.
      ids: how many numbers there are for what crosses processes, from 0.
      process: whose part it is; 0 also for the whole.
      whole: where the step's own tensors are that there is one value of, in every process that has it.
    """

    main: Graph
    functions: Mapping[str, StageFunction]
    devices: tuple[str, ...]
    inline: bool
    processes: tuple[int, ...] = ()
    fed: bool = False
    ids: int = 0
    process: int = 0
    whole: Mapping[Ref, tuple[Ref, ...]] = field(default_factory=dict)

    @property
    def host(self) -> int:
        """The first device of the process whose part it is."""
        return self.processes.index(self.process) if self.processes else 0

    def gradients(self, step: Graph) -> dict[str, Ref]:
        """Where the gradients of variables are, over all examples, by the names of their nodes in the step."""
        markers = [node.name for node in step if node.op == "Gradient" and node.attrs["variable"]]
        return {name: self.whole[Ref(name)][0] for name in markers if self.whole.get(Ref(name))}

    def process_of(self, node: Node) -> int:
        """The process that runs a node of the main graph."""
        return self.processes[node.device] if self.processes else 0

    def processes_with(self, op: str) -> dict[str, frozenset[int]]:
        """For each variable the processes that have a node of this op, Read or Assign, for it."""
        found: dict[str, set[int]] = {}
        for node in self.main:
            if node.op == op:
                found.setdefault(node.attrs["variable"].decode(), set()).add(self.process_of(node))
        return {name: frozenset(processes) for name, processes in found.items()}

    def outputs_of(self, process: int) -> tuple[Ref, ...]:
        """The step's outputs in one process."""
        count = len(self.main.outputs) // (max(self.processes, default=0) + 1)
        return self.main.outputs[process * count : (process + 1) * count]

"""When each operation runs: once per micro-batch, once per step, or wherever its value is wanted.

The step is a sequence of phases, the levels of `plan.states`. Even phases run for every micro-batch of every replica:
forward and backward. Odd phases run once: what follows from the gradients, and what needs all examples. A step with one
gradient call has the phases 0 and 1; one that updates, goes forward again with the new values and updates again (a GAN
trained in turns) has 0, 1, 2 and 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whale_tf.ir.graph import Graph, Node


@dataclass(frozen=True)
class Roles:
    """When each operation runs, and which of those that run per micro-batch are backward.

    Attributes:
      phase: for each node its phase; FREE for what depends on no example.
      backward: the nodes that lie between the forward and the final markers.
      markers: the gradients of variables that are merged over the parts.
      phases: how many there are.
    """

    phase: Mapping[str, int]
    backward: frozenset[str]
    markers: frozenset[str]
    phases: int

    def per_micro_batch(self, name: str) -> bool:
        """Whether the node runs once per micro-batch."""
        return _is_micro(self.phase[name])

    def per_step(self, name: str) -> bool:
        """Whether the node runs once per step, after micro-batches were merged."""
        return self.phase[name] % 2 == 1 and self.phase[name] > 0


def variable_of(node: Node) -> str:
    """The variable that a Variable, Write or Gradient node speaks of; empty for the gradient of another tensor."""
    return str(node.attrs["variable"].decode())


def find_roles(graph: Graph, phase: Mapping[str, int], markers: frozenset[str]) -> Roles:
    """The roles of every node of a step.

    Args:
      phase: the phase of every node.
      markers: the gradients that are merged over the parts.
    """
    return Roles(phase, _backward(graph, phase, markers), markers, 1 + max(phase.values(), default=0))


def _is_micro(level: int) -> bool:
    return level >= 0 and level % 2 == 0


def _backward(graph: Graph, phase: Mapping[str, int], markers: frozenset[str]) -> frozenset[str]:
    """Made by a final gradient call and not needed by any forward node (a While's gradient adds to its forward)."""
    calls = {graph[name].attrs["call"] for name in markers}
    made = {node.name for node in graph if node.call in calls and _is_micro(phase[node.name])}
    forward = [node.name for node in graph if _is_micro(phase[node.name]) and node.name not in made]
    needed = graph.ancestors(forward, stop=lambda node: phase[node.name] % 2 == 1)
    return frozenset(made - needed)

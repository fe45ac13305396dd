"""When each operation runs: once per micro-batch, once per step, or wherever its value is wanted.

The step is a sequence of phases. Even phases run for every micro-batch of every replica: forward and backward. Odd
phases run once: what follows from the gradients. A step with one gradient call has the phases 0 and 1; one that
updates, goes forward again with the new values and updates again (a GAN trained in turns) has 0, 1, 2 and 3.

    phase(node) = FREE                  if it depends on no example: constants, variables, learning rates
                  max over its inputs   otherwise
                  + 1                   behind a final gradient marker, and where a per-example value meets an odd phase

A marker that another gradient call differentiates through is an inner one (a gradient penalty), and so is the
gradient of a per-example tensor: both are ordinary per-example code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whale_tf.ir.graph import Graph, Node, Ref, Shape
from whale_tf.ir.reductions import FLOATS, RANDOM, accumulates, is_mean, reduces_examples, reduction_of

FREE = -1
ACCUMULATED = frozenset({"SUM", "MEAN"})


@dataclass(frozen=True)
class Roles:
    """When each operation runs, and which of those that run per micro-batch are backward.

    Attributes:
      phase: for each node its phase; FREE for what depends on no example.
      backward: the nodes that lie between the forward and the final markers.
      markers: the final markers.
      carried: variables that every micro-batch changes: moving averages, metrics.
      phases: how many there are.
    """

    phase: Mapping[str, int]
    backward: frozenset[str]
    markers: frozenset[str]
    carried: frozenset[str]
    phases: int

    def per_micro_batch(self, name: str) -> bool:
        """Whether the node runs once per micro-batch."""
        phase = self.phase[name]
        return phase >= 0 and phase % 2 == 0

    def per_step(self, name: str) -> bool:
        """Whether the node runs once per step, after micro-batches were merged."""
        return self.phase[name] % 2 == 1 and self.phase[name] > 0


def variable_of(node: Node) -> str:
    """The variable that a Variable, Write or Gradient node speaks of; empty for the gradient of another tensor."""
    return str(node.attrs["variable"].decode())


def find_roles(graph: Graph, examples: int = 0) -> Roles:
    """The roles of every node of a step.

    Args:
      examples: the size of the micro-batch that the graph was traced at; 0 if nothing in it is a batch.
    """
    markers = _final_markers(graph)
    once = _accumulated_once(graph, examples)
    per_example = _random_ops_of_examples(graph, markers)
    carried: frozenset[str] = frozenset()
    early: frozenset[str] = frozenset()
    while True:
        phase, late = _phases(graph, markers, per_example, carried, once, early, examples)
        written = {variable_of(n) for n in graph if n.op == "Write" and phase[n.name] >= 0 and phase[n.name] % 2 == 0}
        demoted = _needed_by_micro(graph, phase, late, markers, once)
        if written <= carried and demoted <= early:
            break
        carried |= written
        early |= demoted
    backward = _backward(graph, phase, markers)
    return Roles(phase, backward, markers, carried, 1 + max((p for p in phase.values()), default=0))


def _final_markers(graph: Graph) -> frozenset[str]:
    """Gradients that are reduced over the examples: not of per-example tensors, and not differentiated again."""
    again = {
        graph[node.twin].call
        for node in graph
        if node.twin and node.twin in graph and graph[node.twin].call != node.call
    }
    return frozenset(
        node.name
        for node in graph
        if node.op == "Gradient" and node.attrs["call"] not in again and not node.attrs.get("of_examples")
    )


def _accumulated_once(graph: Graph, examples: int) -> frozenset[str]:
    """Nodes that add to an accumulated variable something that the whole batch has one of, like its mean loss.

    A constant that is added (a metric's count) goes with what was accumulated before it.
    """
    once: set[str] = set()
    accumulated = _accumulated(graph)
    last = False
    behind = _reachable(graph, [node.name for node in graph if node.op == "Gradient"])
    batch = _reachable(graph, [node.name for node in graph if node.op == "Input" and node.attrs["batch"]])
    starts = _first_values(graph)
    for node in graph:
        if node.op != "Write" or not (accumulated or batch):
            continue
        added = graph[node.inputs[0].node]
        terms = [ref for ref in added.inputs if graph[ref.node].op not in ("Variable", "Write")]
        summed = variable_of(node) in accumulated
        if added.op not in ("AddV2", "Sub") or len(terms) != 1:
            last = last and not summed
        elif terms[0].node in behind:
            last = last or summed
        elif terms[0].node in batch:
            mean = graph.type_of(terms[0]).shape == Shape() and reduction_of(graph, terms[0], examples) == "mean"
            if summed:
                last = mean
            elif mean and accumulates(graph, added, starts[variable_of(node)]):
                once.update((added.name, node.name))
        if last and summed:
            once.update((added.name, node.name))
    return frozenset(once)


def _first_values(graph: Graph) -> dict[str, str]:
    """For each variable the node of the value it has when the step begins."""
    return {variable_of(node): node.name for node in graph if node.op == "Variable"}


def _accumulated(graph: Graph) -> set[str]:
    return {variable_of(n) for n in graph if n.op == "Variable" and n.attrs["aggregation"].decode() in ACCUMULATED}


def _reachable(graph: Graph, names: Iterable[str]) -> set[str]:
    reached: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        for user in graph.users[name]:
            if user not in reached and graph[user].op != "Write":
                reached.add(user)
                stack.append(user)
    return reached


def _random_ops_of_examples(graph: Graph, markers: frozenset[str]) -> frozenset[str]:
    """Random ops that draw anew for each micro-batch: all but those that only the update uses (noise on gradients)."""
    draws = [node.name for node in graph if node.op in RANDOM]
    if not draws:
        return frozenset()
    if not markers:
        return frozenset(draws)
    before = graph.ancestors(markers)
    behind = _reachable(graph, markers)
    return frozenset(
        name for name in draws if name in before or not any(user in behind for user in _reachable(graph, [name]))
    )


def _phases(
    graph: Graph,
    markers: frozenset[str],
    per_example: frozenset[str],
    carried: frozenset[str],
    once: frozenset[str],
    early: frozenset[str],
    examples: int,
) -> tuple[dict[str, int], dict[str, bool]]:
    """One sweep; `late` nodes can wait until values are merged, `early` ones are known to be wanted before.

    What is computed from merged values only, as the accuracy of a metric or the square root of a mean, is late: so it
      is what one device computes. `late` tells whether it waits for a reduction, and not only for states.
    """
    phase: dict[str, int] = {}
    late: dict[str, bool] = {}
    merges: set[str] = set()
    starts = _first_values(graph)
    accumulated = _accumulated(graph)
    for node in graph:
        name, op = node.name, node.op
        inputs = [phase[ref.node] for ref in node.inputs]
        level = max(inputs, default=FREE)
        if op == "Input":
            level = 0 if node.attrs["batch"] else FREE
        elif op == "Variable":
            level = 0 if variable_of(node) in carried else FREE
        elif op == "Write":
            source, start = node.inputs[0].node, starts[variable_of(node)]
            if level == FREE and variable_of(node) in accumulated and name not in once:
                level = 0 if start in graph.ancestors([source]) else FREE
            elif source in merges and graph[source].op != "Write" and start not in graph.ancestors([source]):
                level += 1
            if _is_micro(level):
                merges.add(name)
        elif name in markers:
            level += _is_micro(level)
        elif name in per_example or (op == "Gradient" and node.attrs.get("of_examples")):
            level = max(0, level + level % 2 if level > 0 else 0)
        elif name in once and _is_micro(level):
            level += 1
        elif (
            _is_micro(level)
            and not node.call
            and (reduces_examples(graph, node, examples) or is_mean(graph, node, examples))
        ):
            merges.add(name)
        elif level % 2 and level > 0 and node.call and op != "Gradient":
            level += 1  # backward code of a later round: its shapes are those of a micro-batch
        elif level >= 0:
            level = _meeting(graph, node, phase, level, merges, name in early)
            if level % 2 and all(
                s in merges or s in late or phase[s] == FREE for s in {ref.node for ref in node.inputs}
            ):
                sources = [ref.node for ref in node.inputs]
                late[name] = any(late.get(s, s in merges and graph[s].op != "Write") for s in sources)
        phase[name] = level
    return phase, late


def _meeting(graph: Graph, node: Node, phase: Mapping[str, int], level: int, merges: set[str], early: bool) -> int:
    """The phase of an ordinary node whose latest input is in phase `level`."""
    micro = [ref for ref in node.inputs if _is_micro(phase[ref.node])]
    if not micro:
        return level
    if not early:
        if all(ref.node in merges for ref in micro):
            return level + (level % 2 == 0)
        if (level % 2 or leaves_the_step(node)) and all(_mergeable(graph, ref) for ref in micro):
            return level + (level % 2 == 0)
    return level + level % 2


def leaves_the_step(node: Node) -> bool:
    """Whether the node only tells the world: a print, a summary, the text of one."""
    text = bool(node.outputs) and all(kind.dtype == "string" for kind in node.outputs) and node.op != "DecodeRaw"
    return text or (node.stateful and not node.outputs and node.op != "Assert")


def _mergeable(graph: Graph, ref: Ref) -> bool:
    kind = graph.type_of(ref)
    return kind.shape == Shape() and kind.dtype in FLOATS


def _is_micro(level: int) -> bool:
    return level >= 0 and level % 2 == 0


def _needed_by_micro(
    graph: Graph, phase: Mapping[str, int], late: Mapping[str, bool], markers: frozenset[str], once: frozenset[str]
) -> frozenset[str]:
    """Late nodes that an even phase waits for, or a gradient, or a variable that each micro-batch is to change."""
    wanted: set[str] = set()
    starts = _first_values(graph)

    def waits(name: str, user: str) -> bool:
        if user in wanted or user in markers:
            return True
        if graph[user].op == "Write" and late[name] and user not in once:
            start = graph[starts[variable_of(graph[user])]]  # what is trained is written once, by hand or not
            return not start.attrs["trainable"] and start.name in graph.ancestors([name])
        return _is_micro(phase[user]) and phase[user] <= phase[name] + 1

    for name in reversed(list(graph.nodes)):
        if name in late and any(waits(name, user) for user in graph.users[name]):
            wanted.add(name)
    return frozenset(wanted)


def _backward(graph: Graph, phase: Mapping[str, int], markers: frozenset[str]) -> frozenset[str]:
    """Made by a final gradient call and not needed by any forward node (a While's gradient adds to its forward)."""
    calls = {graph[name].attrs["call"] for name in markers}
    made = {node.name for node in graph if node.call in calls and _is_micro(phase[node.name])}
    forward = [node.name for node in graph if _is_micro(phase[node.name]) and node.name not in made]
    needed = graph.ancestors(forward, stop=lambda node: phase[node.name] % 2 == 1)
    return frozenset(made - needed)

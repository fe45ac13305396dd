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
from whale_tf.plan.reductions import FLOATS, reduction_of

FREE = -1
RANDOM = frozenset(
    {
        "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "RandomShuffle", "Multinomial",
        "RandomGammaV2", "RandomGamma", "RandomPoissonV2", "ParameterizedTruncatedNormal",
        "SampleDistortedBoundingBoxV2",
        "StatelessRandomGetKeyCounter", "StatelessRandomUniform", "StatelessRandomUniformInt", "StatelessRandomNormal",
        "StatelessTruncatedNormal", "StatelessMultinomial", "StatelessRandomBinomial", "StatelessRandomPoisson",
        "StatelessRandomGammaV2", "StatelessRandomGammaV3", "StatelessRandomUniformFullInt",
        "StatelessParameterizedTruncatedNormal", "StatelessShuffle", "StatelessSampleDistortedBoundingBox",
    }
)  # fmt: skip
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
    markers = _final_markers(graph, examples)
    once = _accumulated_once(graph, examples)
    per_example = _random_ops_of_examples(graph, markers)
    carried: frozenset[str] = frozenset()
    early: frozenset[str] = frozenset()
    while True:
        phase, late = _phases(graph, markers, per_example, carried, once, early)
        written = {variable_of(n) for n in graph if n.op == "Write" and phase[n.name] >= 0 and phase[n.name] % 2 == 0}
        demoted = _needed_by_micro(graph, phase, late)
        if written <= carried and demoted <= early:
            break
        carried |= written
        early |= demoted
    backward = _backward(graph, phase, markers)
    return Roles(phase, backward, markers, carried, 1 + max((p for p in phase.values()), default=0))


def _final_markers(graph: Graph, examples: int) -> frozenset[str]:
    """Gradients that are reduced over the examples: not of per-example tensors, and not differentiated again."""
    again = {
        graph[node.twin].call
        for node in graph
        if node.twin and node.twin in graph and graph[node.twin].call != node.call
    }
    return frozenset(
        node.name
        for node in graph
        if node.op == "Gradient"
        and node.attrs["call"] not in again
        and not (node.outputs[0].shape[:1] == (examples,) and not variable_of(node) and node.attrs["part"] == b"dense")
    )


def _accumulated_once(graph: Graph, examples: int) -> frozenset[str]:
    """Nodes that add to an accumulated variable something that the whole batch has one of, like its mean loss.

    A constant that is added (a metric's count) goes with what was accumulated before it.
    """
    once: set[str] = set()
    accumulated = {
        variable_of(n) for n in graph if n.op == "Variable" and n.attrs["aggregation"].decode() in ACCUMULATED
    }
    last = False
    behind = _reachable(graph, [node.name for node in graph if node.op == "Gradient"]) if accumulated else set()
    batch = (
        _reachable(graph, [node.name for node in graph if node.op == "Input" and node.attrs["batch"]])
        if accumulated
        else set()
    )
    for node in graph:
        if node.op != "Write" or variable_of(node) not in accumulated:
            continue
        added = graph[node.inputs[0].node]
        terms = [ref for ref in added.inputs if graph[ref.node].op not in ("Variable", "Write")]
        if added.op == "AddV2" and len(terms) == 1 and terms[0].node in behind:
            last = True
        elif added.op == "AddV2" and len(terms) == 1 and terms[0].node in batch:
            last = graph.type_of(terms[0]).shape == Shape() and reduction_of(graph, terms[0], examples) == "mean"
        elif added.op != "AddV2" or len(terms) != 1:
            last = False
        if last:
            once.update((added.name, node.name))
    return frozenset(once)


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
) -> tuple[dict[str, int], set[str]]:
    """One sweep; `late` are nodes that could wait until states are merged, `early` those known to be wanted before."""
    phase: dict[str, int] = {}
    late: set[str] = set()
    merges: set[str] = set()
    accumulated = {
        variable_of(n) for n in graph if n.op == "Variable" and n.attrs["aggregation"].decode() in ACCUMULATED
    }
    for node in graph:
        name, op = node.name, node.op
        inputs = [phase[ref.node] for ref in node.inputs]
        level = max(inputs, default=FREE)
        if op == "Input":
            level = 0 if node.attrs["batch"] else FREE
        elif op == "Variable":
            level = 0 if variable_of(node) in carried else FREE
        elif op == "Write":
            if level == FREE and variable_of(node) in accumulated and name not in once:
                level = 0
            if _is_micro(level):
                merges.add(name)
        elif name in markers:
            level += _is_micro(level)
        elif name in per_example:
            level = max(0, level + level % 2 if level > 0 else 0)
        elif name in once and _is_micro(level):
            level += 1
        elif level >= 0:
            level = _meeting(graph, node, phase, level, merges, late, name in early)
            if level % 2 and all(ref.node in merges or not _is_micro(phase[ref.node]) for ref in node.inputs):
                late.add(name)
        phase[name] = level
    return phase, late


def _meeting(
    graph: Graph, node: Node, phase: Mapping[str, int], level: int, merges: set[str], late: set[str], early: bool
) -> int:
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


def _needed_by_micro(graph: Graph, phase: Mapping[str, int], late: set[str]) -> frozenset[str]:
    """Late nodes that a node of an even phase waits for although nothing but merged states made them late."""
    wanted: set[str] = set()
    for name in reversed(list(graph.nodes)):
        if name in late and any(
            user in wanted or (_is_micro(phase[user]) and phase[user] <= phase[name] + 1) for user in graph.users[name]
        ):
            wanted.add(name)
    return frozenset(wanted)


def _backward(graph: Graph, phase: Mapping[str, int], markers: frozenset[str]) -> frozenset[str]:
    """Made by a final gradient call and not needed by any forward node (a While's gradient adds to its forward)."""
    calls = {graph[name].attrs["call"] for name in markers}
    made = {node.name for node in graph if node.call in calls and node.op != "Gradient" and _is_micro(phase[node.name])}
    forward = [node.name for node in graph if _is_micro(phase[node.name]) and node.name not in made]
    needed = graph.ancestors(forward, stop=lambda node: phase[node.name] % 2 == 1)
    return frozenset(made - needed)

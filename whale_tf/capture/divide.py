"""Divides a branch that writes several variables into one for each set of results that share work.

An optimizer that updates under a condition (a loss scale, gradients accumulated over steps) writes all variables in one
branch, which would run on one device. Divided, each variable's update can run where the variable is owned.

    Before:  w2, b2 = StatelessIf(c, w, dw, b, db) {then: Sub(w, dw), Sub(b, db); else: w, b}
    After:   w2 = StatelessIf(c, w, dw) {then: Sub(w, dw); else: w};  b2 = StatelessIf(c, b, db) {then: ...; else: b}

What is made of numbers alone is computed in each that uses it. A number that is made of one set's tensors and used by
another, such as the square of a gradient in the norm of all, is the result of a branch of its own:

    Before:  w2, b2 = If(c, ...) {then: s = Add(Sum(dw), Sum(db)); Div(dw, s), Div(db, s); else: w, b}
    After:   m = If(c, dw) {then: Sum(dw); else: 0};  n = If(c, db) {then: Sum(db); else: 0}
             w2 = If(c, w, dw, m, n) {then: Div(dw, Add(m, n)); else: w};  b2 = If(c, b, db, m, n) {...}

Bodies with effects stay as they are, and so does a branch that is differentiated.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from whale_tf.capture.shared_work import find_shared
from whale_tf.capture.translate import PASS_THROUGH
from whale_tf.ir.functions import called, functions_of, with_functions
from whale_tf.ir.graph import Graph, Node, Ref, TensorType

DIVISIBLE = frozenset({"StatelessIf", "StatelessCase"})


def divide(graph: Graph, calls: Mapping[str, Graph]) -> tuple[Graph, dict[str, Graph]]:
    """The step with its updates under a condition divided, and what its nodes call then."""
    twins = {node.twin for node in graph}
    written: dict[str, set[bytes]] = {}
    for node in graph:
        if node.op == "Write":
            written.setdefault(node.inputs[0].node, set()).add(node.attrs["variable"])
    updates = {name for name, variables in written.items() if len(variables) > 1 and name not in twins}
    division = _Division(dict(calls))
    divided = division.graph(graph, "", updates)
    return divided, called([divided], division.calls)


@dataclass
class _Division:
    """Divides branches.

    Attributes:
      calls: the functions that nodes call; added to.
    """

    calls: dict[str, Graph]

    def graph(self, graph: Graph, name: str, branches: Collection[str] | None = None) -> Graph:
        """The graph with branches divided: those of these names, or all.

        Args:
          name: of the function that it is; empty for the step.
        """
        nodes: list[Node] = []
        moved: dict[Ref, Ref] = {}
        for node in graph:
            node = node.with_(inputs=tuple(moved.get(ref, ref) for ref in node.inputs))
            if node.op not in DIVISIBLE or node.stateful or (branches is not None and node.name not in branches):
                nodes.append(node)
                continue
            for made, results in self._divided(node, name):
                nodes.append(made)
                moved |= {Ref(node.name, result): Ref(made.name, index) for index, result in enumerate(results)}
        return Graph.of(nodes, [moved.get(ref, ref) for ref in graph.outputs], graph.effects, attrs=graph.attrs)

    def _divided(self, node: Node, outer: str) -> Iterator[tuple[Node, Sequence[int]]]:
        """The branches that one becomes, each with those of its results that it gives."""
        names = functions_of(node)
        bodies = {attribute: self.graph(_bare(self.calls[name]), name) for attribute, name in names.items()}
        shared = find_shared(list(bodies.values()), len(node.outputs))
        if len(shared.sets) < 2:
            yield node, range(len(node.outputs))
            return
        writer = _Writer(self.calls, node, outer, bodies)
        for number, name in shared.numbers:
            yield writer.number(number, name), ()
        for results in shared.sets:
            yield writer.results(results), results


def _bare(body: Graph) -> Graph:
    """A body without effects as what its results need, and nothing that only passes on; its arguments all stay."""
    passed: dict[Ref, Ref] = {}
    nodes: list[Node] = []
    for node in body:
        node = node.with_(inputs=tuple(passed.get(ref, ref) for ref in node.inputs), control=())
        if node.op in PASS_THROUGH:
            passed |= {Ref(node.name, index): ref for index, ref in enumerate(node.inputs)}
        else:
            nodes.append(node)
    whole = Graph.of(nodes, [passed.get(ref, ref) for ref in body.outputs], attrs=body.attrs)
    needed = whole.pruned()
    return replace(whole, nodes={node.name: node for node in nodes if node.op == "Argument" or node.name in needed})


class _Taken(NamedTuple):
    """What the new branches take: an argument of the undivided one, by its index, or a number that a body makes."""

    argument: int
    body: str = ""
    ref: Ref = Ref("")


@dataclass
class _Writer:
    """Writes the branches that one branch becomes.

    Attributes:
      calls: the functions that nodes call; added to.
      node: the branch, in the function `outer`.
      bodies: what it calls, by attribute.
      sources: where each argument, and each number that is handed by now, comes from, and its type.
    """

    calls: dict[str, Graph]
    node: Node
    outer: str
    bodies: Mapping[str, Graph]

    def __post_init__(self) -> None:
        (first, *_) = self.bodies.values()
        kinds = {node.attrs["index"]: node.outputs[0] for node in first if node.op == "Argument"}
        self.sources = {_Taken(index): (ref, kinds[index]) for index, ref in enumerate(self.node.inputs[1:])}

    def number(self, body: int, name: str) -> Node:
        """The branch that gives what a node of one body makes; where another body is chosen it gives zero."""
        attribute = list(self.bodies)[body]
        kinds = self.bodies[attribute][name].outputs
        refs = [Ref(name, index) for index in range(len(kinds))]
        handed = len(self.sources) - len(self.node.inputs[1:])
        made = self._branch(f"number_{handed}", {attribute: refs}, kinds)
        for ref, kind in zip(refs, kinds, strict=True):
            self.sources[_Taken(-1, attribute, ref)] = (Ref(made.name, ref.index), kind)
        return made

    def results(self, results: Sequence[int]) -> Node:
        """The branch that gives these results."""
        wanted = {attribute: [body.outputs[k] for k in results] for attribute, body in self.bodies.items()}
        return self._branch(f"results_{results[0]}", wanted, [self.node.outputs[k] for k in results])

    def _branch(self, suffix: str, wanted: Mapping[str, Sequence[Ref]], kinds: Sequence[TensorType]) -> Node:
        name = f"{self.node.name}/{suffix}"
        needed = {attribute: self._needed(attribute, refs) for attribute, refs in wanted.items()}
        used = {each for _, found in needed.values() for each in found.values()}
        taken = [each for each in self.sources if each in used]
        functions: dict[str, str] = {}
        for attribute, body in self.bodies.items():
            functions[attribute] = "/".join(filter(None, (self.outer, name, attribute)))
            names = [f"argument_{position}" for position in range(len(taken))]
            nodes = [
                Node(names[position], "Argument", attrs={"index": position}, outputs=(self.sources[each][1],))
                for position, each in enumerate(taken)
            ]
            if attribute in wanted:
                inside, found = needed[attribute]
                moved = {ref: Ref(names[taken.index(each)]) for ref, each in found.items()}
                nodes += [self._copied(node, moved, functions[attribute]) for node in inside]
                outputs = [moved.get(ref, ref) for ref in wanted[attribute]]
            else:
                nodes += [_zero(f"zero_{index}", kind) for index, kind in enumerate(kinds)]
                outputs = [Ref(f"zero_{index}") for index in range(len(kinds))]
            self.calls[functions[attribute]] = Graph.of(nodes, outputs, attrs=body.attrs)
        attrs = {
            **self.node.attrs,
            "Tin": tuple(self.sources[each][1].dtype for each in taken),
            "Tout": tuple(kind.dtype for kind in kinds),
            "output_shapes": tuple(kind.shape for kind in kinds),
        }
        inputs = (self.node.inputs[0], *(self.sources[each][0] for each in taken))
        made = self.node.with_(name=name, inputs=inputs, attrs=attrs, outputs=tuple(kinds))
        return with_functions(made, lambda attribute, _: functions[attribute])

    def _needed(self, attribute: str, refs: Sequence[Ref]) -> tuple[list[Node], dict[Ref, _Taken]]:
        """The nodes of a body that some of its tensors need, and what these take from outside it."""
        body, found, taken = self.bodies[attribute], set[str](), dict[Ref, _Taken]()
        waiting = list(refs)
        while waiting:
            ref = waiting.pop()
            node, number = body[ref.node], _Taken(-1, attribute, ref)
            if node.op == "Argument":
                taken[ref] = _Taken(node.attrs["index"])
            elif number in self.sources:
                taken[ref] = number
            elif node.name not in found:
                found.add(node.name)
                waiting.extend(node.inputs)
        return [node for node in body if node.name in found], taken

    def _copied(self, node: Node, moved: Mapping[Ref, Ref], outer: str) -> Node:
        """A node in another body, whose functions are its own."""
        node = node.with_(inputs=tuple(moved.get(ref, ref) for ref in node.inputs))

        def copied(attribute: str, name: str) -> str:
            if name not in self.calls:
                return name
            own = f"{outer}/{node.name}/{attribute}"
            body = self.calls[name]
            nodes = [self._copied(each, {}, own) for each in body]
            self.calls[own] = Graph.of(nodes, body.outputs, body.effects, attrs=body.attrs)
            return own

        return with_functions(node, copied)


def _zero(name: str, kind: TensorType) -> Node:
    value = {"bool": False, "string": b""}.get(kind.dtype, 0)
    return Node(name, "Const", attrs={"dtype": kind.dtype, "value": value, "shape": kind.shape}, outputs=(kind,))

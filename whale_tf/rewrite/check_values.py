"""The part of `check` that follows the main graph and the step side by side, from what leaves them to what enters.

main:  Assign(w, Sub(Read w, Mul(rate, Mul(AddN(calls), ¼))))
step:  Write(w, Sub(w,      Mul(rate, Gradient)))              node by node; at Gradient, the sum over the calls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whale_tf.ir.graph import ALIAS_OPS, Graph, Node, Ref
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Split
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.rewrite.check_calls import Calls, Part
from whale_tf.rewrite.check_sums import ADDED, JOINED, Sum, Term, differences
from whale_tf.rewrite.merge import FOLDS

# What brings a boundary value into the main graph, and the attribute that says which.
_BOUNDARY: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Input": ("Take", "index"),
        "Variable": ("Read", "variable"),
        "Captured": ("Outside", "index"),
        "Handle": ("Outside", "index"),
    }
)


@dataclass
class Correspondence:
    """Which nodes of the main graph stand for which of the step.

    Attributes:
      graph: the step at the size of its largest micro-batch.
      images: for each operation that does not run per micro-batch, the nodes of the main graph that compute it.
    """

    calls: Calls
    graph: Graph
    roles: Roles
    images: dict[str, dict[str, None]] = field(default_factory=dict)
    orders: dict[str, list[Part]] = field(default_factory=dict)
    stack: list[tuple[Ref, Ref]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.main, self.plan = self.calls.main, self.calls.plan
        self.reading = self.calls.program.processes_with("Read")

    def faults(self) -> Iterator[str]:
        """Everything in which the main graph is another step."""
        self.stack += self.calls.step_values()
        yield from self._outputs_and_effects()
        seen: set[tuple[Ref, Ref]] = set()
        while self.stack:
            pair = self.stack.pop()
            if pair not in seen:
                seen.add(pair)
                yield from self._match(*pair)
        for name, order in self.orders.items():
            partner = self.graph[name].attrs["partner"].decode()
            if name < partner and self.orders.get(partner, order) != order:
                yield f"'{name}' is concatenated as {order}, and its partner '{partner}' as {self.orders[partner]}"

    def _outputs_and_effects(self) -> Iterator[str]:
        """Pairs what leaves the step with what leaves the main graph."""
        graph, main, program = self.graph, self.main, self.calls.program
        for process in range(len(self.plan.layout.hosts)):
            outputs = program.outputs_of(process)
            if len(outputs) != len(graph.outputs):
                yield f"the step has {len(graph.outputs)} outputs, and process {process} {len(outputs)}"
            self.stack += zip(outputs, graph.outputs, strict=False)
        assigns: dict[bytes, list[Node]] = {}
        for node in main:
            if node.op == "Assign":
                assigns.setdefault(node.attrs["variable"], []).append(node)
        once: list[str] = []
        for name in graph.effects:
            node = graph[name]
            if node.op == "Write":
                found = assigns.pop(node.attrs["variable"], [])
                where = [program.process_of(assign) for assign in found if assign.name in main.effects]
                if len(found) != len(where) or not self._up_to_date(variable_of(node), where):
                    yield f"variable '{variable_of(node)}' is assigned {len(found)} times, or its Assign is no effect"
                self.stack += [(assign.inputs[0], Ref(name)) for assign in found]
            elif not self.roles.per_micro_batch(name):
                once.append(name)
        yield from (f"variable '{key.decode()}' is assigned, and the step does not write it" for key in assigns)
        others = [name for name in main.effects if main[name].op not in ("Assign", "NoOp")]
        if len(others) != len(once):
            yield f"the step has {len(once)} effects that run once, and the program {len(others)}"
        self.stack += [(Ref(image), Ref(name)) for image, name in zip(others, once, strict=False)]

    def _up_to_date(self, variable: str, where: list[int]) -> bool:
        """Whether a variable gets its new value once in each process that is to have it."""
        if variable in self.plan.unmirrored:
            wanted = self.reading.get(variable, frozenset()) or {*where}
        else:
            wanted = frozenset(range(len(self.plan.layout.hosts)))
        return bool(where) and wanted <= {*where} and len({*where}) == len(where)

    def _match(self, given: Ref, wanted: Ref) -> Iterator[str]:
        """One tensor of the main graph that must be that of the step; what both are made of is for the next turns."""
        given = self.calls.origin(given)
        node = self.main[given.node]
        target = self.graph[wanted.node]
        brought, attribute = _BOUNDARY.get(target.op, ("", ""))
        if brought and node.op == brought:
            there, here = node.attrs[attribute], target.attrs[attribute]
            if there != here:
                yield f"'{node.name}' brings {attribute} {there!r}, and the step takes {attribute} {here!r}"
        elif target.name in self.roles.markers:
            yield from self._gradient(given, target)
        elif self.roles.per_micro_batch(target.name):
            yield from self._merge(given, wanted)
        elif target.op in ALIAS_OPS:
            self.stack.append((given, target.inputs[0]))
        elif _same(node, target) and given.index == wanted.index:
            self.images.setdefault(target.name, {})[node.name] = None
            self.stack += zip(node.inputs, target.inputs, strict=True)
        else:
            yield f"'{given}' ({node.op}) stands where the step has '{wanted}' ({target.op}), another operation"

    def _gradient(self, given: Ref, marker: Node) -> Iterator[str]:
        """A marker's value: each micro-batch once; what depends on no example as it is."""
        source = marker.inputs[0]
        if not self.roles.per_micro_batch(source.node):
            self.stack.append((given, source))
            return
        of_variable = f" of variable '{variable_of(marker)}'" if variable_of(marker) else ""
        value = self.plan.merges.get(Ref(marker.name))
        joined = value is not None and isinstance(value.state, Split)
        title = f"gradient '{marker.name}'{of_variable}"
        terms: list[Term] = []
        for item in Sum(title, given, source, JOINED if joined else ADDED, marker.name).terms(self.calls):
            if isinstance(item, Term):
                terms.append(item)
            else:
                yield item
        yield from differences(title, terms, dict.fromkeys(self.calls.parts, 1.0))
        if joined and marker.attrs.get("partner"):
            self.orders[marker.name] = [term.part for term in terms]

    def _merge(self, given: Ref, wanted: Ref) -> Iterator[str]:
        """The step's value of what each micro-batch has, merged as the plan says."""
        value = self.plan.merges.get(wanted)
        title = f"'{wanted}', merged as {value},"
        by, weights = ADDED, dict.fromkeys(self.calls.parts, 1.0)
        if value is not None and isinstance(value.state, Split):
            by = JOINED
        elif value is not None and isinstance(value.state, Partial) and value.state != SUMS:
            by = frozenset({FOLDS[value.state.op]})
        elif value is not None and value.state == WHOLE:
            weights = {self.calls.parts[0]: 1.0}
        elif value is not None:
            weights = {part: weight ** float(-value.degree) for part, weight in self.calls.weights.items()}
        elif len(self.calls.parts) > 1:
            yield f"'{wanted}' is merged, and the plan does not say how"
            return
        terms: list[Term] = []
        for item in Sum(title, given, wanted, by).terms(self.calls):
            if isinstance(item, Term):
                terms.append(item)
            else:
                yield item
        yield from differences(title, terms, weights)
        if by == JOINED and [term.part for term in terms] != self.calls.parts:
            yield f"{title} is not in the order of the examples: {[term.part for term in terms]}"


def _same(node: Node, target: Node) -> bool:
    return node.op == target.op and len(node.inputs) == len(target.inputs) and node.attrs == target.attrs

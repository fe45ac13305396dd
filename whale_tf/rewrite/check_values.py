"""The part of `check` that follows the main graph and the step side by side, from what leaves them to what enters.

main:  Assign(w, Sub(Read w, Mul(rate, Mul(AddN(calls), ¼))))
step:  Write(w, Sub(w,      Mul(rate, Gradient)))              node by node; at Gradient, the sum over the calls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whale_tf.ir.graph import ALIAS_OPS, Node, Ref
from whale_tf.ir.sharding import SUMS, WHOLE, Partial, Split
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.check_calls import Calls, Part
from whale_tf.rewrite.check_sums import ADDED, FOLDED, JOINED, Sum, Term, differences, differences_of_members

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
      images: for each operation that does not run per micro-batch, the nodes of the main graph that compute it.
    """

    calls: Calls
    images: dict[str, dict[str, None]] = field(default_factory=dict)
    orders: dict[str, list[Part]] = field(default_factory=dict)
    stack: list[tuple[Ref, Ref]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.main, self.graph, self.plan = self.calls.main, self.calls.graph, self.calls.plan
        self.step, self.roles, self.program = self.calls.step, self.calls.step.roles, self.calls.program
        self.between = int(len(self.plan.layout.groups) > 1)
        self.shared = {f"{ref}/shared".encode(): ref for ref in self.step.shared}

    def faults(self) -> Iterator[str]:
        """Everything in which the main graph is another step."""
        self.stack += self.calls.step_values()
        yield from self._outputs()
        yield from self._effects()
        yield from self._shared()
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

    def _outputs(self) -> Iterator[str]:
        """Pairs what the step returns with what the main graph does."""
        for process in self.program.present:
            outputs = self.program.outputs_of(process)
            if len(outputs) != len(self.graph.outputs):
                yield f"the step has {len(self.graph.outputs)} outputs, and process {process} {len(outputs)}"
            self.stack += zip(outputs, self.graph.outputs, strict=False)

    def _effects(self) -> Iterator[str]:
        """Pairs what the step changes with what the main graph does."""
        graph, main, groups = self.graph, self.main, self.calls.groups
        assigns: dict[bytes, list[Node]] = {}
        for node in main:
            if node.op == "Assign":
                assigns.setdefault(node.attrs["variable"], []).append(node)
        once: list[str] = []
        for name in graph.effects:
            node = graph[name]
            if node.op == "Write":
                found, layout = assigns.pop(node.attrs["variable"], []), self.plan.variables[variable_of(node)]
                where = sorted(self.program.process_of(assign) for assign in found if assign.name in main.effects)
                wanted = sorted(process for group in groups for process in layout.holders(self.plan.layout, group))
                if len(found) != len(where) or where != wanted:
                    yield f"variable '{variable_of(node)}' is assigned {len(found)} times, or its Assign is no effect"
                self.stack += [(assign.inputs[0], Ref(name)) for assign in found]
            elif not self.roles.per_micro_batch(name) and 0 in groups:
                once.append(name)
        yield from (f"variable '{key.decode()}' is assigned, and the step does not write it" for key in assigns)
        others = [name for name in main.effects if main[name].op not in ("Assign", "NoOp")]
        if len(others) != len(once):
            yield f"the step has {len(once)} effects that run once, and the program {len(others)}"
        self.stack += [(Ref(image), Ref(name)) for image, name in zip(others, once, strict=False)]

    def _shared(self) -> Iterator[str]:
        """Pairs what the first group gives to the others with what they use."""
        for label, ref in self.shared.items():
            nodes = self.calls.meetings.get(label, [])
            if len(nodes) != len(self.calls.groups):
                yield f"'{ref}' runs in the first group of replicas only, and {len(nodes)} groups have its value"
            for node in nodes:
                if self.calls.group_of(Ref(node.name)) == 0:
                    flat = node.op == "AllGather"
                    source = self.main[node.inputs[0].node].inputs[0] if flat else node.inputs[0]
                    self.stack.append((source, ref))

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
        elif self.step.runs_once(target.name) and self.calls.group_of(given):
            label = self._label_of(node)
            if self.shared.get(label) != wanted:
                yield f"'{given}' ({node.op}) stands where the first group of replicas gives '{wanted}'"
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

    def _label_of(self, node: Node) -> bytes:
        """The label by which a value of the first group has come."""
        if node.op == "Reshape":  # of what was gathered: elements of the first group, and of no other
            node = self.main[node.inputs[0].node]
        return bytes(node.attrs.get("label", b""))

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
        expected, stage = dict.fromkeys(self.calls.parts, 1.0), self.plan.stage_of.get(source.node, 0)
        if marker.name in self.step.sums_lie:
            members = len(self.plan.layout.mesh_of(0, stage))
            yield from differences_of_members(title, terms, expected, members, times=self.between)
        else:
            yield from differences(title, terms, expected, times=self.between)
        if joined and marker.attrs.get("partner"):
            self.orders[marker.name] = [term.part for term in terms]

    def _merge(self, given: Ref, wanted: Ref) -> Iterator[str]:
        """The step's value of what each micro-batch has, merged as the plan says."""
        value = self.plan.merges.get(wanted)
        title = f"'{wanted}', merged as {value},"
        by, weights, times = ADDED, dict.fromkeys(self.calls.parts, 1.0), self.between
        if value is not None and isinstance(value.state, Split):
            by = JOINED
        elif value is not None and isinstance(value.state, Partial) and value.state != SUMS:
            by = FOLDED[value.state.op]
        elif value is not None and value.state == WHOLE:
            weights, times = {self.calls.parts_of(self.calls.group_of(given))[0]: 1.0}, 0
        elif value is not None:
            weights = {part: weight ** float(-value.degree) for part, weight in self.calls.weights.items()}
        elif self.plan.parts > 1:
            yield f"'{wanted}' is merged, and the plan does not say how"
            return
        else:
            times = 0
        terms: list[Term] = []
        for item in Sum(title, given, wanted, by).terms(self.calls):
            if isinstance(item, Term):
                terms.append(item)
            else:
                yield item
        yield from differences(title, terms, weights, times=times)
        if by == JOINED and [term.part for term in terms] != self.calls.parts:
            yield f"{title} is not in the order of the examples: {[term.part for term in terms]}"


def _same(node: Node, target: Node) -> bool:
    return node.op == target.op and len(node.inputs) == len(target.inputs) and node.attrs == target.attrs

"""The part of `check` that follows the main graph and the step side by side, from what leaves them to what enters.

main:  Assign(w, Sub(Read w, Mul(rate, Mul(AddN(calls), ¼))))
step:  Write(w, Sub(w,      Mul(rate, Gradient)))              node by node; at Gradient, the sum over the calls
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from whale_tf.ir.graph import ALIAS_OPS, Graph, Node, Ref
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.rewrite.check_calls import Calls, Part
from whale_tf.rewrite.check_sums import ADDED, CHANGED, JOINED, Sum, Term, differences, scaled
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
        self.elsewhere = {node.name: node for variant in self.calls.variants.values() for node in variant.graph}

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
        target = self.graph.nodes.get(wanted.node) or self.elsewhere[wanted.node]
        brought, attribute = _BOUNDARY.get(target.op, ("", ""))
        if brought and node.op == brought:
            there, here = node.attrs[attribute], target.attrs[attribute]
            if there != here:
                yield f"'{node.name}' brings {attribute} {there!r}, and the step takes {attribute} {here!r}"
        elif target.name in self.roles.markers:
            yield from self._gradient(given, target)
        elif target.name in self.graph and self.roles.per_micro_batch(target.name):
            yield from self._merge(given, wanted)
        elif target.op in ALIAS_OPS:
            self.stack.append((given, target.inputs[0]))
        elif _same(node, target) and given.index == wanted.index:
            self.images.setdefault(target.name, {})[node.name] = None
            self.stack += zip(node.inputs, target.inputs, strict=True)
        else:
            yield f"'{given}' ({node.op}) stands where the step has '{wanted}' ({target.op}), another operation"

    def _gradient(self, given: Ref, marker: Node) -> Iterator[str]:
        """A marker's value: each micro-batch once by its share; what depends on no example as it is."""
        source, half = marker.inputs[0], marker.attrs["part"]
        micro, joined = self.roles.per_micro_batch(source.node), half == b"indices"
        if half == b"values":  # rows with the same indices in all micro-batches are added, others put side by side
            joined = self._partner_is_micro(marker)
        if not micro and not (half == b"values" and joined):
            self.stack.append((given, source))
            return
        of_variable = f" of variable '{variable_of(marker)}'" if variable_of(marker) else ""
        title = f"gradient '{marker.name}'{of_variable}"
        variants = {part: self.calls.variant_of(part).graph for part in self.calls.parts}
        sources = {part: graph[marker.name].inputs[0] for part, graph in variants.items()}
        by_parts = Sum(title, given, sources, JOINED if joined else ADDED, marker.name)
        found = by_parts.terms(self.calls) if micro else self._repeated(given, source)
        terms: list[Term] = []
        for item in found:
            if isinstance(item, Term):
                terms.append(item)
            else:
                yield item
        ones = self.plan.loss == "sum" or half == b"indices"
        yield from differences(title, terms, {part: 1.0 if ones else w for part, w in self.calls.weights.items()})
        if joined and marker.attrs.get("partner"):
            self.orders[marker.name] = [term.part for term in terms if not isinstance(term.part, str)]

    def _partner_is_micro(self, marker: Node) -> bool:
        partner = self.graph.nodes.get(marker.attrs.get("partner", b"").decode())
        return partner is not None and self.roles.per_micro_batch(partner.inputs[0].node)

    def _repeated(self, given: Ref, source: Ref) -> Iterator[Term]:
        """Constant values of IndexedSlices, once for each micro-batch; being equal, they are numbered as they stand."""
        parts = self.calls.parts
        weight, items = 1.0, [self.calls.origin(given)]
        while len(items) == 1 and len(parts) > 1:
            node = self.main[items[0].node]
            scale = scaled(self.main, node)
            if node.op == "ConcatV2":
                items = [self.calls.origin(item) for item in node.inputs[:-1]]
            elif scale is not None:
                weight, items = weight * scale[1], [self.calls.origin(scale[0])]
            else:
                break
        for position, item in enumerate(items):
            value, scale_of_part = scaled(self.main, self.main[item.node]) or (item, 1.0)
            self.stack.append((value, source))
            yield Term(parts[position] if position < len(parts) else parts[0], weight * scale_of_part)

    def _merge(self, given: Ref, wanted: Ref) -> Iterator[str]:
        """The step's value of what each micro-batch has, merged as the plan says."""
        node = self.graph[wanted.node]
        if node.op == "Variable" and self.plan.micro_batches > 1:
            yield f"'{wanted}' is what the step began with, and is merged from what each micro-batch began with"
            return
        how = self.plan.merges.get(wanted, "state first" if node.op == "Write" else "no rule")
        kind = how.split(" ")[0] if how.startswith("concat") else how
        expected = self._expected(kind, node)
        title = f"'{wanted}', merged by {how},"
        terms: list[Term] = []
        kind = how.split(" ")[0] if how.startswith("concat") else how
        extreme = frozenset({kind.removeprefix("state ").capitalize()})
        found_by = {"state maximum": extreme, "state minimum": extreme, "concat": JOINED, "state sum": CHANGED}
        by = found_by.get(kind, frozenset({FOLDS[how]}) if how in FOLDS else ADDED)
        for item in Sum(title, given, self._in_parts(wanted), by).terms(self.calls):
            if isinstance(item, Term):
                terms.append(item)
            else:
                yield item
        yield from differences(title, terms, expected)
        if kind == "concat" and [term.part for term in terms] != self.calls.parts:
            yield f"{title} is not in the order of the examples: {[term.part for term in terms]}"

    def _in_parts(self, wanted: Ref) -> dict[Part, Ref]:
        """The tensor in the trace of each micro-batch: outputs may be called differently there."""
        if wanted not in self.graph.outputs:
            return dict.fromkeys(self.calls.parts, wanted)
        position = self.graph.outputs.index(wanted)
        return {part: self.calls.variant_of(part).graph.outputs[position] for part in self.calls.parts}

    def _expected(self, how: str, node: Node) -> dict[Part | str, float]:
        """For each part the weight by which it is merged."""
        last, replicas = self.plan.micro_batches - 1, range(self.plan.layout.replicas)
        if len(self.calls.parts) == 1:
            return {(0, 0): 1.0}
        if how == "state first" or (how.startswith("state") and len(replicas) == 1):
            return {(0, last): 1.0}
        if how == "state mean":
            return {(r, last): self.plan.share(r) for r in replicas}
        if how in ("state maximum", "state minimum"):
            return {(r, last): 1.0 for r in replicas}
        if how == "state sum":
            return {**{(r, last): 1.0 for r in replicas}, variable_of(node): 1.0 - len(replicas)}
        return {part: weight if how == "mean" else 1.0 for part, weight in self.calls.weights.items()}


def _same(node: Node, target: Node) -> bool:
    return node.op == target.op and len(node.inputs) == len(target.inputs) and node.attrs == target.attrs

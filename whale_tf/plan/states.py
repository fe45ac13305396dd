"""Derives how every value of a step depends on the batch, and from it what each part runs and what runs once.

Nodes are taken in order. One whose operands allow it is run by each part (`plan.local`), at an even level; its results
are cut, or partial. Any other takes whole operands and is run once, at the odd level after the latest part it waits
for. So levels are the step's phases:

    level(node) = FREE              constants, variables: computed wherever they are wanted
                  even              run by each part of the batch: forward and backward
                  odd               run once per step, on merged values: updates, and what is not linear

A merged value that a gradient waits for, and that is no gradient itself, couples the parts in the middle of the step:
`plan.coupling` says which of these are computed, accepted or refused. What is wanted by outputs and writes only is
computed once, late, on merged values, and couples nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from whale_tf.ir.graph import Graph, Node, Ref
from whale_tf.ir.sharding import APART, BLANK, COUNT, SUMS, WHOLE, Apart, Partial, Split, State, Value
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.answers import RANDOM, answer_of, asserts, operation_of
from whale_tf.plan.bodies import FUSED, grows, inside_of
from whale_tf.plan.local import AS_IS, FLOATS, INTEGERS, Local, Operation, Use
from whale_tf.plan.own import own
from whale_tf.plan.resources import written_resource, written_resources
from whale_tf.plan.rules import shape_operands

FREE = -1
ROWS = (b"values", b"indices")
Merges = frozenset[Ref]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a tensor.

    Attributes:
      value: its state over the parts of the batch.
      level: when it is computed.
      coupled: the merges in the middle of the step that it waits for.
      given: whether it is made of the step's arguments and constants alone.
    """

    value: Value
    level: int
    coupled: Merges = frozenset()
    given: bool = True

    @property
    def micro(self) -> bool:
        """Whether each part has it."""
        return self.level >= 0 and self.level % 2 == 0


CONSTANT = Known(Value(WHOLE), FREE)


@dataclass(frozen=True)
class Choices:
    """What a derivation takes for granted.

    Attributes:
      averages: whether a node makes a total that is taken as each part has it, since a moving average is made of it.
      accepted: nodes that each part runs for itself, and whose totals are taken as each part has them.
      prologue: totals of arguments that are merged before anything else.
      base: the level at which parts begin, behind the prologue.
    """

    averages: Callable[[Node], bool] = lambda node: False
    accepted: frozenset[str] = frozenset()
    prologue: Merges = frozenset()
    base: int = 0


@dataclass(frozen=True)
class States:
    """How the values of a step depend on the batch.

    Attributes:
      sizes: the step.
      known: what is known of each tensor.
      level: when each node runs; that of a node without results too.
      uses: what operands are made into before a part takes them, by (node, position).
      bodies: the same for what nodes call, by the name of the function.
      markers: the gradients of variables that are merged over the parts.
      needed: the nodes that a gradient depends on.
      why: for nodes that run once and take values of parts, why no part runs them.
      accepted: the nodes whose totals are taken as each part has them.
      torn: what each part has of its own and cannot be averaged, and something needs whole: this cannot be.
    """

    sizes: Sizes
    known: Mapping[Ref, Known]
    level: Mapping[str, int]
    uses: Mapping[tuple[str, int], Use]
    bodies: Mapping[str, Mapping[tuple[str, int], Use]]
    markers: frozenset[str]
    needed: frozenset[str]
    why: Mapping[str, str]
    accepted: frozenset[str]
    torn: frozenset[Ref] = frozenset()

    def value(self, ref: Ref) -> Value:
        """The state of a tensor."""
        return self.known[ref].value


def derive(sizes: Sizes, choices: Choices) -> States:
    """The states of all values of a step."""
    once: dict[str, str] = {}
    while True:  # lists cannot be merged: one that is wanted whole is made of merged tensors
        derivation = _Derivation(sizes, choices, once)
        states = derivation.run()
        if derivation.lists.keys() <= once.keys():
            return states
        once = {**derivation.lists, **once}


@dataclass
class _Derivation:
    sizes: Sizes
    choices: Choices
    once: Mapping[str, str]  # lists that are wanted whole, and why
    lists: dict[str, str] = field(default_factory=dict)
    known: dict[Ref, Known] = field(default_factory=dict)
    level: dict[str, int] = field(default_factory=dict)
    uses: dict[tuple[str, int], Use] = field(default_factory=dict)
    bodies: dict[str, Mapping[tuple[str, int], Use]] = field(default_factory=dict)
    markers: set[str] = field(default_factory=set)
    why: dict[str, str] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    torn: set[Ref] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.graph: Graph = self.sizes.graph
        self.written = written_resources(self.graph)
        self.turns: dict[str, int] = {}
        self.inside = inside_of(self.sizes, self.bodies)
        roots = [node.name for node in self.graph if node.op == "Gradient" and node.attrs["variable"]]
        self.needed = frozenset(self.graph.ancestors(roots))
        first = [ref.node for ref in self.choices.prologue]
        self.early = self.graph.ancestors(first) if first else set()

    def run(self) -> States:
        for node in self.graph:
            self._node(node)
        written = [Ref(name) for name in self.graph.effects if self.graph[name].op == "Write"]
        for ref in (*self.graph.outputs, *written, *(self.graph[name].inputs[0] for name in self.markers)):
            self._whole(ref, self.known[ref], "it leaves the step")
        return States(
            self.sizes,
            self.known,
            self.level,
            self.uses,
            self.bodies,
            frozenset(self.markers),
            self.needed,
            self.why,
            frozenset(self.accepted),
            frozenset(self.torn),
        )

    # Nodes

    def _node(self, node: Node) -> None:
        if node.op == "Input":
            state: State = Split(0) if node.attrs["batch"] else WHOLE
            self._set(node, [Value(state)], self._start(node) if node.attrs["batch"] else FREE)
        elif node.op in ("Variable", "Captured", "Handle"):
            self._set(node, [Value(WHOLE)] * len(node.outputs), FREE, given=node.op != "Variable")
        elif node.outputs and Ref(node.name) in self.sizes.values:
            self._set(node, [Value(WHOLE)] * len(node.outputs), FREE)
        elif node.op == "Write":
            self.known[Ref(node.name)] = replace(self.known[node.inputs[0]], given=False)
            self.level[node.name] = self.known[node.inputs[0]].level
        elif node.op == "Gradient":
            self._gradient(node)
        else:
            self._ordinary(node)

    def _start(self, node: Node) -> int:
        return 0 if node.name in self.early else self.choices.base

    def _ordinary(self, node: Node) -> None:
        inputs = [self.known[ref] for ref in node.inputs]
        random = node.op in RANDOM
        if random or any(each.micro or each.value.state == BLANK for each in inputs) or grows(self.sizes, node):
            reason = self._by_parts(node, inputs)
            if reason is None:
                return
            if any(each.micro for each in inputs):
                self.why[node.name] = reason
        self._once(node, inputs)

    def _by_parts(self, node: Node, inputs: Sequence[Known]) -> str | None:
        """Lets each part run the node; the reason if it cannot."""
        if node.name in self.once:
            return self.once[node.name]
        found = self._local(node, inputs)
        merged: list[int] = []
        if isinstance(found, str) and self._is_own(node, inputs):
            found = own(self._operation(node, [each.value for each in inputs])) or found
            self.accepted.add(node.name)
        if isinstance(found, str):
            merged = [i for i, each in enumerate(inputs) if isinstance(each.value.state, Partial | Apart)]
            others = [each for i, each in enumerate(inputs) if i not in merged and each.micro]
            if not merged or not others:
                return found
            with_totals = [CONSTANT if i in merged else each for i, each in enumerate(inputs)]
            again = self._local(node, with_totals)
            if isinstance(again, str):
                return found
            found = again
        level, coupled = self._start(node), frozenset[Ref]()
        for position, (ref, each) in enumerate(zip(node.inputs, inputs, strict=True)):
            if position in merged:
                level, coupled = (
                    max(level, each.level + 2),
                    coupled | self._merged(ref, each, f"{node.op} takes the total"),
                )
            else:
                level, coupled = max(level, each.level + each.level % 2), coupled | each.coupled
        if node.call and node.twin in self.accepted and self._numbers_examples(node):
            return f"{node.op} numbers the examples of the whole batch"
        if self._normalizes(node):
            return f"{node.op} normalizes over the batch"
        cut = any(isinstance(value.state, Split) or value.state == BLANK for value in found.results)
        if not cut and not any(each.micro for each in inputs):
            return "nothing that it takes is cut"
        later = level > max((each.level for each in inputs if each.micro), default=FREE)
        if coupled and later and node.name not in self.needed:
            return f"it is computed once, from '{min(coupled)}'"
        if found.results and all(value.state == BLANK for value in found.results) and not any(e.micro for e in inputs):
            level = FREE
        uses = {**found.uses, **{i: found.uses.get(i, AS_IS)._replace(merged=True) for i in merged}}
        self.uses.update(((node.name, i), use) for i, use in uses.items() if use != AS_IS)
        given = all(each.given for each in inputs) and node.op not in RANDOM
        self._set(node, self._accepting(node, found.results), level, coupled, given=given)
        return None

    def _once(self, node: Node, inputs: Sequence[Known]) -> None:
        level, coupled = FREE, frozenset[Ref]()
        for ref, each in zip(node.inputs, inputs, strict=True):
            level = max(level, each.level + 1 if each.micro else each.level)
            why = f"{node.op} takes it whole: {self.why.get(node.name)}"
            coupled |= self._merged(ref, each, why) if each.micro else each.coupled
        resource = written_resource(self.graph, node, self.written)
        if resource:
            level = self.turns[resource] = max(level, self.turns.get(resource, 1))
        given = all(each.given for each in inputs) and node.op not in RANDOM and not node.stateful
        self._set(node, [Value(WHOLE)] * len(node.outputs), level, coupled, given=given)

    def _merged(self, ref: Ref, known: Known, why: str) -> Merges:
        """What a value waits for that needs all parts of this one."""
        self._whole(ref, known, why)
        return frozenset() if ref in self.choices.prologue else known.coupled | {ref}

    def _whole(self, ref: Ref, known: Known, why: str) -> None:
        """Notes what cannot be wanted whole: lists, rows that each part has of its own, and choices that each makes."""
        if known.micro and self.sizes.type_of(ref).dtype == "variant":
            self.lists.setdefault(ref.node, why)
        averaged = self.sizes.type_of(ref).dtype in FLOATS and self.sizes.following(ref) == ()
        if isinstance(known.value.state, Apart) and not averaged:
            self.torn.add(ref)

    def _gradient(self, node: Node) -> None:
        """Of a variable it is merged here, but for one gradient by example; of other tensors it is passed on."""
        source = self.known[node.inputs[0]]
        rows = node.attrs["part"] in ROWS
        if not node.attrs["variable"] or (isinstance(source.value.state, Split) and not rows):
            (value,) = self._accepting(node, [source.value])
            self.known[Ref(node.name)], self.level[node.name] = replace(source, value=value), source.level
            return
        self.markers.add(node.name)
        if not source.micro:
            self._set(node, [Value(WHOLE)], source.level, given=False)
            return
        total = as_total(source.value)
        power = (total.state == WHOLE and node.outputs[0].dtype in FLOATS) - total.degree  # of a whole one its share
        if power:
            self.uses[node.name, 0] = Use(power=power)
        self._set(node, [Value(WHOLE)], source.level + 1, given=False)

    def _set(
        self, node: Node, values: Sequence[Value], level: int, coupled: Merges = frozenset(), *, given: bool = True
    ) -> None:
        self.level[node.name] = level
        for index, value in enumerate(values):
            self.known[Ref(node.name, index)] = Known(value, level, coupled, given)

    # What a part can run

    def _local(self, node: Node, inputs: Sequence[Known]) -> Local | str:
        if node.stateful and not node.outputs and not asserts(self.sizes, node):
            return f"{node.op} is done once"
        if node.name in self.sizes.fixed:
            return f"{node.op} takes or gives a tensor for each example"
        if written_resource(self.graph, node, self.written):
            return f"{node.op} takes its turn with what else uses a resource"
        operation = self._operation(node, [each.value for each in inputs])
        plain = not node.stateful and node.op not in RANDOM and all(kind.dtype != "variant" for kind in node.outputs)
        alike = plain and all(each.value == Value(WHOLE) for each in inputs)
        if alike and any(each.micro for each in inputs) and all(dims == () for dims in operation.following):
            return Local(tuple(Value(WHOLE) for _ in node.outputs))  # every part has the same, and makes the same of it
        return answer_of(operation)

    def _operation(self, node: Node, values: Sequence[Value]) -> Operation:
        return operation_of(self.sizes, node, values, node.name in self.needed, self.inside)

    def _numbers_examples(self, node: Node) -> bool:
        """Whether an operand that says no shape is a whole number that follows the size of the batch."""
        return any(
            (node.name, position) in self.sizes.operands
            and position not in shape_operands(node.op)
            and self.sizes.type_of(ref).dtype in INTEGERS
            for position, ref in enumerate(node.inputs)
        )

    def _normalizes(self, node: Node) -> bool:
        """Whether it uses statistics of the batch inside, and those of each part are not accepted."""
        fused = node.op in FUSED and node.attrs.get("is_training", True)
        return fused and node.name not in self.choices.accepted and not self.choices.averages(node)

    def _follows(self, node: Node) -> bool:
        """Whether it is the gradient of something that takes what each part has for itself."""
        twin = self.graph.nodes.get(node.twin) if node.call else None
        return twin is not None and any(
            isinstance(self.known[ref].value.state, Apart) for ref in twin.inputs if ref in self.known
        )

    def _is_own(self, node: Node, inputs: Sequence[Known]) -> bool:
        """Whether each part runs a node for itself that would need all examples."""
        if node.name in self.choices.accepted:
            return True
        grown = any(
            isinstance(each.value.state, Apart) and self.sizes.following(ref)
            for ref, each in zip(node.inputs, inputs, strict=True)
        )
        return grown or (bool(node.call) and node.twin in self.accepted) or (bool(node.call) and self._follows(node))

    def _accepting(self, node: Node, results: Sequence[Value]) -> list[Value]:
        """Totals that are taken as each part has them."""
        if all(value.state != SUMS for value in results) or node.outputs[0].dtype not in FLOATS:
            return list(results)
        means = node.name in self.choices.accepted and Value(SUMS, Fraction(-1)) in results
        if not self._follows(node) and not means and not self.choices.averages(node):
            return list(results)
        self.accepted.add(node.name)
        return [_own_total(value) for value in results]


def _own_total(value: Value) -> Value:
    """What each part has of a sum, in the place of the whole one."""
    return Value(APART, value.degree + 1) if value.state == SUMS else value


def as_total(value: Value) -> Value:
    """What a value is where it is merged: each part's own one is averaged by its share of the examples."""
    if value == Value(COUNT):
        return Value(SUMS)
    return Value(SUMS, value.degree - 1) if isinstance(value.state, Apart) else value

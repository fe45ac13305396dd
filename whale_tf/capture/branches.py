"""Branches on variables as branches on values: what they take a variable's value for, and what they give it after.

    Before:  If(c, w, g) {then: AssignSub(w, g); else: nothing}            w is the variable
    After:   n = StatelessIf(c, w, g) {then: Sub(w, g); else: w};  Write(n)      w is its value

So a branch that only brings variables up to date is a function of values as any other operation, and can be divided
(`capture.divide`) and run anywhere. Inside a branch, as in the step, what has no rule runs on scratch variables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whale_tf.capture.variable_ops import RULES, Emit, has_effects, may_write, scratch_call
from whale_tf.ir.functions import BRANCHES, functions_of
from whale_tf.ir.graph import Graph, Node, Ref, TensorType
from whale_tf.ir.names import Names

STATEFUL_CALLS = frozenset({"StatefulPartitionedCall", "If", "Case", "While"})


def on_values(emit: Emit, inputs: Sequence[Ref | None], handles: Mapping[int, str]) -> bool:
    """Adds what an operation on variables is on their values; whether it has effects that leave the step.

    Args:
      inputs: what it takes, None for a variable.
      handles: the variables by the position of their handle.
    """
    op, others = emit.like.op, [ref for ref in inputs if ref is not None]
    rule = RULES.get(op)
    if rule is not None and list(handles) == [0] and rule.applies(emit):
        for index, ref in enumerate(rule.apply(emit, handles[0], others)):
            emit.translation.tensors[emit.like.name, index] = ref
        return False
    if op in BRANCHES and 0 not in handles and all(kind.dtype != "resource" for kind in emit.like.outputs):
        return _branch(emit, inputs, handles)
    return scratch_call(emit, inputs, handles)


def _branch(emit: Emit, inputs: Sequence[Ref | None], handles: Mapping[int, str]) -> bool:
    translation, like = emit.translation, emit.like
    written = [key for key in dict.fromkeys(handles.values()) if may_write(like, key, handles, translation.calls)]
    taken = [emit.value(handles[position]) if ref is None else ref for position, ref in enumerate(inputs)]
    kinds = [emit.type_of(ref) for ref in taken[1:]]
    variables = {position - 1: key for position, key in handles.items()}
    for name in functions_of(like).values():
        body = _Body(translation.calls, translation.call_names, name)
        translation.calls[name] = body.on_values(variables, kinds, written)
    outputs = [*like.outputs, *(emit.type_of(emit.value(key)) for key in written)]
    attrs = dict(like.attrs)
    attrs["Tin"], attrs["Tout"] = tuple(kind.dtype for kind in kinds), tuple(kind.dtype for kind in outputs)
    if "output_shapes" in attrs:
        attrs["output_shapes"] = tuple(kind.shape for kind in outputs)
    bodies = [translation.calls[name] for name in functions_of(like).values()]
    pure = all(not node.stateful and node.op not in STATEFUL_CALLS for body in bodies for node in body)
    op = f"Stateless{like.op.removeprefix('Stateless')}" if pure else like.op
    made = emit(op, taken, outputs, **attrs)
    node = translation.nodes[made.node]
    stateful = any(node.stateful for body in bodies for node in body)
    translation.nodes[made.node] = node.with_(stateful=stateful)
    for index in range(len(like.outputs)):
        translation.tensors[like.name, index] = Ref(made.node, index)
    for index, key in enumerate(written, len(like.outputs)):
        emit.write(key, Ref(made.node, index))
    return has_effects(node, translation.calls)


@dataclass
class _Body:
    """One body under translation; the variables are known in it by the names that they have outside."""

    calls: dict[str, Graph]
    call_names: Names
    name: str
    nodes: dict[str, Node] = field(default_factory=dict)
    tensors: dict[tuple[str, int], Ref] = field(default_factory=dict)
    current: dict[str, Ref] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    handles: dict[str, str] = field(default_factory=dict)
    waits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    effects: dict[str, None] = field(default_factory=dict)

    def on_values(self, variables: Mapping[int, str], kinds: Sequence[TensorType], written: Sequence[str]) -> Graph:
        """The body on values; what it writes comes behind its results.

        Args:
          variables: the variables by the index of the argument that is their handle.
          kinds: the types of the arguments.
        """
        body = self.calls[self.name]
        for node in body:
            if node.op == "Argument":
                self._argument(node, variables, kinds)
            else:
                self._node(node, node.name in body.effects)
        outputs = [self.tensors[ref] for ref in body.outputs]
        outputs += [self.current[key] for key in written]
        return Graph.of(self.nodes.values(), outputs, self.effects, attrs=body.attrs)

    def _argument(self, node: Node, variables: Mapping[int, str], kinds: Sequence[TensorType]) -> None:
        index = node.attrs["index"]
        key = variables.get(index)
        if key is not None:
            self.handles[node.name] = key
            self.current.setdefault(key, Ref(node.name))
            node = node.with_(outputs=(kinds[index],))
        self.nodes[node.name] = node
        self.tensors[node.name, 0] = Ref(node.name)
        self.waits[node.name] = ()

    def _node(self, node: Node, effect: bool) -> None:
        handles = {at: self.handles[ref.node] for at, ref in enumerate(node.inputs) if ref.node in self.handles}
        inputs = [None if at in handles else self.tensors[ref] for at, ref in enumerate(node.inputs)]
        control = tuple(dict.fromkeys(each for name in node.control for each in self.waits[name]))
        if handles and node.op == "Identity":
            self.handles[node.name], self.waits[node.name] = handles[0], control
            return
        node = node.with_(inputs=tuple(ref for ref in inputs if ref is not None), control=control)
        if handles:
            effect = on_values(_EmitInBody(self, node), inputs, handles)
            self.waits[node.name] = control
            if not effect:
                return
            self.nodes[node.name] = self.nodes[node.name].with_(control=control)
        else:
            self.nodes[node.name] = node
            self.tensors |= {(node.name, index): Ref(node.name, index) for index in range(len(node.outputs))}
        self.waits[node.name] = (node.name,)
        if effect:
            self.effects[node.name] = None


class _EmitInBody(Emit):
    """Adds nodes to a body, where a variable that is written just has another value from there on."""

    def write(self, variable: str, value: Ref) -> Ref:
        self.translation.current[variable] = value
        return value

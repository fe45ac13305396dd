"""Binds the cut step to devices: every action of every device in the schedule's order, and the Send/Recv between them.

What runs once per step (merging gradients, the update) becomes nodes of the main graph, on the devices that the plan
gave them; what runs per micro-batch becomes calls of stage functions. A value is sent to a device once, however often
it is used there.

Each process has the arguments, what comes from outside and the variables; so a value that comes from there is taken
from the process of the device that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

from whale_tf.errors import InternalError, PlanError
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.names import Names
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grid import Action
from whale_tf.plan.plan import Plan
from whale_tf.plan.roles import Roles, variable_of
from whale_tf.plan.states import FREE
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.inputs import Inputs
from whale_tf.rewrite.merge import Merging
from whale_tf.rewrite.placed import HOST, Placed
from whale_tf.rewrite.program import Program

Functions = Mapping[Key, StageFunction]


@dataclass
class Binder:
    """The main graph under construction.

    Attributes:
      graph: the step, at the global batch.
      variants: its stage functions at each size of micro-batch.
      fed: whether a process gets its own replicas' examples only, in the place of the global batch.
    """

    graph: Graph
    roles: Roles
    plan: Plan
    variants: Mapping[int, Functions]
    fed: bool = False
    nodes: dict[str, Node] = field(default_factory=dict)
    micro: dict[tuple[Ref, int, int], Placed] = field(default_factory=dict)
    step: dict[tuple[Ref, str, int], Placed] = field(default_factory=dict)
    copies: dict[tuple[Ref, int], Ref] = field(default_factory=dict)
    sums: dict[tuple[str, int], list[Placed]] = field(default_factory=dict)
    last_call: dict[int, str] = field(default_factory=dict)
    turns: dict[str, str] = field(default_factory=dict)
    names: Names = field(default_factory=Names)
    ids: int = 0

    def bind(self) -> Program:
        """The whole program."""
        self.inputs, self.merging = Inputs(self), Merging(self)
        for phase in range(self.roles.phases + self.roles.phases % 2):
            if phase % 2 == 0:
                self._actions(phase)
            else:
                self._update(phase)
        outputs = [self._step_input(ref, host) for host in self.plan.layout.hosts for ref in self.graph.outputs]
        effects = self._effects()
        self.inputs.refuse_uncut()
        main = Graph.of(self.nodes.values(), outputs, effects)
        names = {
            self.name_of(function.key, size): function
            for size, variant in self.variants.items()
            for function in variant.values()
        }
        layout, whole = self.plan.layout, self._whole()
        return Program(main, names, layout.devices, self.inline, layout.processes, self.fed, self.ids, whole=whole)

    def _whole(self) -> dict[Ref, tuple[Ref, ...]]:
        """Where the tensors are that the step has one value of: what runs once, and what was merged."""
        found: dict[Ref, tuple[Ref, ...]] = {ref: (placed.ref,) for ref, placed in self.merging.known.items()}
        for (ref, _, _), placed in self.step.items():
            for index in range(len(self.graph[ref.node].outputs)) if ref.node in self.graph else ():
                there = placed.ref._replace(index=placed.ref.index + index)
                found[ref._replace(index=index)] = (*found.get(ref._replace(index=index), ()), there)
        return found

    @cached_property
    def inline(self) -> bool:
        """Whether calls may be dissolved: what is no plain value stays on the device where it was made.

        A table is used on the host even where a replica is elsewhere, which only a call keeps apart; and TensorFlow
        puts all that handles one list of a loop on one device, its forward and backward.
        """
        functions = [function for variant in self.variants.values() for function in variant.values()]
        passed = (graph.type_of(ref) for graph in (function.graph for function in functions) for ref in _passed(graph))
        return self.plan.inline and all(kind.dtype not in NO_VALUES for kind in passed)

    def name_of(self, key: Key, size: int) -> str:
        """The name of a stage function for one size of micro-batch."""
        return f"{key}/{size}" if len(self.variants) > 1 else str(key)

    def copyable(self, node: Node) -> bool:
        """Whether any device may compute the node for itself: it is stateless and depends on no example."""
        if node.stateful or node.op in BOUNDARY_OPS | ALIAS_OPS or node.name in self.plan.device_of:
            return False
        return self.roles.phase[node.name] == FREE

    # Nodes

    def add(
        self, name: str, op: str, inputs: Iterable[Ref], outputs: Iterable[TensorType], device: int, **attrs: Any
    ) -> Ref:
        """One node of the main graph."""
        unique = self.names.unused(name.replace(":", "/"), self.nodes)
        self.nodes[unique] = Node(unique, op, tuple(inputs), attrs=attrs, outputs=tuple(outputs), device=device)
        return Ref(unique)

    def type_of(self, ref: Ref) -> TensorType:
        """The type of a tensor of the main graph."""
        return self.nodes[ref.node].outputs[ref.index]

    def move(self, value: Placed, device: int) -> Ref:
        """The value on a device: sent there if it is elsewhere, the first time; between processes, once to each."""
        if value.device == device:
            return value.ref
        known = self.copies.get((value.ref, device))
        if known is not None:
            return known
        layout = self.plan.layout
        process = layout.process_of(device)
        crosses = layout.process_of(value.device) != process
        there = layout.hosts[process]
        if crosses and device != there and (value.ref, there) in self.copies:
            return self.move(Placed(self.copies[value.ref, there], there), device)
        kind = self.type_of(value.ref)
        if crosses and kind.dtype in NOT_CARRIED:
            raise _cannot_cross(value.ref, kind, layout.process_of(value.device), process)
        name = f"{value.ref}/to{device}".replace(":", "/")
        attrs = {"key": name.encode(), "T": kind.dtype} | ({"id": self.next_id()} if crosses else {})
        send = self.add(f"{name}/send", "Send", [value.ref], [], value.device, to=device, **attrs)
        received = self.add(name, "Recv", [], [kind], device, source=value.device, **attrs)
        self.copies[value.ref, device] = received
        self.nodes[received.node] = self.nodes[received.node].with_(twin=send.node)
        return received

    def next_id(self) -> int:
        """A number for what crosses processes."""
        self.ids += 1
        return self.ids - 1

    # Actions

    def _actions(self, phase: int) -> None:
        """The calls of one phase, clock step by clock step, so that what an action takes was added before."""
        keys = {key for variant in self.variants.values() for key in variant if key.phase == phase}
        if not keys:
            return
        grid = self.plan.grid if any(key.kind != "F" for key in keys) else self.plan.forward_grid
        start = check_grid(grid).start
        for action in sorted(start, key=lambda action: (start[action], action.stage)):
            for replica in range(self.plan.layout.replicas):
                self._call(phase, action, replica)

    def _update(self, phase: int) -> None:
        """What runs once per step, in each group of replicas that has a copy of it."""
        layout = self.plan.layout
        for node in self.graph:
            if self.roles.phase[node.name] == phase:
                for group in range(len(self.plan.device_of.get(node.name, (HOST,)))):
                    self.step_value(Ref(node.name), layout.device_of(layout.groups[group][0], 0))

    def _call(self, phase: int, action: Action, replica: int) -> None:
        i, key = action.micro_batch, Key(phase, action.stage, action.kind)
        size = self.plan.sizes[replica][i]
        function = self.variants[size].get(key)
        if function is None:
            return
        device = self.plan.layout.device_of(replica, action.stage)
        inputs = [self._argument(source, function, replica, i, device) for source in function.arguments]
        kinds = [function.graph.type_of(ref) for ref in function.graph.outputs]
        name = f"r{replica}/{action}" + (f"p{phase}" if phase else "")
        attrs = {
            "function": self.name_of(key, size).encode(),
            "action": str(action).encode(),
            "replica": replica,
            "phase": phase,
        }
        call = self.add(name, "Call", inputs, kinds, device, **attrs).node
        if not self.inline and device in self.last_call:
            self.nodes[call] = self.nodes[call].with_(control=(self.last_call[device],))
        self.last_call[device] = call
        for index, ref in enumerate(function.results):
            self.micro[ref, replica, i] = Placed(Ref(call, index), device)
        for index, marker in enumerate(function.sums, len(function.results)):
            given = self.sums.setdefault((marker, replica), [])
            if self.plan.micro_batches > 1 and self.graph[marker].attrs["part"] == b"dense":
                given.clear()
            given.append(Placed(Ref(call, index), device))

    def _argument(self, source: Source, function: StageFunction, replica: int, i: int, device: int) -> Ref:
        if source.kind == "step":
            return self.step_on(source.ref, device)
        if source.kind == "micro":
            return self.move(self.micro[source.ref, replica, i], device)
        if source.kind == "slice":
            return self.move(self.inputs.slice(source.ref, replica, i, device), device)
        if source.kind == "sum":
            before = self.sums.get((source.name, replica))
            return (
                self.move(before[0], device) if before else self._zero(self.graph[source.name].outputs[0].dtype, device)
            )
        if source.kind == "weight":
            weight = self.plan.weight(replica, i) ** float(Fraction(source.name))
            return self.constant(weight, DType("float64"), device)
        if source.kind == "draw":
            return self.constant(replica * self.plan.micro_batches + i, DType("int32"), device)
        if source.kind == "first":
            return self.constant(self.plan.offset(replica, i), DType("int64"), device)
        if source.kind == "seed":
            return self.move(self._seed(source.name), device)
        raise InternalError(
            f"'{function.key}' takes an argument of unknown kind '{source.kind}'",
            way_out="Extend bind.Binder._argument.",
        )

    def constant(self, value: float | int | Sequence[int], dtype: DType, device: int) -> Ref:
        """A Const on a device."""
        shape = Shape((len(value),)) if isinstance(value, tuple) else Shape()
        key = (Ref(f"constant/{dtype}/{value}"), device)
        if key not in self.copies:
            kind = TensorType(dtype, shape)
            self.copies[key] = self.add("constant", "Const", [], [kind], device, dtype=dtype, value=value)
        return self.copies[key]

    def _zero(self, dtype: DType, device: int) -> Ref:
        return self.constant(0.0, dtype, device)

    def _seed(self, name: str) -> Placed:
        """Two numbers drawn once per step for a stateful random op, from the seed it was made with."""
        key = (Ref(f"seed/{name}"), "once", 0)
        if key not in self.step:
            bounds = [self.constant(low, DType("int32"), HOST) for low in (0, 2**31 - 1)]
            like = self.graph[name].attrs
            attrs = {"seed": like["seed"], "seed2": like["seed2"], "T": DType("int32"), "Tout": DType("int32")}
            kind = TensorType(DType("int32"), Shape((2,)))
            two = self.constant((2,), DType("int32"), HOST)
            self.step[key] = Placed(
                self.add(f"{name}/seed", "RandomUniformInt", [two, *bounds], [kind], HOST, **attrs), HOST
            )
        return self.step[key]

    # Values of the step

    def step_on(self, ref: Ref, device: int) -> Ref:
        """A value of the step on a device; what depends on no example is computed there anew."""
        if not self.copyable(self.graph[ref.node]):
            return self.move(self.step_value(ref, device), device)
        stack = [ref.node]
        while stack:
            here = self.graph[stack[-1]]
            if (Ref(here.name), device) in self.copies:
                stack.pop()
                continue
            inside = [r for r in here.inputs if self.copyable(self.graph[r.node])]
            missing = [r.node for r in inside if (Ref(r.node), device) not in self.copies]
            if missing:
                stack.extend(missing)
                continue
            inputs = [self._copy(r, device) if r in inside else self.step_on(r, device) for r in here.inputs]
            made = self.add(here.name, here.op, inputs, here.outputs, device, **here.attrs)
            self.copies[Ref(here.name), device] = made
            stack.pop()
        return self._copy(ref, device)

    def _copy(self, ref: Ref, device: int) -> Ref:
        return self.copies[Ref(ref.node), device]._replace(index=ref.index)

    def step_value(self, ref: Ref, near: int) -> Placed:
        """A value of the step where the plan computes it, the one that is nearest to a device."""
        node = self.graph[ref.node]
        place = self._place(node, near)
        key = (Ref(ref.node), *place)
        if key not in self.step:
            self.step[key] = self._make(node, place[1])
        made = self.step[key]
        return Placed(made.ref._replace(index=made.ref.index + ref.index), made.device)

    def _place(self, node: Node, near: int) -> tuple[str, int]:
        """Which of a value's copies serves a device: that of its process, of its group of replicas, or the only one."""
        layout = self.plan.layout
        if node.op in BOUNDARY_OPS:
            return "process", layout.process_of(near)
        if len(self.plan.device_of.get(node.name, ())) > 1:
            return "group", layout.group_of(near)
        return "once", 0

    def _make(self, node: Node, index: int) -> Placed:
        if node.op in BOUNDARY_OPS:
            return self.inputs.taken(node, index)
        if node.name in self.roles.markers:
            return self.merging.gradient(node, index)
        if self.roles.per_micro_batch(node.name):
            return self.merging.value(Ref(node.name))
        device = self.plan.device_of.get(node.name, (HOST,))[index]
        inputs = [self._step_input(ref, device) for ref in node.inputs]
        if node.op in ALIAS_OPS:
            return Placed(inputs[0], device)
        name = f"{node.name}/group{index}" if index else node.name
        made = self.add(name, node.op, inputs, node.outputs, device, **node.attrs)
        turn = [self.turns[ref.node] for ref in node.inputs if node.stateful and ref.node in self.turns]
        self.nodes[made.node] = self.nodes[made.node].with_(stateful=node.stateful, control=tuple(turn))
        if node.stateful:
            self.turns.update({ref.node: made.node for ref in node.inputs if self.graph[ref.node].op == "Handle"})
        return Placed(made, device)

    def _step_input(self, ref: Ref, device: int) -> Ref:
        whole = self.graph[ref.node].op == "Input" and not self.fed
        if self.roles.per_micro_batch(ref.node) and not whole:
            return self.move(self.merging.value(ref), device)
        return self.step_on(ref, device)

    def _effects(self) -> list[str]:
        """Assignments, each after its variable was read; `hold_assignments` says what else they wait for."""
        effects: list[str] = []
        reads: dict[tuple[str, int], list[str]] = {}
        for node in self.nodes.values():
            if node.op == "Read":
                reads.setdefault((variable_of(node), node.device), []).append(node.name)
        for name in self.graph.effects:
            node = self.graph[name]
            if node.op == "Write":
                for process in self._assigned_in(node, reads):
                    effects.append(self._assign(node, self.inputs.home_of(variable_of(node), process), reads))
            elif not self.roles.per_micro_batch(name):
                effects.append(self.step_value(Ref(name), HOST).ref.node)
        return effects

    def _assigned_in(self, write: Node, reads: Iterable[tuple[str, int]]) -> Iterable[int]:
        """The processes that get a variable's new value: all, or those that read it or compute it."""
        layout, variable = self.plan.layout, variable_of(write)
        if variable not in self.plan.unmirrored:
            return range(len(layout.hosts))
        places = {device for name, device in reads if name == variable} | set(self.plan.device_of[write.name])
        return sorted({layout.process_of(device) for device in places})

    def _assign(self, write: Node, home: int, reads: Mapping[tuple[str, int], list[str]]) -> str:
        variable = variable_of(write)
        value = self._step_input(Ref(write.name), home)
        attrs = {"variable": variable.encode(), "dtype": self.type_of(value).dtype}
        assign = self.add(f"{variable}/assign", "Assign", [value], [], home, **attrs).node
        self.nodes[assign] = self.nodes[assign].with_(control=tuple(reads.get((variable, home), ())))
        return assign


def _passed(graph: Graph) -> Iterator[Ref]:
    """What a stage function takes and gives."""
    yield from (Ref(node.name) for node in graph if node.op == "Argument")
    yield from graph.outputs


def _cannot_cross(ref: Ref, kind: TensorType, source: int, target: int) -> PlanError:
    return PlanError(
        f"a {kind.dtype} cannot be sent from one process to another",
        details=[f"'{ref}' is made in process {source} and used in process {target}"],
        way_out="Keep what makes and what uses it in stages of one process, and return numbers from the step.",
    )


NOT_CARRIED = frozenset({"resource", "variant"})
NO_VALUES = frozenset({"resource", "variant"})

"""Binds a step's program to the devices of one group of replicas: actions, what moves between them, and the update.

What runs once per step (merging gradients, the update) becomes nodes of the main graph, on the devices that the plan
gave them; what runs per micro-batch becomes calls of stage functions. Nothing but collectives joins this group to the
others, so its graph does not grow with their number.

Each process has the arguments, what comes from outside and the variables; so a value that comes from there is taken
from the process of the device that uses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

from whale_tf.errors import InternalError
from whale_tf.ir.graph import ALIAS_OPS, BOUNDARY_OPS, DType, Node, Ref, Shape, TensorType
from whale_tf.ir.sharding import Split
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grid import Action
from whale_tf.plan.layout import HOST_SEAT
from whale_tf.plan.roles import variable_of
from whale_tf.rewrite.builder import INT32, Builder, Placed
from whale_tf.rewrite.combine import REDUCED, Combine, Parts
from whale_tf.rewrite.cut import Key, Source, StageFunction
from whale_tf.rewrite.inputs import Inputs
from whale_tf.rewrite.made import Made, Who
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.step_program import StepProgram


def bind(step: StepProgram, group: int) -> Program:
    """The program of a group of replicas: of all its processes."""
    return _Binder(step, group).bind()


class _Binder:
    """One group's program under construction."""

    def __init__(self, step: StepProgram, group: int) -> None:
        self.step, self.plan, self.graph, self.roles = step, step.plan, step.graph, step.roles
        self.layout, self.group = step.plan.layout, group
        self.builder = Builder(self.layout, group)
        self.inputs = Inputs(self.builder, self.plan, step.fed)
        self.combine = Combine(self.builder, self.plan)
        self.bucket_of = {name: index for index, bucket in enumerate(self.plan.buckets) for name in bucket}
        self.made = Made(self.builder, step)
        self.slices: dict[tuple[Ref, int, int, int], Placed] = {}
        self.once: dict[tuple[Ref, int], Placed] = {}
        self.merged: dict[Ref, Placed] = {}
        self.gradients: dict[str, Placed] = {}
        self.begun: set[tuple[int, Key]] = set()
        self.last_call: dict[int, str] = {}
        self.turns: dict[str, str] = {}
        self.homes: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}

    def bind(self) -> Program:
        """The whole program."""
        for phase in range(self.roles.phases + self.roles.phases % 2):
            if phase % 2 == 0:
                self._actions(phase)
            else:
                self._update(phase)
        processes = self.layout.groups.processes[self.group]
        hosts = [self.layout.hosts[process] for process in processes]
        outputs = [self.value_on(ref, host) for host in hosts for ref in self.graph.outputs]
        effects = self._effects()
        if len(self.layout.groups) > 1:
            self._take_part()
        self.inputs.refuse_uncut()
        called = Counter(node.attrs["function"].decode() for node in self.builder.nodes.values() if node.op == "Call")
        return Program(
            main=self.builder.graph(outputs, effects),
            functions={name: function for name, function in self.step.functions.items() if name in called},
            devices=self.layout.devices,
            inline=self.step.inlines(called),
            ordered=self.step.ordered,
            processes=self.layout.processes,
            fed=self.step.fed,
            present=processes,
            whole=self._whole(),
        )

    def _whole(self) -> dict[Ref, tuple[Ref, ...]]:
        """Where the tensors are that the step has one value of: what runs once, and what was merged."""
        found: dict[Ref, tuple[Ref, ...]] = {ref: (placed.ref,) for ref, placed in self.merged.items()}
        for (ref, _), placed in self.once.items():
            for index in range(len(self.graph[ref.node].outputs)) if ref.node in self.graph else ():
                there = placed.ref._replace(index=placed.ref.index + index)
                found[ref._replace(index=index)] = (*found.get(ref._replace(index=index), ()), there)
        return found

    # Actions

    def _actions(self, phase: int) -> None:
        """The calls of one phase, clock step by clock step, so that what an action takes was added before."""
        if phase not in self.step.phases:
            return
        actions: list[tuple[int, int, int, Action]] = []
        for replicas in self.layout.classes.values():
            starts = check_grid(self.step.grid_of(replicas[0], phase)).start
            own = [replica for replica in replicas if self.layout.groups.of_replica[replica] == self.group]
            computing = [(start, action) for action, start in starts.items() if action.computes]
            actions += [(start, action.stage, r, action) for start, action in computing for r in own]
        for _, _, replica, action in sorted(actions, key=lambda each: each[:3]):
            self._call(phase, action, replica)

    def _update(self, phase: int) -> None:
        """What runs once per step, in this group; and what is merged for the first one, in which all take part."""
        needed = self.step.needed_everywhere if self.group else self.step.needed
        for node in self.graph:
            if node.name in needed and self.roles.phase[node.name] == phase:
                self.value_near(Ref(node.name), self.builder.host)

    def _take_part(self) -> None:
        """Adds the group's part in collectives of whose results it has no use itself."""
        for ref in self.step.merged:
            if ref.node in self.roles.markers:
                self.value_near(ref, self.builder.host)
            elif self.step.fed or self.graph[ref.node].op != "Input":
                self._merged(ref)
        for ref in self.step.shared:
            self._shared(ref)

    def _call(self, phase: int, action: Action, replica: int) -> None:
        i, key = action.micro_batch, Key(phase, action.stage, action.kind)
        size = self.plan.sizes[replica][i]
        functions = self.step.variants[size]
        if key not in functions:
            return
        first = key._replace(first=True)
        if first in functions and (replica, key) not in self.begun:
            self.begun.add((replica, key))
            key = first
        for member in range(len(self.layout.mesh_of(replica, action.stage))):
            self._run(functions[key], self.step.name_of(key, size), action, Who(replica, action.stage, member))

    def _run(self, function: StageFunction, called: str, action: Action, who: Who) -> None:
        """One member's call of a function."""
        replica, i, phase = who.replica, action.micro_batch, function.key.phase
        device = self.layout.mesh_of(replica, who.stage)[who.member]
        inputs = [self._argument(source, who, i, device) for source in function.arguments]
        kinds = [function.graph.type_of(ref) for ref in function.graph.outputs]
        name = f"r{replica}/{action}" + (f"p{phase}" if phase else "") + (f"m{who.member}" if who.member else "")
        attrs = {
            "function": called.encode(),
            "action": str(action).encode(),
            "replica": replica,
            "phase": phase,
            "member": who.member,
        }
        call = self.builder.add(name, "Call", inputs, kinds, device, **attrs)
        if self.step.ordered and device in self.last_call:
            self.builder.change(call, control=(self.last_call[device],))
        self.last_call[device] = call.node
        self.made.note(function, call, who, i, device)

    def _argument(self, source: Source, who: Who, i: int, device: int) -> Ref:
        builder, plan, replica = self.builder, self.plan, who.replica
        if source.kind == "step":
            return self.value_on(source.ref, device)
        if source.kind == "micro":
            return builder.move(self.made.value(source.ref, who, i), device)
        if source.kind == "slice":
            return builder.move(self._slice(source.ref, replica, i, device), device)
        if source.kind == "sum":
            return builder.move(self.made.sum_so_far(source.name, who), device)
        if source.kind == "piece":
            return self.made.piece(source, self.value_on(source.ref, device), who, device)
        if source.kind == "place":
            return builder.place(self.layout.mesh_of(replica, who.stage), who.member, i)
        if source.kind == "member":
            return builder.constant(who.member, INT32, device)
        if source.kind == "weight":
            return builder.constant(plan.weight(replica, i) ** float(Fraction(source.name)), DType("float64"), device)
        if source.kind == "draw":
            return builder.constant(replica * plan.micro_batches + i, INT32, device)
        if source.kind == "first":
            return builder.constant(plan.offset(replica, i), DType("int64"), device)
        if source.kind == "seed":
            return builder.move(self._seed(source.name), device)
        raise InternalError(
            f"an action takes an argument of unknown kind '{source.kind}'", way_out="Extend bind._Binder._argument."
        )

    def _slice(self, ref: Ref, replica: int, i: int, device: int) -> Placed:
        """A micro-batch's piece of an input or of another whole value, cut on the host of the process that uses it."""
        plan, process = self.plan, self.layout.process_of(device)
        host = self.layout.hosts[process]
        key = (ref, replica, i, host)
        if key not in self.slices:
            node, at = self.graph[ref.node], (0, 1)
            first = plan.offset(replica, i)
            if node.op == "Piece":
                at = node.attrs["dim"], node.attrs["outer"]
                whole = Placed(self.value_on(node.inputs[0], host), host)
            else:
                whole = self.value_near(ref, host)
                first -= plan.examples_of(process)[0] if self.step.fed else 0
            if plan.parts > 1:
                examples = (first, plan.sizes[replica][i])
                whole = self.inputs.piece(f"{ref}/r{replica}/{i}", whole, self.graph.type_of(ref), at, examples)
            self.slices[key] = whole
        return self.slices[key]

    def _seed(self, name: str) -> Placed:
        """Two numbers drawn once per step for a stateful random op, from the seed it was made with."""
        key = (Ref(f"seed/{name}"), 0)
        if key not in self.once:
            self.once[key] = self._drawn(name)
        return self.once[key]

    def _drawn(self, name: str) -> Placed:
        builder, host, kind = self.builder, self.builder.host, TensorType(INT32, Shape((2,)))
        made = None
        if self.group == 0:
            bounds = [builder.constant(low, INT32, host) for low in (0, 2**31 - 1)]
            like = self.graph[name].attrs
            attrs = {"seed": like["seed"], "seed2": like["seed2"], "T": INT32, "Tout": INT32}
            two = builder.constant((2,), INT32, host)
            made = Placed(builder.add(f"{name}/seed", "RandomUniformInt", [two, *bounds], [kind], host, **attrs), host)
        if len(self.layout.groups) == 1 and made is not None:
            return made
        shared = self._given_to_all(f"{name}/seed", kind, made)
        return made or shared

    # Values of the step

    def value_on(self, ref: Ref, device: int) -> Ref:
        """A value of the step on a device; what depends on no example is computed there anew."""
        ref = self.step.behind_aliases(ref)
        if self.roles.per_micro_batch(ref.node) and (self.step.fed or self.graph[ref.node].op != "Input"):
            return self.builder.move(self._merged(ref), device)
        if not self.step.copyable(ref.node):
            return self.builder.move(self.value_near(ref, device), device)
        copies, stack = self.builder.copies, [ref.node]
        while stack:
            here = self.graph[stack[-1]]
            if (Ref(here.name), device) in copies:
                stack.pop()
                continue
            given = [self.step.behind_aliases(each) for each in here.inputs]
            inside = {each for each in given if self.step.copyable(each.node)}
            missing = [each.node for each in inside if (Ref(each.node), device) not in copies]
            if missing:
                stack.extend(missing)
                continue
            inputs = [self._copy(r, device) if r in inside else self.value_on(r, device) for r in given]
            made = self.builder.add(here.name, here.op, inputs, here.outputs, device, **here.attrs)
            copies[Ref(here.name), device] = made
            stack.pop()
        return self._copy(ref, device)

    def _copy(self, ref: Ref, device: int) -> Ref:
        return self.builder.copies[Ref(ref.node), device]._replace(index=ref.index)

    def value_near(self, ref: Ref, device: int) -> Placed:
        """A value of the step where this group has it; of what every process has, that of a device's process."""
        node = self.graph[ref.node]
        if self.group and self.step.runs_once(ref.node):
            return self._shared(ref)
        key = (Ref(ref.node), self.layout.process_of(device) if node.op in BOUNDARY_OPS else 0)
        if key not in self.once:
            self.once[key] = self._make(node, key[1])
        made = self.once[key]
        return Placed(made.ref._replace(index=made.ref.index + ref.index), made.device)

    def _shared(self, ref: Ref) -> Placed:
        """What the first group has computed for all."""
        key = (Ref(f"shared/{ref}"), 0)
        if ref not in self.step.shared:
            raise InternalError(
                f"'{ref}' is used in group {self.group} and runs in the first group only",
                way_out="Extend step_program.StepProgram.shared.",
            )
        if key not in self.once:
            made = self.value_near(ref, self.builder.host) if self.group == 0 else None
            self.once[key] = self._given_to_all(str(ref), self.graph.type_of(ref), made)
        return self.once[key]

    def _given_to_all(self, name: str, kind: TensorType, made: Placed | None) -> Placed:
        """What the first group has made, on the hosts of all."""
        seats = (HOST_SEAT,) * len(self.layout.groups.sizes)
        return self.combine.shared(self._parts(name, kind, [made] if made else [], seats))

    def _make(self, node: Node, process: int) -> Placed:
        if node.op in BOUNDARY_OPS:
            return self.inputs.taken(node, process)
        if node.name in self.roles.markers:
            return self._gradient(node)
        device = self.plan.device_of(node.name, self.group)
        inputs = [self.value_on(ref, device) for ref in node.inputs]
        if node.op in ALIAS_OPS:
            return Placed(inputs[0], device)
        made = self.builder.add(node.name, node.op, inputs, node.outputs, device, **node.attrs)
        turn = [self.turns[ref.node] for ref in node.inputs if node.stateful and ref.node in self.turns]
        self.builder.change(made, stateful=node.stateful, control=tuple(turn))
        if node.stateful:
            self.turns.update({ref.node: made.node for ref in node.inputs if self.graph[ref.node].op == "Handle"})
        return Placed(made, device)

    # One value of the parts'

    def _merged(self, ref: Ref) -> Placed:
        """The step's value of a tensor that every micro-batch has."""
        if ref not in self.merged:
            values = [self._part(ref, r, i) for r, i in self.combine.parts]
            stage = self.plan.stage_of.get(ref.node)
            seat = HOST_SEAT if stage is None else self.layout.seat(0, stage)
            seats = (seat,) * len(self.layout.groups.sizes)
            parts = self._parts(str(ref), self.graph.type_of(ref), values, seats)
            self.merged[ref] = values[0] if self.plan.parts == 1 else self.combine.value(parts, self.plan.merges[ref])
        return self.merged[ref]

    def _part(self, ref: Ref, replica: int, i: int) -> Placed:
        if self.graph[ref.node].op == "Input":
            return self._slice(ref, replica, i, self.layout.device_of(replica, 0))
        return self.made.micro[ref, replica, i][0]

    def _gradient(self, marker: Node) -> Placed:
        """A marker's gradient over all examples, on the device that owns it in this group."""
        if not self.roles.per_micro_batch(marker.inputs[0].node):
            device = self.plan.device_of(marker.name, self.group)
            return Placed(self.value_on(marker.inputs[0], device), device)
        value = self.plan.merges.get(Ref(marker.name))
        if value is not None and isinstance(value.state, Split):
            return self.combine.value(self._contributions(marker), value)
        if marker.outputs[0].dtype not in REDUCED:
            return self.combine.added(self._contributions(marker))
        if marker.name not in self.gradients:
            self._reduce_bucket_of(marker.name)
        return self.gradients[marker.name]

    def _contributions(self, marker: Node) -> Parts:
        """What the replicas of this group bring to a gradient."""
        members = self.layout.groups.members[self.group]
        values = [each for replica in members for each in self.made.sums_of(marker, replica)]
        kind = TensorType(marker.outputs[0].dtype, self.graph.type_of(marker.inputs[0]).shape)
        return self._parts(marker.name, kind, values, self.plan.seat_of[marker.name])

    def _parts(self, name: str, kind: TensorType, values: list[Placed], seats: tuple[int, ...]) -> Parts:
        if seats not in self.homes:
            layout, groups = self.layout, self.layout.groups
            devices = [layout.device_at(group, seats[groups.kind_of(group)]) for group in range(len(groups))]
            self.homes[seats] = devices[self.group], tuple(map(layout.process_of, devices))
        return Parts(name, kind, values, *self.homes[seats])

    def _reduce_bucket_of(self, name: str) -> None:
        """Reduces a gradient with all of its bucket; collectives in the plan's order, for that is each device's too."""
        plan, index = self.plan, self.bucket_of.get(name)
        if index is None:
            self._reduce((name,), None)
            return
        before = [each for each in plan.collective if each < index] if index in plan.collective else []
        for number in (*before, index):
            if plan.buckets[number][0] not in self.gradients:
                self._reduce(plan.buckets[number], number if number in plan.collective else None)

    def _reduce(self, bucket: Iterable[str], number: int | None) -> None:
        names = tuple(bucket)
        parts = [self._contributions(self.graph[name]) for name in names]
        alone = len(self.layout.groups.members[self.group]) == 1
        if number is None or alone:
            made = self.combine.gradients(parts)
        else:
            made = self.combine.gradients_by_collective(parts, number)
        self.gradients.update(zip(names, made, strict=True))

    # Effects

    def _effects(self) -> list[str]:
        """Assignments, each after its variable was read; `hold_assignments` says what else they wait for."""
        effects: list[str] = []
        reads: dict[tuple[str, int], list[str]] = {}
        for node in self.builder.nodes.values():
            if node.op == "Read":
                reads.setdefault((variable_of(node), node.device), []).append(node.name)
        for name in self.graph.effects:
            node = self.graph[name]
            if node.op == "Write":
                layout = self.plan.variables[variable_of(node)]
                for process in layout.holders(self.layout, self.group):
                    effects.append(self._assign(node, self.inputs.home_of(variable_of(node), process), reads))
            elif not self.roles.per_micro_batch(name) and self.group == 0:
                effects.append(self.value_near(Ref(name), self.builder.host).ref.node)
        return effects

    def _assign(self, write: Node, home: int, reads: Mapping[tuple[str, int], list[str]]) -> str:
        variable = variable_of(write)
        value = self.value_on(Ref(write.name), home)
        attrs = {"variable": variable.encode(), "dtype": self.builder.type_of(value).dtype}
        name = f"{variable}/assign"
        assign = self.builder.add(name, "Assign", [value], [], home, **attrs)
        self.builder.change(assign, control=tuple(reads.get((variable, home), ())))
        return assign.node

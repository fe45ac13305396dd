"""A step of which every value is compared with one device's while it runs: `WHALE_TF_CHECK=values`.

    plan, one step ─▶ what each part has ─▶ put together by its state ─┬─▶ compare
                                                                       └─▶ each operation by itself on one device ─▲

Each operation is run once more, on the global batch and on the values that its operands stand for (rewrite/isolate.py).
So an operation whose state is wrong is found itself, and not what follows from it; and rounding does not add up.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from whale_tf.errors import ValueCheckError
from whale_tf.ir.graph import Ref
from whale_tf.ir.sharding import Apart, State, Value, parse_state
from whale_tf.ir.sizes import Array
from whale_tf.plan.local import FLOATS
from whale_tf.plan.states import States
from whale_tf.rewrite.isolate import Isolated, isolate
from whale_tf.rewrite.probe import Record, probe
from whale_tf.rewrite.program import Program
from whale_tf.run.assembly import Piece, Unassembled, assembled
from whale_tf.run.compiled import Compiled, remove
from whale_tf.run.lower import Lowered
from whale_tf.run.parts import Parts
from whale_tf.run.rounding import allowed, largest_of
from whale_tf.run.verification import distance

WAY_OUT = "This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder writes."


@dataclass
class Values:
    """The values of one step.

    Attributes:
      of_members: for a tensor that a part has, its state over the part's mesh, and what each member has.
      of_parts: for a tensor that parts have, what each has.
      of_step: for a tensor that there is one value of, that value, as each process and group of replicas has it.
      whole: the value that a tensor stands for; of one that every part has, each part's. The first one counts.
    """

    of_members: dict[tuple[Ref, tuple[int, int]], tuple[State, dict[int, Array]]] = field(default_factory=dict)
    of_parts: dict[Ref, dict[tuple[int, int], Array]] = field(default_factory=dict)
    of_step: dict[Ref, list[Array]] = field(default_factory=dict)
    whole: dict[Ref, list[Array]] = field(default_factory=dict)

    def add(self, record: Record, values: Array) -> None:
        """Notes what was recorded."""
        if record.part is None:
            self.of_step.setdefault(record.ref, []).append(values)
        else:
            self.of_members.setdefault((record.ref, record.part), (record.lies, {}))[1][record.member] = values

    def put_members_together(self) -> None:
        """Fills `of_parts`."""
        for (ref, part), (state, members) in self.of_members.items():
            pieces = [Piece(members[member], 1 / len(members), 0) for member in sorted(members)]
            self.of_parts.setdefault(ref, {})[part] = assembled(Value(state), pieces)[0]

    def taken(self, ref: Ref) -> Array:
        """What an operation takes: the merged value, where there is one."""
        return self.of_step[ref][0] if ref in self.of_step else self.whole[ref][0]


@dataclass(frozen=True)
class Mismatch:
    """A value that is not one device's.

    Attributes:
      ref: the tensor.
      why: what is wrong, with the numbers.
    """

    ref: Ref
    why: str


class Checked(Compiled):
    """One plan of a step, for one signature, that compares all its values in each call."""

    def __init__(self, parts: Parts, states: States) -> None:
        super().__init__(parts)
        self.states = states
        self.probed = probe(self.program, states)
        self.giving = self._kept(self.probed.program)
        self.alone: tuple[Isolated, Lowered] | None = None

    def __call__(self, tensors: Sequence[tf.Tensor]) -> Any:
        """Runs the step on the global batch, and compares.

        Raises:
          ValueCheckError: a value is not one device's; the variables have the step's values.
        """
        outputs = self._guarded(self.giving, tensors)
        recorded = zip(self.probed.records, map(_array, outputs[self.probed.outputs :]), strict=True)
        values = self._values(tensors, list(recorded))
        found = [*self._put_together(values)] or [*self._different(values)]
        if found:
            raise self._error(found)
        return self.parts.result(outputs[: self.probed.outputs])

    def _kept(self, program: Program) -> Lowered:
        """Another program of the same step, known to TensorFlow as long as this lives."""
        lowered, names = self._register(program)
        weakref.finalize(self, remove, names)
        return lowered

    def _values(self, tensors: Sequence[tf.Tensor], recorded: list[tuple[Record, Array]]) -> Values:
        """What was recorded in all processes, and the arguments."""
        values = Values()
        for record, array in recorded if self.parts.world is None else self._of_all(recorded):
            values.add(record, array)
        values.put_members_together()
        for node in self.states.sizes.graph:
            if node.op == "Input" and not (self.parts.program.fed and node.attrs["batch"]):
                values.of_step[Ref(node.name)] = [_array(tensors[node.attrs["index"]])]
        return values

    def _of_all(self, recorded: list[tuple[Record, Array]]) -> Iterator[tuple[Record, Array]]:
        world = self.parts.world
        assert world is not None  # _values
        own = [
            (
                *(*record.ref, record.part, record.member, str(record.lies)),
                *(self._kind(record.ref), tf.io.serialize_tensor(array).numpy().hex()),
            )
            for record, array in recorded
        ]
        for each in world.exchange(f"the values of step '{self.parts.name}'", json.dumps(own).encode()):
            for node, index, part, member, lies, kind, text in json.loads(each):
                value, of = tf.io.parse_tensor(bytes.fromhex(text), kind), None if part is None else (part[0], part[1])
                yield Record(Ref(node, index), of, member, parse_state(lies)), _array(value)

    def _kind(self, ref: Ref) -> str:
        return self.states.sizes.type_of(ref).dtype

    # What the parts have, as one value

    def _put_together(self, values: Values) -> Iterator[Mismatch]:
        """Fills `whole`; gives what cannot be put together, or has another shape than the step's."""
        for node in self.states.sizes.graph:
            for index in range(len(node.outputs)):
                ref = Ref(node.name, index)
                try:
                    whole = self._whole(ref, values)
                except Unassembled as error:
                    yield Mismatch(ref, f"what the parts have cannot be put together: {error}")
                    continue
                shape = self.states.sizes.type_of(ref).shape
                unlike = next((each for each in whole if not _fits(each, shape)), None)
                if unlike is None and whole:
                    values.whole[ref] = whole
                elif unlike is not None and ref in values.of_parts:  # else TensorFlow itself says what is not so
                    yield Mismatch(ref, f"the parts make a {list(unlike.shape)}, and one device a {shape}")

    def _whole(self, ref: Ref, values: Values) -> list[Array]:
        """The value that a tensor stands for, as often as it is there; nothing if that is not known here."""
        parts, order = values.of_parts.get(ref, {}), list(self.plan.part_order())
        if not parts:
            return values.of_step.get(ref, [])
        if any(part not in parts for part in order):
            return []
        value, kind = self.states.value(ref), self.states.sizes.type_of(ref)
        averaged = kind.dtype in FLOATS and all(_fits(each, kind.shape) for each in parts.values())
        if isinstance(value.state, Apart) and not averaged:
            return values.of_step.get(ref, [])
        return assembled(value, [Piece(parts[r, i], self.plan.weight(r, i), self.plan.offset(r, i)) for r, i in order])

    # What one device has

    def _different(self, values: Values) -> Iterator[Mismatch]:
        """The values that differ from one device's, and what was merged to something else than it stands for."""
        expected = self._expected(values)
        for node in self.states.sizes.graph:
            for ref in (Ref(node.name, index) for index in range(len(node.outputs))):
                own = list(values.of_parts.get(ref, {}).values())
                if ref in expected:
                    limit = allowed(self.states.sizes, node, expected[ref], own, _Taken(values))
                    yield from _unequal(ref, values.whole[ref], expected[ref], limit, "one device has")
                if own and ref in values.of_step and ref in values.whole:
                    limit = allowed(self.states.sizes, node, values.whole[ref][0], own, {})
                    yield from _unequal(ref, values.of_step[ref], values.whole[ref][0], limit, "merged, the parts make")

    def _expected(self, values: Values) -> dict[Ref, Array]:
        """What one device computes, each operation from what its operands stand for."""
        if self.alone is None:
            isolated = isolate(self.states, values.whole, self.program.devices[self.program.host])
            self.alone = isolated, self._kept(isolated.program)
        isolated, lowered = self.alone
        given = [tf.constant(values.taken(ref), self._kind(ref)) for ref in isolated.given]
        return dict(zip(isolated.compared, map(_array, self._run(lowered, given)), strict=True))

    def _error(self, found: Sequence[Mismatch]) -> ValueCheckError:
        first, sizes = found[0], self.states.sizes
        node = sizes.graph[first.ref.node]
        takes = [
            f"it takes '{ref}' {sizes.type_of(ref).dtype}{sizes.type_of(ref).shape}, {self._told(ref)}"
            for ref in node.inputs
        ]
        more = [f"{len(found) - 1} more values differ, the next is '{found[1].ref}'"] if len(found) > 1 else []
        kind = sizes.type_of(first.ref)
        return ValueCheckError(
            f"'{first.ref}' ({node.op}) is not what one device computes",
            details=[f"{kind.dtype}{kind.shape}, {self._told(first.ref)}: {first.why}", *takes, *more],
            at=[self.parts.line_of(first.ref.node)],
            way_out=WAY_OUT,
        )

    def _told(self, ref: Ref) -> str:
        """The state of a tensor."""
        known = self.states.known[ref]
        return str(known.value) if known.micro else "computed once"


class _Taken(Mapping[Ref, Array]):
    """What operations take, of the tensors whose values are known."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def __getitem__(self, ref: Ref) -> Array:
        return self._values.taken(ref)

    def __iter__(self) -> Iterator[Ref]:
        return iter({**self._values.whole, **self._values.of_step})

    def __len__(self) -> int:
        return len({**self._values.whole, **self._values.of_step})


def _array(tensor: tf.Tensor) -> Array:
    return np.asarray(tensor.numpy())


def _fits(values: Array, shape: Sequence[int | None]) -> bool:
    if tuple(shape) == (None,):
        return True
    return len(values.shape) == len(shape) and all(
        size is None or size < 0 or size == own for size, own in zip(shape, values.shape, strict=True)
    )


def _unequal(ref: Ref, found: Sequence[Array], expected: Array, limit: float, whose: str) -> Iterator[Mismatch]:
    for values in found:
        absolute, _ = distance(values, expected)
        if absolute > limit:
            numbers = f"the largest difference is {absolute:.3g}, and may be {limit:.3g}"
            yield Mismatch(ref, f"{numbers}; the largest number that {whose} is {largest_of(expected):.3g}")
            return

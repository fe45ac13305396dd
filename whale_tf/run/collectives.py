"""A Reduce of the main graph as TensorFlow's own collective, and the groups of devices that run it.

    Reduce(a, b)        c = Identity(ConcatV2(Reshape(a, [-1]), Reshape(b, [-1]), 0))
                        r = CollectiveReduceV2(c, size, group, instance) after c on every device
                        s = SplitV(Mul(r, scale), sizes, 0);  Reshape(s, …) for each

Communication is by NCCL on GPUs, by a ring elsewhere. Nothing must fail while a collective waits. TensorFlow has one
set of collectives for a process, and an error of one aborts all, till the end of the process. A wait that is cancelled
is no such error, but with TensorFlow 2.21 it was taken for one in a few of thousand failing steps (it seems that
BaseCollectiveExecutor::ExecuteAsync asks whether the step is cancelled, then whether it is being cancelled, and in
between it goes from the one to the other). So none starts before all its devices have what they give: those of the
other replicas do not wait in a collective for one that fails, but for an ordinary message. And a group of devices that
is cancelled while it forms stays so (CollectiveParamResolverLocal::CancelGroup): groups form when a step is made.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import tensorflow as tf

from whale_tf.ir.graph import DType, Node, Ref, Shape, TensorType
from whale_tf.run.calls import in_any_order

FORMING = 0  # the number of the sums that form groups; no step has it
INT32 = DType("int32")
_one_at_a_time = threading.Lock()  # two sums of one number and group would take each other's parts


@dataclass(frozen=True)
class Group:
    """Devices of one process that reduce together.

    Attributes:
      devices: their full names.
    """

    devices: tuple[str, ...]

    @property
    def key(self) -> int:
        """The same for the same devices: TensorFlow, and NCCL on GPUs, then join them only once.

        Keys that TensorFlow hands out itself count from 1; these are spread over 31 bits.
        """
        return zlib.crc32(" ".join(sorted(self.devices)).encode()) & 0x7FFFFFFF

    @property
    def hint(self) -> str:
        """How TensorFlow is to communicate."""
        return "nccl" if all("/device:GPU:" in device for device in self.devices) else "ring"


class Expansion:
    """TensorFlow's operations for one Reduce.

    Attributes:
      nodes: the collective itself has the name of the Reduce, and the number `instance`.
      parts: which tensor is which output of the Reduce.
    """

    def __init__(self, reduce: Node, group: Group, instance: int, peers: Sequence[str]) -> None:
        """`peers` are the names of the Reduces on all devices."""
        self.nodes: list[Node] = []
        self.parts: dict[Ref, Ref] = {}
        self._reduce, self._dtype = reduce, reduce.outputs[0].dtype
        given = self._flattened()
        one = len(reduce.outputs) == 1
        kind = reduce.outputs[0] if one else TensorType(self._dtype, Shape((-1,)))
        flat = self._add("ready", "Identity", [given], [kind], T=self._dtype)
        if reduce.name == peers[0]:
            self.nodes.append(Node(_meeting(peers), "NoOp", control=tuple(f"{peer}/ready" for peer in peers)))
        keys = {"size": len(group.devices), "group": group.key, "instance": instance}
        inputs = [flat, *(self._constant(name, value) for name, value in keys.items())]
        attrs = {
            "T": self._dtype,
            "merge_op": b"Add",
            "final_op": b"Id",
            "communication_hint": group.hint.encode(),
        }
        control = (*reduce.control, _meeting(peers))
        made = Node(reduce.name, "CollectiveReduceV2", tuple(inputs), control, attrs, (kind,), stateful=True)
        self.nodes.append(made)
        self._split(self._scaled(Ref(made.name), kind))

    def _flattened(self) -> Ref:
        """All its tensors as one; a single one as it is."""
        given = self._reduce.inputs
        if len(given) == 1:
            return given[0]
        vector, attrs = TensorType(self._dtype, Shape((-1,))), {"T": self._dtype, "Tshape": INT32}
        shape, axis = self._constant("vector", (-1,)), self._constant("axis", 0)
        flat = [self._add(f"flat{i}", "Reshape", [ref, shape], [vector], **attrs) for i, ref in enumerate(given)]
        return self._add("joined", "ConcatV2", [*flat, axis], [vector], T=self._dtype, Tidx=INT32, N=len(flat))

    def _scaled(self, total: Ref, kind: TensorType) -> Ref:
        scale = self._reduce.attrs["scale"]
        if scale == 1:
            return total
        factor = self._constant("scale", scale, self._dtype)
        return self._add("scaled", "Mul", [total, factor], [kind], T=self._dtype)

    def _split(self, total: Ref) -> None:
        """The tensors again; nothing uses them but on the owner, and TensorFlow leaves out what nothing uses."""
        kinds, name = self._reduce.outputs, self._reduce.name
        if len(kinds) == 1:
            if total.node != name:
                self.parts[Ref(name)] = total
            return
        sizes = self._constant("sizes", tuple(_elements(kind) for kind in kinds))
        axis = self._constant("axis", 0)
        vectors = [TensorType(self._dtype, Shape((_elements(kind),))) for kind in kinds]
        attrs = {"T": self._dtype, "Tlen": INT32, "num_split": len(kinds)}
        split = self._add("split", "SplitV", [total, sizes, axis], vectors, **attrs)
        for i, kind in enumerate(kinds):
            inputs = [split._replace(index=i), self._constant(f"shape{i}", tuple(size or 0 for size in kind.shape))]
            attrs = {"T": self._dtype, "Tshape": INT32}
            self.parts[Ref(name, i)] = self._add(f"part{i}", "Reshape", inputs, [kind], **attrs)

    def _constant(self, name: str, value: float | tuple[int, ...], dtype: DType = INT32) -> Ref:
        shape = Shape((len(value),)) if isinstance(value, tuple) else Shape()
        if any(node.name == self._named(name) for node in self.nodes):
            return Ref(self._named(name))
        return self._add(name, "Const", [], [TensorType(dtype, shape)], dtype=dtype, value=value)

    def _add(self, name: str, op: str, inputs: Sequence[Ref], outputs: Sequence[TensorType], **attrs: Any) -> Ref:
        self.nodes.append(Node(self._named(name), op, tuple(inputs), attrs=attrs, outputs=tuple(outputs)))
        return Ref(self._named(name))

    def _named(self, name: str) -> str:
        return f"{self._reduce.name}/{name}"


def _elements(kind: TensorType) -> int:
    return prod(size or 0 for size in kind.shape)


def _meeting(peers: Sequence[str]) -> str:
    """What runs when all devices have what they give; on the first of them."""
    return f"{peers[0]}/meeting"


def form_groups(groups: Mapping[int, Group]) -> None:
    """Lets the devices of each group find one another; of groups that are formed, only adds some ones."""
    if groups:
        with _one_at_a_time:
            tf.function(lambda: [_meet(group) for group in groups.values()], autograph=False).get_concrete_function()()


def _meet(group: Group) -> list[tf.Tensor]:
    totals = []
    for device in group.devices:
        with tf.device(device):
            total = tf.raw_ops.CollectiveReduceV2(
                input=tf.ones([1]),
                group_size=len(group.devices),
                group_key=group.key,
                instance_key=FORMING,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
                communication_hint=group.hint,
            )
            totals.append(in_any_order(total))
    return totals

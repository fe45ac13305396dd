"""Writes a fused BatchNormalization in training as the operations that it consists of, and its gradient as well.

The statistics of the fused operation are inside of it, so that all examples would have to be brought to one device. Of
its parts only sums over the examples are put together:

    Before:  y, … = FusedBatchNormV3(x, scale, offset);  dx, … = FusedBatchNormGradV3(dy, x, scale, …)
    After:   c = x - Mean(x);  r = Rsqrt(Mean(c²) + epsilon);  y = c * r * scale + offset
             dx = r * scale * (dy - Mean(dy) - c * r * Mean(dy * c * r))

Source: Ioffe & Szegedy 2015, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType

FORWARD = frozenset({"FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"})
BACKWARD = frozenset({"FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"})
FOR_BACKWARD = (3, 4, 5)  # the outputs of the forward that are for its gradient
INT32 = DType("int32")


def unfuse(graph: Graph) -> Graph:
    """The step without fused normalizations over the batch whose size is known."""
    wanted = {node.name for node in graph if _can_be(graph, node)}
    if not wanted:
        return graph
    writer = _Writer(graph)
    for node in graph:
        node = node.with_(inputs=tuple(writer.moved.get(ref, ref) for ref in node.inputs))
        if node.name in wanted:
            writer.forward(node)
        elif node.op in BACKWARD and node.inputs[3] in writer.parts:
            writer.backward(node, writer.parts[node.inputs[3]])
        else:
            writer.nodes[node.name] = node
    outputs = [writer.moved.get(ref, ref) for ref in graph.outputs]
    return Graph.of(writer.nodes.values(), outputs, graph.effects, attrs=graph.attrs)


def _can_be(graph: Graph, node: Node) -> bool:
    if node.op not in FORWARD or not node.attrs.get("is_training", True):
        return False
    for name in graph.users[node.name]:
        user = graph[name]
        kept = any(ref.node == node.name and ref.index in FOR_BACKWARD for ref in user.inputs)
        if kept and not (user.op in BACKWARD and user.inputs[3].node == node.name):
            return False
    return graph.type_of(node.inputs[0]).shape.known


@dataclass(frozen=True)
class _Parts:
    """What the gradient of a normalization takes of it.

    Attributes:
      centered: the examples less their mean.
      inverse: one over the deviation.
      gain: that, times the scale.
    """

    centered: Ref
    inverse: Ref
    gain: Ref


@dataclass
class _Writer:
    """A graph under construction.

    Attributes:
      moved: tensors that are results of another node now.
      parts: for what a gradient takes of its normalization, the parts of that.
    """

    graph: Graph
    nodes: dict[str, Node] = field(default_factory=dict)
    moved: dict[Ref, Ref] = field(default_factory=dict)
    parts: dict[Ref, _Parts] = field(default_factory=dict)

    def forward(self, node: Node) -> None:
        """Adds the operations of a normalization; the last one has its name."""
        make = _Maker(self.nodes, node, self.graph.type_of(self.graph[node.name].inputs[0]))
        x, scale, offset, *before = node.inputs
        x = make.widened(x)
        mean = make.over_examples("mean", "Mean", x)
        centered = make("centered", "Sub", [x, mean])
        variance = make.over_examples("variance", "Mean", make("squared", "Square", [centered]))
        stable = make("stable", "AddV2", [variance, make.number("epsilon", node.attrs["epsilon"])])
        inverse = make("inverse", "Rsqrt", [stable])
        gain = make("gain", "Mul", [inverse, make.by_channel("scale", scale)])
        scaled = make("scaled", "Mul", [centered, gain])
        made = make("shifted", "AddV2", [scaled, make.by_channel("offset", offset)])
        make.as_result(made, node.outputs[0])
        self.parts[Ref(node.name, 3)] = _Parts(centered, inverse, gain)
        used = {ref for user in self.graph.users[node.name] for ref in self.graph[user].inputs}
        used |= set(self.graph.outputs)
        count = make.count
        unbiased = count / max(count - 1, 1)
        for index, (value, factor) in enumerate(((mean, 1.0), (variance, unbiased)), start=1):
            if Ref(node.name, index) in used:
                flat = make.flat(f"statistic{index}", value, factor)
                self.moved[Ref(node.name, index)] = make.averaged(f"statistic{index}", flat, before[index - 1])

    def backward(self, node: Node, parts: _Parts) -> None:
        """Adds the operations of its gradient; the last one has its name."""
        like = node.with_(twin=f"{node.inputs[3].node}/scaled")  # which takes the statistics, so that it follows them
        make = _Maker(self.nodes, like, self.graph.type_of(self.graph[node.name].inputs[1]))
        gradient = make.widened(node.inputs[0])
        normal = make("normal", "Mul", [parts.centered, parts.inverse])
        product = make("product", "Mul", [gradient, normal])
        scale = make.over_examples("scale", "Sum", product, keep=False)
        offset = make.over_examples("offset", "Sum", gradient, keep=False)
        self.moved |= {Ref(node.name, 1): scale, Ref(node.name, 2): offset}
        along = make("along", "Mul", [normal, make.over_examples("product_mean", "Mean", product)])
        centered = make("centered", "Sub", [gradient, make.over_examples("gradient_mean", "Mean", gradient)])
        made = make("scaled", "Mul", [make("across", "Sub", [centered, along]), parts.gain])
        make.as_result(made, node.outputs[0])


@dataclass
class _Maker:
    """Adds the operations that stand for one, `like`, whose stamps they inherit.

    Attributes:
      examples: the type of what is normalized.
    """

    nodes: dict[str, Node]
    like: Node
    examples: TensorType

    def __post_init__(self) -> None:
        shape = self.examples.shape.sizes
        self.channel = 1 if self.like.attrs.get("data_format", b"NHWC").startswith(b"NC") else len(shape) - 1
        self.axes = tuple(dim for dim in range(len(shape)) if dim != self.channel)
        self.channels = shape[self.channel]
        self.count = math.prod(shape[dim] for dim in self.axes)  # over the whole batch, in each part
        self.dtype = self.like.attrs.get("U", self.examples.dtype)

    def __call__(self, suffix: str, op: str, inputs: Sequence[Ref]) -> Ref:
        """An operation by elements, of shapes that broadcast."""
        shapes = [self.nodes[ref.node].outputs[ref.index].shape.sizes for ref in inputs]
        rank = max(map(len, shapes))
        padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
        return self._add(suffix, op, inputs, Shape(map(max, zip(*padded, strict=True))), T=self.dtype)

    def over_examples(self, suffix: str, op: str, value: Ref, *, keep: bool = True) -> Ref:
        """A Sum or Mean for each channel."""
        kept = [self.channels if dim == self.channel else 1 for dim in range(len(self.axes) + 1)]
        axes = self._constant(f"{suffix}/axes", self.axes, INT32)
        attrs = {"T": self.dtype, "Tidx": INT32, "keep_dims": keep}
        return self._add(suffix, op, [value, axes], Shape(kept if keep else (self.channels,)), **attrs)

    def number(self, suffix: str, value: float) -> Ref:
        """A constant."""
        return self._constant(suffix, value, self.dtype)

    def widened(self, value: Ref) -> Ref:
        """The value as the type that statistics are computed in."""
        given = self.nodes[value.node].outputs[value.index]
        if given.dtype == self.dtype:
            return value
        attrs = {"SrcT": given.dtype, "DstT": self.dtype, "Truncate": False}
        return self._add(f"wide_{len(self.nodes)}", "Cast", [value], given.shape, **attrs)

    def by_channel(self, suffix: str, value: Ref) -> Ref:
        """A number for each channel in the shape that broadcasts with the examples."""
        behind = len(self.axes) - self.channel
        return self._reshaped(suffix, value, (self.channels, *(1,) * behind)) if behind else value

    def flat(self, suffix: str, value: Ref, factor: float) -> Ref:
        """A number for each channel as a vector, times a factor."""
        vector = self._reshaped(suffix, value, (self.channels,))
        if factor == 1.0:
            return vector
        return self(f"{suffix}/times", "Mul", [vector, self.number(f"{suffix}/factor", factor)])

    def averaged(self, suffix: str, value: Ref, before: Ref) -> Ref:
        """What the operation makes of a statistic and the average so far."""
        factor = self.like.attrs.get("exponential_avg_factor", 1.0)
        if factor == 1.0:
            return value
        new = self(f"{suffix}/new", "Mul", [value, self.number(f"{suffix}/new/factor", factor)])
        old = self(f"{suffix}/old", "Mul", [before, self.number(f"{suffix}/old/factor", 1.0 - factor)])
        return self(f"{suffix}/average", "AddV2", [new, old])

    def as_result(self, value: Ref, kind: TensorType) -> None:
        """The value under the operation's name, in its type."""
        if kind.dtype == self.dtype:
            made = self.like.with_(op="Identity", attrs={"T": self.dtype})
        else:
            made = self.like.with_(op="Cast", attrs={"SrcT": self.dtype, "DstT": kind.dtype, "Truncate": False})
        self.nodes[made.name] = made.with_(inputs=(value,), outputs=(kind,))

    def _reshaped(self, suffix: str, value: Ref, shape: tuple[int, ...]) -> Ref:
        target = self._constant(f"{suffix}/shape", shape, INT32)
        return self._add(suffix, "Reshape", [value, target], Shape(shape), T=self.dtype, Tshape=INT32)

    def _constant(self, suffix: str, value: float | tuple[int, ...], dtype: DType) -> Ref:
        shape = Shape((len(value),) if isinstance(value, tuple) else ())
        return self._add(suffix, "Const", [], shape, dtype=dtype, value=value, shape=shape)

    def _add(self, suffix: str, op: str, inputs: Sequence[Ref], sizes: Shape, /, **attrs: Any) -> Ref:
        name = f"{self.like.name}/{suffix}"
        dtype = attrs.get("DstT", attrs.get("dtype", self.dtype))
        self.nodes[name] = self.like.with_(
            name=name, op=op, inputs=tuple(inputs), attrs=attrs, outputs=(TensorType(dtype, sizes),)
        )
        return Ref(name)

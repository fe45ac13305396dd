"""What a node costs: floating point operations of one run, and bytes of its tensors.

Both come from static shapes; an unknown dim or rank counts as 1, so they are lower bounds there. One multiplication,
addition, comparison or transcendental function is one operation. A fused multiply-add is two, as in the peak rates that
vendors publish.

`FLOPS` is the table, from an op's type to its rule. An op that is not in it costs one operation per output element.
That is meant for elementwise ops. It also meets those that call functions (`While`, `If`, `PartitionedCall`): a Graph
does not hold the functions' bodies, so their work is underestimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from whale_tf.errors import InternalError
from whale_tf.ir.graph import Graph, Node, Shape, TensorType

Rule = Callable[[Graph, Node], float]


def flops(graph: Graph, node: Node) -> float:
    """Floating point operations of one run of a node of the graph."""
    return FLOPS.get(node.op, _one_per_output)(graph, node)


def graph_flops(graph: Graph, names: Iterable[str]) -> float:
    """Floating point operations of one run of each named node."""
    return math.fsum(flops(graph, graph[name]) for name in names)


def tensor_bytes(kind: TensorType) -> int:
    """Bytes of a tensor in memory.

    A handle (`resource`, `variant`) counts as nothing, because what it names is counted where it lives; a string counts
    without its characters, which no static shape tells.

    Raises:
      InternalError: the element type is not in BYTES_PER_ELEMENT.
    """
    size_bytes = BYTES_PER_ELEMENT.get(kind.dtype)
    if size_bytes is None:
        raise InternalError(
            f"the size of element type '{kind.dtype}' is not known",
            way_out="Add it to BYTES_PER_ELEMENT in whale_tf/plan/cost.py.",
        )
    return size_bytes * elements(kind.shape)


def elements(shape: Shape) -> int:
    """How many elements a tensor has; each unknown dim, and an unknown rank, counts as 1."""
    return _product(shape)


# Rules.


def _free(graph: Graph, node: Node) -> float:
    return 0.0


def _one_per_output(graph: Graph, node: Node) -> float:
    return float(sum(elements(kind.shape) for kind in node.outputs))


def _per_input(position: int, operations: float = 1.0) -> Rule:
    """So many operations per element of one input; a negative position counts from the last."""
    return lambda graph, node: operations * elements(_input(graph, node, position))


def _per_largest_input(operations: float) -> Rule:
    """So many operations per element of the largest input: for an optimizer's op, that is the gradient."""
    return lambda graph, node: operations * max((elements(graph.type_of(ref).shape) for ref in node.inputs), default=0)


def _add_n(graph: Graph, node: Node) -> float:
    return (len(node.inputs) - 1) * _one_per_output(graph, node)


def _matmul(graph: Graph, node: Node) -> float:
    """2 batch m n k, for [batch..., m, k] times [batch..., k, n].

    The batch is that of the output, so that broadcasting is counted.
    """
    flipped_left = node.attrs.get("transpose_a", False) or node.attrs.get("adj_x", False)
    flipped_right = node.attrs.get("transpose_b", False) or node.attrs.get("adj_y", False)
    k_left = _size(_input(graph, node, 0), -2 if flipped_left else -1)
    k_right = _size(_input(graph, node, 1), -1 if flipped_right else -2)
    return 2.0 * elements(_output(node)) * max(k_left, k_right)


def _sparse_matmul(graph: Graph, node: Node) -> float:
    """2 stored n, for a sparse matrix of so many stored values (inputs 0 to 2) times a dense [k, n]."""
    return 2.0 * elements(_input(graph, node, 1)) * _size(_output(node), -1)


def _einsum(graph: Graph, node: Node) -> float:
    """The product P of all labels' sizes, times one per operand, less one where no label is summed over.

    For two operands: 2 P when they are contracted, P for an outer product. For one: P for a sum, 0 for a transposition.
    """
    left, _, result = node.attrs["equation"].decode("ascii").replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for labels, ref in zip(left.split(","), node.inputs, strict=True):
        for label, size in _labelled(labels, graph.type_of(ref).shape):
            if size != 1 or label not in sizes:
                sizes[label] = size
    summed = any(label[:3] not in result for label in sizes)  # a label is one letter, or `...` and a number
    return float((len(node.inputs) - 1 + summed) * math.prod(sizes.values()))


def _labelled(labels: str, shape: Shape) -> list[tuple[str, int]]:
    """Label and size of each dim of an operand; what `...` hides is labelled from its end, as it broadcasts."""
    if None in shape:
        return []
    before, ellipsis, after = labels.partition("...")
    hidden = len(shape) - len(before) - len(after) if ellipsis else 0
    names = [*before, *(f"...{i}" for i in reversed(range(hidden))), *after]
    return [(name, _product((size,))) for name, size in zip(names, shape, strict=True)]


def _convolution(graph: Graph, node: Node) -> float:
    """2 outputs window (channels_in / groups).

    The filter is [window..., channels_in / groups, channels_out], whatever the data_format.
    Strides, padding and dilation show in the output's shape alone.
    """
    return 2.0 * elements(_output(node)) * _product(_input(graph, node, 1)[:-1])


def _convolution_input_gradient(graph: Graph, node: Node) -> float:
    """As many as forward; the inputs are the input or its sizes, the filter, the output's gradient."""
    return 2.0 * elements(_input(graph, node, 2)) * _product(_input(graph, node, 1)[:-1])


def _convolution_filter_gradient(graph: Graph, node: Node) -> float:
    """As many as forward; the op's output has the filter's shape."""
    return 2.0 * elements(_input(graph, node, 2)) * _product(_output(node)[:-1])


def _depthwise(graph: Graph, node: Node) -> float:
    """2 outputs window: the filter is [height, width, channels, multiplier], and each output reads one channel."""
    return 2.0 * elements(_output(node)) * _product(_input(graph, node, 1)[:2])


def _depthwise_input_gradient(graph: Graph, node: Node) -> float:
    return 2.0 * elements(_input(graph, node, 2)) * _product(_input(graph, node, 1)[:2])


def _depthwise_filter_gradient(graph: Graph, node: Node) -> float:
    return 2.0 * elements(_input(graph, node, 2)) * _product(_output(node)[:2])


def _pool(graph: Graph, node: Node) -> float:
    """One per output and place in the window; `ksize` has one size per dim, 1 for those not pooled."""
    return float(elements(_output(node)) * math.prod(node.attrs["ksize"]))


def _pool_gradient(graph: Graph, node: Node) -> float:
    """As many as forward; the last input is the output's gradient."""
    return float(elements(_input(graph, node, -1)) * math.prod(node.attrs["ksize"]))


def _batch_norm(graph: Graph, node: Node) -> float:
    """Per element 3 to normalize (subtract, scale, shift); in training also 1 for the mean and 3 for the variance."""
    return elements(_input(graph, node, 0)) * (7.0 if node.attrs.get("is_training", True) else 3.0)


# Shapes.


def _input(graph: Graph, node: Node, position: int) -> Shape:
    return graph.type_of(node.inputs[position]).shape


def _output(node: Node) -> Shape:
    return node.outputs[0].shape


def _size(shape: Shape, dim: int) -> int:
    """One dim's size; 1 where it is unknown, or the rank is."""
    return _product(shape[dim : dim + 1 or None])


def _product(sizes: Iterable[int | None]) -> int:
    return math.prod(1 if size is None or size < 0 else size for size in sizes)


# The tables.


def _table(rules: Mapping[Rule, str]) -> Mapping[str, Rule]:
    """From op to rule, where `rules` gives for each rule its ops with spaces between."""
    return MappingProxyType({op: rule for rule, ops in rules.items() for op in ops.split()})


FLOPS: Mapping[str, Rule] = _table(
    {
        _matmul: "MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 SparseMatMul",
        _sparse_matmul: "SparseTensorDenseMatMul",
        _einsum: "Einsum",
        _convolution: "Conv Conv2D Conv3D",  # tf.nn.conv1d makes a Conv2D
        _convolution_input_gradient: "Conv2DBackpropInput Conv2DBackpropInputV2 Conv3DBackpropInput "
        "Conv3DBackpropInputV2",
        _convolution_filter_gradient: "Conv2DBackpropFilter Conv2DBackpropFilterV2 Conv3DBackpropFilter "
        "Conv3DBackpropFilterV2",
        _depthwise: "DepthwiseConv2dNative",
        _depthwise_input_gradient: "DepthwiseConv2dNativeBackpropInput",
        _depthwise_filter_gradient: "DepthwiseConv2dNativeBackpropFilter",
        _pool: "AvgPool MaxPool AvgPool3D MaxPool3D",
        _pool_gradient: "AvgPoolGrad MaxPoolGrad AvgPool3DGrad MaxPool3DGrad",
        _batch_norm: "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
        # Two sums over the batch (1 and 3), then dy - a - (x - mean) b, scaled (4).
        _per_input(0, 8.0): "FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3",
        # Largest, subtract, exponential, sum, divide (or subtract its logarithm).
        _per_input(0, 5.0): "Softmax LogSoftmax",
        # That, the product with the labels and its sum, and the gradient that the op gives beside the loss.
        _per_input(0, 8.0): "SoftmaxCrossEntropyWithLogits SparseSoftmaxCrossEntropyWithLogits",
        _per_input(0): "Sum Mean Max Min Prod All Any ArgMax ArgMin Cumsum Cumprod CumulativeLogsumexp BiasAddGrad "
        "SegmentSum SegmentSumV2 SegmentMean SegmentMax SegmentMin UnsortedSegmentSum UnsortedSegmentMax "
        "UnsortedSegmentMin UnsortedSegmentProd Bincount DenseBincount",
        _per_input(0, 2.0): "L2Loss EuclideanNorm",
        _per_input(1): "AssignAddVariableOp AssignSubVariableOp ScatterNd",
        _per_input(2): "ResourceScatterAdd ResourceScatterSub ResourceScatterMul ResourceScatterDiv ResourceScatterMax "
        "ResourceScatterMin ResourceScatterNdAdd TensorScatterAdd TensorScatterSub TensorScatterMax TensorScatterMin",
        _add_n: "AddN AccumulateNV2",
        _per_largest_input(2.0): "ResourceApplyGradientDescent",
        _per_largest_input(4.0): "ResourceApplyMomentum ResourceApplyKerasMomentum",
        _per_largest_input(12.0): "ResourceApplyAdam",
        # Nothing is computed: what moves, names, makes or describes tensors, and what carries a value in the program.
        _free: "Input Variable Captured Handle Argument Write Gradient "
        "NoOp Const Placeholder PlaceholderWithDefault Identity IdentityN StopGradient PreventGradient Snapshot "
        "EnsureShape DeepCopy GuaranteeConst _Arg _Retval _Send _Recv Assert Print PrintV2 "
        "ReadVariableOp AssignVariableOp VarHandleOp VariableShape VarIsInitializedOp DestroyResourceOp "
        "Shape ShapeN Size Rank Reshape ExpandDims Squeeze Bitcast Empty Fill ZerosLike OnesLike OneHot Range "
        "BroadcastTo BroadcastArgs BroadcastGradientArgs Tile InvertPermutation ConcatOffset "
        "Transpose ConjugateTranspose Concat ConcatV2 Split SplitV Pack Unpack "
        "Slice StridedSlice StridedSliceGrad TensorStridedSliceUpdate "
        "Pad PadV2 MirrorPad Reverse ReverseV2 ReverseSequence Roll Where "
        "SpaceToDepth DepthToSpace SpaceToBatchND BatchToSpaceND ExtractImagePatches "
        "Gather GatherV2 GatherNd ResourceGather ResourceGatherNd ResourceScatterUpdate TensorScatterUpdate "
        "DynamicPartition DynamicStitch ParallelDynamicStitch "
        "MatrixDiag MatrixDiagV3 MatrixDiagPart MatrixDiagPartV3 MatrixSetDiagV3 MatrixBandPart Diag DiagPart "
        "EmptyTensorList TensorListReserve TensorListStack TensorListFromTensor TensorListSetItem "
        "TensorListGetItem TensorListPushBack TensorListPopBack TensorListLength TensorListElementShape",
    }
)

BYTES_PER_ELEMENT: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("resource", "variant"), 0),
        **dict.fromkeys(("bool", "int8", "uint8", "qint8", "quint8"), 1),
        # TensorFlow keeps one element of less than a byte in a byte of its own.
        **dict.fromkeys(("int2", "uint2", "int4", "uint4", "float4_e2m1fn"), 1),
        **dict.fromkeys(("float8_e5m2", "float8_e5m2fnuz", "float8_e4m3fn", "float8_e4m3fnuz"), 1),
        "float8_e4m3b11fnuz": 1,
        **dict.fromkeys(("int16", "uint16", "qint16", "quint16", "float16", "bfloat16"), 2),
        **dict.fromkeys(("int32", "uint32", "qint32", "float32"), 4),
        **dict.fromkeys(("int64", "uint64", "float64", "complex64"), 8),
        "complex128": 16,
        "string": 24,  # one tstring, which points to its characters
    }
)

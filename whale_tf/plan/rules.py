"""The table of operations, by kind: the letters of their dims, in what they are linear, and what they cost.

    MatMul    ak,kb->ab   linear in both   2 a k b operations
    Sum       ab->a       b becomes a sum, linear, one operation per element
    Cumsum    a.->a.      the axis must be whole, linear
    AddV2     ab,b->ab    a sum of both

It serves the batch (plan/local.py) and the cost model (plan/cost.py). An operation that is not in it, or not at the
shapes that it has, has no rule: it can only be computed whole. To extend it, add a Kind to the file that fits and a
case to tests/plan/test_rules.py, which compares every rule with TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from whale_tf.ir.graph import Node, Shape, TensorType
from whale_tf.ir.sizes import Array
from whale_tf.plan.kinds import Kind, Rule, TypedNode, table
from whale_tf.plan.rules_elementwise import ELEMENTWISE
from whale_tf.plan.rules_indices import INDICES
from whale_tf.plan.rules_layers import LAYERS
from whale_tf.plan.rules_reductions import REDUCTIONS
from whale_tf.plan.rules_shapes import SHAPES
from whale_tf.plan.work import batch_norm, free, per_input, per_largest_input

__all__ = ["KINDS", "SHAPE_OPERANDS", "Rule", "rule_of", "shape_operands"]


def rule_of(node: Node, inputs: Sequence[TensorType], values: Sequence[Array | None]) -> Rule | None:
    """The rule of a node; None for an op without one, or where shapes or operands that it needs are not known.

    Args:
      inputs: the types of its inputs, at the global batch.
      values: for each input its value where planning knows it (axes, shapes, sizes, constants), else None.
    """
    kind = KINDS.get(node.op)
    if kind is None or kind.rule is None:
        return None
    tensors = (each for each in (*inputs, *node.outputs) if each.dtype != "resource")
    if any(each.shape == Shape.unknown for each in tensors):
        return None
    rule = kind.rule(TypedNode(node, tuple(inputs), tuple(values)))
    return None if rule is None else kind.completed(rule, inputs)


def shape_operands(op: str) -> frozenset[int]:
    """The positions of an op's operands that say shapes, axes or sizes; a negative one counts from the last.

    An operand that is computed with is none of them, though it follows the batch: how far Roll turns, the k of InTopK,
    the limit of Range. It has the same value in all parts.
    """
    return SHAPE_OPERANDS.get(op, frozenset())


_RULELESS: Mapping[str, Kind] = table(
    {
        # Other code says what becomes of these: plan/local.py, and what follows functions and lists.
        "Reshape ExpandDims": Kind(shapes=(1,), work=free),
        "Squeeze": Kind(work=free),
        "FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3": Kind(work=batch_norm),
        # Two sums over the batch (1 and 3), then dy - a - (x - mean) b, scaled (4).
        "FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3": Kind(work=per_input(0, 8.0)),
        "EmptyTensorList": Kind(shapes=(0, 1), work=free),
        "TensorListReserve": Kind(shapes=(0, 1), work=free),
        "TensorListStack TensorListFromTensor TensorListPopBack": Kind(shapes=(1,), work=free),
        "TensorListGetItem": Kind(shapes=(2,), work=free),
        "TensorListSetItem TensorListPushBack TensorListLength TensorListElementShape": Kind(work=free),
        "TensorListGather TensorListScatter": Kind(shapes=(2,)),
        "TensorListScatterV2": Kind(shapes=(2, 3)),
        "TensorListConcatV2": Kind(shapes=(1, 2)),
        "TensorListResize TensorListSplit": Kind(shapes=(1,)),
        # Random numbers, by their shape or how many there are.
        "RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal ParameterizedTruncatedNormal RandomGamma "
        "RandomPoisson RandomPoissonV2 StatelessRandomUniform StatelessRandomUniformV2 StatelessRandomUniformInt "
        "StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2 "
        "StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 "
        "StatelessParameterizedTruncatedNormal StatelessRandomBinomial StatelessRandomPoisson StatelessRandomGammaV2 "
        "StatelessRandomGammaV3": Kind(shapes=(0,)),
        "Multinomial StatelessMultinomial": Kind(shapes=(1,)),
        "StatefulUniform StatefulUniformInt StatefulUniformFullInt StatefulStandardNormalV2 StatefulTruncatedNormal "
        "StatefulRandomBinomial": Kind(shapes=(2,)),
        # The rows of their results are known only where their segments are.
        "SegmentSum SegmentMean SegmentMax SegmentMin": Kind(work=per_input(0)),
        "SegmentSumV2": Kind(shapes=(2,), work=per_input(0)),
        "SegmentProdV2 SegmentMaxV2 SegmentMinV2": Kind(shapes=(2,)),
        "SparseSegmentSumGrad SparseSegmentMeanGrad SparseSegmentSqrtNGrad SparseSegmentSumWithNumSegments "
        "SparseSegmentMeanWithNumSegments SparseSegmentSqrtNWithNumSegments": Kind(shapes=(3,)),
        "SparseToDense UnsortedSegmentJoin": Kind(shapes=(1,)),
        "SparseReshape": Kind(shapes=(1, 2)),
        "SparseTensorDenseAdd SparseDenseCwiseAdd SparseDenseCwiseMul SparseDenseCwiseDiv SparseSoftmax": Kind(
            shapes=(2,)
        ),
        "SparseReduceSum SparseReduceMax": Kind(shapes=(2, 3)),
        "RaggedTensorToTensor": Kind(shapes=(0,)),
        "FFTND IFFTND RFFTND IRFFTND": Kind(shapes=(1, 2)),
        "Where DynamicPartition DynamicStitch ParallelDynamicStitch": Kind(work=free),
        # What speaks of shapes alone.
        "Empty": Kind(shapes=(0,), work=free),
        "BroadcastArgs BroadcastGradientArgs": Kind(shapes=(0, 1), work=free),
        "ConcatOffset Shape ShapeN Size Rank Range": Kind(work=free),
        # What carries a value in the program, names or keeps one.
        "Input Variable Captured Handle Argument NoOp Const Placeholder PlaceholderWithDefault IdentityN _Arg _Retval "
        "_Send _Recv Assert Print PrintV2 ReadVariableOp AssignVariableOp VarHandleOp VariableShape VarIsInitializedOp "
        "DestroyResourceOp ResourceScatterUpdate": Kind(work=free),
        "AssignAddVariableOp AssignSubVariableOp": Kind(work=per_input(1)),
        "ResourceScatterAdd ResourceScatterSub ResourceScatterMul ResourceScatterDiv ResourceScatterMax "
        "ResourceScatterMin ResourceScatterNdAdd": Kind(work=per_input(2)),
        "ResourceApplyGradientDescent": Kind(work=per_largest_input(2.0)),
        "ResourceApplyMomentum ResourceApplyKerasMomentum": Kind(work=per_largest_input(4.0)),
        "ResourceApplyAdam": Kind(work=per_largest_input(12.0)),
    }
)

KINDS: Mapping[str, Kind] = MappingProxyType({**ELEMENTWISE, **SHAPES, **INDICES, **REDUCTIONS, **LAYERS, **_RULELESS})
SHAPE_OPERANDS: Mapping[str, frozenset[int]] = MappingProxyType(
    {op: frozenset(kind.shapes) for op, kind in KINDS.items() if kind.shapes}
)

"""Costs: each rule of the table equals the textbook's count."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.plan.cost import elements, flops, graph_flops, tensor_bytes

SIZES = st.integers(1, 9)
Sizes = tuple[int | None, ...]


def typed(sizes: Sizes) -> TensorType:
    return TensorType(DType("float32"), Shape(sizes))


def cost(op: str, inputs: Sequence[Sizes], output: Sizes, **attrs: Any) -> float:
    """The cost of one op on inputs of these shapes."""
    given = [Node(f"in{i}", "Input", attrs={"index": i}, outputs=(typed(sizes),)) for i, sizes in enumerate(inputs)]
    node = Node("node", op, tuple(Ref(one.name) for one in given), attrs=attrs, outputs=(typed(output),))
    return flops(Graph.of([*given, node]), node)


def flipped(flip: bool, rows: int, columns: int) -> tuple[int, int]:
    return (columns, rows) if flip else (rows, columns)


@given(m=SIZES, n=SIZES, k=SIZES, left=st.booleans(), right=st.booleans())
def test_matmul_costs_2mnk(m: int, n: int, k: int, left: bool, right: bool) -> None:
    inputs = [flipped(left, m, k), flipped(right, k, n)]
    assert cost("MatMul", inputs, (m, n), transpose_a=left, transpose_b=right) == 2 * m * n * k


@given(b=SIZES, h=SIZES, m=SIZES, n=SIZES, k=SIZES, left=st.booleans(), right=st.booleans())
def test_batch_matmul_costs_one_matmul_per_batch(
    b: int, h: int, m: int, n: int, k: int, left: bool, right: bool
) -> None:
    inputs = [(b, 1, *flipped(left, m, k)), (h, *flipped(right, k, n))]
    assert cost("BatchMatMulV2", inputs, (b, h, m, n), adj_x=left, adj_y=right) == 2 * b * h * m * n * k


@given(b=SIZES, m=SIZES, n=SIZES, k=SIZES)
def test_einsum_of_a_matmul_costs_a_matmul(b: int, m: int, n: int, k: int) -> None:
    inputs, output = [(b, m, k), (b, k, n)], (b, m, n)
    assert cost("Einsum", inputs, output, equation=b"bmk,bkn->bmn") == cost("BatchMatMulV3", inputs, output)
    assert cost("Einsum", inputs, output, equation=b"...mk,...kn->...mn") == 2 * b * m * n * k


@pytest.mark.parametrize(
    ("equation", "inputs", "output", "operations"),
    [
        (b"ij->ji", [(2, 3)], (3, 2), 0),
        (b"ij->i", [(2, 3)], (2,), 6),
        (b"ii->i", [(3, 3)], (3,), 0),
        (b"i,j->ij", [(2,), (3,)], (2, 3), 6),
        (b"i,i->", [(4,), (4,)], (), 8),
        (b"abc,cde->abde", [(2, 3, 4), (4, 5, 6)], (2, 3, 5, 6), 2 * 2 * 3 * 4 * 5 * 6),
        (b"...i,ij->...j", [(5, 2, 3), (3, 4)], (5, 2, 4), 2 * 5 * 2 * 3 * 4),
        (b"...ij,...jk->...ik", [(5, 1, 2, 3), (7, 3, 4)], (5, 7, 2, 4), 2 * 5 * 7 * 2 * 3 * 4),
        (b"ij,jk->ik", [(0, 3), (3, 4)], (0, 4), 0),
    ],
)
def test_einsum_counts_its_labels(
    equation: bytes, inputs: list[tuple[int, ...]], output: tuple[int, ...], operations: int
) -> None:
    assert cost("Einsum", inputs, output, equation=equation) == operations


def positions(size: int, window: int, stride: int, padding: bytes) -> int:
    """How often a window fits: TensorFlow's definition of SAME and VALID."""
    return math.ceil(size / stride) if padding == b"SAME" else (size - window) // stride + 1


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """The shapes of one convolution, from its geometry; `textbook` is 2 batch places window in / groups out."""
    spatial = draw(st.integers(1, 3))
    batch, groups, group_in, group_out = (draw(st.integers(1, 4)) for _ in range(4))
    window = tuple(draw(st.integers(1, 4)) for _ in range(spatial))
    stride, padding = draw(st.integers(1, 3)), draw(st.sampled_from([b"SAME", b"VALID"]))
    size = tuple(draw(st.integers(one, 12)) for one in window)
    places = tuple(positions(length, one, stride, padding) for length, one in zip(size, window, strict=True))
    channels_first = draw(st.booleans())

    def laid_out(inner: tuple[int, ...], channels: int) -> tuple[int, ...]:
        return (batch, channels, *inner) if channels_first else (batch, *inner, channels)

    return {
        "input": laid_out(size, groups * group_in),
        "filter": (*window, group_in, groups * group_out),
        "output": laid_out(places, groups * group_out),
        "attrs": {
            "strides": laid_out((stride,) * spatial, 1),
            "padding": padding,
            "data_format": b"NCHW" if channels_first else b"NHWC",
        },
        "textbook": 2 * batch * math.prod(places) * math.prod(window) * group_in * groups * group_out,
    }


@given(convolutions())
def test_a_convolution_and_both_its_gradients_cost_the_textbook(case: dict[str, Any]) -> None:
    image, kernel, output, attrs = case["input"], case["filter"], case["output"], case["attrs"]
    rank = len(image)
    for op in ("Conv", "Conv2D", "Conv3D"):
        assert cost(op, [image, kernel], output, **attrs) == case["textbook"]
    for op in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
        assert cost(op, [(rank,), kernel, output], image, **attrs) == case["textbook"]
    for op in ("Conv2DBackpropFilter", "Conv3DBackpropFilterV2"):
        assert cost(op, [image, (rank,), output], kernel, **attrs) == case["textbook"]


@given(batch=SIZES, size=SIZES, channels=SIZES, multiplier=SIZES, height=SIZES, width=SIZES)
def test_a_depthwise_convolution_reads_one_channel_per_output(
    batch: int, size: int, channels: int, multiplier: int, height: int, width: int
) -> None:
    image, kernel = (batch, size, size, channels), (height, width, channels, multiplier)
    output = (batch, size, size, channels * multiplier)
    textbook = 2 * batch * size * size * channels * multiplier * height * width
    op = "DepthwiseConv2dNative"
    attrs = {"strides": (1, 1, 1, 1), "padding": b"SAME"}
    assert cost(op, [image, kernel], output, **attrs) == textbook
    assert cost(f"{op}BackpropInput", [(4,), kernel, output], image, **attrs) == textbook
    assert cost(f"{op}BackpropFilter", [image, (4,), output], kernel, **attrs) == textbook


@pytest.mark.parametrize(
    ("op", "inputs", "output", "attrs", "operations"),
    [
        ("Add", [(2, 3), (3,)], (2, 3), {}, 6),
        ("Tanh", [(2, 3)], (2, 3), {}, 6),
        ("AddN", [(4,), (4,), (4,)], (4,), {}, 8),
        ("Sum", [(2, 3), (1,)], (2,), {}, 6),
        ("BiasAddGrad", [(2, 3)], (3,), {}, 6),
        ("Softmax", [(2, 3)], (2, 3), {}, 30),
        ("FusedBatchNormV3", [(2, 3)], (2, 3), {"is_training": True}, 42),
        ("FusedBatchNormV3", [(2, 3)], (2, 3), {"is_training": False}, 18),
        ("AvgPool", [(1, 4, 4, 3)], (1, 2, 2, 3), {"ksize": (1, 2, 2, 1)}, 48),
        ("AvgPoolGrad", [(4,), (1, 2, 2, 3)], (1, 4, 4, 3), {"ksize": (1, 2, 2, 1)}, 48),
        ("MaxPoolGrad", [(1, 4, 4, 3), (1, 2, 2, 3), (1, 2, 2, 3)], (1, 4, 4, 3), {"ksize": (1, 2, 2, 1)}, 48),
        ("SparseTensorDenseMatMul", [(5, 2), (5,), (2,), (6, 7)], (4, 7), {}, 70),
        ("ScatterNd", [(5, 1), (5, 2), (2,)], (100, 2), {}, 10),
        ("ResourceApplyAdam", [(), (), (), (), (), (), (), (), (), (3, 4)], (), {}, 144),
        ("While", [(2, 3)], (2, 3), {}, 6),
    ],
)
def test_other_ops_cost_by_their_elements(
    op: str, inputs: list[tuple[int, ...]], output: tuple[int, ...], attrs: dict[str, Any], operations: int
) -> None:
    assert cost(op, inputs, output, **attrs) == operations


@pytest.mark.parametrize("op", ["Input", "Variable", "Write", "Gradient", "Const", "Reshape", "ConcatV2", "GatherV2"])
def test_moving_data_is_free(op: str) -> None:
    assert cost(op, [(2, 3)], (2, 3)) == 0


def test_an_unknown_size_counts_as_one() -> None:
    assert cost("MatMul", [(-1, 8), (8, 4)], (-1, 4)) == 64
    assert cost("MatMul", [(2, -1), (8, 4)], (2, 4)) == 128
    assert cost("Relu", [Shape.unknown], Shape.unknown) == 1
    assert cost("Conv2D", [Shape.unknown, Shape.unknown], Shape.unknown) == 2
    assert cost("Einsum", [Shape.unknown, (3, 4)], (-1, 4), equation=b"ij,jk->ik") == 24


def test_graph_flops_sums_the_named_nodes() -> None:
    x = Node("x", "Input", outputs=(typed((2, 3)),))
    a, b = (Node(name, "Relu", (Ref("x"),), outputs=(typed((2, 3)),)) for name in "ab")
    graph = Graph.of([x, a, b])
    assert graph_flops(graph, ["x", "a", "b"]) == 12
    assert graph_flops(graph, ["a"]) == 6
    assert graph_flops(graph, []) == 0


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"),
    [
        ("float32", Shape((2, 3)), 24),
        ("bfloat16", Shape((2, 3)), 12),
        ("complex128", Shape(), 16),
        ("bool", Shape((-1, 3)), 3),
        ("int64", Shape.unknown, 8),
        ("float32", Shape((0, 3)), 0),
        ("resource", Shape((2,)), 0),
        ("variant", Shape(), 0),
        ("string", Shape((2,)), 48),
    ],
)
def test_tensor_bytes_is_elements_times_element_size(dtype: str, shape: Shape, size_bytes: int) -> None:
    assert tensor_bytes(TensorType(DType(dtype), shape)) == size_bytes


def test_elements_of_a_scalar_is_one() -> None:
    assert elements(Shape()) == 1


def test_an_unknown_element_type_names_the_table() -> None:
    with pytest.raises(InternalError) as caught:
        tensor_bytes(TensorType(DType("float1"), Shape()))
    assert str(caught.value) == (
        "the size of element type 'float1' is not known.\n  Add it to BYTES_PER_ELEMENT in whale_tf/plan/cost.py."
    )

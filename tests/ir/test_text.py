"""The text of a graph: what it looks like, that it reads back exactly, and what it refuses."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Function, Graph, Node, Opaque, Ref, Shape, TensorType
from whale_tf.ir.text import dump, parse_graph, print_graph

FLOAT = DType("float32")

EXAMPLE = """\
graph step(out: MatMul_1, Mean:1) effects(Print) {
  x = Input() {index=0, batch=true} : float32[4,8]
  "w:0" = Variable() {variable=0} : float32[8,?]
  Print = PrintV2() {message=b"a\\"b"}  @stateful
  MatMul_1 = MatMul(x, "w:0") {T=float32, transpose_a=false} : float32[4,?]  @scope=s0 @call=1 @device=2 ^Print
  Mean = Split(MatMul_1) {num_split=2} : float32[*], float32[*]  @twin="a b"
}
"""


def one_node(attrs: dict[str, Any]) -> Graph:
    return Graph.of([Node("a", "Op", attrs=attrs)])


def exact(value: Any) -> Any:
    """A value with all its types beside it: 1, 1.0 and True are equal in Python, and so are 0.0 and -0.0."""
    kind = type(value).__name__
    if isinstance(value, tuple):
        return kind, tuple(exact(item) for item in value)
    return kind, repr(value)


def assert_reads_back(graph: Graph) -> None:
    read = parse_graph(print_graph(graph))
    assert list(read.nodes) == list(graph.nodes)
    for name, node in graph.nodes.items():
        assert read[name].with_(attrs={}) == node.with_(attrs={})
        assert exact(tuple(read[name].attrs.items())) == exact(tuple(node.attrs.items()))
        assert exact(read[name].outputs) == exact(node.outputs)
    assert (read.outputs, read.effects) == (graph.outputs, graph.effects)
    assert exact(tuple(read.attrs.items())) == exact(tuple(graph.attrs.items()))


def test_a_graph_prints_one_node_a_line() -> None:
    types = {name: TensorType(FLOAT, shape) for name, shape in (("x", Shape((4, 8))), ("w", Shape((8, -1))))}
    result = TensorType(FLOAT, Shape((4, -1)))
    half = TensorType(FLOAT, Shape.unknown)
    graph = Graph.of(
        [
            Node("x", "Input", attrs={"index": 0, "batch": True}, outputs=(types["x"],)),
            Node("w:0", "Variable", attrs={"variable": 0}, outputs=(types["w"],)),
            Node("Print", "PrintV2", attrs={"message": b'a"b'}, stateful=True),
            Node(
                "MatMul_1",
                "MatMul",
                (Ref("x"), Ref("w:0")),
                ("Print",),
                {"T": FLOAT, "transpose_a": False},
                (result,),
                scope="s0",
                call=1,
                device=2,
            ),
            Node("Mean", "Split", (Ref("MatMul_1"),), attrs={"num_split": 2}, outputs=(half, half), twin="a b"),
        ],
        outputs=[Ref("MatMul_1"), Ref("Mean", 1)],
        effects=["Print"],
    )
    assert print_graph(graph) == EXAMPLE
    assert parse_graph(EXAMPLE) == graph


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-3, "-3"),
        (1.0, "1.0"),
        (1e16, "1e+16"),
        (-0.0, "-0.0"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (True, "true"),
        (b"SAME", 'b"SAME"'),
        (b"\xff\n", 'b"\\u00ff\\n"'),
        ("text", '"text"'),
        (DType("int8"), "int8"),
        (DType("true"), 'dtype"true"'),
        (Shape((4, -1)), "[4,?]"),
        (Shape.unknown, "[*]"),
        (Shape(), "[]"),
        (Opaque(b"\x00\x01"), 'opaque"AAE="'),
        (Function("body"), "@body"),
        (Function("a:b", (("T", FLOAT), ("f", Function("g", (("n", 1),))))), '@"a:b"{T=float32, f=@g{n=1}}'),
        ((), "()"),
        ((1,), "(1)"),
        ((1, (2.0, ()), b""), '(1, (2.0, ()), b"")'),
    ],
)
def test_every_kind_of_attribute_has_its_own_form(value: Any, text: str) -> None:
    graph = one_node({"v": value})
    assert print_graph(graph) == f"graph step() {{\n  a = Op() {{v={text}}}\n}}\n"
    assert_reads_back(graph)


NAMES = st.from_regex(r"[A-Za-z0-9_./:-]{1,8}", fullmatch=True) | st.text(max_size=6)
SHAPES = st.just(Shape.unknown) | st.lists(st.integers(-1, 2**40), max_size=4).map(Shape)
DTYPES = st.sampled_from(["float32", "int64", "resource", "b", "nan"]).map(DType) | NAMES.map(DType)
SCALARS = (
    st.integers() | st.floats() | st.booleans() | st.binary() | st.binary().map(Opaque) | st.text() | DTYPES | SHAPES
)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=4).map(tuple)
        | st.builds(Function, NAMES, st.lists(st.tuples(NAMES, values), max_size=3).map(tuple))
    ),
    max_leaves=6,
)
REFS = st.builds(Ref, NAMES, st.integers(0, 9))
NODES = st.builds(
    Node,
    name=NAMES,
    op=NAMES,
    inputs=st.lists(REFS, max_size=3).map(tuple),
    control=st.lists(NAMES, max_size=2).map(tuple),
    attrs=st.dictionaries(NAMES, VALUES, max_size=4),
    outputs=st.lists(st.builds(TensorType, DTYPES, SHAPES), max_size=3).map(tuple),
    stateful=st.booleans(),
    scope=NAMES,
    call=st.integers(0, 5),
    twin=NAMES,
    device=st.integers(-1, 9),
)


@given(
    st.lists(NODES, max_size=5, unique_by=lambda node: node.name),
    st.lists(REFS, max_size=3),
    st.lists(NAMES, max_size=3),
    st.dictionaries(NAMES, VALUES, max_size=2),
)
def test_any_graph_reads_back_exactly(
    nodes: list[Node], outputs: list[Ref], effects: list[str], attrs: dict[str, Any]
) -> None:
    assert_reads_back(Graph.of(nodes, outputs, effects, attrs=attrs))


def test_what_tensorflow_is_told_of_a_function_stands_before_the_brace() -> None:
    graph = Graph.of([], attrs={"_noinline": True})
    assert print_graph(graph) == "graph step() {_noinline=true} {\n}\n"
    assert_reads_back(graph)


def test_a_graph_of_30_000_nodes_reads_back() -> None:
    kind = TensorType(FLOAT, Shape((128, 256)))
    attrs = {"T": FLOAT, "transpose_a": False, "shape": Shape((1, -1)), "value": Opaque(bytes(40))}
    nodes = [Node("layer/0", "Input", outputs=(kind,))]
    for i in range(1, 30_000):
        inputs = (Ref(f"layer/{i - 1}"), Ref(f"layer/{i // 2}"))
        nodes.append(Node(f"layer/{i}", "MatMul", inputs, attrs=attrs, outputs=(kind,), scope="s0"))
    graph = Graph.of(nodes, [Ref("layer/29999")])
    assert parse_graph(print_graph(graph)) == graph


def test_empty_lines_and_comments_are_skipped() -> None:
    spaced = EXAMPLE.replace("\n", "\n\n  # a comment\r\n")
    assert parse_graph(spaced) == parse_graph(EXAMPLE)


def test_a_list_as_an_attribute_is_refused_by_name() -> None:
    with pytest.raises(InternalError) as caught:
        print_graph(one_node({"sizes": [1, 2]}))
    assert str(caught.value) == (
        "cannot print 'a' (Op).\n"
        "  [1, 2] is a list, which no attribute may be\n"
        "  Give it a kind that whale_tf.ir.graph.Node names, or extend _PRINTERS in whale_tf/ir/text.py."
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a = Op(", "the line ends too early"),
        ("a : Op()", "expected '=' and found ':'"),
        ("a = Op(%)", "expected a name and found '%'"),
        ("a = Op() {v=1 w=2}", "expected '}' and found 'w'"),
        ("a = Op() {v=1, v=2}", "an attribute is given twice"),
        ("a = Op() {v=1x}", "'1x' is no value of an attribute"),
        ("a = Op() : 4[2]", "expected the type of an output and found 4"),
        ("a = Op() @color=red", "'@color' is none of @stateful, @scope, @call, @twin and @device"),
        ("a = Op() ^b c", "expected the end of the line and found 'c'"),
        ("x = Op()", "'x' is defined twice"),
        ('a = Op() {v=opaque"?"}', "Only base64 data is allowed"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line: str, reason: str) -> None:
    with pytest.raises(InternalError) as caught:
        parse_graph(f"graph step() {{\n  x = Input()\n  {line}\n}}\n")
    assert str(caught.value) == (
        f"cannot read the text of a graph at line 3.\n  {reason}\n  {line}\n"
        "  Write each node as `name = Op(inputs) {attributes} : types @field=value ^control`."
    )


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", "the end", "there is no graph"),
        ("graph step() {\n", "the end", "the closing brace is missing"),
        ("x = Op()\n", "line 1", "expected 'graph' and found 'x'"),
        ("graph step() {\n}\ngraph b() {\n}\n", "line 3", "nothing may follow the closing brace"),
    ],
)
def test_a_text_is_one_whole_graph(text: str, place: str, reason: str) -> None:
    with pytest.raises(InternalError) as caught:
        parse_graph(text)
    assert str(caught.value).startswith(f"cannot read the text of a graph at {place}.\n  {reason}\n")


def test_dump_names_the_file_by_number_and_pass(tmp_path: Path) -> None:
    graph = parse_graph(EXAMPLE)
    path = dump(graph, tmp_path / "dumps", 3, "cut")
    assert path == tmp_path / "dumps" / "03-cut.txt"
    assert path.read_text().startswith("graph cut(out: ")
    assert parse_graph(path.read_text()) == graph

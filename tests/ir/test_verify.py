"""The verifier: what is no graph, with the message a reader gets, and what it lets pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.verify import verify

FLOAT = TensorType(DType("float32"), Shape((2,)))
X = Node("x", "Input", attrs={"index": 0, "batch": True}, outputs=(FLOAT,))


def relu(name: str, *inputs: Ref, control: tuple[str, ...] = ()) -> Node:
    return Node(name, "Relu", inputs, control, outputs=(FLOAT,))


def offenders(graph: Graph) -> tuple[str, ...]:
    with pytest.raises(InternalError) as caught:
        verify(graph, after="cut")
    return caught.value.details


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Valid graphs: each node takes, or waits for, any of those before it."""
    nodes = [X]
    for i in range(draw(st.integers(0, 8))):
        earlier = st.sampled_from([node.name for node in nodes])
        inputs = draw(st.lists(earlier, max_size=3))
        control = draw(st.lists(earlier, max_size=2))
        nodes.append(relu(f"n{i}", *map(Ref, inputs), control=tuple(control)))
    names = st.sampled_from([node.name for node in nodes])
    return Graph.of(nodes, map(Ref, draw(st.lists(names))), draw(st.lists(names, unique=True)))


@given(graphs())
def test_a_graph_in_order_passes(graph: Graph) -> None:
    verify(graph, after="capture")
    verify(graph.pruned(), after="prune")


@given(graphs().filter(lambda graph: any(node.inputs or node.control for node in graph)))
def test_a_graph_in_reverse_order_fails(graph: Graph) -> None:
    reverse = Graph(dict(reversed(list(graph.nodes.items()))), graph.outputs, graph.effects)
    assert all(line.endswith("which does not come before it") or line.startswith("and ") for line in offenders(reverse))


def test_the_message_says_pass_offenders_and_count() -> None:
    graph = Graph.of([X, *(relu(f"n{i}", Ref("gone", i)) for i in range(12))])
    with pytest.raises(InternalError) as caught:
        verify(graph, after="cut")
    lines = [f"  input 0 of 'n{i}' (Relu) is '{Ref('gone', i)}', which is missing" for i in range(10)]
    assert str(caught.value).split("\n") == [
        "the graph is broken in 12 places after pass 'cut'.",
        *lines,
        "  and 2 more",
        "  This is a fault of whale_tf, not of your step: please report it with the graph before 'cut'.",
    ]


def test_a_node_has_the_name_it_is_found_under() -> None:
    graph = Graph({"x": X, "y": relu("z", Ref("x"))})
    assert offenders(graph) == ("the node under 'y' calls itself 'z'",)


@pytest.mark.parametrize("index", [1, -1])
def test_an_input_is_an_output_of_its_node(index: int) -> None:
    graph = Graph.of([X, relu("y", Ref("x", index))])
    assert offenders(graph) == (f"input 0 of 'y' (Relu) is 'x:{index}', and 'x' has 1 output(s)",)


def test_a_node_does_not_take_itself() -> None:
    graph = Graph.of([relu("y", Ref("y"))])
    assert offenders(graph) == ("input 0 of 'y' (Relu) is 'y', which does not come before it",)


def test_control_is_there_and_comes_before() -> None:
    graph = Graph.of([relu("y", control=("gone", "x")), X])
    assert offenders(graph) == (
        "'y' (Relu) waits for 'gone', which is missing",
        "'y' (Relu) waits for 'x', which does not come before it",
    )


def test_outputs_and_effects_are_there() -> None:
    graph = Graph.of([X], [Ref("x"), Ref("x", 3), Ref("gone")], ["lost", "x"])
    assert offenders(graph) == (
        "output 1 of the graph is 'x:3', and 'x' has 1 output(s)",
        "output 2 of the graph is 'gone', which is missing",
        "effect 'lost' is missing",
    )


def test_an_output_may_be_given_twice_and_an_effect_not() -> None:
    verify(Graph.of([X], [Ref("x"), Ref("x")]), after="cut")
    assert offenders(Graph.of([X], effects=["x", "x"])) == ("effect 'x' is listed twice",)


@pytest.mark.parametrize("op", ["Input", "Variable", "Captured", "Handle", "Argument"])
def test_a_boundary_takes_nothing(op: str) -> None:
    graph = Graph.of([X, Node("b", op, (Ref("x"),), attrs={"index": 1, "variable": 0}, outputs=(FLOAT,))])
    assert offenders(graph) == (f"'b' ({op}) takes 'x', and {op} takes nothing",)


@pytest.mark.parametrize("op", ["Write", "Gradient"])
def test_a_write_and_a_gradient_take_something(op: str) -> None:
    graph = Graph.of([Node("w", op, attrs={"variable": 0}, outputs=(FLOAT,))])
    assert offenders(graph) == (f"'w' ({op}) has no input, and {op} needs one",)


def test_a_variable_says_which() -> None:
    graph = Graph.of([Node("v", "Variable", outputs=(FLOAT,))])
    assert offenders(graph) == ("'v' (Variable) does not say of which variable: attribute 'variable' is missing",)


def test_no_two_arguments_share_an_index() -> None:
    graph = Graph.of(
        [Node(name, "Argument", attrs={"index": i}, outputs=(FLOAT,)) for name, i in zip("abc", (0, 1, 0), strict=True)]
    )
    assert offenders(graph) == ("'c' (Argument) has index 0, as 'a' has",)

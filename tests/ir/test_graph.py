"""The graph: what a pass can ask of it, and what it never changes."""

from itertools import pairwise

import pytest

from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType

FLOAT = TensorType(DType("float32"), Shape((2, 3)))


def node(name: str, *inputs: str, control: tuple[str, ...] = (), op: str = "Op") -> Node:
    return Node(name, op, tuple(Ref(given) for given in inputs), control, outputs=(FLOAT,))


def diamond() -> Graph:
    """x feeds left and right, both feed sum; log waits for left; dead uses x and nobody uses it."""
    return Graph.of(
        [
            node("x", op="Input"),
            node("left", "x"),
            node("right", "x", "x"),
            node("log", control=("left",)),
            node("dead", "x"),
            node("sum", "left", "right"),
        ],
        outputs=[Ref("sum")],
        effects=["log"],
    )


def test_shape_prints_unknown_dims_and_rank() -> None:
    assert str(Shape((4, -1))) == "[4,?]"
    assert str(Shape.unknown) == "[*]"
    assert str(Shape()) == "[]"


@pytest.mark.parametrize(
    ("shape", "known"), [(Shape(), True), (Shape((2, 0)), True), (Shape((2, -1)), False), (Shape.unknown, False)]
)
def test_shape_is_known_when_rank_and_all_dims_are(shape: Shape, known: bool) -> None:
    assert shape.known is known


def test_ref_prints_its_index_only_past_the_first() -> None:
    assert str(Ref("a")) == "a"
    assert str(Ref("a", 2)) == "a:2"


def test_graph_is_a_mapping_of_nodes_in_order() -> None:
    graph = diamond()
    assert [one.name for one in graph] == ["x", "left", "right", "log", "dead", "sum"]
    assert len(graph) == 6
    assert "x" in graph and "y" not in graph
    assert graph["sum"].inputs == (Ref("left"), Ref("right"))
    assert graph.type_of(Ref("sum")) == FLOAT


def test_of_refuses_two_nodes_of_one_name() -> None:
    with pytest.raises(InternalError, match="two nodes are called 'x'"):
        Graph.of([node("x"), node("y"), node("x")])


def test_users_are_named_once_and_in_order_over_data_and_control() -> None:
    assert diamond().users == {
        "x": ("left", "right", "dead"),
        "left": ("log", "sum"),
        "right": ("sum",),
        "log": (),
        "dead": (),
        "sum": (),
    }


def test_ancestors_follow_data_and_control() -> None:
    graph = diamond()
    assert graph.roots() == ("sum", "log")
    assert graph.ancestors(["log"]) == {"log", "left", "x"}
    assert graph.ancestors(graph.roots()) == {"x", "left", "right", "log", "sum"}
    assert graph.ancestors([]) == set()


def test_ancestors_include_where_they_stop_and_nothing_behind() -> None:
    assert diamond().ancestors(["log"], stop=lambda one: one.name == "left") == {"log", "left"}


def test_pruned_leaves_out_what_no_root_needs() -> None:
    graph = diamond()
    pruned = graph.pruned()
    assert [one.name for one in pruned] == ["x", "left", "right", "log", "sum"]
    assert (pruned.outputs, pruned.effects) == (graph.outputs, graph.effects)
    assert len(graph) == 6


def test_rewritten_changes_nodes_and_not_the_graph_it_was_given() -> None:
    graph = diamond()
    moved = graph.rewritten(lambda one: one.with_(device=1) if one.name == "left" else one)
    assert moved["left"] == graph["left"].with_(device=1)
    assert moved["right"] is graph["right"]
    assert graph["left"].device == -1
    assert [one.name for one in moved] == [one.name for one in graph]


def test_ancestors_of_a_long_chain_do_not_recurse() -> None:
    names = [str(i) for i in range(20_000)]
    graph = Graph.of([node("0"), *(node(name, before) for before, name in pairwise(names))])
    assert graph.ancestors([names[-1]]) == set(names)

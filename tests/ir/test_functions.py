"""The functions that nodes refer to."""

from __future__ import annotations

from whale_tf.ir.functions import called, functions_of, renamed
from whale_tf.ir.graph import Function, Graph, Node


def calling(*names: str) -> Graph:
    """A graph with one node for each function."""
    return Graph.of([Node(f"call of {name}", "PartitionedCall", attrs={"f": Function(name)}) for name in names])


CASE = Node("n", "Case", attrs={"branches": (Function("a"), Function("b", (("T", 1),))), "T": 3, "shapes": ()})


def test_functions_of_a_node_are_told_by_attribute() -> None:
    assert functions_of(CASE) == {"branches_0": "a", "branches_1": "b"}
    assert functions_of(Node("n", "While", attrs={"body": Function("b"), "cond": Function("c")})) == {
        "body": "b",
        "cond": "c",
    }


def test_renaming_changes_the_names_given_and_nothing_else() -> None:
    graph = Graph.of([CASE, Node("other", "Identity")], attrs={"_noinline": True})
    changed = renamed(graph, {"b": "z"})
    assert changed["n"].attrs == {"branches": (Function("a"), Function("z", (("T", 1),))), "T": 3, "shapes": ()}
    assert changed["other"] is graph["other"]
    assert changed.attrs == graph.attrs


def test_only_what_is_called_is_found_callees_first() -> None:
    calls = {"a": calling("b", "c"), "b": calling("c"), "c": calling(), "unused": calling("a")}
    assert list(called([calling("a", "unknown")], calls)) == ["c", "b", "a"]
    assert called([calling("a")], {}) == {}

"""Stages: by scope, by data, by twin; and never against the data."""

from __future__ import annotations

import pytest

from tests.plan.texts import roles_of
from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.stages import assign_stages

SCOPES = {"a": 0, "b": 1, "c": 2}
INPUTS = """
  x = Input() {index=0, batch=true} : float32[4]
  w = Variable() {variable=b"w", trainable=true, aggregation=b"NONE"} : float32[4]
"""
MARKED = """
  marked = Gradient(dw) {call=1, part=b"dense", variable=b"w"} : float32[4]
  written = Write(marked) {variable=b"w"} : float32[4]
"""


def step(nodes: str, effects: str = "") -> Graph:
    return parse_graph(f"graph step(out: ){f' effects({effects})' if effects else ''} {{{INPUTS}{nodes}\n}}")


def line_of(operation: str) -> Line:
    return Line("train.py", 10 + ord(operation[0]) - ord("a"), "step", f"{operation} = ...")


def stages_of(graph: Graph, stages: int = 3) -> dict[str, int]:
    return assign_stages(graph, roles_of(graph), SCOPES, stages, line_of)


def test_without_stages_everything_is_stage_0() -> None:
    graph = step("y = Mul(x, w) : float32[4]\n z = Relu(y) : float32[4]  @scope=b")
    assert stages_of(graph, 1) == {"y": 0, "z": 0}


def test_forward_goes_by_scope_and_then_by_the_latest_producer() -> None:
    graph = step("""
        y = Mul(x, w) : float32[4]  @scope=a
        z = Mul(y, w) : float32[4]  @scope=b
        both = AddV2(y, z) : float32[4]
        early = Relu(y) : float32[4]
    """)
    assert stages_of(graph) == {"y": 0, "z": 1, "both": 1, "early": 0}


def test_what_comes_before_any_stage_joins_its_earliest_consumer() -> None:
    graph = step("""
        cast = Neg(x) : float32[4]
        mask = Relu(cast) : float32[4]
        y = Mul(cast, w) : float32[4]  @scope=b
        z = Mul(y, mask) : float32[4]  @scope=c
        unused = Neg(x) : float32[4]
    """)
    assert stages_of(graph) == {"cast": 1, "mask": 2, "y": 1, "z": 2, "unused": 0}


def test_what_depends_on_no_example_is_in_no_stage() -> None:
    graph = step("doubled = AddV2(w, w) : float32[4]  @scope=b\n y = Mul(x, doubled) : float32[4]  @scope=b")
    assert stages_of(graph) == {"y": 1}


def test_backward_joins_its_twin() -> None:
    graph = step(
        """
        y = Mul(x, w) : float32[4]  @scope=a
        z = Mul(y, w) : float32[4]  @scope=b
        loss = Square(z) : float32[4]
        dloss = Neg(z) : float32[4]  @call=1 @twin=loss
        dz = Mul(dloss, w) : float32[4]  @call=1 @twin=z
        dw = Mul(dz, x) : float32[4]  @call=1 @twin=y
    """
        + MARKED,
        "written",
    )
    assert stages_of(graph, 2) == {"y": 0, "z": 1, "loss": 1, "dloss": 1, "dz": 1, "dw": 0}


def test_a_backward_op_without_a_twin_joins_the_earliest_gradient_it_takes() -> None:
    graph = step(
        """
        y = Mul(x, w) : float32[4]  @scope=a
        z = Mul(y, w) : float32[4]  @scope=b
        dz = Mul(z, w) : float32[4]  @call=1 @twin=z
        dy = Mul(dz, y) : float32[4]  @call=1 @twin=y
        dw = AddN(dy, dz) : float32[4]  @call=1
    """
        + MARKED,
        "written",
    )
    assert stages_of(graph, 2)["dw"] == 0


def test_gradients_never_go_to_a_later_stage() -> None:
    """`dw` is the gradient of an op of stage 1, but takes one that is in stage 0 already."""
    graph = step(
        """
        y = Mul(x, w) : float32[4]  @scope=a
        z = Mul(y, w) : float32[4]  @scope=b
        dy = Mul(z, y) : float32[4]  @call=1 @twin=y
        dw = Mul(dy, z) : float32[4]  @call=1 @twin=z
    """
        + MARKED,
        "written",
    )
    assert stages_of(graph, 2) == {"y": 0, "z": 1, "dy": 0, "dw": 0}


def test_a_backward_op_that_takes_no_gradient_moves_to_its_latest_consumer() -> None:
    graph = step(
        """
        y = Mul(x, w) : float32[4]  @scope=a
        z = Mul(y, w) : float32[4]  @scope=c
        scale = Neg(y) : float32[4]  @call=1
        dz = Mul(z, w) : float32[4]  @call=1 @twin=z
        dw = Mul(dz, scale) : float32[4]  @call=1 @twin=y
    """
        + MARKED,
        "written",
    )
    assert stages_of(graph)["scale"] == 0


def test_data_that_flows_to_an_earlier_stage_is_refused() -> None:
    with pytest.raises(PlanError) as refused:
        stages_of(step("y = Mul(x, w) : float32[4]  @scope=b\n z = Mul(y, w) : float32[4]  @scope=a"))
    assert str(refused.value) == (
        "'z' of stage 0 needs 'y' of the later stage 1.\n"
        "  forward data only flows to later stages\n"
        "  at train.py:35 in step: z = ...\n"
        "  at train.py:34 in step: y = ...\n"
        "  Open the stages in the order the data flows, or give both places the same stage name."
    )


def test_all_data_that_flows_to_an_earlier_stage_is_counted() -> None:
    with pytest.raises(PlanError, match="2 values flow to an earlier stage"):
        stages_of(
            step("""
                u = Mul(x, w) : float32[4]  @scope=c
                y = Mul(u, w) : float32[4]  @scope=b
                z = Mul(y, w) : float32[4]  @scope=a
            """)
        )

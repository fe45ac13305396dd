"""Resources that are no variables: what the step changes is used in the order of the program."""

from __future__ import annotations

import pytest

from tests.rewrite.steps import resolved
from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.plan.resources import written_resource, written_resources

QUEUE = """
graph step(out: y, n) effects(q) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  t = Handle() {index=0} : resource[]
  other = Handle() {index=1} : resource[]
  zero = Const() {value=(0.0)} : float32[]
  q = QueueEnqueueV2(t, x) @stateful
  n = QueueSizeV2(t) : int32[]  @stateful
  y = LookupTableFindV2(other, x, zero) : float32[BATCH]
}
"""


def graph(text: str = QUEUE) -> Graph:
    return parse_graph(text.replace("BATCH", "8"))


def test_what_is_changed_is_written_and_what_is_looked_up_is_not() -> None:
    assert written_resources(graph()) == {"t"}


def test_every_node_that_uses_it_takes_its_turn() -> None:
    step = graph()
    written = written_resources(step)
    assert [written_resource(step, step[name], written) for name in ("q", "n", "y")] == ["t", "t", ""]


@pytest.mark.parametrize("name", ["q", "n"])
def test_it_is_used_once_per_step(name: str) -> None:
    states = resolved(QUEUE, 8)
    assert states.level[name] == 1
    assert states.level["y"] == 0


def test_a_later_use_is_not_before_an_earlier_one() -> None:
    states = resolved(QUEUE, 8)
    assert states.level["n"] >= states.level["q"]

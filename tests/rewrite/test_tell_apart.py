"""`tell_apart`: what two traces compute alike keeps its name, what differs gets its own."""

from __future__ import annotations

from whale_tf.ir.text import parse_graph
from whale_tf.plan.roles import find_roles
from whale_tf.rewrite.tell_apart import tell_apart

TRACE = """
graph step(out: y) {
  x = Input() {index=0, batch=true} : float32[BATCH]
  same = Captured() {index=0} : float32[]
  table = Captured() {index=INDEX} : float32[]
  scale = Const() {value=opaque"AA=="} : float32[]
  sum = AddV2(table, scale) : float32[]
  product = Mul(same, scale) : float32[]
  factor = Mul(sum, product) : float32[]
  y = Mul(x, factor) : float32[BATCH]
}
"""


def test_what_differs_and_what_is_computed_from_it_is_renamed() -> None:
    main, other = (
        parse_graph(TRACE.replace("BATCH", str(size)).replace("INDEX", str(index))) for size, index in ((4, 1), (3, 2))
    )
    apart = tell_apart(main, other, find_roles(other, 3), 3)
    assert list(apart.nodes) == ["x", "same", "table/at3", "scale", "sum/at3", "product", "factor/at3", "y"]


def test_traces_that_are_alike_share_every_name() -> None:
    main, other = (parse_graph(TRACE.replace("BATCH", size).replace("INDEX", "1")) for size in ("4", "3"))
    assert list(tell_apart(main, other, find_roles(other, 3), 3).nodes) == list(main.nodes)

"""Holding assignments back: they wait for what may fail and for nothing else."""

from __future__ import annotations

from whale_tf.ir.graph import Graph
from whale_tf.ir.text import parse_graph
from whale_tf.ir.verify import verify
from whale_tf.rewrite.hold_assignments import hold_assignments
from whale_tf.rewrite.program import Program

MAIN = """
graph main(out: g) effects(a) {
  r = Read() {variable=b"w"} : float32[4]  @device=0
  g = Call(r) : float32[4]  @device=0
  h = Call(g) : float32[4]  @device=0 ^g
  k = Call(r) : float32[4]  @device=1
  s = AddV2(h, g) : float32[4]  @device=0
  c = CheckNumerics(s) : float32[4]  @device=0
  v = Sub(r, c) : float32[4]  @device=0
  a = Assign(v) {variable=b"w"}  @device=0 ^r
}
"""


def held(text: str, *, ordered: bool = True) -> Graph:
    program = Program(parse_graph(text), {}, ("CPU:0", "CPU:1"), inline=False, ordered=ordered)
    main = hold_assignments(program).main
    verify(main, after="hold_assignments")
    return main


def test_assignments_wait_for_the_last_calls_and_for_what_may_fail() -> None:
    main = held(MAIN)
    assert main["a"].control == ("r", "all_ran")
    assert main["all_ran"].control == ("all_ran/on0", "all_ran/on1")
    assert main["all_ran/on0"].control == ("h", "c")
    assert main["all_ran/on1"].control == ("k",)
    assert main.effects == ("a",)


def test_calls_that_keep_no_order_are_all_waited_for() -> None:
    main = held(MAIN, ordered=False)
    assert main["all_ran/on0"].control == ("g", "h", "c")


def test_collectives_are_waited_for_also_where_nothing_uses_their_sums() -> None:
    """One that fails half way would else leave some variables new and others old."""
    text = """
        graph main(out: r) effects(a) {
          r = Read() {variable=b"w"} : float32[4]  @device=0
          q = Read() {variable=b"v"} : float32[4]  @device=1
          s = Reduce(r) {id=0, devices=(0, 1), scale=1.0} : float32[4]  @device=0
          t = Reduce(q) {id=0, devices=(0, 1), scale=1.0} : float32[4]  @device=1
          a = Assign(s) {variable=b"w"}  @device=0 ^r
        }
    """
    main = held(text)
    assert main["a"].control == ("r", "all_ran")
    assert main["all_ran"].control == ("all_ran/on0", "all_ran/on1")
    assert main["all_ran/on1"].control == ("t",)


def test_nothing_else_changes() -> None:
    before, after = parse_graph(MAIN), held(MAIN)
    assert [node for node in after if node.name in before and node.op != "Assign"] == [
        node for node in before if node.op != "Assign"
    ]
    assert after.outputs == before.outputs


def test_calls_run_where_nothing_is_assigned() -> None:
    kept = [line for line in MAIN.splitlines() if "Assign" not in line]
    text = "\n".join(kept).replace(" effects(a)", "")
    assert held(text).effects == ("all_ran",)


def test_a_step_of_arithmetic_alone_is_left_alone() -> None:
    text = """
        graph main(out: r) effects(a) {
          r = Read() {variable=b"w"} : float32[4]  @device=0
          v = Neg(r) : float32[4]  @device=0
          a = Assign(v) {variable=b"w"}  @device=0 ^r
        }
    """
    assert held(text) == parse_graph(text)

"""`collapse`: the same calls on one device, one after another, without transfers and assignments."""

from __future__ import annotations

from itertools import pairwise

from tests.rewrite.steps import spread
from whale_tf.ir.verify import verify
from whale_tf.rewrite.collapse import collapse

HOST = 0


def test_all_calls_run_on_the_host_in_one_order() -> None:
    program = spread(replicas=2, stages=2, micro_batches=3).program
    collapsed = collapse(program)
    verify(collapsed.main, after="collapse")
    assert not collapsed.inline
    assert not {"Send", "Recv", "Assign"} & {node.op for node in collapsed.main}
    calls = [node for node in collapsed.main if node.op == "Call"]
    assert [node.name for node in calls] == [node.name for node in program.main if node.op == "Call"]
    assert {node.device for node in calls} == {HOST}
    assert all(before.name in after.control for before, after in pairwise(calls))
    assert collapsed.main.effects == tuple(node.name for node in calls)


def test_a_collective_is_a_sum_of_what_its_devices_give() -> None:
    program = spread(replicas=2, micro_batches=2, kind="GPU").program
    collapsed = collapse(program)
    verify(collapsed.main, after="collapse")
    assert not [node for node in collapsed.main if node.op == "Reduce"]
    for node in program.main:
        if node.op == "Reduce":
            total = collapsed.main[node.name]
            peers = [each for each in program.main if each.op == "Reduce" and each.attrs["id"] == node.attrs["id"]]
            assert (total.op, total.device) == ("WhaleSum", HOST)
            assert total.inputs == tuple(each.inputs[0] for each in peers)
            assert (total.attrs["M"], total.attrs["K"], total.attrs["parts"], total.attrs["scale"]) == (2, 1, 2, 1.0)

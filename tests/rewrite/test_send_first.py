"""`send_first`: another process gets a value before the device that made it computes on."""

from __future__ import annotations

from tests.rewrite.steps import Spread, spread
from whale_tf.plan.grids import Grids
from whale_tf.rewrite.send_first import send_first


def messages(program: Spread) -> dict[str, list[str]]:
    """The sends to other processes of each call."""
    found: dict[str, list[str]] = {}
    for node in program.find("Send"):
        if node.op == "Send" and program.program.crosses(node) and program.main[node.inputs[0].node].op == "Call":
            found.setdefault(node.inputs[0].node, []).append(node.name)
    return found


def test_a_call_waits_until_what_the_one_before_it_made_is_handed_over() -> None:
    program = spread(stages=2, micro_batches=4, processes=(0, 1))
    program.check()
    sent = messages(program)
    assert {"r0/0F0", "r0/1B3"} <= set(sent)
    calls = program.find("Call")
    waiting = {call.name: [name for before in call.control for name in sent.get(before, [])] for call in calls}
    assert all(set(waiting[call.name]) <= set(call.control) for call in calls)
    assert waiting["r0/0F1"] == sent["r0/0F0"]
    order = list(program.main.nodes)
    assert all(
        order.index(name) == order.index(call) + 1 + k for call, names in sent.items() for k, name in enumerate(names)
    )


def test_values_of_the_update_are_sent_when_they_are_there() -> None:
    program = spread(stages=2, micro_batches=4, processes=(0, 1))
    others = [n for n in program.find("Send") if program.main[n.inputs[0].node].op != "Call"]
    assert others
    assert not any(send.name in node.control for send in others for node in program.main)


def test_one_process_and_calls_without_an_order_are_left_alone() -> None:
    for program in (spread(stages=2, micro_batches=4), spread(stages=2, processes=(0, 1))):
        assert send_first(program.program, program.step) is program.program


def test_a_value_goes_where_the_schedule_says() -> None:
    late = "device 0: 0F0 0F1 0F0S1 0F2 0B0 0B1 0B2\ndevice 1: 1R0F0 1F0 1F1 1F2 1B0 1B1 1B2"
    program = spread(stages=2, micro_batches=3, schedule=Grids.parse(late), processes=(0, 1))
    program.check()
    (send,) = (name for name in messages(program)["r0/0F0"] if name not in program.main["r0/0F1"].control)
    assert program.main[send].control == ("r0/0F1",)
    assert send in program.main["r0/0F2"].control
    order = list(program.main.nodes)
    assert order.index("r0/0F1") < order.index(send) < order.index("r0/0F2")

"""A timed program: the same step, with clocks around every action and update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from whale_tf.ir.graph import DType, Graph, Node, Ref, Shape, TensorType
from whale_tf.ir.verify import verify
from whale_tf.rewrite.program import Program
from whale_tf.rewrite.time_actions import Timed, timed

FLOAT = TensorType(DType("float32"), Shape((2,)))
CPUS = ("/job:localhost/replica:0/task:0/device:CPU:0", "/job:localhost/replica:0/task:0/device:CPU:1")


def node(
    name: str, op: str, device: int, inputs: Sequence[str] = (), control: Sequence[str] = (), **attrs: Any
) -> Node:
    outputs = () if op in ("Send", "Assign", "NoOp") else (FLOAT,)
    return Node(name, op, tuple(map(Ref, inputs)), tuple(control), attrs, outputs, device=device)


def call(action: str, device: int, inputs: Sequence[str], phase: int = 0) -> Node:
    attrs: dict[str, Any] = {"function": action[:-1].encode(), "action": action.encode(), "replica": 0, "phase": phase}
    return node(action, "Call", device, inputs, **attrs)


def moved(value: str, source: int, device: int) -> list[Node]:
    sent = node(f"{value}/send", "Send", source, [value], to=device)
    return [sent, node(f"{value}/to{device}", "Recv", device, source=source).with_(twin=sent.name)]


def two_stages() -> list[Node]:
    """Forward and backward over two devices, and two updates with all that stands around them."""
    return [
        node("x", "Take", 0),
        node("v/read", "Read", 0),
        node("w/read", "Read", 1),
        call("0F0", 0, ["x", "v/read"]),
        *moved("0F0", 0, 1),
        call("1F0", 1, ["0F0/to1", "w/read"]),
        call("1B0", 1, ["1F0"]),
        *moved("1B0", 1, 0),
        call("0B0", 0, ["0F0", "1B0/to0"]),
        node("rate", "Const", 1),
        node("dw", "Mul", 1, ["1B0", "rate"]),
        node("w/new", "Sub", 1, ["w/read", "dw"]),
        node("v/new", "Sub", 0, ["v/read", "0B0"]),
        node("done", "NoOp", 0, control=["0B0", "1B0"]),
        node("joined", "Mul", 1, ["1F0", "rate"]),
        *moved("joined", 1, 0),
        node("w/assign", "Assign", 1, ["w/new"], ["done", "w/read"], variable=b"w"),
        node("v/assign", "Assign", 0, ["v/new"], ["done", "v/read"], variable=b"v"),
    ]


def program(nodes: Sequence[Node], devices: Sequence[str] = CPUS, output: str = "joined/to0") -> Program:
    effects = [each.name for each in nodes if each.op == "Assign"]
    return Program(Graph.of(nodes, [Ref(output)], effects), {}, tuple(devices), inline=True, ordered=False)


def clocks(result: Timed) -> list[str]:
    """The names of the clocks, in the order of the times."""
    return [ref.node for ref in result.program.main.outputs[result.outputs :]]


def test_the_step_begins_before_the_host_reads_or_cuts_anything() -> None:
    main = timed(program(two_stages())).program.main
    assert (main["clock/began"].control, main["v/read"].control) == ((), ("clock/began",))
    assert not main["w/read"].control


def test_a_call_is_between_two_clocks() -> None:
    result = timed(program(two_stages()))
    main = result.program.main
    assert "clock/1F0/start" in main["1F0"].control
    assert set(main["clock/1F0/start"].control) == {"0F0/to1", "w/read"}
    assert main["clock/1F0/end"].control == ("1F0",)
    assert {main[name].device for name in ("1F0", "clock/1F0/start", "clock/1F0/end")} == {1}


def test_calls_of_a_device_follow_each_other_though_nothing_made_them() -> None:
    result = timed(program(two_stages()))
    assert not program(two_stages()).main["0B0"].control
    assert "clock/0F0/end" in result.program.main["clock/0B0/start"].control
    assert not result.program.inline


def test_what_takes_a_value_waits_for_the_clock_after_it() -> None:
    main = timed(program(two_stages())).program.main
    for name, giver in (("0F0/send", "0F0"), ("dw", "1B0"), ("v/new", "0B0"), ("joined", "1F0")):
        assert f"clock/{giver}/end" in main[name].control


def test_spans_say_what_was_timed_and_which_times_are_theirs() -> None:
    result = timed(program(two_stages()))
    found = [(span.action, span.device, span.replica, span.phase) for span in result.spans]
    assert found == [
        ("0F0", 0, 0, 0),
        ("1F0", 1, 0, 0),
        ("1B0", 1, 0, 0),
        ("0B0", 0, 0, 0),
        ("U", 0, -1, 0),
        ("U", 1, -1, 0),
    ]
    names = clocks(result)
    times = {
        (span.action, span.device): (
            None if span.free is None else names[span.free],
            [names[k] for k in span.ready],
            names[span.end],
        )
        for span in result.spans
    }
    assert times["0F0", 0] == (None, ["clock/0F0/start"], "clock/0F0/end")
    assert times["1B0", 1] == ("clock/1F0/end", ["clock/1B0/start"], "clock/1B0/end")
    assert times["U", 1] == ("clock/1B0/end", ["clock/dw/ready"], "clock/update/1/0/end")


def test_an_update_holds_neither_transfers_nor_assignments_nor_results() -> None:
    main = timed(program(two_stages())).program.main
    assert main["clock/update/1/0/end"].control == ("dw", "w/new")
    assert main["clock/update/0/0/end"].control == ("v/new",)


def test_an_update_starts_when_gradients_from_elsewhere_are_there() -> None:
    nodes = [each for each in two_stages() if each.name != "v/new"]
    at = next(k for k, each in enumerate(nodes) if each.name == "done")
    nodes[at:at] = [node("v/sum", "AddV2", 0, ["0B0", "1B0/to0"]), node("v/new", "Sub", 0, ["v/read", "v/sum"])]
    main = timed(program(nodes)).program.main
    assert set(main["clock/v/sum/ready"].control) == {"0B0", "1B0/to0", "clock/0B0/end"}
    assert "clock/v/sum/ready" in main["v/sum"].control
    assert "clock/v/new/ready" not in main


def test_a_device_without_an_update_has_no_span_for_it() -> None:
    nodes = [each for each in two_stages() if each.name not in ("v/new", "v/assign")]
    assert [span.device for span in timed(program(nodes)).spans if span.action == "U"] == [1]


def test_transfers_join_spans_of_different_devices() -> None:
    result = timed(program(two_stages()))
    named = [(result.spans[giver].action, result.spans[taker].action) for giver, taker in result.transfers]
    assert named == [("0F0", "1F0"), ("1B0", "0B0")]


def test_a_later_round_has_an_update_of_its_own() -> None:
    nodes = [
        node("v/read", "Read", 0),
        call("0F0", 0, ["v/read"]),
        node("v/1", "Sub", 0, ["v/read", "0F0"]),
        call("0F0", 0, ["v/1"], phase=2).with_(name="0F0p2"),
        node("v/2", "Sub", 0, ["v/1", "0F0p2"]),
        node("v/assign", "Assign", 0, ["v/2"], variable=b"v"),
    ]
    result = timed(program(nodes, output="0F0"))
    assert [(span.action, span.phase) for span in result.spans] == [("0F0", 0), ("0F0", 2), ("U", 0), ("U", 2)]
    names = clocks(result)
    assert [names[span.free] for span in result.spans[2:] if span.free is not None] == [
        "clock/0F0/end",
        "clock/0F0p2/end",
    ]


def test_the_step_is_the_same_besides() -> None:
    before = program(two_stages())
    result = timed(before)
    main = result.program.main
    verify(main, after="time_actions")
    assert (main.outputs[: result.outputs], main.effects) == (before.main.outputs, before.main.effects)
    assert {each.op for each in main if each.name not in before.main} == {"Timestamp"}
    for each in before.main:
        assert set(each.control) <= set(main[each.name].control)
        assert main[each.name].with_(control=each.control) == each
    assert before == program(two_stages())


@pytest.mark.parametrize("gpus", [[0, 1], [1]], ids=str)
def test_a_device_without_a_clock_is_timed_on_the_host(gpus: list[int]) -> None:
    devices = [name.replace("CPU", "GPU") if index in gpus else name for index, name in enumerate(CPUS)]
    result = timed(program(two_stages(), devices)).program
    assert {result.devices[each.device] for each in result.main if each.op == "Timestamp"} == {CPUS[0]}
    assert result.main["1F0"].device == 1


def test_what_a_collective_adds_comes_from_all_its_devices() -> None:
    attrs: dict[str, Any] = {"id": 0, "devices": (0, 1), "scale": 1.0}
    nodes = [
        node("x", "Take", 0),
        node("y", "Take", 1),
        node("w/read", "Read", 0),
        call("0F0", 0, ["x"]),
        call("1F0", 1, ["y"]),
        node("on0", "Reduce", 0, ["0F0"], **attrs),
        node("on1", "Reduce", 1, ["1F0"], **attrs),
        node("w/new", "Sub", 0, ["w/read", "on0"]),
        node("w/assign", "Assign", 0, ["w/new"], variable=b"w"),
    ]
    result = timed(program(nodes, output="w/new"))
    titles = [f"{span.action} on {span.device}" for span in result.spans]
    assert titles == ["0F0 on 0", "1F0 on 1", "U on 0"]
    assert result.transfers == ((1, 2),)
    update = result.spans[2]
    assert len(update.ready) == 1, "the collectives are no part of the update"

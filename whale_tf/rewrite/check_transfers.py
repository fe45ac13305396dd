"""The part of `check` that shows a program ends: transfers pair up, and all nodes of all devices admit one order.

device 0:  r0/0F0 ─▶ Send k          r0/0F0 must end before Send k, that before Recv k, and that before r0/1F0
device 1:  Recv k ─▶ r0/1F0          such an order exists if these edges close no circle
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from whale_tf.ir.graph import Graph, Node
from whale_tf.plan.grid import Action
from whale_tf.plan.plan import Plan
from whale_tf.rewrite.program import BETWEEN_GROUPS, COLLECTIVES, Program
from whale_tf.rewrite.send_first import sending_places
from whale_tf.rewrite.step_program import StepProgram

_SHOWN_CIRCLE = 8


def faulty_transfers(step: StepProgram, program: Program) -> Iterator[str]:
    """What could make a device wait for ever, or read a tensor of another, or is not as scheduled."""
    yield from _wrong_devices(program)
    yield from _wrong_pairs(program)
    yield from _wrong_between_groups(step.plan, program)
    yield from _wrong_collectives(program)
    yield from _wrong_order(step, program)
    yield from _wrong_channels(step, program)
    if program.ordered:
        yield from _wrong_messages(step, program)
    yield from _circle(program.main)


def sends(main: Graph) -> dict[bytes, Node]:
    """The Send of each key."""
    return {node.attrs["key"]: node for node in main if node.op == "Send"}


def meeting_of(node: Node) -> object:
    """What the nodes of one collective have in common."""
    return node.attrs["label"] if node.op in BETWEEN_GROUPS else (node.attrs["id"], node.attrs["devices"])


def meetings(main: Graph) -> dict[object, list[Node]]:
    """The nodes of each collective; each waits for what all of them take."""
    found: dict[object, list[Node]] = {}
    for node in main:
        if node.op in COLLECTIVES:
            found.setdefault(meeting_of(node), []).append(node)
    return found


def _wrong_devices(program: Program) -> Iterator[str]:
    main, count = program.main, len(program.devices)
    for node in main:
        if not 0 <= node.device < count:
            yield f"'{node.name}' ({node.op}) is on device {node.device}, and there are {count}"
        for position, ref in enumerate(node.inputs):
            other = main[ref.node].device
            if other != node.device:
                here = f"'{node.name}' ({node.op}) on device {node.device}"
                yield f"input {position} of {here} is '{ref}' on device {other}, without Send and Recv"


def _wrong_between_groups(plan: Plan, program: Program) -> Iterator[str]:
    """Collectives in which not every group takes part once, from a process of its own, or in which they disagree."""
    groups = plan.layout.groups
    for label, nodes in meetings(program.main).items():
        if nodes[0].op not in BETWEEN_GROUPS:
            continue
        title, ranks = f"{nodes[0].op} {label!r}", nodes[0].attrs["ranks"]
        if [groups.of_process.get(rank) for rank in ranks] != list(range(len(groups))):
            yield f"{title} is of processes {list(ranks)}, and there must be one of each of {len(groups)} groups"
        processes = [program.process_of(node) for node in nodes]
        wanted = [rank for rank in ranks if rank in program.present]
        unlike = any(node.op != nodes[0].op or node.attrs != nodes[0].attrs for node in nodes)
        if unlike or sorted(processes) != sorted(wanted):
            yield f"{title} of processes {list(ranks)} is done by {processes}, or not alike"
        if any([kind.dtype for kind in node.outputs] != [kind.dtype for kind in nodes[0].outputs] for node in nodes):
            yield f"{title} has other types in each process"


def _wrong_collectives(program: Program) -> Iterator[str]:
    """Reduces that not all of their devices take part in once and alike, or that may start in another order."""
    for nodes in meetings(program.main).values():
        if nodes[0].op != "Reduce":
            continue
        number = nodes[0].attrs["id"]
        devices = [node.device for node in nodes]
        unlike = any(node.op != "Reduce" or node.attrs != nodes[0].attrs for node in nodes)
        if unlike or sorted(nodes[0].attrs["devices"]) != sorted(devices) or len({*devices}) != len(devices):
            yield f"Reduce {number} of devices {list(nodes[0].attrs['devices'])} is done by {devices}, or not alike"
        if any(node.outputs != nodes[0].outputs for node in nodes):
            yield f"Reduce {number} reduces other tensors on each device"
        if len({program.process_of(node) for node in nodes}) > 1:
            yield f"Reduce {number} is of several processes"
    last: dict[int, Node] = {}
    for node in program.main:
        if node.op == "Reduce":
            before = last.get(node.device)
            if before is not None and (before.name not in node.control or before.attrs["id"] >= node.attrs["id"]):
                yield f"'{node.name}' does not wait for '{before.name}', the Reduce before it, or has a lower number"
            last[node.device] = node


def _wrong_pairs(program: Program) -> Iterator[str]:
    """Keys that have not one Send and one Recv, or whose ends disagree."""
    ends: dict[bytes, tuple[list[Node], list[Node]]] = {}
    for node in program.main:
        if node.op in ("Send", "Recv"):
            ends.setdefault(node.attrs["key"], ([], []))[node.op == "Recv"].append(node)
    for key, (sent, received) in ends.items():
        name = key.decode()
        if len(sent) != 1 or len(received) != 1:
            yield f"key '{name}' has {len(sent)} Send and {len(received)} Recv"
            continue
        send, receive = sent[0], received[0]
        if send.device == receive.device:
            yield f"key '{name}' goes from device {send.device} to itself"
        if send.attrs["to"] != receive.device or receive.attrs["source"] != send.device:
            yield (
                f"key '{name}' is sent from device {send.device} to {send.attrs['to']}"
                f" and received on device {receive.device} from {receive.attrs['source']}"
            )
        if send.attrs["T"] != receive.attrs["T"]:
            yield f"key '{name}' is sent as {send.attrs['T']} and received as {receive.attrs['T']}"


def _wrong_order(step: StepProgram, program: Program) -> Iterator[str]:
    """Calls of a device that are not in the schedule's order, or that nothing keeps in order."""
    last: dict[int, str] = {}
    rows: dict[tuple[int, int, int, int], list[str]] = {}
    for node in program.main:
        if node.op != "Call":
            continue
        before = last.get(node.device)
        if before is not None and program.ordered and before not in node.control:
            yield f"call '{node.name}' on device {node.device} does not wait for '{before}', the call before it"
        last[node.device] = node.name
        function = program.functions.get(node.attrs["function"].decode())
        if function is None or function.key.stage >= len(step.plan.layout.stages):
            continue
        replica, phase = node.attrs["replica"], node.attrs["phase"]
        row = step.grid_of(replica, phase).device_of(function.key.stage)
        rows.setdefault((phase, replica, row, node.attrs["member"]), []).append(node.attrs["action"].decode())
    for (phase, replica, row, _), actions in rows.items():
        made = set(actions)
        planned = [str(action) for action in step.grid_of(replica, phase).rows[row] if str(action) in made]
        if actions != planned and Counter(actions) == Counter(planned):
            where = f"device {row} of replica {replica}"
            yield f"{where} runs {' '.join(actions)}, and the schedule says {' '.join(planned)}"


def _wrong_channels(step: StepProgram, program: Program) -> Iterator[str]:
    """Values that go from stage to stage without the schedule's saying so, and the other way round."""
    sent = sends(program.main)
    taken: dict[tuple[int, int], dict[Action, None]] = {}
    for call in program.main:
        if call.op != "Call":
            continue
        replica, phase = who = call.attrs["replica"], call.attrs["phase"]
        found, grid = taken.setdefault(who, {}), step.grid_of(replica, phase)
        stage = Action.parse(call.attrs["action"].decode()).stage
        for ref in call.inputs:
            maker = program.main[ref.node]
            while maker.op == "Recv" and maker.attrs["key"] in sent:
                maker = program.main[sent[maker.attrs["key"]].inputs[0].node]
            if maker.op == "Call" and (maker.attrs["replica"], maker.attrs["phase"]) == who:
                made = Action.parse(maker.attrs["action"].decode())
                if grid.device_of(made.stage) != grid.device_of(stage):
                    found[Action(made.stage, "S", made.micro_batch, stage, made.kind)] = None
    for (replica, phase), found in taken.items():
        said = [action for row in step.grid_of(replica, phase).rows for action in row if action.kind == "S"]
        yield from (f"replica {replica} does {each}, and the schedule does not say so" for each in {*found} - {*said})
        yield from (f"the schedule says {each} for replica {replica}, which does not" for each in {*said} - {*found})


def _wrong_messages(step: StepProgram, program: Program) -> Iterator[str]:
    """Messages that may go before the call that stands before their S, or after the next one."""
    follows = {name: call for call in program.main if call.op == "Call" for name in call.control}
    for name, call in sending_places(program, step).items():
        send, after = program.main[name], follows.get(call)
        if send.inputs[0].node != call and call not in send.control:
            yield f"'{name}' does not wait for '{call}', which is before it in the schedule"
        if after is not None and name not in after.control:
            yield f"call '{after.name}' does not wait for '{name}', which is before it in the schedule"


def _circle(main: Graph) -> Iterator[str]:
    """Nodes that wait for themselves, by data, control, or through a transfer."""
    sent, met = sends(main), meetings(main)
    needs: dict[str, list[str]] = {}
    users: dict[str, list[str]] = {name: [] for name in main.nodes}
    for node in main:
        before = [*(ref.node for ref in node.inputs), *node.control]
        if node.op == "Recv" and node.attrs["key"] in sent:
            before.append(sent[node.attrs["key"]].name)
        if node.op in COLLECTIVES:  # each waits for what all the others take and wait for
            peers = met[meeting_of(node)]
            taken = [ref.node for peer in peers for ref in peer.inputs]
            before = list(dict.fromkeys([*taken, *(name for peer in peers for name in peer.control)]))
        needs[node.name] = before
        for name in before:
            users[name].append(node.name)
    missing = {name: len(before) for name, before in needs.items()}
    ready = [name for name, count in missing.items() if not count]
    done = 0
    while ready:
        done += 1
        for user in users[ready.pop()]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    if done < len(main):
        path = _one_circle(needs, missing)
        names = [f"'{name}'" for name in path]
        shown = [*names[:_SHOWN_CIRCLE], *(["…"] if len(names) > _SHOWN_CIRCLE else []), names[0]]
        yield f"{len(main) - done} nodes never run: {' waits for '.join(shown)}"


def _one_circle(needs: Mapping[str, list[str]], missing: Mapping[str, int]) -> list[str]:
    """From any node that never runs, back along what it waits for, until a node comes again."""
    name = next(name for name, count in missing.items() if count)
    place: dict[str, int] = {}
    path: list[str] = []
    while name not in place:
        place[name] = len(path)
        path.append(name)
        name = next(before for before in needs[name] if missing[before])
    return path[place[name] :]

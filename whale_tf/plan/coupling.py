"""What to do where a gradient waits for something that takes examples of several parts together.

a total of arguments and constants (counts of tokens)   merged before everything else, by a prologue
the statistics of BatchNormalization                    each part's own, unless batch_norm="global" or coupling="exact"
a total of few bytes, and one micro-batch               merged where it stands
anything, with coupling="exact"                         merged or gathered where it stands
a mean, or rows of a part, that the user accepts        each part's own
otherwise                                               refused, with the ways out that were found to work
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from whale_tf.errors import Line, PlanError
from whale_tf.ir.graph import Node, Ref
from whale_tf.ir.sharding import SUMS, Partial, Split, Value
from whale_tf.ir.sizes import Sizes
from whale_tf.plan.cost import tensor_bytes
from whale_tf.plan.states import Choices, States, derive

SMALL_BYTES = 16 * 2**10
GATHER_BYTES = 2**28  # unless a strategy says otherwise
STEPS_TO_AN_AVERAGE = 8
LINES_SHOWN = 6


@dataclass(frozen=True)
class Coupling:
    """What the user says of values that relate examples to each other.

    Attributes:
      exact: whether all of them are computed over the global batch.
      accept: operations, kinds of operation or lines (`train.py:14`) of which each part's own value is accepted.
      micro_batches: how many each replica has.
      gather_bytes: how much is gathered at most for what is computed once.
      line_of: the user's line of an operation.
      global_statistics: whether the statistics of BatchNormalization are those of the global batch.
    """

    exact: bool
    accept: tuple[str, ...]
    micro_batches: int
    gather_bytes: int
    line_of: Callable[[str], Line]
    global_statistics: bool = False

    def accepts(self, node: Node) -> bool:
        """Whether the user accepts what each part makes of a node."""
        return any(self.is_called(node, name) for name in self.accept)

    def is_called(self, node: Node, name: str) -> bool:
        """Whether a name is that of the node, of its kind or of its line, of which folders may be left out."""
        if name in (node.name, node.op) or ":" not in name:
            return name in (node.name, node.op)
        line = self.line_of(node.name)
        return f"/{line.file}:{line.number}".endswith(f"/{name}")


class Resolved(NamedTuple):
    """The states, and which nodes each part runs for itself since the user accepts that."""

    states: States
    accepted: tuple[str, ...]


def resolve(sizes: Sizes, coupling: Coupling) -> Resolved:
    """The states of a step that several parts run, with a decision for everything that couples them.

    Raises:
      PlanError: a gradient waits for what is neither computed nor accepted, or what is accepted is not there.
    """
    _refuse_unknown(sizes, coupling)
    states, accepted = _accepting(sizes, coupling, lambda name: coupling.accepts(sizes.graph[name]))
    wrong = _refused(states, coupling)
    if wrong:
        raise _refusal(states, wrong, coupling)
    _refuse_large_gathers(states, coupling)
    return Resolved(states, _told(sizes, accepted))


def _refuse_unknown(sizes: Sizes, coupling: Coupling) -> None:
    """Names that are accepted and that nothing has; a step without gradients may be another one's evaluation."""
    if not any(node.op == "Gradient" for node in sizes.graph):
        return
    unknown = [name for name in coupling.accept if not any(coupling.is_called(node, name) for node in sizes.graph)]
    if unknown:
        names = _acceptable_names(sizes, coupling)
        raise PlanError(
            "accept= names what the step does not have",
            details=[f"{name!r} is no operation, no kind of operation and no line of it" for name in unknown],
            at=_lines(coupling, names),
            way_out=f"Use {_written(names)}, or leave it out."
            if names
            else "Leave it out: here it would change nothing.",
        )


def _acceptable_names(sizes: Sizes, coupling: Coupling) -> tuple[str, ...]:
    """The operations that could be accepted, if that would do for the step to run."""
    tried, accepted = _accepting(sizes, coupling, lambda name: True)
    return () if _refused(tried, coupling) else _told(sizes, accepted)


def _written(names: Sequence[str]) -> str:
    """`accept=('Mean', 'Roll')`."""
    return f"accept=({', '.join(map(repr, names))}{',' * (len(names) == 1)})"


def _told(sizes: Sizes, names: Collection[str]) -> tuple[str, ...]:
    """Nodes as the user is told of them: a gradient's by the operation whose gradient it is."""
    graph = sizes.graph
    found = [graph[name].twin if graph[name].call and graph[name].twin in graph else name for name in names]
    order = {name: index for index, name in enumerate(graph.nodes)}
    return tuple(sorted(set(found), key=order.__getitem__))


def _accepting(sizes: Sizes, coupling: Coupling, accepts: Callable[[str], bool]) -> tuple[States, frozenset[str]]:
    """Derives again while something is refused that is accepted."""
    accepted: frozenset[str] = frozenset()
    while True:
        states = _with_prologue(sizes, coupling, accepted)
        causes = _causes(states, _refused(states, coupling))
        found = [
            name
            for ref in causes
            for name in _acceptable(states, ref)
            if name not in accepted and any(map(accepts, (name, *_told(sizes, [name]), _shown(states, ref), ref.node)))
        ]
        if not found:
            return states, accepted
        order = {name: index for index, name in enumerate(sizes.graph.nodes)}
        accepted |= {min(found, key=order.__getitem__)}  # one at a time: what follows from it need not be accepted


def _acceptable(states: States, ref: Ref) -> list[str]:
    """The nodes of which each part's own value would do: what makes a mean, or what takes examples together.

    Of other totals (a sum, a maximum) a part alone has another one than a mean of parts could stand for.
    """
    value = states.known[ref].value
    if isinstance(value.state, Partial):
        return [ref.node] if value == Value(SUMS, Fraction(-1)) else []
    return _together(states, ref) or [ref.node]


def _together(states: States, ref: Ref) -> list[str]:
    """What takes examples together, in order: what needs a cut value whole, and what made its other operands."""
    graph = states.sizes.graph
    users = [name for name in graph.users[ref.node] if name in states.why and name in states.needed]
    beside = [each.node for name in users for each in graph[name].inputs if states.level[each.node] % 2 == 1]
    before = graph.ancestors(each for each in beside if states.level[each] > 0)
    found = {*users, *(name for name in before if name in states.why)}
    return [name for name in graph.nodes if name in found]


def _with_prologue(sizes: Sizes, coupling: Coupling, accepted: frozenset[str]) -> States:
    """Derives once, and again with what arguments alone determine merged first."""
    own_statistics = not (coupling.exact or coupling.global_statistics)
    choices = Choices(lambda node: own_statistics and makes_average(sizes, node), accepted)
    while True:
        states = derive(sizes, choices)
        first = {ref for ref in couplings(states) if _early(states, ref, coupling)}
        if first <= choices.prologue:
            return states
        prologue = choices.prologue | first
        latest = max(states.known[ref].level for ref in prologue)
        choices = replace(choices, prologue=frozenset(prologue), base=max(choices.base, latest + 2))


def _early(states: States, ref: Ref, coupling: Coupling) -> bool:
    """Whether a merge can go into the prologue: it is made of arguments, and small or a total."""
    known = states.known[ref]
    if not known.given:
        return False
    return isinstance(known.value.state, Partial) or _bytes(states, ref) <= coupling.gather_bytes


def couplings(states: States) -> set[Ref]:
    """The merges in the middle of the step that a gradient waits for."""
    found: set[Ref] = set()
    for name in states.markers:
        found |= states.known[states.sizes.graph[name].inputs[0]].coupled
    return found


def _refused(states: States, coupling: Coupling) -> list[Ref]:
    if coupling.exact:
        return []
    if states.torn:
        return sorted(states.torn)
    wrong = [ref for ref in couplings(states) if coupling.micro_batches > 1 or not _small(states, ref)]
    if not wrong or not coupling.global_statistics:
        return wrong
    own = couplings(_with_prologue(states.sizes, replace(coupling, global_statistics=False), states.accepted))
    return [ref for ref in wrong if ref in own]  # the others are there for the statistics alone


def _small(states: States, ref: Ref) -> bool:
    return isinstance(states.known[ref].value.state, Partial) and _bytes(states, ref) <= SMALL_BYTES


def _bytes(states: States, ref: Ref) -> int:
    return tensor_bytes(states.sizes.type_of(ref))


def makes_average(sizes: Sizes, node: Node) -> bool:
    """Whether a node reduces examples to statistics that a moving average is made of, and that go back to examples."""
    graph = sizes.graph
    if node.call or not any(sizes.following(ref) for ref in node.inputs):
        return False
    users, back, averages = [node], False, False
    for _ in range(STEPS_TO_AN_AVERAGE):
        users = [graph[name] for user in users for name in graph.users[user.name] if not graph[name].call]
        averages = averages or any(user.op == "Write" for user in users)
        grown = [user for user in users if _grows(sizes, user)]
        back = back or bool(grown)
        users = [user for user in users if not _grows(sizes, user)]
    return averages and (back or node.op.startswith("FusedBatchNorm"))


def _grows(sizes: Sizes, node: Node) -> bool:
    return any(sizes.following(Ref(node.name, index)) for index in range(len(node.outputs)))


def _refuse_large_gathers(states: States, coupling: Coupling) -> None:
    """What is computed once from all examples needs them on one device."""
    graph = states.sizes.graph
    wrong: dict[str, int] = {}
    for node in graph:
        if states.level[node.name] % 2 == 0 or node.name in states.markers or node.op in ("Write", "Gradient"):
            continue
        whole = [ref for ref in node.inputs if states.known[ref].micro and graph[ref.node].op != "Input"]
        if not whole:
            continue
        size_bytes = sum(_bytes(states, ref) for ref in whole if not isinstance(states.known[ref].value.state, Partial))
        if size_bytes > coupling.gather_bytes:
            wrong[node.name] = size_bytes
    if wrong:
        raise PlanError(
            "what is computed over all examples at once needs more of them on one device than is allowed",
            details=[
                f"'{name}' ({graph[name].op}) needs {size_bytes:,} bytes, and gather_bytes is "
                f"{coupling.gather_bytes:,}: {states.why.get(name, 'it is computed once')}"
                for name, size_bytes in wrong.items()
            ][:LINES_SHOWN],
            at=_lines(coupling, list(wrong)),
            way_out=f"Use whale.function(gather_bytes={max(wrong.values())}), or compute it from fewer numbers.",
        )


def _refusal(states: States, wrong: Sequence[Ref], coupling: Coupling) -> PlanError:
    causes = _causes(states, wrong)
    details = list(dict.fromkeys(_reason(states, ref) for ref in causes))
    more = [f"and {len(details) - LINES_SHOWN} more"] if len(details) > LINES_SHOWN else []
    way_out, lines = _ways_out(states, wrong, causes, coupling)
    return PlanError(
        "a gradient needs several parts of the batch at once",
        details=[
            *details[:LINES_SHOWN],
            *more,
            "each part of the batch has only its own examples, and would train with other numbers",
        ],
        at=_lines(coupling, [*(_shown(states, ref) for ref in causes), *lines]),
        way_out=way_out,
    )


def _shown(states: States, ref: Ref) -> str:
    """The operation that a cause is told by: of the forward what needs the whole value, or else what makes it."""
    graph = states.sizes.graph
    users = [name for name in graph.users[ref.node] if name in states.why]
    if isinstance(states.known[ref].value.state, Split):
        users = _together(states, ref)
    forward = [name for name in users if not graph[name].call]
    return forward[0] if forward else _told(states.sizes, [ref.node])[0]


def _reason(states: States, ref: Ref) -> str:
    graph = states.sizes.graph
    shown = _shown(states, ref)
    users = [name for name in graph.users[ref.node] if name in states.why]
    reason = states.why.get(shown) or next((f"its gradient: {states.why[name]}" for name in users), "")
    return f"'{shown}' ({graph[shown].op}): {reason or 'its gradient needs all examples'}"


def _causes(states: States, wrong: Sequence[Ref]) -> list[Ref]:
    """The first merges: not those that follow from others, nor the backward's, which follow from the forward's."""
    order = {name: index for index, name in enumerate(states.sizes.graph.nodes)}
    first = [ref for ref in wrong if not states.known[ref].coupled & set(wrong)]
    forward = [ref for ref in first if not states.sizes.graph[ref.node].call]
    return sorted(forward or first, key=lambda ref: order[ref.node])


def _lines(coupling: Coupling, names: Sequence[str]) -> list[Line]:
    lines = [coupling.line_of(name) for name in names]
    return [line for line in dict.fromkeys(lines) if line.number][:LINES_SHOWN]


def _ways_out(
    states: States, wrong: Sequence[Ref], causes: Sequence[Ref], coupling: Coupling
) -> tuple[str, tuple[str, ...]]:
    """What helps, each way found to by deriving again; and the operations that could be accepted."""
    ways = ['coupling="exact" computes it over the global batch']
    if coupling.micro_batches > 1 and all(_small(states, ref) for ref in wrong):
        ways.append("micro_batches=1 does so without being told, since these are only few bytes")
    names = _acceptable_names(states.sizes, coupling)
    if names:
        ways.append(f"{_written(names)} takes each part's own value")
    ways_out = "Use one of these in whale.function: " + "; ".join(ways)
    return f"{ways_out}. Or use one replica and micro_batches=1.", names

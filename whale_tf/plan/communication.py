"""Communication as actions of a grid: what its devices send, receive and reduce.

    Before:  device 0: 0F0 0F1 0B0 0B1
             device 1: 1F0 1B0 1F1 1B1
    After:   device 0: 0F0 0F0S1 0F1 0F1S1 0R1B0 0B0 0R1B1 0B1 0C
             device 1: 1R0F0 1F0 1B0 1B0S0 1R0F1 1F1 1B1 1B1S0 1C

An S stands where its value is handed over, which the actions behind it wait for; an R where it must have come, at the
latest. Behind a C the stage's gradients are being reduced over the replicas, which nothing on its device waits for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from whale_tf.errors import ScheduleError
from whale_tf.plan.check_schedule import check_grid
from whale_tf.plan.grid import Action, Grid, dependencies, rows_text


@dataclass(frozen=True, slots=True)
class Channel:
    """What the actions of one stage and kind take, in each micro-batch, from those of another stage.

    Attributes:
      made_by: stage and kind of the actions that make it.
      taken_by: stage and kind of those that take it.
    """

    made_by: tuple[int, str]
    taken_by: tuple[int, str]

    def send(self, micro_batch: int) -> Action:
        """The S of one micro-batch; channels from the same actions to the same stage share it."""
        return Action(self.made_by[0], "S", micro_batch, self.taken_by[0], self.made_by[1])


def with_communication(grid: Grid, channels: Iterable[Channel], reduced: Iterable[int] = ()) -> Grid:
    """The grid with its communication: S right behind what makes the value, R before the first action that takes it, C
    behind the last backward of its stage.

    What a grid has of it already stays in its place; but a C of a stage that is not in `reduced` is left out, so that a
    grid for several replicas serves one, too. Makespan and bubble of a grid that has none stay the same. Stages that
    share a device send each other nothing.

    Args:
      channels: between stages; those within a device are left out.
      reduced: the stages whose gradients are reduced over the replicas.
    Raises:
      ScheduleError: the grid has transfers that the step has not, or a value that arrives after it is taken.
    """
    apart = [c for c in dict.fromkeys(channels) if grid.device_of(c.made_by[0]) != grid.device_of(c.taken_by[0])]
    batches = range(grid.micro_batches)
    arrivals: dict[Action, list[Action]] = {}
    sends: dict[Action, list[Action]] = {}
    for channel, i in ((channel, i) for channel in apart for i in batches):
        send = channel.send(i)
        arrivals.setdefault(Action(*channel.taken_by, i), []).append(send.other_end)
        if send not in sends.setdefault(send.made, []):
            sends[send.made].append(send)
    wanted = {end for each in sends.values() for send in each for end in (send, send.other_end)}
    _refuse_superfluous(grid, wanted)

    wanted |= {Action(stage, "C", 0) for stage in reduced}
    inserted = wanted - {*chain.from_iterable(grid.rows)}
    kept = [[action for action in row if action.kind != "C" or action in wanted] for row in grid.rows]
    rows = tuple(tuple(_communicating(row, arrivals, sends, inserted)) for row in kept)
    made = Grid(rows, grid.stages, grid.micro_batches)
    needs = dependencies(made)
    check_grid(made, edges={action: (*before, *arrivals.get(action, ())) for action, before in needs.items()})
    return made


def _communicating(
    row: Sequence[Action],
    arrivals: dict[Action, list[Action]],
    sends: dict[Action, list[Action]],
    inserted: set[Action],
) -> Iterator[Action]:
    """A row with what is to be inserted."""
    last = {action.stage: action for action in row if action.computes and action.kind != "F"}
    come: set[Action] = set()
    for action in row:
        new = [receive for receive in arrivals.get(action, ()) if receive in inserted and receive not in come]
        come.update(new)
        yield from new
        yield action
        yield from (send for send in sends.get(action, ()) if send in inserted)
        reduce = Action(action.stage, "C", 0)
        if action == last.get(action.stage) and reduce in inserted:
            yield reduce


def _refuse_superfluous(grid: Grid, wanted: set[Action]) -> None:
    cells = [(device, n, action) for device, row in enumerate(grid.rows) for n, action in enumerate(row)]
    wrong = [(device, n) for device, n, action in cells if action.peer is not None and action not in wanted]
    if wrong:
        names = " ".join(str(grid.rows[device][n]) for device, n in wrong)
        raise ScheduleError(
            "the schedule has transfers that the step does not have",
            details=[*rows_text(grid, wrong), f"nothing is transferred by {names}"],
            way_out="Leave it out: what the step needs and the schedule does not say is inserted.",
        )

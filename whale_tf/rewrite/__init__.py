"""The passes that a step goes through before its first call, in their order, each with the reason for its place.

The other functions here that change a program serve what runs: `localize` takes one process's part of it, and
`collapse`, `isolate`, `probe` and `time_actions` make other programs of the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from whale_tf.errors import InternalError, WhaleError

PASSES: Mapping[str, str] = MappingProxyType(
    {
        "reshard": "first: the plan and all other passes read off the graph where values change their state",
        "cut": "after the plan, which says the stage of every operation",
        "resize": "after cut, so that what is cut once is given each size of micro-batch",
        "fold_random": "after resize: which numbers a part draws follows from its size",
        "shard": "after fold_random: the members of a mesh draw the same numbers",
        "bind": "when the functions are final: it makes the calls of them",
        "send_first": "after bind, which keeps calls in the schedule's order, but not what they send",
        "hold_assignments": "behind everything that may fail",
        "check": "last: it proves what will run",
    }
)

Given = ParamSpec("Given")
Made = TypeVar("Made")


@dataclass
class Passes:
    """Runs passes by name, and says of one that fails which it is and what ran before it.

    Attributes:
      dumps: the folder that the program is written to after each pass; empty if it is not.
      ran: the passes that have run.
    """

    dumps: str
    ran: list[str] = field(default_factory=list)

    def run(self, name: str, function: Callable[Given, Made], *args: Given.args, **kwargs: Given.kwargs) -> Made:
        """What the pass gives.

        Raises:
          InternalError: it failed in another way than by refusing the program.
        """
        try:
            made = function(*args, **kwargs)
        except WhaleError:
            raise
        except Exception as error:
            before = f"before it ran {', '.join(self.ran)}" if self.ran else "it is the first"
            dump = f"in {self.dumps} is the program after each of them" if self.dumps else ""
            raise InternalError(
                f"the pass '{name}' failed",
                details=[f"{type(error).__name__}: {error}", before, *([dump] if dump else [])],
                way_out="This is a fault of whale_tf, not of your step: report it with what WHALE_TF_DUMP=folder "
                "writes.",
            ) from error
        if name not in self.ran:
            self.ran.append(name)
        return made

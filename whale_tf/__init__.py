"""whale_tf: a training step written for one device, run over all there are.

    annotate/   what the user says: devices, replica() and stage(), annotate()
    capture/    what the program is: the traced step as one flat graph of values
    ir/         the program in memory
    plan/       what to do: roles, stages, owners, schedule; one frozen Plan
    rewrite/    how: stage functions, and the main graph that calls them on every device
    run/        execution: FunctionDefs, the Step, its timeline and its proof; `ops`, the collectives
    world/      who takes part: the processes of a run

The folders in this order are the data flow; `parallelize` is the compiler that goes through them.

What needs TensorFlow is imported when it is first asked for (PEP 562): the command `whale run` starts without it.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

from whale_tf import errors
from whale_tf.annotate.cluster import Cluster, Device, Link, VirtualDevice
from whale_tf.errors import WhaleError
from whale_tf.plan.plan import Plan
from whale_tf.plan.strategy import Strategy

if TYPE_CHECKING:
    from whale_tf.annotate.models import annotate
    from whale_tf.annotate.scopes import replica, stage
    from whale_tf.annotate.split import split, whole
    from whale_tf.parallelize import function
    from whale_tf.run import ops
    from whale_tf.run.step import Step
    from whale_tf.start import init

__all__ = [
    "Cluster",
    "Device",
    "Link",
    "Plan",
    "Step",
    "Strategy",
    "VirtualDevice",
    "WhaleError",
    "annotate",
    "errors",
    "function",
    "init",
    "ops",
    "replica",
    "split",
    "stage",
    "whole",
]

# What needs TensorFlow, and where it is, as pkgutil.resolve_name reads it.
_LATER = {
    "Step": "whale_tf.run.step:Step",
    "annotate": "whale_tf.annotate.models:annotate",
    "function": "whale_tf.parallelize:function",
    "init": "whale_tf.start:init",
    "ops": "whale_tf.run.ops",
    "replica": "whale_tf.annotate.scopes:replica",
    "split": "whale_tf.annotate.split:split",
    "whole": "whale_tf.annotate.split:whole",
    "stage": "whale_tf.annotate.scopes:stage",
}

# The import of `annotate.cluster` has put the folder here, in the place of the function of that name. Python does so
# when it first imports a folder, and not again.
del globals()["annotate"]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(_LATER[name])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

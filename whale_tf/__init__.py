"""whale_tf: one training step, written for one device, over all devices there are."""

from whale_tf.annotate.cluster import Cluster, Device, Link, VirtualDevice
from whale_tf.annotate.devices import init
from whale_tf.annotate.models import annotate
from whale_tf.annotate.scopes import replica, stage
from whale_tf.errors import (
    BatchError, CaptureError, DeviceError, InternalError, PlanError, RunError, ScheduleError, ScopeError, VariableError, WhaleError,
)
from whale_tf.parallelize import compile_step
from whale_tf.run.step import Options, Step


def function(fn=None, *, micro_batches=1, schedule="1f1b", loss="mean", whole=()):
    def make(fn):
        return Step(fn, Options(micro_batches, schedule, loss, tuple(whole)), compile_step)
    return make if fn is None else make(fn)

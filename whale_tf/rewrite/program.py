"""What will run, as data: one main graph over all devices, and the functions it calls.

The nodes of the main graph carry the device they run on. Besides TensorFlow's operations it has

| op        | inputs | meaning                                                              |
|-----------|--------|----------------------------------------------------------------------|
| `Call`    | values | one action: runs function `function`; `action`, `replica`, `phase`   |
| `Send`    | value  | to device `to` under `key`                                           |
| `Recv`    |        | what device `source` sent under `key`                                |
| `Read`    |        | the value of variable `variable` when the step begins                |
| `Assign`  | value  | the new value of variable `variable`                                 |
| `Take`    |        | the argument of the step with this `index`                           |
| `Outside` |        | tensor number `index` from outside the step                          |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whale_tf.ir.graph import Graph
from whale_tf.rewrite.cut import StageFunction


@dataclass(frozen=True)
class Program:
    """A step over several devices.

    Attributes:
      main: the graph that holds every device's actions; its outputs are those of the step.
      functions: stage functions by name.
      devices: names of the devices that nodes refer to by index.
      inline: whether calls may be dissolved into the main graph, since no order among actions has to be kept.
    """

    main: Graph
    functions: Mapping[str, StageFunction]
    devices: tuple[str, ...]
    inline: bool

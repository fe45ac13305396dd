"""Cuts the stages whose operators are split, at each size of micro-batch: each member's functions.

The step is looked at with the shapes of each size of micro-batch, since what a dim can be cut into depends on them.
What functions of one stage hand on to each other stays as it lies; all else that leaves one is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from whale_tf.ir.graph import Graph
from whale_tf.plan.shard_forms import becomes_gradient
from whale_tf.plan.shard_stage import Cutting, inner_tensors, mesh_of_stage
from whale_tf.rewrite.cut import Key, StageFunction
from whale_tf.rewrite.shard import Agreed, Sharded, shard
from whale_tf.rewrite.step_program import Functions


def shard_stages(
    variants: Mapping[int, Functions], cutting: Cutting, at_size: Callable[[int], Graph]
) -> tuple[dict[int, dict[Key, StageFunction]], dict[Key, Sharded]]:
    """The functions of all sizes, of the stages that are cut those of a member; and what is known of the largest's.

    Args:
      at_size: the step with the shapes of a size of micro-batch.
    Raises:
      PlanError: what is annotated cannot be cut, or must not be run by each member.
    """
    found: dict[int, dict[Key, StageFunction]] = {size: {**functions} for size, functions in variants.items()}
    largest: dict[Key, Sharded] = {}
    if not cutting.stages:
        return found, largest
    inner, becoming = inner_tensors(cutting), becomes_gradient(cutting.graph, cutting.roles.markers)
    for stage in cutting.stages:
        sums = Agreed().sums
        for size in sorted(variants, reverse=True):
            mesh = mesh_of_stage(cutting, at_size(size), stage, inner, becoming)
            agreed = Agreed(sums=sums)
            for key in sorted((key for key in variants[size] if key.stage == stage), key=_first_to_last):
                made = shard(variants[size][key], cutting.sizes, mesh, agreed)
                found[size][key] = made.function
                largest.setdefault(key, made)
    return found, largest


def _first_to_last(key: Key) -> tuple[int, int, bool]:
    """Functions after those that they take from, and what says how a sum lies before what adds to it."""
    return key.phase, "FBIW".index(key.kind), not key.first

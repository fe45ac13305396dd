"""Gradients of the operations over a communicator: the transposes of what they do.

With y_r the result of member r and L the sum of what the ranks differentiate:

    y_r = s sum_q x_q                    dL/dx_q = s sum_r dL/dy_r               all-reduce
    y_r = part r of s sum_q x_q          dL/dx_q = s concat_r dL/dy_r            reduce-scatter -> all-gather
    y_r = concat_q x_q                   dL/dx_q = sum_r part q of dL/dy_r       all-gather -> reduce-scatter, in parts
                                                                                 of as many rows as x_q has
    y_r[q] = x_q[r]                      dL/dx_q[r] = dL/dy_r[q]                 all-to-all
    y_r = x_root                         dL/dx_root = sum_r dL/dy_r              broadcast -> all-reduce
    y = s sum_i x_i                      dL/dx_i = s dL/dy                       sum within a process
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from whale_tf.errors import PlanError
from whale_tf.run.calls import Place, call_list
from whale_tf.run.labels import counted

tf.no_gradient("WhaleReadShard")
tf.no_gradient("WhaleAssignShards")
tf.no_gradient("WhaleShard")
tf.no_gradient("WhaleSend")
tf.no_gradient("WhaleReceive")
tf.no_gradient("WhaleBarrier")


@tf.RegisterGradient("WhaleAllReduce")  # type: ignore[untyped-decorator]
def gradient_of_all_reduce(op: Any, *gradients: Any) -> list[Any]:
    attributes = {"reduction": _reduction(op), "scale": op.get_attr("scale")}
    return _call(op, "AllReduce", gradients, attributes)


@tf.RegisterGradient("WhaleReduceScatter")  # type: ignore[untyped-decorator]
def gradient_of_reduce_scatter(op: Any, *gradients: Any) -> list[Any]:
    scale = op.get_attr("scale")
    if _reduction(op) == "mean":
        scale /= op.get_attr("members") or tf.cast(tf.shape(op.inputs[-1])[1], tf.float64)  # as `rows` tell
    plain = not tf.is_tensor(scale) and scale == 1
    scaled = [each if plain else each * tf.cast(scale, each.dtype) for each in gradients]
    return [*_call(op, "AllGather", scaled, {}), *[None] * op.get_attr("K")]  # none for the rows


@tf.RegisterGradient("WhaleAllGather")  # type: ignore[untyped-decorator]
def gradient_of_all_gather(op: Any, *gradients: Any) -> list[Any]:
    *values, _ = gradients
    return _call(op, "ReduceScatter", values, {"reduction": "sum", "rows": [op.outputs[-1]]})


@tf.RegisterGradient("WhaleAllToAll")  # type: ignore[untyped-decorator]
def gradient_of_all_to_all(op: Any, *gradients: Any) -> list[Any]:
    return _call(op, "AllToAll", gradients, {"members": op.get_attr("members")})


@tf.RegisterGradient("WhaleBroadcast")  # type: ignore[untyped-decorator]
def gradient_of_broadcast(op: Any, *gradients: Any) -> list[Any]:
    of_place, *summed = _call(op, "AllReduce", gradients, {"reduction": "sum"})
    is_root = op.inputs[0][1] == op.get_attr("root")
    return [of_place, *(tf.where(is_root, each, tf.zeros_like(each)) for each in summed)]


@tf.RegisterGradient("WhaleSum")  # type: ignore[untyped-decorator]
def gradient_of_sum(op: Any, *gradients: Any) -> list[Any]:
    scale = op.get_attr("scale")
    scaled = [each if scale == 1 else each * tf.cast(scale, each.dtype) for each in gradients]
    return [each for each in scaled for _ in range(op.get_attr("parts"))]


def _call(op: Any, name: str, gradients: Any, attributes: dict[str, Any]) -> list[Any]:
    """The collective `name` over the gradients, at the place of `op`; after None, for the place itself.

    Its label is that of `op` with "gradient of", so that forward and backward never meet.
    """
    # Members that call in one trace have results of their own; these have no names outside of functions.
    caller = getattr(op.outputs[0], "name", None)
    label = counted(f"gradient of {tf.compat.as_str(op.get_attr('label'))}", caller)
    return [None, *call_list(name, gradients, Place(op.inputs[0]), label, attributes)]


def _reduction(op: Any) -> str:
    """Sum or mean: the others have no gradient here.

    Raises:
      PlanError: it is another one.
    """
    reduction = str(tf.compat.as_str(op.get_attr("reduction")))
    if reduction in ("sum", "mean"):
        return reduction
    raise PlanError(
        f"'{reduction}' over ranks has no gradient",
        details=[f"{op.type} '{tf.compat.as_str(op.get_attr('label'))}' is differentiated"],
        way_out='Use "sum" or "mean", or tf.stop_gradient around what the reduction is of.',
    )

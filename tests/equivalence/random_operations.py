"""The operations that random programs are made of, by the kinds of values that they take and give."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow as tf

WIDTH = 6


class Kind(enum.Enum):
    """What a value of a random program is, float64 always."""

    EXAMPLES = "[examples, WIDTH]"
    VECTOR = "[examples]"
    SCALAR = "[]"
    FEATURES = "[WIDTH]"
    MATRIX = "[WIDTH, WIDTH]"


E, V, S, F, M = Kind.EXAMPLES, Kind.VECTOR, Kind.SCALAR, Kind.FEATURES, Kind.MATRIX


@dataclass(frozen=True)
class Operation:
    """One function with what it takes and gives; it prints as its name."""

    name: str
    gives: Kind
    takes: tuple[Kind, ...]
    function: Callable[..., tf.Tensor]

    def __str__(self) -> str:
        return self.name


def size(values: tf.Tensor) -> tf.Tensor:
    """The number of examples."""
    return tf.cast(tf.shape(values)[0], tf.float64)


def python_size(values: tf.Tensor) -> float:
    """The number of examples, as Python knows it while it traces."""
    return float(values.shape[0])


def positive(values: tf.Tensor) -> tf.Tensor:
    """Numbers from 0.1 on."""
    return values * values + 0.1


def total(values: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """A sum over examples by a loop over them."""
    return tf.foldl(lambda state, value: state + value, values) * other


def power(a: tf.Tensor, turns: int) -> tf.Tensor:
    """A recurrence over all rows, by a loop whose length is the same for all batches."""
    return tf.while_loop(lambda i, h: i < turns, lambda i, h: (i + 1, tf.tanh(h + a)), (0, a))[1]


def by_class(a: tf.Tensor, reduce: Callable[..., tf.Tensor], values: tf.Tensor) -> tf.Tensor:
    """A reduction over examples of the same largest feature."""
    return reduce(values, tf.argmax(a, axis=1), WIDTH)


@tf.custom_gradient
def clipped_backward(a: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Clips the gradient of each number on its way back."""
    return tf.identity(a), lambda upstream: tf.clip_by_value(upstream, -0.01, 0.01)


def example_by_example() -> tuple[Operation, ...]:
    """From examples to examples, each by itself."""
    return (
        Operation("tanh", E, (E,), tf.tanh),
        Operation("relu", E, (E,), tf.nn.relu),
        Operation("multiply", E, (E, E), lambda a, b: a * b),
        Operation("add", E, (E, E), lambda a, b: a + b),
        Operation("matmul", E, (E, M), lambda a, m: a @ m),
        Operation("scale_features", E, (E, F), lambda a, f: a * f),
        Operation("subtract_features", E, (E, F), lambda a, f: a - f),
        Operation("scale", E, (E, S), lambda a, s: a * s),
        Operation("shift", E, (E, S), lambda a, s: a + s),
        Operation("scale_examples", E, (E, V), lambda a, v: a * v[:, None]),
        Operation("softmax", E, (E,), tf.nn.softmax),
        Operation("reverse_features", E, (E,), lambda a: a[:, ::-1]),
        Operation("roll_features", E, (E,), lambda a: tf.roll(a, 1, 1)),
        Operation("accumulate_features", E, (E,), lambda a: tf.cumsum(a, 1)),
        Operation("sort_features", E, (E,), lambda a: tf.sort(a, 1)),
        Operation("center_features", E, (E,), lambda a: a - tf.reduce_mean(a, 1, keepdims=True)),
        Operation("normalize", E, (E,), lambda a: tf.math.l2_normalize(positive(a), 1)),
        Operation("where_positive", E, (E,), lambda a: tf.where(a > 0.0, a, 2.0 * a)),
        Operation("flatten_and_back", E, (E,), lambda a: tf.reshape(tf.reshape(a, [-1]), [-1, WIDTH])),
        Operation("transpose_twice", E, (E,), lambda a: tf.transpose(tf.transpose(a) * 2.0)),
        Operation("first_of_doubled", E, (E,), lambda a: tf.concat([a, 2.0 * a], 0)[: tf.shape(a)[0]]),
        Operation("second_of_tiled", E, (E,), lambda a: tf.tile(a, [2, 1])[tf.shape(a)[0] :]),
        Operation("one_of_repeated", E, (E,), lambda a: tf.reshape(tf.repeat(a, 2, axis=0), [-1, 2, WIDTH])[:, 1]),
        Operation("concat_features", E, (E,), lambda a: tf.concat([a[:, :3], 2.0 * a[:, 3:]], 1)),
        Operation("stack_and_take", E, (E,), lambda a: tf.stack([a, 2.0 * a])[1]),
        Operation("over_size", E, (E,), lambda a: a / size(a)),
        Operation("times_root_of_size", E, (E,), lambda a: a * tf.sqrt(size(a))),
        Operation("times_python_size", E, (E,), lambda a: a * python_size(a) / 8.0),
        Operation("stop_gradient", E, (E,), lambda a: tf.stop_gradient(a) * a),
        Operation("clip", E, (E,), lambda a: tf.clip_by_value(a, -0.5, 0.5)),
        Operation("clip_backward", E, (E,), clipped_backward),
        Operation("above", E, (E, S), tf.maximum),
        Operation("bell", E, (E,), lambda a: tf.exp(-a * a)),
        Operation("outer_and_take", E, (E, E), lambda a, b: tf.einsum("bi,bj->bij", a, b)[:, 0]),
        Operation("spread_features", E, (F, E), lambda f, a: tf.tile(f[None], [tf.shape(a)[0], 1])),
        Operation("add_to_zeros", E, (F, E), lambda f, a: tf.zeros_like(a) + f),
        Operation("fill", E, (S, E), lambda s, a: tf.fill(tf.shape(a), s)),
        # TensorFlow chooses by the sizes which two are multiplied first, so two traces may differ.
        Operation("three_factors", E, (E, M, M), lambda a, m, n: tf.einsum("bi,ij,kj->bk", a, m, n)),
        Operation("loop", E, (E,), lambda a: power(a, 2)),
        Operation("branch", E, (E, F), lambda a, f: tf.cond(f[0] > 0.0, lambda: tf.sin(a), lambda: 0.5 * a)),
        Operation("map", E, (E,), lambda a: tf.map_fn(lambda row: row * tf.reduce_sum(row), a)),
        Operation("number_of_example", E, (E,), lambda a: a * tf.cast(tf.range(tf.shape(a)[0]), tf.float64)[:, None]),
    )


def across_examples() -> tuple[Operation, ...]:
    """From examples to examples, with something of the others."""
    return (
        Operation("softmax_of_batch", E, (E,), lambda a: tf.nn.softmax(a, 0)),
        Operation("reverse_batch", E, (E,), lambda a: a[::-1]),
        Operation("accumulate_batch", E, (E,), lambda a: tf.cumsum(a, 0)),
        Operation("sort_batch", E, (E,), lambda a: tf.sort(a, 0)),
        Operation("center_batch", E, (E,), lambda a: a - tf.reduce_mean(a, 0)),
        Operation("where_mean_positive", E, (E,), lambda a: tf.where(tf.reduce_mean(a) > 0.0, a, 2.0 * a)),
        Operation("mix_batch", E, (E,), lambda a: tf.reshape(tf.transpose(a), [-1, WIDTH])),
        Operation("shift_batch", E, (E,), lambda a: tf.pad(a, [[1, 0], [0, 0]])[:-1]),
        Operation("attend", E, (E,), lambda a: tf.matmul(tf.matmul(a, a, transpose_b=True), a) / size(a)),
        Operation("share", V, (V,), lambda v: v / tf.reduce_sum(positive(v))),
        Operation("below_largest", V, (V,), lambda v: v - tf.reduce_max(v)),
        Operation("in_order", V, (V,), lambda v: tf.gather(v, tf.argsort(v))),
    )


def from_examples() -> tuple[Operation, ...]:
    """To one number of each example."""
    return (
        Operation("row_sum", V, (E,), lambda a: tf.reduce_sum(a, 1)),
        Operation("row_mean", V, (E,), lambda a: tf.reduce_mean(a, 1)),
        Operation("row_max", V, (E,), lambda a: tf.reduce_max(a, 1)),
        Operation("column", V, (E,), lambda a: a[:, 0]),
        Operation("row_logsumexp", V, (E,), lambda a: tf.reduce_logsumexp(a, 1)),
        Operation("row_norm", V, (E,), lambda a: tf.norm(positive(a), axis=1)),
        Operation("own_product", V, (E,), lambda a: tf.linalg.diag_part(tf.matmul(a, a, transpose_b=True))),
        Operation("multiply_vectors", V, (V, V), lambda u, v: u * v),
        Operation("scale_vector", V, (V, S), lambda v, s: v * s),
    )


def totals() -> tuple[Operation, ...]:
    """Over all examples."""
    return (
        Operation("mean", S, (E,), tf.reduce_mean),
        Operation("sum", S, (E,), lambda a: 0.1 * tf.reduce_sum(a)),
        Operation("vector_mean", S, (V,), tf.reduce_mean),
        Operation("vector_sum", S, (V,), lambda v: 0.1 * tf.reduce_sum(v)),
        Operation("sum_over_one_less", S, (V,), lambda v: tf.reduce_sum(v) / (size(v) - 0.5)),
        Operation("folded", S, (V, S), total),
        Operation("largest", S, (V,), tf.reduce_max),
        Operation("smallest", S, (E,), tf.reduce_min),
        Operation("product", S, (E,), lambda a: tf.reduce_prod(1.0 + 0.1 * tf.tanh(a))),
        Operation("largest_two", S, (V,), lambda v: tf.reduce_mean(tf.math.top_k(v, 2).values)),
        Operation("first", S, (V,), lambda v: v[0]),
        Operation("variance", S, (E,), tf.math.reduce_variance),
        Operation("half_of_squares", S, (E,), lambda a: 0.1 * tf.nn.l2_loss(a)),
        Operation("norm", S, (E,), lambda a: tf.norm(positive(a))),
        Operation("count", S, (E,), lambda a: tf.cast(tf.math.count_nonzero(a > 0.0), tf.float64)),
        Operation("any", S, (E,), lambda a: tf.cast(tf.reduce_any(a > 1.0), tf.float64)),
        Operation("integer_mean", S, (E,), lambda a: tf.cast(tf.reduce_mean(tf.cast(4.0 * a, tf.int32)), tf.float64)),
        Operation("masked_mean", S, (V, V), lambda u, v: tf.reduce_mean(tf.boolean_mask(u, v >= tf.reduce_max(v)))),
        Operation("times_size", S, (S, E), lambda s, a: s * size(a) / 8.0),
        Operation("batch_mean", F, (E,), lambda a: tf.reduce_mean(a, 0)),
        Operation("batch_sum", F, (E,), lambda a: 0.1 * tf.reduce_sum(a, 0)),
        Operation("batch_max", F, (E,), lambda a: tf.reduce_max(a, 0)),
        Operation("first_row", F, (E,), lambda a: a[0]),
        Operation("batch_deviation", F, (E,), lambda a: tf.sqrt(tf.math.reduce_variance(a, 0) + 0.1)),
        Operation("class_sums", F, (E, V), lambda a, v: by_class(a, tf.math.unsorted_segment_sum, v)),
        Operation("gram", M, (E, E), lambda a, b: tf.matmul(a, b, transpose_a=True) / size(a)),
        Operation("products", M, (E, E), lambda a, b: 0.1 * tf.einsum("bi,bj->ij", a, b)),
        Operation("class_rows", M, (E,), lambda a: by_class(a, tf.math.unsorted_segment_sum, a)),
        Operation("class_means", M, (E,), lambda a: by_class(a, tf.math.unsorted_segment_mean, a)),
    )


def of_totals() -> tuple[Operation, ...]:
    """Functions of what has no examples any more."""
    return (
        Operation("multiply_scalars", S, (S, S), lambda a, b: a * b),
        Operation("add_scalars", S, (S, S), lambda a, b: a + b),
        Operation("divide", S, (S, S), lambda a, b: a / positive(b)),
        Operation("exp", S, (S,), lambda a: tf.exp(-a * a)),
        Operation("at_least", S, (S,), lambda a: tf.maximum(a, 0.3)),
        Operation("larger", S, (S, S), lambda a, b: tf.where(a > b, a, b)),
        Operation("features_mean", S, (F,), tf.reduce_mean),
        Operation("matrix_squares", S, (M,), lambda m: 0.1 * tf.reduce_sum(m * m)),
        Operation("multiply_features", F, (F, F), lambda a, b: a * b),
        Operation("add_features", F, (F, F), lambda a, b: a + b),
        Operation("features_tanh", F, (F,), tf.tanh),
        Operation("matvec", F, (F, M), lambda f, m: tf.linalg.matvec(m, f)),
        Operation("scale_total", F, (F, S), lambda f, s: f * s),
        Operation("matrix_product", M, (M, M), lambda a, b: a @ b),
        Operation("scale_matrix", M, (M, S), lambda m, s: m * s),
        Operation("add_matrices", M, (M, M), lambda a, b: a + b),
    )


OPERATIONS = (*example_by_example(), *across_examples(), *from_examples(), *totals(), *of_totals())

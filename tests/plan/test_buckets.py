"""Buckets hold gradients that become ready together and are reduced alike."""

from __future__ import annotations

from tests.rewrite.steps import TRAINING, spread
from whale_tf.ir.text import parse_graph
from whale_tf.plan.buckets import BUCKET_BYTES, fill_buckets
from whale_tf.plan.layout import Layout
from whale_tf.plan.roles import find_roles

TWO = Layout((0.5, 0.5), ("",), ((0,), (1,)), ("/device:CPU:0", "/device:CPU:1"))


def buckets(*gradients: tuple[int, int, str]) -> tuple[tuple[str, ...], ...]:
    """Of gradients given as (elements, owner, dtype), in the order in which they become ready; markers are reversed."""
    nodes = [f"d{i} = Neg(x) : {dtype}[{elements}]  @call=1" for i, (elements, _, dtype) in enumerate(gradients)]
    markers = [
        f'g{i} = Gradient(d{i}) {{call=1, part=b"dense", variable=b"v{i}"}} : {dtype}[{elements}]'
        for i, (elements, _, dtype) in reversed(list(enumerate(gradients)))
    ]
    outputs = ", ".join(f"g{i}" for i in range(len(gradients)))
    inputs = "x = Input() {index=0, batch=true} : float32[4]"
    graph = parse_graph("\n".join([f"graph step(out: {outputs}) {{", inputs, *nodes, *markers, "}"]))
    device_of = {f"g{i}": (owner,) for i, (_, owner, _) in enumerate(gradients)}
    return fill_buckets(graph, find_roles(graph), TWO, device_of)


def test_small_gradients_share_a_bucket_in_the_order_in_which_they_become_ready() -> None:
    assert buckets((3, 0, "float32"), (4, 0, "float32"), (5, 0, "float32")) == (("g0", "g1", "g2"),)


def test_a_full_bucket_is_followed_by_another() -> None:
    half = BUCKET_BYTES // 8
    assert buckets(*[(half, 0, "float32")] * 5) == (("g0", "g1"), ("g2", "g3"), ("g4",))


def test_a_large_gradient_has_its_own() -> None:
    large = BUCKET_BYTES
    assert buckets((3, 0, "float32"), (large, 0, "float32"), (3, 0, "float32")) == (("g0",), ("g1",), ("g2",))


def test_owners_and_types_do_not_mix() -> None:
    found = buckets((3, 0, "float32"), (3, 1, "float32"), (3, 0, "float16"), (3, 0, "float32"))
    assert found == (("g0", "g3"), ("g1",), ("g2",))


def test_one_replica_reduces_nothing() -> None:
    assert spread(TRAINING).plan.buckets == ()

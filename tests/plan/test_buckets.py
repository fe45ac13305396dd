"""Buckets hold gradients that become ready together and are reduced alike."""

from __future__ import annotations

from tests.plan.texts import roles_of
from tests.rewrite.steps import TRAINING, spread
from whale_tf.ir.text import parse_graph
from whale_tf.plan.buckets import BUCKET_BYTES, choose_collectives, fill_buckets
from whale_tf.plan.layout import Layout, meshes_of

TWO = Layout((0.5, 0.5), ("",), (((0,),), ((1,),)), ("/device:CPU:0", "/device:CPU:1"))


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
    seat_of = {f"g{i}": (owner,) for i, (_, owner, _) in enumerate(gradients)}
    return fill_buckets(graph, roles_of(graph), TWO, seat_of)


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


def collectives(
    places: tuple[tuple[int, ...], ...] = ((0,), (1,)),
    *,
    kind: str = "GPU",
    processes: tuple[int, ...] = (),
    gradient: str = "float32[3]",
    owner: tuple[int, ...] = (1,),
) -> tuple[int, ...]:
    """Which of one bucket is reduced by a collective; its gradient is made in stage 0."""
    devices = tuple(f"/device:{kind}:{index}" for index in range(4))
    meshes = meshes_of(places, len(places[0]))
    layout = Layout((1 / len(places),) * len(places), ("",) * len(places[0]), meshes, devices, processes)
    graph = parse_graph(
        f"""graph step(out: g) {{
          x = Input() {{index=0, batch=true}} : float32[4]
          d = Neg(x) : {gradient}  @call=1
          g = Gradient(d) {{call=1, part=b"dense", variable=b"v"}} : {gradient}
        }}"""
    )
    return choose_collectives(graph, (("g",),), layout, {"d": 0}, {"g": owner})


def test_gpus_of_a_process_reduce_by_a_collective_and_cpus_do_not() -> None:
    assert collectives() == (0,)
    assert collectives(((0, 1), (2, 3)), owner=(3,)) == (0,)
    assert collectives(kind="CPU") == ()


def test_replicas_of_which_one_is_in_another_process_are_summed_by_their_owner() -> None:
    assert collectives(((0, 2), (1, 3)), processes=(0, 0, 1, 1)) == (0,)
    assert collectives(((0, 1), (2, 3)), processes=(0, 1, 1, 0)) == ()


def test_groups_of_replicas_each_have_their_own() -> None:
    assert collectives(((0,), (1,), (2,), (3,)), processes=(0, 0, 1, 1), owner=(1,)) == (0,)
    assert collectives(((0,), (1,)), processes=(0, 1, 1, 1), owner=(1,)) == ()


def test_an_owner_that_has_no_part_in_the_sum_gets_it_sent() -> None:
    """A variable that two stages share is owned by one, and its gradient may be made in the other."""
    assert collectives(((0, 1), (2, 3)), owner=(2,)) == ()


def test_what_a_collective_cannot_add_is_summed_by_the_owner() -> None:
    assert collectives(gradient="float16[3]") == (0,)
    for gradient in ("int32[3]", "float32[?]", "float32[3,0]"):
        assert collectives(gradient=gradient) == (), gradient


def test_buckets_of_a_round_come_before_those_of_the_next() -> None:
    """A collective waits for those before it, which then must not need what it gives."""
    graph = parse_graph(
        """graph step(out: g0, g1, g2) {
          x = Input() {index=0, batch=true} : float32[4]
          d0 = Neg(x) : float32[3]  @call=1
          g0 = Gradient(d0) {call=1, part=b"dense", variable=b"v0"} : float32[3]
          h = Mul(x, g0) : float32[4]
          d2 = Neg(h) : float32[3]  @call=2
          g2 = Gradient(d2) {call=2, part=b"dense", variable=b"v2"} : float32[3]
          d1 = Neg(x) : float32[3]  @call=1
          g1 = Gradient(d1) {call=1, part=b"dense", variable=b"v1"} : float32[3]
        }"""
    )
    found = fill_buckets(graph, roles_of(graph), TWO, dict.fromkeys(("g0", "g1", "g2"), (0,)))
    assert found == (("g0", "g1"), ("g2",))

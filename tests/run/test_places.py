"""One function for all members of a mesh: who calls, and which call it is, are arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from whale_tf.errors import DeviceError
from whale_tf.run import communicator, ops
from whale_tf.run.calls import in_any_order

MEMBERS = 4
ENOUGH_SECONDS = 60.0
MESH = communicator.make_communicator(range(MEMBERS), "test_places")
PLACE = tf.TensorSpec([3], tf.int64)


@pytest.fixture(autouse=True)
def bounded() -> None:
    communicator.set_timeout(20)


def in_threads(call: Callable[[int], Any], members: int = MEMBERS) -> list[Any]:
    """What `call(member)` gives, or the error that it raises, for all members at once."""
    results: list[Any] = [None] * members

    def run(member: int) -> None:
        try:
            results[member] = call(member)
        except (tf.errors.OpError, DeviceError) as error:
            results[member] = error

    threads = [threading.Thread(target=run, args=(member,), daemon=True) for member in range(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH_SECONDS)
        assert not thread.is_alive(), "a call hangs"
    return results


def on_devices(function: Any, arguments: Callable[[int], Any]) -> list[Any]:
    """What `function(*arguments(member))` gives for all members, each on its device, in one step."""

    @tf.function
    def step() -> list[Any]:
        results = []
        for member in range(MEMBERS):
            with tf.device(f"CPU:{member}"):
                result = function(*arguments(member))
                tf.nest.map_structure(in_any_order, result)
                results.append(result)
        return results

    return list(step())


def concrete(function: Callable[..., Any], *specs: tf.TensorSpec, inline: bool = True) -> Any:
    """Its one trace."""
    attributes = {} if inline else {"_noinline": True}
    made = tf.function(function, autograph=False, experimental_attributes=attributes)
    return made.get_concrete_function(*specs)


def numpys(results: Any) -> list[Any]:
    return [tf.nest.map_structure(np.asarray, result) for result in results]


def total(x: Any, place: Any) -> Any:
    return ops.all_reduce(x, place=place)


@pytest.mark.parametrize("inline", [True, False])
def test_one_function_is_called_on_all_devices(inline: bool) -> None:
    function = concrete(total, tf.TensorSpec([2]), PLACE, inline=inline)
    found = on_devices(function, lambda m: (tf.fill([2], m + 1.0), MESH.place(m, number=7)))
    np.testing.assert_array_equal(numpys(found), np.full([MEMBERS, 2], 10.0))


def test_one_function_is_called_by_all_threads_again_and_again() -> None:
    function = concrete(total, tf.TensorSpec([]), PLACE)

    def three_times(member: int) -> list[float]:
        return [float(function(tf.constant(k + member * 10.0), MESH.place(member, number=0))) for k in range(3)]

    assert in_threads(three_times) == [[60.0, 64.0, 68.0]] * MEMBERS


def test_members_may_call_in_another_order() -> None:
    """Each member makes them in an order of its own, and none is inlined: TensorFlow runs them as it likes."""
    function = concrete(total, tf.TensorSpec([]), PLACE, inline=False)

    def numbered(member: int) -> list[Any]:
        found: dict[int, Any] = {}
        for k in range(MEMBERS):
            number = (member + k) % MEMBERS
            found[number] = in_any_order(function(tf.constant(10.0 * number + member), MESH.place(member, number)))
        return [found[number] for number in range(MEMBERS)]

    found = on_devices(numbered, lambda member: (member,))
    assert numpys(found) == [[6.0, 46.0, 86.0, 126.0]] * MEMBERS


def test_eager_calls_of_threads_meet() -> None:
    def call(member: int) -> list[int]:
        place = MESH.place(member, number=5)
        gathered = ops.all_gather(tf.constant([member]), place=place, label="eager")
        return list(gathered.numpy())

    assert in_threads(call) == [[0, 1, 2, 3]] * MEMBERS


def in_a_loop(x: Any, member: Any) -> tuple[Any, Any]:
    """Sums of sums, and what their sum over the members gives for x. Numbers are 10, 11, 12."""
    factor = tf.cast(member + 1, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        _, y = tf.while_loop(
            lambda k, _: k < 13,
            lambda k, y: (k + 1, ops.all_reduce(y * factor, place=MESH.place(member, number=k))),
            (tf.constant(10), x),
        )
    return y, tape.gradient(y, x)


# With factors 1 + 2 + 3 + 4 = 10: y = 10 * 10 * sum(factor x), and each member's y leads to the sum.
IN_A_LOOP = [(1000.0, 400.0 * (member + 1)) for member in range(MEMBERS)]


def test_a_loop_has_numbers_forward_and_backward_on_devices() -> None:
    function = concrete(in_a_loop, tf.TensorSpec([]), tf.TensorSpec([], tf.int32), inline=False)
    found = on_devices(function, lambda member: (tf.constant(1.0), tf.constant(member)))
    assert [(float(y), float(gradient)) for y, gradient in found] == IN_A_LOOP


def test_a_loop_has_numbers_forward_and_backward_in_threads() -> None:
    function = concrete(in_a_loop, tf.TensorSpec([]), tf.TensorSpec([], tf.int32))
    found = in_threads(lambda member: numpys([function(tf.constant(1.0), tf.constant(member))])[0])
    assert [(float(y), float(gradient)) for y, gradient in found] == IN_A_LOOP


def test_a_branch_has_its_calls_forward_and_backward() -> None:
    def step(x: Any, place: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(x < 10.0, lambda: ops.all_reduce(3.0 * x, place=place), lambda: x)
        return y, tape.gradient(y, x)

    function = concrete(step, tf.TensorSpec([]), PLACE)
    found = on_devices(function, lambda member: (tf.constant(member + 1.0), MESH.place(member, number=0)))
    assert [(float(y), float(gradient)) for y, gradient in found] == [(30.0, 12.0)] * MEMBERS
    alone = on_devices(function, lambda member: (tf.constant(member + 11.0), MESH.place(member, number=0)))
    assert [(float(y), float(gradient)) for y, gradient in alone] == [(m + 11.0, 1.0) for m in range(MEMBERS)]


COLLECTIVES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    # What all members' values, stacked, become.
    "all_reduce": (
        lambda x, **at: ops.all_reduce(x, scale=0.5, **at),
        lambda x: np.broadcast_to(0.5 * x.sum(0), x.shape),
    ),
    "mean": (lambda x, **at: ops.all_reduce(x, "mean", **at), lambda x: np.broadcast_to(x.mean(0), x.shape)),
    "reduce_scatter": (
        lambda x, **at: ops.reduce_scatter(x, "mean", members=MEMBERS, **at),
        lambda x: x.mean(0).reshape([MEMBERS, -1]),
    ),
    "all_gather": (
        lambda x, **at: ops.all_gather(x, **at),
        lambda x: np.broadcast_to(x.reshape([-1]), [MEMBERS, x.size]),
    ),
    "all_to_all": (
        lambda x, **at: ops.all_to_all(x, members=MEMBERS, **at),
        lambda x: x.reshape([MEMBERS, MEMBERS, -1]).swapaxes(0, 1).reshape(x.shape),
    ),
    "broadcast": (lambda x, **at: ops.broadcast(x, root=2, **at), lambda x: np.broadcast_to(x[2], x.shape)),
}


@pytest.mark.parametrize("name", COLLECTIVES)
def test_values_and_gradients_are_numpys(name: str) -> None:
    call, expected = COLLECTIVES[name]
    values = np.random.default_rng(0).integers(-3, 4, [MEMBERS, 2 * MEMBERS]).astype(np.float32)
    outputs = expected(values)
    factors = np.random.default_rng(1).integers(-3, 4, outputs.shape).astype(np.float32)

    def step(x: Any, factor: Any, place: Any) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x, place=place)
            loss = tf.reduce_sum(factor * y)
        return y, tape.gradient(loss, x)

    function = concrete(step, tf.TensorSpec([2 * MEMBERS]), tf.TensorSpec(outputs.shape[1:]), PLACE)
    found = on_devices(function, lambda m: (tf.constant(values[m]), tf.constant(factors[m]), MESH.place(m, number=0)))
    np.testing.assert_array_equal([y.numpy() for y, _ in found], outputs)
    # All of it is linear: the gradient is the transpose, and <factors, f(e)> gives each of its elements.
    units = np.eye(values.size, dtype=np.float32).reshape([values.size, *values.shape])
    transposed = np.array([np.sum(factors * expected(unit)) for unit in units]).reshape(values.shape)
    np.testing.assert_array_equal([gradient.numpy() for _, gradient in found], transposed)


def test_messages_go_round_a_ring_and_their_gradients_back() -> None:
    def step(x: Any, member: Any, number: Any) -> tuple[Any, Any]:
        place = MESH.place(member, number)
        with tf.GradientTape() as tape:
            tape.watch(x)
            token = ops.send(x * x, (member + 1) % MEMBERS, place=place)
            y = ops.receive((member - 1) % MEMBERS, tf.TensorSpec([]), token=token, place=place)
            loss = token + 10.0 * y
        return y, tape.gradient(loss, x)

    scalar = tf.TensorSpec([], tf.int32)
    function = concrete(step, tf.TensorSpec([]), scalar, scalar)
    found = on_devices(function, lambda m: (tf.constant(m + 1.0), tf.constant(m), tf.constant(3)))
    assert [(float(y), float(gradient)) for y, gradient in found] == [
        (16.0, 20.0),
        (1.0, 40.0),
        (4.0, 60.0),
        (9.0, 80.0),
    ]


@pytest.mark.parametrize(
    ("inline", "told"),
    # A function that is not inlined cancels its caller's step before it tells why.
    [(True, "a member divides by zero"), (False, "a member divides by zero|cancelled")],
)
def test_a_member_that_fails_ends_the_others_and_all_may_call_again(inline: bool, told: str) -> None:
    def step(x: Any, place: Any) -> Any:
        return ops.all_reduce(tf.debugging.check_numerics(1.0 / x, "a member divides by zero"), place=place)

    function = concrete(step, tf.TensorSpec([]), PLACE, inline=inline)

    def call(failing: int | None) -> list[Any]:
        return on_devices(function, lambda m: (tf.constant(0.0 if m == failing else 0.5), MESH.place(m, number=0)))

    for failing in (1, 2):
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.CancelledError), match=told):
            call(failing)
        assert numpys(call(None)) == [8.0] * MEMBERS


def test_a_member_that_is_missing_is_named_with_the_number() -> None:
    communicator.set_timeout(0.2)
    function = concrete(total, tf.TensorSpec([]), PLACE)
    first, second = in_threads(lambda member: function(1.0, MESH.place(member, number=4)), members=2)
    for error in (first, second):
        assert isinstance(error, tf.errors.DeadlineExceededError)
        assert "total at test_places.py:" in str(error)
        assert ", number 4' waited 0.2 s for ranks 2, 3" in str(error)


def test_a_member_twice_is_refused() -> None:
    function = concrete(total, tf.TensorSpec([]), PLACE)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="number 0': rank 1 calls it while its call of the same label"
    ):
        on_devices(function, lambda m: (tf.constant(1.0), MESH.place(min(m, 1), number=0)))


def wait(place: Any) -> None:
    ops.barrier(place=place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ([1_000, 0, 0], "'{op}' is called over communicator 1000, and this process has made those from 0 to "),
        ([-1, 0, 0], "'{op}' is called over communicator -1, and this process has made those from 0 to "),
        (
            [MESH.handle, 4, 0],
            "'{op}' is called by member 4 of ranks [0, 1, 2, 3] of world 'test_places', "
            "which are the members from 0 to 3",
        ),
        ([MESH.handle, -1, 0], "'{op}' is called by member -1 of ranks [0, 1, 2, 3] of world 'test_places', which are"),
        ([MESH.handle, 2**40, 0], f"'{{op}}' is called by member {2**40} of ranks"),
        (
            [MESH.handle, 1, -2],
            "'{op}' is called by member 1 of ranks [0, 1, 2, 3] of world 'test_places' with the number -2, which was "
            "expected to be 0 or more, or -1 for none",
        ),
    ],
)
def test_places_that_are_none_are_refused(place: list[int], message: str) -> None:
    calls: dict[str, Callable[..., Any]] = {
        "WhaleAllReduce": lambda at: ops.all_reduce(1.0, place=at),
        "WhaleSend": lambda at: ops.send(1.0, 1, place=at),
        "WhaleReceive": lambda at: ops.receive(1, tf.TensorSpec([]), place=at),
        "WhaleBarrier": wait,
    }
    for op, call in calls.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as caught:
            tf.function(call, autograph=False)(tf.constant(place, tf.int64))
        assert message.format(op=op) in str(caught.value)


def test_a_place_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="Dimension must be 3 but is 2"):
        tf.function(wait)(tf.constant([0, 0], tf.int64))
    unknown = tf.function(wait, input_signature=[tf.TensorSpec(None, tf.int64)])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"has a place of shape \[2\], expected was \[3\]"):
        unknown(tf.constant([0, 0], tf.int64))


@pytest.mark.parametrize("peer", [1, 4, -1])
def test_a_message_names_another_member(peer: int) -> None:
    expected = f"member {peer}, was expected to name another one of 4 members, from 0 on"
    place = MESH.place(1, number=0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"'WhaleSend' on rank 1 sends to {expected}"):
        ops.send(1.0, peer, place=place)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"'WhaleReceive' on rank 1 receives from {expected}"):
        ops.receive(peer, tf.TensorSpec([]), place=place)


def test_shapes_that_were_made_for_other_members_are_refused() -> None:
    for call in (ops.reduce_scatter, ops.all_to_all):
        with pytest.raises(tf.errors.InvalidArgumentError, match="was made for 3 members, and its communicator has 4"):
            call(tf.zeros([12]), place=MESH.place(0, number=0), members=3)
        with pytest.raises(DeviceError, match="place= is given, and members= is not"):
            call(tf.zeros([12]), place=MESH.place(0, number=0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="root 4 was expected to be one of 4 members"):
        ops.broadcast(1.0, root=4, place=MESH.place(0, number=0))


def test_shapes_are_known_where_the_place_is_not() -> None:
    with tf.Graph().as_default():
        x, place = tf.zeros([6, 4]), tf.compat.v1.placeholder(tf.int64, [3])
        assert ops.all_reduce(x, place=place).shape == [6, 4]
        assert ops.broadcast(x, place=place).shape == [6, 4]
        assert ops.all_gather(x, place=place).shape.as_list() == [None, 4]
        assert ops.reduce_scatter(x, place=place, members=3).shape == [2, 4]
        assert ops.all_to_all(x, place=place, members=3).shape == [6, 4]
        assert ops.receive(place[1], tf.TensorSpec([None, 2]), place=place).shape.as_list() == [None, 2]


def test_the_same_ranks_are_the_same_communicator() -> None:
    assert communicator.make_communicator(range(MEMBERS), "test_places") == MESH
    others = {
        communicator.make_communicator([1, 0], "test_places").handle,
        communicator.make_communicator([0, 1], "test_places").handle,
        communicator.make_communicator([0, 1], "test_places, another").handle,
    }
    assert len(others | {MESH.handle}) == 4


def test_groups_of_one_world_do_not_meet() -> None:
    pairs = [communicator.make_communicator(ranks, "test_places") for ranks in ([0, 1], [3, 2])]
    function = concrete(total, tf.TensorSpec([]), PLACE)
    found = on_devices(function, lambda m: (tf.constant(10.0**m), pairs[m // 2].place(m % 2, number=0)))
    assert numpys(found) == [11.0, 11.0, 1100.0, 1100.0]

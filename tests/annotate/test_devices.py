"""whale_tf.annotate.devices and whale_tf.start, with the 8 logical CPU devices of the tests and in fresh programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import tensorflow as tf

from whale_tf import start
from whale_tf.annotate.cluster import Cluster, Device
from whale_tf.annotate.devices import start_again
from whale_tf.errors import DeviceError


@pytest.fixture(autouse=True)
def forget_cluster() -> Iterator[None]:
    before = list(start._current)
    yield
    start._current[:] = before


def test_takes_the_first_of_the_devices_there_are() -> None:
    assert [device.label for device in start.init(2)] == ["CPU:0", "CPU:1"]


def test_without_a_number_takes_all() -> None:
    assert len(start.init()) == 8


def test_the_same_call_gives_the_same_cluster() -> None:
    assert start.init(3) == start.init(3)


def test_the_current_cluster_is_what_was_asked_for_last() -> None:
    start.init(4)
    assert start.init(2) == start.current().cluster


def test_without_init_the_current_cluster_is_all_devices() -> None:
    start._current.clear()
    assert len(start.current().cluster) == 8


def test_a_session_says_whether_the_script_has_called_init() -> None:
    start._current.clear()
    assert not start.current().chosen
    assert start.current().advise(9).startswith("whale.init was not called. Start the process")
    start.init(8)
    assert start.current() == start.Session(start.init(8), chosen=True)
    assert start.current().advise(9).startswith("Start the process")


def test_a_session_stays_as_it_is_when_there_is_another() -> None:
    start.init(4)
    before = start.current()
    start.init(2)
    assert (len(before.cluster), len(start.current().cluster)) == (4, 2)


def test_names_are_those_of_tensorflow() -> None:
    with tf.device(start.init(4).devices[3].name):
        assert tf.constant(1.0).device == start.init(4).devices[3].name


def test_refuses_more_devices_than_tensorflow_started_with() -> None:
    start.init(8)
    with pytest.raises(DeviceError) as refused:
        start.init(12)
    assert str(refused.value) == (
        "TensorFlow already started with 8 devices.\n"
        "  12 logical CPU devices are asked for, 4 more than there are\n"
        "  Start the process (in a notebook, the kernel) again, and call whale.init(12) first, before anything makes a "
        "tensor, a variable or a model: TensorFlow fixes its devices then."
    )


@pytest.mark.parametrize("count", [0, -1, True, 2.0])
def test_refuses_what_is_no_number_of_devices(count: int) -> None:
    with pytest.raises(DeviceError, match="whole number from 1 on"):
        start.init(count)


@pytest.mark.parametrize("threads", [0, -1, True, 2.0])
def test_refuses_what_is_no_number_of_threads(threads: int) -> None:
    with pytest.raises(DeviceError, match="the number of threads must be a whole number from 1 on"):
        start.init(2, threads=threads)


def test_refuses_a_number_beside_a_cluster() -> None:
    with pytest.raises(DeviceError, match="devices is 2, and the cluster has 1"):
        start.init(2, cluster=Cluster((Device.named("CPU:0"),)))


def test_a_given_cluster_keeps_its_order_and_rates() -> None:
    cluster = Cluster((Device.named("CPU:5", flops_per_second=1e9), Device.named("CPU:0")))
    assert start.init(cluster=cluster) is cluster is start.current().cluster


def test_refuses_a_cluster_whose_devices_do_not_exist() -> None:
    with pytest.raises(DeviceError) as refused:
        start.init(cluster=Cluster((Device.named("CPU:0"), Device.named("GPU:7"))))
    assert refused.value.details[0] == "/job:localhost/replica:0/task:0/device:GPU:7 does not exist"
    assert refused.value.details[1].count("CPU") == 8


def test_refuses_devices_of_other_processes() -> None:
    with pytest.raises(DeviceError, match="cannot reach 1/CPU:0"):
        start.init(cluster=Cluster((Device.named("CPU:0"), Device.named("CPU:0", process=1))))


def test_a_refused_call_leaves_the_current_cluster() -> None:
    cluster = start.init(2)
    with pytest.raises(DeviceError):
        start.init(99)
    assert start.current().cluster == cluster


PROGRAM = """
import tensorflow as tf
import whale_tf as whale
from whale_tf.annotate.cluster import Cluster, Device
from whale_tf.start import init
from whale_tf.errors import DeviceError
tf.config.set_visible_devices([], "GPU")
cpu = tf.config.list_physical_devices("CPU")[0]
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("print(len(init()))", "1"),
        ("print(len(init(3)), len(tf.config.list_logical_devices('CPU')))", "3 3"),
        ("print(len(init(cluster=Cluster((Device.named('CPU:2'),)))), len(tf.config.list_logical_devices()))", "1 3"),
        (
            "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
            "print(len(init(4)), len(init(2)))",
            "4 2",
        ),
        (
            "tf.constant(1)\ntry: init(2)\nexcept DeviceError as error: print(error.rule)",
            "already started with 1 device",
        ),
        (
            "print(len(init(2, threads=1)), tf.config.threading.get_intra_op_parallelism_threads(), "
            "len(init(2, threads=1)))",
            "2 1 2",
        ),
        (
            "import os\ninit(2)\nthreads = tf.config.threading.get_intra_op_parallelism_threads()\n"
            "print(threads == max(1, len(os.sched_getaffinity(0)) // 2))",
            "True",
        ),
        ("init(2)\ntry: init(2, threads=99)\nexcept DeviceError as error: print(error.rule)", "for an operation"),
    ],
    ids=["one", "makes CPUs", "of a cluster", "adds to the user's", "too late", "threads", "own cores", "late threads"],
)
@pytest.mark.long
def test_in_a_program_that_has_not_started(program: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(printed)


STEP = """
@whale.function
def step(x):
    with whale.replica(3):
        return tf.reduce_mean(x)
def told():
    try: step(tf.ones([6, 1]))
    except DeviceError as error: return str(error)
    return 'it runs'
"""


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (
            STEP + "print(told())",
            "the step asks for 3 devices and there is 1.\n"
            "  3 replicas x 1 device each = 3\n"
            "  in replica(3) opened at <string>:12\n"
            f"  whale.init was not called. {start_again('whale.init(3)')} Or ask for fewer replicas or stages.",
        ),
        ("init(3)" + STEP + "print(told())", "it runs"),
        (
            "init(3), init(2)" + STEP + "print(told())\ninit(3)\nprint(told())",
            "the step asks for 3 devices and there are 2.\n"
            "  3 replicas x 1 device each = 3\n"
            "  in replica(3) opened at <string>:12\n"
            "  Call whale.init(3) and then the step: TensorFlow has 3 devices here. Or ask for fewer replicas "
            "or stages.\n"
            "it runs",
        ),
        (
            "init(2)\ntry: init(3)\nexcept DeviceError as error: print(error)",
            "TensorFlow already started with 2 devices.\n"
            "  3 logical CPU devices are asked for, 1 more than there are\n"
            f"  {start_again('whale.init(3)')}",
        ),
    ],
    ids=["forgotten", "not forgotten", "fewer the second time", "more the second time"],
)
@pytest.mark.long
def test_what_is_told_where_init_is_forgotten_or_too_late(program: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed


@pytest.mark.long
def test_replicas_that_may_be_many_and_find_one_device_warn_of_a_forgotten_init() -> None:
    program = (
        PROGRAM
        + STEP.replace("replica(3)", "replica()")
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    told()
    told()
print(*(each.message for each in caught), sep="\\n")
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == (
        f"whale.init was not called, so replica() opened at <string>:12 has one device. {start_again('whale.init(2)')}"
    )

"""What every test stands on: 8 logical CPU devices, the same random numbers each time, a quiet TensorFlow.

Devices can only be made before TensorFlow starts, hence at import and not in a fixture. Tests that need another
number of devices run a program of their own.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # read when TensorFlow is imported

import hypothesis
import keras
import pytest
import tensorflow as tf

DEVICES = 8

tf.config.set_visible_devices([], "GPU")
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * DEVICES
)

# The machine may be busy: an example's time says nothing, and a run finds the same things as the one before.
hypothesis.settings.register_profile("whale_tf", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("whale_tf")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test draws the same numbers, whichever ran before it."""
    keras.utils.set_random_seed(20)

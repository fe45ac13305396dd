"""What the user says: the devices there are, and the scopes that divide the work.

Imports nothing, so that the planner can take `cluster` from here without TensorFlow.
"""

"""What `import whale_tf` gives, when it imports TensorFlow, and what `annotate` is: a function and a folder."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import whale_tf

# Each order of imports begins with a whale_tf that is not imported yet; TensorFlow is then imported once for all.
ORDERS = """
import importlib, inspect, sys

for modules in (
    ["whale_tf"],
    ["whale_tf.annotate"],
    ["whale_tf.annotate.cluster", "whale_tf.annotate"],
    ["whale_tf.annotate.models"],
    ["whale_tf.start", "whale_tf.annotate.scopes"],
    ["whale_tf.cli"],
):
    for name in [name for name in sys.modules if name.split(".")[0] == "whale_tf"]:
        del sys.modules[name]
    for module in modules:
        importlib.import_module(module)
    whale_tf = sys.modules["whale_tf"]
    for _ in range(2):  # the first time imports what it needs
        assert inspect.isfunction(whale_tf.annotate), (modules, whale_tf.annotate)
    from whale_tf.annotate.models import annotate
    assert whale_tf.annotate is annotate
    from whale_tf.annotate import cluster
    assert whale_tf.Cluster is cluster.Cluster
"""


def run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["whale_tf", "whale_tf.cli"])
def test_tensorflow_is_not_imported_by(module: str) -> None:
    run(f"import sys, {module}\nassert not {{'tensorflow', 'keras'}} & set(sys.modules)")


def test_the_function_annotate_wins_over_the_folder_in_every_order_of_imports() -> None:
    run(ORDERS)


def test_every_public_name_is_there() -> None:
    found: dict[str, object] = {}
    exec("from whale_tf import *", found)
    for name in whale_tf.__all__:
        assert found[name] is getattr(whale_tf, name), name
        assert name in dir(whale_tf)
    assert whale_tf.ops.__name__ == "whale_tf.run.ops"


def test_the_kinds_of_error_are_in_errors() -> None:
    kinds = {kind for kind in vars(whale_tf.errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert {kind.__name__ for kind in kinds if hasattr(whale_tf, kind.__name__)} == {"WhaleError"}
    assert all(issubclass(kind, whale_tf.WhaleError) for kind in kinds)


def test_a_name_that_is_not_there_is_refused() -> None:
    with pytest.raises(AttributeError, match=r"^module 'whale_tf' has no attribute 'replicas'$"):
        whale_tf.replicas  # noqa: B018


def test_what_comes_later_is_what_the_types_say() -> None:
    """The names are written twice: for type checkers, which run nothing, and for Python."""
    tree = ast.parse(Path(whale_tf.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    said: dict[str, str] = {}
    for node in typed.body:
        assert isinstance(node, ast.ImportFrom)
        said |= {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    assert {name: place.replace(":", ".") for name, place in whale_tf._LATER.items()} == said

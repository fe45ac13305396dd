"""The rules of the source tree: who imports whom, where state may be, how long things may get.

All rules read the syntax tree and run nothing. Each has a snippet below that breaks it, so a rule that has stopped
looking is found.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60

# What each part may import of whale_tf, besides itself and `errors`. A part is a folder, or a file beside them.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_protos": set(),
    "ir": set(),
    "annotate": {"_protos"},
    "capture": {"annotate", "ir"},
    "plan": {"ir", "annotate.cluster", "annotate.subgroup", "_protos"},
    "rewrite": {"ir", "plan"},
    "world": set(),
    "run": {"ir", "plan", "rewrite", "world"},
    "save": {"ir", "plan", "run"},
    "parallelize": {"annotate", "capture", "ir", "plan", "rewrite", "run", "start"},
    "start": {"annotate", "run", "world", "_protos"},
}
# "" is the public face: what needs TensorFlow comes later there, see tests/test_public_names.py.
WITHOUT_TENSORFLOW = {"", "cli", "errors", "ir", "plan", "rewrite", "world", "annotate.cluster", "annotate.subgroup"}
TENSORFLOW = {"tensorflow", "keras", "keras_hub"}
# What changes while a program runs, or guards what does, and belongs to no value: by module.
STATE = {
    "annotate.scopes": {"_active"},  # the recording a thread is in
    "start": {"_current"},  # the session of the last init
    "capture.record": {"TRACING"},  # TensorFlow's tracing is wrapped for all threads at once
    "run.away": {"_NAMED_ONLY"},  # whether variables are only named, since a step is traced
    "run.collectives": {"_one_at_a_time"},  # TensorFlow forms a process's groups
}
# Modules that import one another, be it for types only.
CIRCLES = {
    ("plan.plan", "plan.table"),  # a plan prints itself
    ("run.compiled", "run.failure"),
}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKES_MUTABLE = {"list", "dict", "set", "defaultdict", "OrderedDict", "Counter", "deque", "count", "local"}
MAKES_MUTABLE |= {"WeakKeyDictionary", "WeakValueDictionary", "WeakSet", "bytearray"}
MAKES_STATE = {"ContextVar", "Lock", "RLock", "Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier", "local"}
MUTATES = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "popitem", "remove", "discard", "clear"}
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "common", "base", "misc"}


class Source:
    """One module: `name` is its place below whale_tf, as `plan.cost`; of a package, the package's own."""

    def __init__(self, name: str, text: str, *, package: bool = False) -> None:
        self.name, self.text, self.package = name, text, package
        self.tree = ast.parse(text, filename=f"whale_tf.{name}")
        self.docstring = ast.get_docstring(self.tree) or ""

    @property
    def part(self) -> str:
        return self.name.split(".")[0]

    def imported(self) -> Iterator[tuple[int, str]]:
        """Line and full dotted name of everything that is imported, names taken from a module included."""
        within = ["whale_tf", *self.name.split(".")] if self.name else ["whale_tf"]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = within[: len(within) - node.level + self.package] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


@functools.cache
def sources() -> list[Source]:
    found = []
    for path in sorted((ROOT / "whale_tf").rglob("*.py")):
        package = path.name == "__init__.py"
        place = path.parent if package else path.with_suffix("")
        name = ".".join(place.relative_to(ROOT / "whale_tf").parts)
        if not name.startswith("_protos"):
            found.append(Source(name, path.read_text(), package=package))
    return found


def imports_what_it_must_not(source: Source) -> Iterator[str]:
    for line, name in source.imported():
        parts = name.split(".")
        if parts[0] in TENSORFLOW and _within(source.name, WITHOUT_TENSORFLOW):
            yield f"line {line}: imports {parts[0]}"
        if parts[0] != "whale_tf" or source.part not in MAY_IMPORT:
            continue  # the public face, the command line: on top of everything
        target = ".".join(parts[1:])
        if not _within(target, MAY_IMPORT[source.part] | {source.part, "errors"}):
            yield f"line {line}: {source.part} imports {name}"


def package_of_annotate_imports(source: Source) -> Iterator[str]:
    if source.name == "annotate" and source.package:
        yield from (f"line {line}: imports {name}" for line, name in source.imported())


def imports_inside_a_function(source: Source) -> Iterator[str]:
    for function in _functions(source):
        for node in ast.walk(function):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                yield f"line {node.lineno}: import inside {function.name}"


def has_mutable_state(source: Source) -> Iterator[str]:
    """Variables of a module or class that are made to change, and tables that something changes all the same."""
    yield from (f"line {node.lineno}: global" for node in ast.walk(source.tree) if isinstance(node, ast.Global))
    changed = _changed_names(source)
    for node, name, value in _assigned(source):
        constant = re.fullmatch(r"_?[A-Z][A-Z0-9_]*|__\w+__", name)
        table = _is_mutable(value) and constant and not _is_empty(value) and name not in changed
        if (_is_mutable(value) or _makes_state(value)) and not table and name not in STATE.get(source.name, ()):
            yield f"line {node.lineno}: {name}"


def _assigned(source: Source) -> Iterator[tuple[ast.stmt, str, ast.expr]]:
    """What stands in the module itself or in a class: the statement, the name, the value."""
    bodies = [source.tree.body, *(node.body for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef))]
    for node in [node for body in bodies for node in body]:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield node, target.id if isinstance(target, ast.Name) else ast.unparse(target), node.value


def _changed_names(source: Source) -> set[str]:
    """Names of which a function changes what they stand for."""
    changed: set[str] = set()
    for node in [node for function in _functions(source) for node in ast.walk(function)]:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATES:
            changed.add(ast.unparse(node.func.value))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            changed.add(ast.unparse(node.value))
    return changed


def is_too_long(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > LINES_OF_A_FILE and "long because" not in source.docstring.lower():
        yield f"{lines} lines; past {LINES_OF_A_FILE} the docstring says 'long because ...'"


def has_a_function_too_long(source: Source) -> Iterator[str]:
    for function in _functions(source):
        lines = (function.end_lineno or function.lineno) - function.lineno + 1
        if lines > LINES_OF_A_FUNCTION:
            yield f"line {function.lineno}: {function.name} has {lines} lines"


def lacks_a_docstring(source: Source) -> Iterator[str]:
    private = source.name.split(".")[-1].startswith("_")
    if source.text.strip() and not private and not source.docstring:
        yield "has no docstring"


def has_an_empty_name(source: Source) -> Iterator[str]:
    last = source.name.split(".")[-1]
    yield from (f"'{word}' says nothing" for word in last.split("_") if word in EMPTY_NAMES)


RULES: list[Callable[[Source], Iterator[str]]] = [
    imports_what_it_must_not,
    package_of_annotate_imports,
    imports_inside_a_function,
    has_mutable_state,
    is_too_long,
    has_a_function_too_long,
    lacks_a_docstring,
    has_an_empty_name,
]


def _within(name: str, parts: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def _functions(source: Source) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(source.tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def _is_mutable(value: ast.expr) -> bool:
    return isinstance(value, MUTABLE) or _called(value) in MAKES_MUTABLE


def _makes_state(value: ast.expr) -> bool:
    return _called(value) in MAKES_STATE


def _called(value: ast.expr) -> str:
    """`dict` of `dict[str, int]()` and of `builtins.dict()`."""
    return ast.unparse(value.func).split("[")[0].split(".")[-1] if isinstance(value, ast.Call) else ""


def _is_empty(value: ast.expr) -> bool:
    """Nobody needs an empty constant: something will be put in."""
    if isinstance(value, ast.Call):
        return not value.args and not value.keywords
    return all(isinstance(child, ast.expr_context) for child in ast.iter_child_nodes(value))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_no_module(rule: Callable[[Source], Iterator[str]]) -> None:
    offenders = [f"whale_tf.{source.name}: {offence}" for source in sources() for offence in rule(source)]
    assert not offenders, "\n".join(offenders)


def circles(modules: list[Source]) -> set[tuple[str, ...]]:
    """The modules that import one another, in one group each; the public face stands on top of all."""
    names = {source.name for source in modules} - {""}
    imports = {source.name: {*_modules(source, names)} - {source.name} for source in modules if source.name}
    reached = {name: _reached(name, imports) for name in imports}
    groups = {tuple(sorted(there for there in reached[name] if name in reached[there])) for name in imports}
    return groups - {()}


def _modules(source: Source, names: set[str]) -> Iterator[str]:
    for _, name in source.imported():
        parts = name.split(".")[1:] if name.startswith("whale_tf.") else []
        found = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        yield from [module for module in found if module in names][-1:]


def _reached(name: str, imports: dict[str, set[str]]) -> set[str]:
    reached, stack = set[str](), [name]
    while stack:
        found = imports[stack.pop()] - reached
        reached |= found
        stack += found
    return reached


def test_modules_import_one_another_nowhere_else() -> None:
    assert circles(sources()) == CIRCLES


def test_a_circle_is_seen_for_types_too() -> None:
    first = Source("plan.a", "if TYPE_CHECKING:\n    from whale_tf.plan.b import B")
    second, third = Source("plan.b", "from whale_tf.plan.c import C"), Source("plan.c", "from whale_tf.plan import a")
    fourth = Source("plan.d", "from whale_tf.plan import a")
    assert circles([first, second, third, fourth]) == {("plan.a", "plan.b", "plan.c")}


def test_all_state_that_is_allowed_is_there() -> None:
    found = {source.name: {name for _, name, _ in _assigned(source)} for source in sources()}
    assert [f"{module}.{name}" for module, names in STATE.items() for name in names - found[module]] == []


def test_every_part_has_its_imports_stated() -> None:
    on_top = {"", "cli"}
    assert {source.part for source in sources()} - on_top <= set(MAY_IMPORT)


BREAKS = [
    ("errors", "from whale_tf.ir import graph", "errors imports whale_tf.ir.graph"),
    ("ir.graph", "from whale_tf.plan.plan import Plan", "ir imports whale_tf.plan.plan.Plan"),
    ("ir.graph", "from ..plan import plan", "ir imports whale_tf.plan.plan"),
    ("ir.graph", "from . import text, sharding\nfrom .. import run", "ir imports whale_tf.run"),
    ("plan.cost", "from whale_tf.annotate import cluster, scopes", "plan imports whale_tf.annotate.scopes"),
    ("plan.cost", "from whale_tf.annotate.devices import find", "plan imports whale_tf.annotate.devices.find"),
    ("rewrite.cut", "import whale_tf.run.step", "rewrite imports whale_tf.run.step"),
    ("run.step", "import whale_tf", "run imports whale_tf"),
    ("parallelize", "from whale_tf.save import export", "parallelize imports whale_tf.save.export"),
    ("plan.cost", "def f():\n    import tensorflow as tf", "imports tensorflow"),
    ("rewrite.cut", "from keras import layers", "imports keras"),
    ("annotate.cluster", "import tensorflow.compat.v1 as tf", "imports tensorflow"),
    ("cli", "import tensorflow as tf", "line 1: imports tensorflow"),
    ("", "import keras", "line 1: imports keras"),
    ("plan.cost", "def f():\n    from whale_tf.ir import graph", "import inside f"),
    ("plan.cost", "cache = {}", "cache"),
    ("plan.cost", "known: list[int] = [1]", "known"),
    ("plan.cost", "CACHE: dict[str, int] = {}", "CACHE"),
    ("plan.cost", "SEEN = set()", "SEEN"),
    ("run.step", "here = threading.local()", "here"),
    ("run.step", "HERE: ContextVar[int] = ContextVar[int]('here')", "HERE"),
    ("run.away", "OTHER = ContextVar('other')", "OTHER"),
    ("run.step", "LOCK = threading.RLock()", "LOCK"),
    ("plan.cost", "SEEN = dict[str, int]()", "SEEN"),
    ("plan.cost", "TABLE = {'a': 1}\ndef f():\n    TABLE['b'] = 2", "TABLE"),
    ("plan.cost", "TABLE = {'a': 1}\ndef f():\n    TABLE.update(b=2)", "TABLE"),
    ("plan.cost", "class Rule:\n    cache = {}", "cache"),
    ("plan.cost", "def f():\n    global count\n    count = 1", "global"),
    ("plan.cost", "'''Costs.'''\n" + "x = 1\n" * LINES_OF_A_FILE, "401 lines"),
    ("plan.cost", "def f():\n" + "    x = 1\n" * LINES_OF_A_FUNCTION, "f has 61 lines"),
    ("plan.cost", "x = 1", "has no docstring"),
    ("plan.graph_utils", "'''x'''", "'utils' says nothing"),
]


@pytest.mark.parametrize(("name", "text", "offence"), BREAKS, ids=[offence for _, _, offence in BREAKS])
def test_a_rule_sees(name: str, text: str, offence: str) -> None:
    source = Source(name, text)
    assert [found for rule in RULES for found in rule(source) if offence in found]


def test_the_package_of_annotate_may_import_nothing() -> None:
    source = Source("annotate", "from whale_tf.annotate import scopes", package=True)
    assert list(package_of_annotate_imports(source)) == ["line 1: imports whale_tf.annotate.scopes"]


KEEPS = [
    ("ir.text", "from whale_tf.errors import PlanError\nfrom whale_tf.ir.graph import Graph\nfrom . import verify"),
    ("plan.cost", "from whale_tf.annotate.cluster import Cluster\nfrom whale_tf._protos import plan_pb2"),
    ("annotate.scopes", "import tensorflow as tf\nimport keras\n_active = ContextVar('a')"),
    ("start", "_current = []\ndef f():\n    _current[:] = [1]"),
    ("parallelize", "from whale_tf.capture import record\nfrom whale_tf.run import step"),
    ("", "from whale_tf.save.export import export\n__all__ = ['export']"),
    ("plan.cost", "TABLE = {'MatMul': 2}\nTABLE |= {'Add': 1}\n_KINDS = ['CPU']\ntotal = 3\nnames = ('a',)"),
    ("plan.cost", "def f():\n    x = []\n    return x"),
]


@pytest.mark.parametrize(("name", "text"), KEEPS, ids=[f"{name or 'whale_tf'} {text[:20]}" for name, text in KEEPS])
def test_a_rule_lets_pass(name: str, text: str) -> None:
    source = Source(name, f"'''What it is.'''\n{text}\n")
    assert [found for rule in RULES for found in rule(source)] == []


def test_a_long_file_may_say_why() -> None:
    text = "'''A table of rules. Long because TensorFlow has many operations.'''\n" + "x = 1\n" * LINES_OF_A_FILE
    assert list(is_too_long(Source("plan.cost", text))) == []

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
    "world.runner": {"_package.__path__"},  # of the package that is not imported, where its modules are
}
IMPORTS_BY_NAME = {"import_module", "__import__", "resolve_name"}
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


def imports_by_name(source: Source) -> Iterator[str]:
    """What no other rule would see; the public face gives by name what needs TensorFlow."""
    for node in ast.walk(source.tree):
        if source.name and isinstance(node, ast.Call) and _called(node) in IMPORTS_BY_NAME:
            yield f"line {node.lineno}: {ast.unparse(node)}"


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
    """What stands in the module itself or in a class, also under a condition: the statement, the name, the value."""
    for node in _outside_functions(source.tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                yield from ((node, ast.unparse(name), value) for name, value in pairs)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _outside_functions(child)


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
    imports_by_name,
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


def test_no_modules_import_one_another() -> None:
    assert circles(sources()) == set()


HIDDEN_IMPORTS = [
    "if TYPE_CHECKING:\n    from whale_tf.plan.b import B",
    "def f():\n    from whale_tf.plan.b import B",
    "class A:\n    def f(self):\n        import whale_tf.plan.b",
    "try:\n    from .b import B\nexcept ImportError:\n    B = None",
]


@pytest.mark.parametrize("text", HIDDEN_IMPORTS)
def test_a_circle_is_seen_wherever_the_import_stands(text: str) -> None:
    first, fourth = Source("plan.a", text), Source("plan.d", "from whale_tf.plan import a")
    second, third = Source("plan.b", "from whale_tf.plan.c import C"), Source("plan.c", "from whale_tf.plan import a")
    assert circles([first, second, third, fourth]) == {("plan.a", "plan.b", "plan.c")}


def test_all_state_that_is_allowed_is_there() -> None:
    found = {source.name: {name for _, name, _ in _assigned(source)} for source in sources()}
    assert [f"{module}.{name}" for module, names in STATE.items() for name in names - found[module]] == []


def test_the_imports_stated_are_those_there_are() -> None:
    used: dict[str, set[str]] = {source.part: set() for source in sources() if source.name not in ("", "cli")}
    for source in sources():
        targets = [name.removeprefix("whale_tf.") for _, name in source.imported() if name.startswith("whale_tf.")]
        allowed = MAY_IMPORT.get(source.part, set())
        used.setdefault(source.part, set()).update(may for may in allowed for name in targets if _within(name, {may}))
    assert used | {"_protos": set(), "": set(), "cli": set()} == MAY_IMPORT | {"": set(), "cli": set()}


def test_contributing_says_the_same() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", text[text.index("## Who may import whom") :], re.MULTILINE)
    said = {part: set(re.findall(r"`([\w.]+)`", imports)) for part, imports in rows if part in MAY_IMPORT}
    assert said | {"_protos": set()} == MAY_IMPORT


BREAKS = [
    ("errors", "from whale_tf.ir import graph", "errors imports whale_tf.ir.graph"),
    ("ir.graph", "from whale_tf.plan.plan import Plan", "ir imports whale_tf.plan.plan.Plan"),
    ("ir.graph", "from ..plan import plan", "ir imports whale_tf.plan.plan"),
    ("ir.graph", "from . import text, sharding\nfrom .. import run", "ir imports whale_tf.run"),
    ("plan.cost", "from whale_tf.annotate import cluster, scopes", "plan imports whale_tf.annotate.scopes"),
    ("plan.cost", "from whale_tf.annotate.devices import find", "plan imports whale_tf.annotate.devices.find"),
    ("rewrite.cut", "import whale_tf.run.step", "rewrite imports whale_tf.run.step"),
    ("run.step", "import whale_tf", "run imports whale_tf"),
    ("parallelize", "from whale_tf.cli import main", "parallelize imports whale_tf.cli.main"),
    ("plan.cost", "def f():\n    import tensorflow as tf", "imports tensorflow"),
    ("rewrite.cut", "from keras import layers", "imports keras"),
    ("annotate.cluster", "import tensorflow.compat.v1 as tf", "imports tensorflow"),
    ("cli", "import tensorflow as tf", "line 1: imports tensorflow"),
    ("", "import keras", "line 1: imports keras"),
    ("plan.cost", "def f():\n    from whale_tf.ir import graph", "import inside f"),
    ("plan.cost", "cost = importlib.import_module('whale_tf.run')", "importlib.import_module('whale_tf.run')"),
    ("plan.cost", "def f():\n    return __import__('whale_tf')", "__import__('whale_tf')"),
    ("plan.cost", "cache = {}", "cache"),
    ("plan.cost", "known: list[int] = [1]", "known"),
    ("plan.cost", "CACHE: dict[str, int] = {}", "CACHE"),
    ("plan.cost", "SEEN = set()", "SEEN"),
    ("run.step", "here = threading.local()", "here"),
    ("run.step", "HERE: ContextVar[int] = ContextVar[int]('here')", "HERE"),
    ("run.away", "OTHER = ContextVar('other')", "OTHER"),
    ("run.step", "LOCK = threading.RLock()", "LOCK"),
    ("run.step", "if sys.platform:\n    LOCK = threading.Lock()", "LOCK"),
    ("run.step", "FIRST, LOCK = 1, threading.Lock()", "LOCK"),
    ("run.step", "class Step:\n    lock = threading.Lock()", "lock"),
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
    ("", "from whale_tf.plan.plan import Plan\n__all__ = ['Plan']\nfound = pkgutil.resolve_name('whale_tf.run')"),
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

"""The graph as text: one node a line, and read back it is the very same graph.

    graph step(out: MatMul_1, Mean:1) effects(Print) {
      x = Input() {index=0, batch=true} : float32[4,8]
      MatMul = MatMul(x, w) {T=float32, transpose_a=false} : float32[4,10]  @scope=s0 @device=2 ^Print
    }

A function that TensorFlow is told something of has that before the brace: `effects(Print) {_noinline=true} {`.

After the types stand the node's fields that are not at their default, `@stateful @scope= @call= @twin= @device=`, then
`^` and the name of each node it waits for. A name with other characters than letters, digits and `_ . / > -` stands in
quotes, escaped as in JSON. Empty lines and lines that start with `#` are skipped.

| attribute | written                                                     |
|-----------|-------------------------------------------------------------|
| int       | `8`, `-3`                                                   |
| float     | `8.0`, `1e+16`, `-0.0`, `nan`, `inf`; always tells from int |
| bool      | `true`, `false`                                             |
| bytes     | `b"SAME"`, each byte one character of Latin-1               |
| str       | `"text"`                                                    |
| DType     | `float32`, or `dtype"..."` where it is no plain word        |
| Shape     | `[4,?]` with an unknown dim, `[*]` of unknown rank          |
| Function  | `@body`, `@body{T=float32}`                                 |
| Opaque    | `opaque"AAECAw=="`, base64                                  |
| tuple     | `(1, 2)`, `(1)`, `()`                                       |
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from whale_tf.errors import InternalError
from whale_tf.ir.graph import DType, Function, Graph, Node, Opaque, Ref, Shape, TensorType

Item = TypeVar("Item")

_BARE_NAME = re.compile(r"[A-Za-z0-9_./>\-]+")
_BARE_DTYPE = re.compile(r"(?!(?:true|false|nan|inf)$)[a-z][a-z0-9_]*")
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[A-Za-z0-9_./>+\-]+|\S')
_LINE_END = ""
_EXCERPT_CHARACTERS = 160


def print_graph(graph: Graph, name: str = "step") -> str:
    """The graph as text, with `name` in its first line.

    Raises:
      InternalError: an attribute has a kind that no graph carries.
    """
    outputs = f"out: {', '.join(map(_print_ref, graph.outputs))}" if graph.outputs else ""
    effects = f" effects({', '.join(map(_print_name, graph.effects))})" if graph.effects else ""
    attrs = f" {_print_attrs(graph.attrs.items())}" if graph.attrs else ""
    header = f"graph {_print_name(name)}({outputs}){effects}{attrs} {{"
    return "\n".join([header, *(f"  {_print_node(node)}" for node in graph), "}", ""])


def parse_graph(text: str) -> Graph:
    """The graph that a text describes; the graph's name is not kept. That its references exist is for `verify` to say.

    Raises:
      InternalError: the text is not in the form of `print_graph`; it names the line.
    """
    header: tuple[tuple[Ref, ...], tuple[str, ...], dict[str, Any]] | None = None
    nodes: dict[str, Node] = {}
    closed = False
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if closed:
                raise ValueError("nothing may follow the closing brace")
            if header is None:
                header = _parse_header(_Tokens(line))
            elif line == "}":
                closed = True
            else:
                node = _parse_node(_Tokens(line))
                if node.name in nodes:
                    raise ValueError(f"'{node.name}' is defined twice")
                nodes[node.name] = node
        except ValueError as error:
            raise _unreadable(f"line {number}", str(error), line) from error
    if header is None or not closed:
        raise _unreadable("the end", "the closing brace is missing" if header else "there is no graph", "")
    return Graph(nodes, *header)


def dump(graph: Graph, folder: Path, number: int, name: str) -> Path:
    """Writes the graph to `folder`, as `03-cut.txt` for the third pass `cut`; gives the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:02d}-{name}.txt"
    path.write_text(print_graph(graph, name), encoding="ascii")
    return path


# Printing.


def _print_node(node: Node) -> str:
    parts = [f"{_print_name(node.name)} = {_print_name(node.op)}({', '.join(map(_print_ref, node.inputs))})"]
    if node.attrs:
        try:
            parts.append(_print_attrs(node.attrs.items()))
        except TypeError as error:
            raise InternalError(
                f"cannot print '{node.name}' ({node.op})",
                details=(str(error),),
                way_out="Give it a kind that whale_tf.ir.graph.Node names, or extend _PRINTERS in whale_tf/ir/text.py.",
            ) from error
    if node.outputs:
        types = ", ".join(f"{_print_dtype(kind.dtype)}{kind.shape}" for kind in node.outputs)
        parts.append(f": {types}")
    fields = ["@stateful"] if node.stateful else []
    fields += [f"@scope={_print_name(node.scope)}"] if node.scope else []
    fields += [f"@call={node.call}"] if node.call else []
    fields += [f"@twin={_print_name(node.twin)}"] if node.twin else []
    fields += [f"@device={node.device}"] if node.device != -1 else []
    fields += [f"^{_print_name(name)}" for name in node.control]
    if fields:
        fields[0] = f" {fields[0]}"
    return " ".join(parts + fields)


def _print_attrs(attrs: Iterable[tuple[str, Any]]) -> str:
    return "{" + ", ".join(f"{_print_name(key)}={_print_value(value)}" for key, value in attrs) + "}"


def _print_value(value: Any) -> str:
    printer = _PRINTERS.get(type(value))
    if printer is None:
        raise TypeError(f"{value!r:.{_EXCERPT_CHARACTERS}} is a {type(value).__name__}, which no attribute may be")
    return printer(value)


def _print_function(function: Function) -> str:
    return f"@{_print_name(function.name)}" + (_print_attrs(function.attrs) if function.attrs else "")


def _print_dtype(dtype: DType) -> str:
    return str(dtype) if _BARE_DTYPE.fullmatch(dtype) else f"dtype{json.dumps(dtype)}"


def _print_ref(ref: Ref) -> str:
    return _print_name(ref.node) if ref.index == 0 else f"{_print_name(ref.node)}:{ref.index}"


def _print_name(name: str) -> str:
    return name if _BARE_NAME.fullmatch(name) else json.dumps(name)


_PRINTERS: Mapping[type, Callable[[Any], str]] = MappingProxyType(
    {
        bool: lambda value: "true" if value else "false",
        int: repr,
        float: repr,
        bytes: lambda value: f"b{json.dumps(value.decode('latin-1'))}",
        str: json.dumps,
        DType: _print_dtype,
        Shape: str,
        Function: _print_function,
        Opaque: lambda value: f'opaque"{base64.b64encode(value).decode("ascii")}"',
        tuple: lambda value: f"({', '.join(map(_print_value, value))})",
    }
)


# Parsing: a recursive descent over the tokens of one line. A ValueError says what it cannot read; `parse_graph`, where.


class _Tokens:
    """The tokens of one line, taken from left to right."""

    __slots__ = ("position", "tokens")

    def __init__(self, line: str) -> None:
        self.tokens: list[str] = _TOKEN.findall(line)
        self.tokens.append(_LINE_END)
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position]

    def take(self) -> str:
        token = self.tokens[self.position]
        if token == _LINE_END:
            raise ValueError("the line ends too early")
        self.position += 1
        return token

    def accept(self, token: str) -> bool:
        """Takes the token if it is the next one."""
        found = self.tokens[self.position] == token
        self.position += found
        return found

    def expect(self, token: str) -> None:
        if not self.accept(token):
            wanted = f"'{token}'" if token else "the end of the line"
            raise ValueError(f"expected {wanted} and found '{self.peek():.{_EXCERPT_CHARACTERS}}'")

    def until(self, close: str, parse: Callable[[_Tokens], Item]) -> list[Item]:
        """Items with commas between them, up to and with `close`."""
        items: list[Item] = []
        if self.accept(close):
            return items
        items.append(parse(self))
        while self.accept(","):
            items.append(parse(self))
        self.expect(close)
        return items


def _parse_header(tokens: _Tokens) -> tuple[tuple[Ref, ...], tuple[str, ...], dict[str, Any]]:
    tokens.expect("graph")
    _parse_name(tokens)
    tokens.expect("(")
    outputs: list[Ref] = []
    effects: list[str] = []
    if tokens.accept("out"):
        tokens.expect(":")
        outputs = tokens.until(")", _parse_ref)
    else:
        tokens.expect(")")
    if tokens.accept("effects"):
        tokens.expect("(")
        effects = tokens.until(")", _parse_name)
    tokens.expect("{")
    attrs: dict[str, Any] = {}
    if not tokens.accept(_LINE_END):
        attrs = _parse_attrs(tokens)
        tokens.expect("{")
        tokens.expect(_LINE_END)
    return tuple(outputs), tuple(effects), attrs


def _parse_node(tokens: _Tokens) -> Node:
    name = _parse_name(tokens)
    tokens.expect("=")
    op = _parse_name(tokens)
    tokens.expect("(")
    inputs = tuple(tokens.until(")", _parse_ref))
    attrs = _parse_attrs(tokens) if tokens.accept("{") else {}
    outputs = []
    if tokens.accept(":"):
        outputs.append(_parse_type(tokens))
        while tokens.accept(","):
            outputs.append(_parse_type(tokens))
    fields: dict[str, Any] = {}
    while tokens.accept("@"):
        fields.update((_parse_field(tokens),))
    control = []
    while tokens.accept("^"):
        control.append(_parse_name(tokens))
    tokens.expect(_LINE_END)
    return Node(name, op, inputs, tuple(control), attrs, tuple(outputs), **fields)


def _parse_field(tokens: _Tokens) -> tuple[str, Any]:
    field = tokens.take()
    if field == "stateful":
        return field, True
    tokens.expect("=")
    if field in ("scope", "twin"):
        return field, _parse_name(tokens)
    if field in ("call", "device"):
        return field, int(tokens.take())
    raise ValueError(f"'@{field}' is none of @stateful, @scope, @call, @twin and @device")


def _parse_attrs(tokens: _Tokens) -> dict[str, Any]:
    """Attributes, up to and with the closing brace."""
    pairs = tokens.until("}", _parse_attr)
    attrs = dict(pairs)
    if len(attrs) != len(pairs):
        raise ValueError("an attribute is given twice")
    return attrs


def _parse_attr(tokens: _Tokens) -> tuple[str, Any]:
    name = _parse_name(tokens)
    tokens.expect("=")
    return name, _parse_value(tokens)


def _parse_value(tokens: _Tokens) -> Any:
    token = tokens.take()
    if token == "(":
        return tuple(tokens.until(")", _parse_value))
    if token == "[":
        return Shape(tokens.until("]", _parse_size))
    if token == "@":
        name = _parse_name(tokens)
        return Function(name, tuple(tokens.until("}", _parse_attr)) if tokens.accept("{") else ())
    if token[0] == '"':
        return json.loads(token)
    if tokens.peek().startswith('"') and token in _PREFIXES:
        return _PREFIXES[token](json.loads(tokens.take()))
    if token in ("true", "false"):
        return token == "true"
    if _BARE_DTYPE.fullmatch(token):
        return DType(token)
    try:
        return int(token) if token.lstrip("-").isdecimal() else float(token)
    except ValueError:
        raise ValueError(f"'{token}' is no value of an attribute") from None


_PREFIXES: Mapping[str, Callable[[str], Any]] = MappingProxyType(
    {
        "b": lambda text: text.encode("latin-1"),
        "dtype": DType,
        "opaque": lambda text: Opaque(base64.b64decode(text, validate=True)),
    }
)


def _parse_type(tokens: _Tokens) -> TensorType:
    dtype = _parse_value(tokens)
    if not isinstance(dtype, DType):
        raise ValueError(f"expected the type of an output and found {dtype!r:.{_EXCERPT_CHARACTERS}}")
    tokens.expect("[")
    return TensorType(dtype, Shape(tokens.until("]", _parse_size)))


def _parse_size(tokens: _Tokens) -> int | None:
    token = tokens.take()
    return None if token == "*" else -1 if token == "?" else int(token)


def _parse_ref(tokens: _Tokens) -> Ref:
    return Ref(_parse_name(tokens), int(tokens.take()) if tokens.accept(":") else 0)


def _parse_name(tokens: _Tokens) -> str:
    token = tokens.take()
    if token[0] == '"':
        return str(json.loads(token))
    if not _BARE_NAME.fullmatch(token):
        raise ValueError(f"expected a name and found '{token}'")
    return token


def _unreadable(place: str, reason: str, line: str) -> InternalError:
    excerpt = line if len(line) <= _EXCERPT_CHARACTERS else line[:_EXCERPT_CHARACTERS] + " ..."
    return InternalError(
        f"cannot read the text of a graph at {place}",
        details=[reason, excerpt] if excerpt else [reason],
        way_out="Write each node as `name = Op(inputs) {attributes} : types @field=value ^control`.",
    )

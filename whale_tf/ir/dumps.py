"""Verifies each graph between passes, and writes it down on request."""

from __future__ import annotations

from pathlib import Path

from whale_tf.ir import text
from whale_tf.ir.graph import Graph
from whale_tf.ir.verify import verify


class Dumps:
    """Verifies each graph between passes, and writes it, numbered, if a folder was asked for."""

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.count = 0

    def __call__(self, name: str, graph: Graph, *, after: str = "translate") -> None:
        if self.folder is not None:
            text.dump(graph, self.folder, self.count, name.replace("/", "-"))
            self.count += 1
        verify(graph, after=after)

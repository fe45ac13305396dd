"""Builds what pyproject.toml cannot say: the Python modules of protos/*.proto."""

from __future__ import annotations

from pathlib import Path

from grpc_tools import protoc
from setuptools import setup
from setuptools.command.build_py import build_py

PROTOS = "protos"
PACKAGE = "whale_tf/_protos"


class BuildProtos(build_py):
    """build_py that also compiles the protos: beside the sources if editable, else into the build folder."""

    def run(self) -> None:
        super().run()
        compile_protos(Path("." if self.editable_mode else self.build_lib))


def compile_protos(root: Path) -> None:
    """Writes whale_tf/_protos under `root`.

    protoc sees each file under its place in the package, so the modules import each other by their full names and the
    descriptor pool, which all packages of a process share, has no second `plan.proto`.
    """
    names = sorted(f"{PACKAGE}/{path.name}" for path in Path(PROTOS).glob("*.proto"))
    target = root / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    (target / "__init__.py").write_text('"""The messages of protos/, compiled at build time."""\n')
    arguments = [f"-I{PACKAGE}={PROTOS}", f"--python_out={root}", f"--pyi_out={root}", *names]
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit(f"protoc failed: {' '.join(arguments)}")


setup(cmdclass={"build_py": BuildProtos})

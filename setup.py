"""Builds what pyproject.toml cannot say: the Python modules of protos/*.proto, and the library of kernels/."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from grpc_tools import protoc
from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

PROTOS = "protos"
PACKAGE = "whale_tf/_protos"
SOURCES = ("kernels/communicator", "kernels/ops")
LIBRARY = "whale_tf/_kernels.so"
OBJECTS = Path("build/kernels")
COMPILER = "g++"
# -O3: the loops of reductions are left to the vectorizer. TensorFlow's headers are not ours to be warned about.
FLAGS = ("-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", "-pthread", "-Wall", "-Wextra", "-I.")
JOBS = 2


class BuildAll(build_py):
    """build_py that also makes protos and kernels: beside the sources if editable, else into the build folder."""

    def run(self) -> None:
        super().run()
        root = Path("." if self.editable_mode else self.build_lib)
        compile_protos(root)
        build_kernels(root / LIBRARY)


class WithLibrary(Distribution):
    """Says that the package is not pure Python, so that its wheel names the platform."""

    def has_ext_modules(self) -> bool:
        return True


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


def build_kernels(library: Path) -> None:
    """Writes the shared library, from the objects that are older than what they were made of.

    Objects stay in build/kernels. They are made anew when another TensorFlow or other flags are used than last time.
    """
    sources = sorted(path for folder in SOURCES for path in Path(folder).glob("*.cc"))
    stamp = OBJECTS / "made_with"
    made_with = f"tensorflow {metadata.version('tensorflow')}\n{' '.join(FLAGS)}\n"
    if not stamp.exists() or stamp.read_text() != made_with:
        shutil.rmtree(OBJECTS, ignore_errors=True)
    stale = [source for source in sources if is_stale(source)]
    objects = [object_of(source) for source in sources]
    if not stale and is_newer(library, objects):
        return
    if shutil.which(COMPILER) is None:
        raise SystemExit(
            f"{COMPILER} was not found, and {LIBRARY} is made with it.\n"
            "  Install g++ 9 or later, as with `apt-get install g++` or `dnf install gcc-c++`, and run this again."
        )
    compile_flags, link_flags = tensorflow_flags()
    OBJECTS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(made_with)
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(lambda source: compile_source(source, compile_flags), sorted(stale, key=by_duration)))
    library.parent.mkdir(parents=True, exist_ok=True)
    # Linked aside and moved: a process that has the old library loaded keeps it whole.
    beside = library.with_suffix(".new")
    run([COMPILER, "-shared", "-pthread", "-o", str(beside), *map(str, objects), *link_flags, "-ldl"])
    beside.replace(library)


def by_duration(source: Path) -> bool:
    """Puts first what includes TensorFlow and takes ten times as long: no job is then left alone at the end."""
    return source.parent.name != "ops"


def tensorflow_flags() -> tuple[list[str], list[str]]:
    # Imported here: it takes seconds, and mostly nothing is to be built.
    from tensorflow import sysconfig  # noqa: PLC0415

    flags = [f"-isystem{flag[2:]}" if flag.startswith("-I") else flag for flag in sysconfig.get_compile_flags()]
    return flags, sysconfig.get_link_flags()


def compile_source(source: Path, flags: list[str]) -> None:
    target = object_of(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    run([COMPILER, *FLAGS, *flags, "-std=c++17", "-MMD", "-c", str(source), "-o", str(target)])


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\nfailed:\n{done.stderr[-8000:]}")
    if done.stderr:
        print(done.stderr)


def object_of(source: Path) -> Path:
    return OBJECTS / source.with_suffix(".o").relative_to("kernels")


def is_stale(source: Path) -> bool:
    """Whether the object lacks, or is older than its source or a header, of which -MMD left a list."""
    target = object_of(source)
    listed = target.with_suffix(".d")
    if not target.exists() or not listed.exists():
        return True
    made_of = [Path(name) for name in listed.read_text().replace("\\\n", " ").split()[1:]]
    return not is_newer(target, made_of)


def is_newer(target: Path, made_of: list[Path]) -> bool:
    if not target.exists() or not all(path.exists() for path in made_of):
        return False
    return all(path.stat().st_mtime_ns <= target.stat().st_mtime_ns for path in made_of)


setup(cmdclass={"build_py": BuildAll}, distclass=WithLibrary)

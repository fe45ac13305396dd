"""The command `whale`."""

from __future__ import annotations

import os
import shlex
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import click
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

from whale_tf.errors import WhaleError
from whale_tf.world.environment import DEFAULT_TIMEOUT_SECONDS
from whale_tf.world.hosts import Host, parse_hostfile, parse_hosts
from whale_tf.world.launch import Launch, Run

COLORS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan", "bright_green")


class RankedOutput:
    """Lines of all ranks, one after another, each with its rank before it; in a log per rank without."""

    def __init__(self, size: int, log_dir: Path | None) -> None:
        self._width = len(str(size - 1))
        self._errors = Console(stderr=True)
        self._colored = {1: Console().color_system is not None, 2: self._errors.color_system is not None}
        self._writing = threading.Lock()
        self._logs: dict[int, BinaryIO] = {}
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
            self._logs = {rank: (log_dir / f"rank-{rank}.log").open("wb", buffering=0) for rank in range(size)}

    def output(self, rank: int, stream: int, lines: bytes) -> None:
        """Args: the rank, 1 for its output and 2 for its errors, whole lines."""
        style = Style(color=COLORS[rank % len(COLORS)])
        colors = ColorSystem.STANDARD if self._colored[stream] else None
        mark = style.render(f"[{rank:>{self._width}}]", color_system=colors).encode() + b" "
        marked = b"".join(mark + line + b"\n" for line in lines.removesuffix(b"\n").split(b"\n"))
        with self._writing:
            if rank in self._logs:
                self._logs[rank].write(lines)
            with suppress(BrokenPipeError):  # whoever read it has seen enough; the ranks go on
                while marked:
                    marked = marked[os.write(stream, marked) :]

    def say(self, text: str) -> None:
        """A line of `whale run` itself."""
        style = "bold red" if text.startswith("whale run:") else ""
        with self._writing:
            self._errors.print(Text(text, style=style), soft_wrap=True)


@click.group()
@click.version_option(package_name="whale_tf")
def main() -> None:
    """Parallel training steps for TensorFlow."""


@main.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("-n", "size", type=click.IntRange(min=1), help="Number of processes; by default all that the hosts take.")
@click.option("--hosts", help="Where they run, with the number of processes each: a:2,b:2.")
@click.option("--hostfile", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The same, one a line.")
@click.option("--log-dir", type=click.Path(file_okay=False, path_type=Path), help="Writes rank-0.log, ... into it too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds a process waits for another.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="Seconds the others have to tell their errors when one has failed.",
)
@click.option("--mpiexec-options", default="", help='Passed on to mpiexec: "-bind-to core".')
@click.option("-m", "module", is_flag=True, help="SCRIPT is the name of a module, as in python -m.")
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(
    size: int | None,
    hosts: str | None,
    hostfile: Path | None,
    log_dir: Path | None,
    timeout: float,
    grace: float,
    mpiexec_options: str,
    module: bool,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Runs SCRIPT in several processes that train together."""
    if hosts and hostfile:
        raise click.UsageError("--hosts and --hostfile say the same thing: give one of them.")
    if not module and not Path(script).is_file():
        raise click.UsageError(f"There is no script {script!r}.")
    try:
        places = _places(hosts, hostfile)
        slots = sum(place.ranks for place in places)
        if places and size is not None and size > slots:
            raise click.UsageError(f"-n {size} is more than the {slots} processes that the hosts take.")
        if size is None and not places:
            raise click.UsageError("Give the number of processes, -n, or the hosts.")
        options = tuple(shlex.split(mpiexec_options))
        command = ("-m", script, *args) if module else (script, *args)
        what = Run(command, size or slots, hosts=places, grace=grace, timeout=timeout, mpiexec_options=options)
        code = Launch(what, RankedOutput(what.size, log_dir))()
    except WhaleError as error:
        raise click.ClickException(str(error)) from None
    raise SystemExit(code)


def _places(hosts: str | None, hostfile: Path | None) -> tuple[Host, ...]:
    if hosts is not None:
        return parse_hosts(hosts)
    return parse_hostfile(hostfile.read_text(), str(hostfile)) if hostfile is not None else ()


if __name__ == "__main__":
    main()

"""Lists of hosts."""

from __future__ import annotations

import pytest

from whale_tf.errors import DeviceError
from whale_tf.world.hosts import Host, parse_hostfile, parse_hosts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("a:2,b:3", (Host("a", 2), Host("b", 3))),
        ("a", (Host("a", 1),)),
        (" node-1.cluster : 4 ", (Host("node-1.cluster", 4),)),
    ],
)
def test_hosts_and_their_ranks(text: str, hosts: tuple[Host, ...]) -> None:
    assert parse_hosts(text) == hosts


def test_a_host_prints_as_it_is_written() -> None:
    assert parse_hosts(",".join(map(str, parse_hosts("a:2,b")))) == (Host("a", 2), Host("b", 1))


def test_a_file_of_hosts() -> None:
    text = "# the rack\na:2\n\nb slots=3  # slow\nc\n"
    assert parse_hostfile(text, "hosts") == (Host("a", 2), Host("b", 3), Host("c", 1))


def test_all_malformed_hosts_are_named() -> None:
    with pytest.raises(DeviceError) as caught:
        parse_hosts("a:2,b:x,:3,c:0,d e")
    assert str(caught.value) == (
        "cannot read the hosts in --hosts.\n"
        "  'b:x' is not a host and its number of ranks\n"
        "  ':3' is not a host and its number of ranks\n"
        "  'c:0' is not a host and its number of ranks\n"
        "  'd e' is not a host and its number of ranks\n"
        "  Give them as a:2,b:2 with --hosts, or one `a:2` a line with --hostfile."
    )


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(DeviceError) as caught:
        parse_hostfile("# nothing\n", "my_hosts")
    assert str(caught.value) == (
        "cannot read the hosts in my_hosts.\n"
        "  there is no host in it\n"
        "  Give them as a:2,b:2 with --hosts, or one `a:2` a line with --hostfile."
    )

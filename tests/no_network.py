"""Removes the network from a process: with a new network namespace, or with an audit hook if the kernel does not allow one."""

import ctypes
import socket
import sys


def cut_off() -> None:
    """Removes all networks, loopback included, from this process, which must have only one thread."""
    unshare = ctypes.CDLL(None).unshare
    user, network = 0x10000000, 0x40000000
    if unshare(network) != 0 and unshare(user | network) != 0:
        sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo" or (
        event in ("socket.connect", "socket.sendto") and getattr(args[0], "family", None) != socket.AF_UNIX
    ):
        raise OSError(f"{event}: there is no network here")

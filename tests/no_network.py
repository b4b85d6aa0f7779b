"""Takes the network from a process: by a namespace of its own, or by an audit hook where the kernel permits none."""

import ctypes
import socket
import sys


def cut_off() -> None:
    """Leaves this process, which must have one thread, without any network, loopback included."""
    unshare = ctypes.CDLL(None).unshare
    user, network = 0x10000000, 0x40000000
    if unshare(network) != 0 and unshare(user | network) != 0:
        sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo" or (
        event in ("socket.connect", "socket.sendto") and getattr(args[0], "family", None) != socket.AF_UNIX
    ):
        raise OSError(f"{event}: there is no network here")

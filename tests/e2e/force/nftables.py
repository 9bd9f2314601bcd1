"""As much of nftables as it takes to lose packets, spoken over netlink: the machine need not have the `nft` program.

linux/netfilter/nf_tables.h, nfnetlink.h. Applies to the namespace of the calling thread.
"""

import os
import socket
import struct
from enum import Enum

NETLINK_NETFILTER = 12
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_INET = 1
NLM_F_REQUEST, NLM_F_ACK, NLM_F_CREATE = 0x1, 0x4, 0x400
NLMSG_ERROR = 2
NEW_TABLE, DELETE_TABLE, NEW_CHAIN, NEW_RULE = 0, 2, 3, 6
HOOK_IN, HOOK_OUT = 1, 3
NF_DROP, NF_ACCEPT = 0, 1
REGISTER_VERDICT, REGISTER_1 = 0, 1
NUMGEN_RANDOM = 1
CMP_EQUAL = 0
TABLE = b"cut\0"


class Loss(Enum):
    """How much is lost."""

    ALL = "all"
    A_THIRD = "a third"


def cut_with(incoming: Loss | None, outgoing: Loss | None) -> None:
    """Lose what comes in and what goes out, from now until `heal`."""
    messages = [_message(NEW_TABLE, _attribute(1, TABLE))]
    for name, hook, loss in ((b"in\0", HOOK_IN, incoming), (b"out\0", HOOK_OUT, outgoing)):
        if loss is None:
            continue
        policy = NF_DROP if loss is Loss.ALL else NF_ACCEPT
        messages.append(_chain(name, hook, policy))
        if loss is Loss.A_THIRD:
            messages.append(_rule_that_drops_one_in(3, name))
    _send(messages)


def heal() -> None:
    """Lose nothing any more."""
    _send([_message(DELETE_TABLE, _attribute(1, TABLE))])


def _chain(name: bytes, hook: int, policy: int) -> bytes:
    return _message(
        NEW_CHAIN,
        _attribute(1, TABLE),
        _attribute(3, name),
        _nested(4, _attribute(1, _u32(hook)), _attribute(2, _u32(0))),
        _attribute(5, _u32(policy)),
        _attribute(7, b"filter\0"),
    )


def _rule_that_drops_one_in(modulus: int, chain: bytes) -> bytes:
    number = _expression(
        b"numgen\0", _attribute(1, _u32(REGISTER_1)), _attribute(2, _u32(modulus)), _attribute(3, _u32(NUMGEN_RANDOM))
    )
    # Zero is spelled alike in every byte order.
    is_zero = _expression(
        b"cmp\0",
        _attribute(1, _u32(REGISTER_1)),
        _attribute(2, _u32(CMP_EQUAL)),
        _nested(3, _attribute(1, _u32(0))),
    )
    drop = _expression(
        b"immediate\0", _attribute(1, _u32(REGISTER_VERDICT)), _nested(2, _nested(2, _attribute(1, _u32(NF_DROP))))
    )
    return _message(NEW_RULE, _attribute(1, TABLE), _attribute(2, chain), _nested(4, number, is_zero, drop))


def _expression(name: bytes, *data: bytes) -> bytes:
    return _nested(1, _attribute(1, name), _nested(2, *data))


def _u32(number: int) -> bytes:
    return struct.pack("!I", number)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nested(kind: int, *attributes: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(attributes))


def _message(kind: int, *attributes: bytes) -> bytes:
    return _framed(
        NFNL_SUBSYS_NFTABLES << 8 | kind,
        NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE,
        struct.pack("!BBH", NFPROTO_INET, 0, 0) + b"".join(attributes),
    )


def _framed(kind: int, flags: int, contents: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(contents), kind, flags, 1, 0) + contents


def _send(messages: list[bytes]) -> None:
    """Do all of it or nothing. Raises OSError with what the kernel says."""
    ours = struct.pack("!BBH", 0, 0, NFNL_SUBSYS_NFTABLES)
    batch = [
        _framed(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, ours),
        *messages,
        _framed(NFNL_MSG_BATCH_END, NLM_F_REQUEST, ours),
    ]
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.bind((0, 0))
        netlink.settimeout(5)
        netlink.send(b"".join(batch))
        answered = 0
        while answered < len(messages):
            data = netlink.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                [error] = struct.unpack_from("=i", data, 16)
                if kind == NLMSG_ERROR and error:
                    raise OSError(-error, f"nftables: {os.strerror(-error)}")
                answered += kind == NLMSG_ERROR
                data = data[-(-length // 4) * 4 :]

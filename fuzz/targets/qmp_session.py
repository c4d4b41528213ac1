"""Any QMP client: each command is answered once, in order, however cut; ≤ 256 MiB, ≤ 2 s.

Input: a byte that says how the stream is cut, and all that a client sends.  Commands run on a
machine that is none, so that every argument reaches the code that checks it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from fuzz.text import change_text
from tests.tools.fake_machine import FakeMachine
from vdisk.errors import VdiskError
from vdisk.vm.monitor.commands import COMMANDS
from vdisk.vm.monitor.json_stream import LARGEST
from vdisk.vm.monitor.qmp_session import Call, QmpSession
from vdisk.vm.monitor.schema import QmpError

if TYPE_CHECKING:
    import random

LONGEST = 4096
_WRITING = ("screendump", "pmemsave")
"""Commands that write files named by the client, and wait: not in a fuzzer."""
_HELLO = '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
_WORDS = """{ } [ ] " ' , : \\ \n true false null 1 -1 9223372036854775808 1e999 \\u0000 \\ud800
    execute exec-oob arguments id device force keys type qcode number data hold-time events rel btn
    key axis ide1-cd0 ide0-hd0 command-line help info block filename
    cpu-index eject change sendkey xp"""
TOKENS = [*_WORDS.split(), *COMMANDS]


def seeds() -> dict[str, bytes]:
    key = {"type": "qcode", "data": "a"}
    commands: list[tuple[str, dict[str, Any]]] = [
        ("query-block", {}),
        ("eject", {"device": "ide1-cd0", "force": True}),
        ("blockdev-change-medium", {"id": "/machine/ide1-cd0", "filename": "x"}),
        ("blockdev-snapshot-sync", {"device": "ide0-hd0", "snapshot-file": "x"}),
        ("send-key", {"keys": [key, {"type": "number", "data": 30}], "hold-time": 0}),
        ("input-send-event", {"events": [{"type": "key", "data": {"key": key, "down": True}}]}),
        ("input-send-event", {"events": [{"type": "rel", "data": {"axis": "x", "value": 1}}]}),
        ("human-monitor-command", {"command-line": "info block"}),
        ("human-monitor-command", {"command-line": "change ide1-cd0 x raw read-only"}),
        ("human-monitor-command", {"command-line": "xp /4xw 0x1000"}),
        ("human-monitor-command", {"command-line": "sendkey ctrl-alt-f1 0"}),
        ("no-such-command", {}),
    ]
    texts = [
        json.dumps({"execute": name, "arguments": arguments, "id": number})
        for number, (name, arguments) in enumerate(commands)
    ]
    found = {str(number): f"\0{_HELLO}{text}".encode() for number, text in enumerate(texts)}
    found["all"] = ("\7" + "\n".join([_HELLO, *texts])).encode()
    found["out of band"] = f'\0{_HELLO}{{"exec-oob": "query-version"}}'.encode()
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    return data[:1] + change_text(data[1:], TOKENS, rng)


def run(data: bytes) -> None:
    cut = data[0] if data else 0
    whole = _converse(data[1:], 0)
    if cut:
        assert _converse(data[1:], cut) == whole


def _converse(stream: bytes, cut: int) -> list[object]:
    """All that the server says."""
    session = QmpSession(COMMANDS)
    machine = FakeMachine()
    machine.subscribe(session.event)
    step = cut or len(stream) or 1
    said = session.data_to_send()
    for start in range(0, len(stream), step):
        for call in session.receive_data(stream[start : start + step]):
            before = said.count(b"\r\n")
            _answer(session, call, machine)
            said += session.data_to_send()
            assert said.count(b"\r\n") > before
        assert len(session._stream._buffer) <= LARGEST
    return [_without_time(json.loads(line)) for line in said.splitlines()]


def _answer(session: QmpSession, call: Call, machine: FakeMachine) -> None:
    try:
        if call.error is not None:
            raise call.error
        if call.command is None or any(call.command is COMMANDS[name] for name in _WRITING):
            session.reply(call.tag, {})
        elif not _writes_or_waits(call.arguments):
            session.reply(call.tag, call.command.run(machine, call.arguments))
        else:
            session.reply(call.tag, {})
    except QmpError as error:
        session.reply_error(call.tag, error)
    except VdiskError as error:
        session.reply_error(call.tag, QmpError(str(error)))


def _writes_or_waits(arguments: dict[str, Any]) -> bool:
    line = str(arguments.get("command-line", ""))
    waits = "keys" in arguments and arguments.get("hold-time") != 0
    return waits or "screendump" in line or ("sendkey" in line and not line.endswith(" 0"))


def _without_time(message: dict[str, Any]) -> dict[str, Any]:
    message.pop("timestamp", None)
    return message

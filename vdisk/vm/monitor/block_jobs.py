"""Block jobs in QMP and the human monitor (qapi/block-core.json, qapi/job.json).

What QEMU has and this has not: names of nodes for layers of a chain, ``sync`` other than full and
top, policies for errors other than report, and jobs that wait to be finalized or dismissed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vdisk.units import parse_size
from vdisk.vm.monitor import blocks
from vdisk.vm.monitor.control import BlockJobInfo, JobRequest, Target
from vdisk.vm.monitor.human import HumanCommand
from vdisk.vm.monitor.schema import Command, QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vdisk.vm.monitor.control import MachineControl
    from vdisk.vm.monitor.human import Context

    Arguments = dict[str, Any]
    Act = Callable[[MachineControl, BlockJobInfo, Arguments], None]


# -- beginning -----------------------------------------------------------------------------------


def _request(arguments: Arguments) -> JobRequest:
    """What all jobs take; raises QmpError for what this has not."""
    for name in ("auto-finalize", "auto-dismiss"):
        if not arguments.get(name, True):
            raise QmpError(f"Parameter '{name}' is always on here")
    return JobRequest(arguments.get("job-id"), arguments.get("speed", 0))


def _drive(machine: MachineControl, arguments: Arguments) -> str:
    return blocks.device_or_node(machine, arguments["device"], arguments["device"])


def _stream(machine: MachineControl, arguments: Arguments) -> Any:
    device = _drive(machine, arguments)
    machine.stream_disk(device, arguments.get("base"), _request(arguments))
    return {}


def _commit(machine: MachineControl, arguments: Arguments) -> Any:
    device = _drive(machine, arguments)
    base, top = arguments.get("base"), arguments.get("top")
    machine.commit_layers(device, base, top, _request(arguments))
    return {}


def _target(arguments: Arguments) -> Target:
    existing = arguments.get("mode", "absolute-paths") == "existing"
    return Target(arguments["target"], arguments.get("format"), arguments["sync"], existing)


def _mirror(machine: MachineControl, arguments: Arguments) -> Any:
    device = _drive(machine, arguments)
    machine.mirror_disk(device, _target(arguments), _request(arguments))
    return {}


def _backup(machine: MachineControl, arguments: Arguments) -> Any:
    device = _drive(machine, arguments)
    machine.backup_disk(device, _target(arguments), _request(arguments))
    return {}


# -- under way -----------------------------------------------------------------------------------


def _query_block_jobs(machine: MachineControl, _arguments: Arguments) -> Any:
    return [
        {
            "type": job.type,
            "device": job.id,
            "len": job.length,
            "offset": job.offset,
            "busy": not job.paused,
            "paused": job.paused,
            "speed": job.speed,
            "io-status": "ok",
            "ready": job.ready,
            "status": job.status,
            "auto-finalize": True,
            "auto-dismiss": True,
        }
        for job in machine.block_jobs()
    ]


def _query_jobs(machine: MachineControl, _arguments: Arguments) -> Any:
    return [
        {
            "id": job.id,
            "type": job.type,
            "status": job.status,
            "current-progress": job.offset,
            "total-progress": job.length,
        }
        for job in machine.block_jobs()
    ]


def _find(machine: MachineControl, id: str) -> BlockJobInfo:
    for job in machine.block_jobs():
        if job.id == id:
            return job
    raise QmpError(f"Block job '{id}' not found", "DeviceNotActive")


def _on_job(key: str, act: Act) -> Callable[[MachineControl, Arguments], Any]:
    """A command about the job that argument ``key`` names."""

    def run(machine: MachineControl, arguments: Arguments) -> Any:
        act(machine, _find(machine, arguments[key]), arguments)
        return {}

    return run


def _cancel(machine: MachineControl, job: BlockJobInfo, arguments: Arguments) -> None:
    machine.cancel_job(job.id, force=arguments.get("force", False))


def _cancel_by_force(machine: MachineControl, job: BlockJobInfo, _arguments: Arguments) -> None:
    machine.cancel_job(job.id, force=True)


def _complete(machine: MachineControl, job: BlockJobInfo, _arguments: Arguments) -> None:
    machine.complete_job(job.id)


def _pause(machine: MachineControl, job: BlockJobInfo, _arguments: Arguments) -> None:
    if job.paused:
        raise QmpError(f"Job '{job.id}' is already paused")
    machine.pause_job(job.id, paused=True)


def _resume(machine: MachineControl, job: BlockJobInfo, _arguments: Arguments) -> None:
    if not job.paused:
        raise QmpError(f"Job '{job.id}' is not paused")
    machine.pause_job(job.id, paused=False)


def _set_speed(machine: MachineControl, job: BlockJobInfo, arguments: Arguments) -> None:
    machine.set_job_speed(job.id, arguments["speed"])


_ANY_JOB: dict[str, Any] = {
    "job-id": str,
    "speed": int,
    "auto-finalize": bool,
    "auto-dismiss": bool,
}
_COPY: dict[str, Any] = {
    **_ANY_JOB,
    "format": str,
    "mode": ("existing", "absolute-paths"),
    "on-source-error": ("report",),
    "on-target-error": ("report",),
}
_TO_TARGET: dict[str, Any] = {"device": str, "target": str, "sync": ("full", "top")}
_BY_DEVICE: dict[str, Any] = {"device": str}
_BY_ID: dict[str, Any] = {"id": str}

COMMANDS: dict[str, Command] = {
    "block-stream": Command(
        _stream, _BY_DEVICE, {**_ANY_JOB, "base": str, "on-error": ("report",)}
    ),
    "block-commit": Command(
        _commit, _BY_DEVICE, {**_ANY_JOB, "base": str, "top": str, "on-error": ("report",)}
    ),
    "drive-mirror": Command(_mirror, _TO_TARGET, {**_COPY, "copy-mode": ("background",)}),
    "drive-backup": Command(_backup, _TO_TARGET, _COPY),
    "query-block-jobs": Command(_query_block_jobs),
    "query-jobs": Command(_query_jobs),
    "block-job-cancel": Command(_on_job("device", _cancel), _BY_DEVICE, {"force": bool}),
    "block-job-complete": Command(_on_job("device", _complete), _BY_DEVICE),
    "block-job-pause": Command(_on_job("device", _pause), _BY_DEVICE),
    "block-job-resume": Command(_on_job("device", _resume), _BY_DEVICE),
    "block-job-set-speed": Command(_on_job("device", _set_speed), {**_BY_DEVICE, "speed": int}),
    "job-cancel": Command(_on_job("id", _cancel_by_force), _BY_ID),
    "job-complete": Command(_on_job("id", _complete), _BY_ID),
    "job-pause": Command(_on_job("id", _pause), _BY_ID),
    "job-resume": Command(_on_job("id", _resume), _BY_ID),
}


# -- for a person --------------------------------------------------------------------------------


def _say(context: Context, name: str, arguments: Arguments) -> str:
    """A person's command is the machine's, in other words."""
    COMMANDS[name].run(context.machine, arguments)
    return ""


def _human_stream(context: Context, words: Sequence[str]) -> str:
    arguments: Arguments = {"device": words[0]}
    if len(words) > 1:
        arguments["speed"] = parse_size(words[1], what="speed")
    if len(words) > 2:
        arguments["base"] = words[2]
    return _say(context, "block-stream", arguments)


def _human_copy(name: str) -> Callable[[Context, Sequence[str]], str]:
    def run(context: Context, words: Sequence[str]) -> str:
        full, device, target, *format = words
        sync = "full" if full else "top"
        arguments: Arguments = {"device": device, "target": target, "sync": sync}
        if format:
            arguments["format"] = format[0]
        return _say(context, name, arguments)

    return run


def _human_cancel(context: Context, words: Sequence[str]) -> str:
    return _say(context, "block-job-cancel", {"device": words[1], "force": bool(words[0])})


def _human_speed(context: Context, words: Sequence[str]) -> str:
    speed = parse_size(words[1], what="speed")
    return _say(context, "block-job-set-speed", {"device": words[0], "speed": speed})


def _human(name: str) -> Callable[[Context, Sequence[str]], str]:
    return lambda context, words: _say(context, name, {"device": words[0]})


def _info(context: Context, _words: Sequence[str]) -> str:
    lines = [
        f"{'Streaming' if job.type == 'stream' else f'Type {job.type},'} device {job.id}: "
        f"Completed {job.offset} of {job.length} bytes, speed limit {job.speed} bytes/s\n"
        for job in context.machine.block_jobs()
    ]
    return "".join(lines) or "No active jobs\n"


HUMAN: dict[str, HumanCommand] = {
    "block_job_cancel": HumanCommand(
        "[-f] device", "end a job (-f: at once, even if it is ready)", _human_cancel
    ),
    "block_job_complete": HumanCommand(
        "device", "go on in what a job has made", _human("block-job-complete")
    ),
    "block_job_pause": HumanCommand("device", "let a job wait", _human("block-job-pause")),
    "block_job_resume": HumanCommand("device", "let a job go on", _human("block-job-resume")),
    "block_job_set_speed": HumanCommand(
        "device value", "bytes a second that a job may move; 0: any number", _human_speed
    ),
    "block_stream": HumanCommand(
        "device [speed] [base]", "bring into a disk what its backing files hold", _human_stream
    ),
    "drive_backup": HumanCommand(
        "[-f] device target [format]",
        "copy a disk as it is now (-f: with what its backing files hold)",
        _human_copy("drive-backup"),
    ),
    "drive_mirror": HumanCommand(
        "[-f] device target [format]",
        "keep a copy of a disk (-f: with what its backing files hold)",
        _human_copy("drive-mirror"),
    ),
}
INFO = {"block-jobs": HumanCommand("", "the work under way on drives", _info)}

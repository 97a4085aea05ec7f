"""The facts that ``look.sh`` prints, in types. What it did not tell is None, or absent: nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from sifproof.host_tools import parse_version
from sifproof.text import one_line

OK = "ok"
_LONGEST = 1000
_LINE = re.compile(r"([a-z][a-z0-9.-]*)=(.*)")


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True)


Tried = str | None
"""``ok``, the words of what went wrong, or None where it was not tried."""


_LATE = "did not end within"


def in_time(seen: Tried) -> Tried:
    """``seen``, or None where it did not end in time: on a busy machine that says as little as what was not tried."""
    return None if seen is not None and _LATE in seen else seen


class Place(_Facts):
    """A folder and the file system that it lies on."""

    path: str
    free_kb: int | None = None
    df: Tried = Field(default=None, description="why `free_kb` is not known")
    type: str = ""
    options: str = Field(default="", description="of the mount")
    write: Tried = None
    exec: Tried = Field(default=None, description="of a program that was put there")


class Program(_Facts):
    """Apptainer, by the name that the config has for it."""

    name: str = Field(default="", description="as the config has it")
    path: str = Field(default="", description="empty where there is none of that name on PATH")
    answer: Tried = Field(default=None, description="what came of `--version` where it failed or did not end")
    version: str = Field(default="", description="as `1.4.5` or `SingularityCE 4.1.0`")
    squashfs: str = Field(default="", description="its `allow setuid-mount squashfs`; empty where that is the default")
    suid: bool = Field(default=False, description="whether its starter is set-uid")
    plain: Tried = Field(default=None, description="a container as `apptainer exec` starts it")
    userns: Tried = Field(default=None, description="a container as `apptainer exec --userns` starts it")
    nested: Tried = Field(default=None, description="a user namespace inside such a container")


class Listener(_Facts):
    """A socket that listens."""

    address: str = Field(description="hexadecimal, as the kernel writes it")
    uid: int
    holder: str = Field(description="process id and command line; `?` where it is not to be seen")


class Facts(_Facts):
    """What a machine is like for the user who looked."""

    complete: bool = Field(description="whether the script came to its end")
    time: float | None = Field(default=None, description="seconds since 1970 by the machine's clock")
    user: str = ""
    uid: int | None = None
    kernel: str = ""
    machine: str = Field(default="", description="architecture")
    caps_permitted: int | None = None
    caps_last: int | None = None
    userns_max: int | None = None
    userns_clone: int | None = None
    userns_apparmor: int | None = None
    userns_one: Tried = None
    userns_two: Tried = None
    fuse: Tried = None
    timeout: Tried = None
    cgroup_version: int | None = None
    cgroup_controllers: tuple[str, ...] = ()
    cgroup_enabled: tuple[str, ...] | None = Field(
        default=None, description="the controllers that groups below the root get; None in version 1, where all do"
    )
    cgroup_writable: bool = False
    places: dict[str, Place] = Field(default_factory=dict, description="alloc, tmp and shm")
    programs: tuple[Program, ...] = Field(default=(), description="in the order they were asked for")
    ports: dict[int, tuple[Listener, ...]] = Field(default_factory=dict, description="who listens on each port")
    images: tuple[Tried, ...] = Field(default=(), description="in the order they were asked for")
    shared: Tried = None

    @property
    def capabilities_missing(self) -> int:
        """The capabilities that the kernel has and a root does not, as a mask; 0 for an ordinary user."""
        if self.uid != 0 or self.caps_permitted is None or self.caps_last is None:
            return 0
        return ((1 << (self.caps_last + 1)) - 1) & ~self.caps_permitted


def parse(text: str) -> Facts:
    """The facts in what ``look.sh`` printed; a line that is none is passed over, for its author may be anybody.

    Parts of a line may be anybody's too, such as the words of a program, or the name of one that listens: what a
    terminal obeys is taken out, and only what the script itself ends a line by ends one.
    """
    said: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if match := _LINE.fullmatch(one_line(line, _LONGEST)):
            said.setdefault(match[1], []).append(match[2])
    one = {key: values[-1] for key, values in said.items()}
    ports = {}
    for number in _numbers(one, "port"):
        port = _int(one.get(f"port.{number}"))
        if port is not None:
            listeners = [_listener(words) for words in said.get(f"port.{number}.held", [])]
            ports[port] = tuple(listener for listener in listeners if listener)
    return Facts(
        complete=one.get("end") == OK,
        time=_float(one.get("time")),
        user=one.get("user", ""),
        uid=_int(one.get("uid")),
        kernel=one.get("kernel", ""),
        machine=one.get("machine", ""),
        caps_permitted=_int(one.get("caps.permitted"), 16),
        caps_last=_int(one.get("caps.last")),
        userns_max=_int(one.get("userns.max")),
        userns_clone=_int(one.get("userns.clone")),
        userns_apparmor=_int(one.get("userns.apparmor")),
        userns_one=_tried(one, "userns.one"),
        userns_two=_tried(one, "userns.two"),
        fuse=_tried(one, "fuse"),
        timeout=_tried(one, "timeout"),
        cgroup_version=_int(one.get("cgroup.version")),
        cgroup_controllers=tuple(one.get("cgroup.controllers", "").split()),
        cgroup_enabled=tuple(one["cgroup.enabled"].split()) if "cgroup.enabled" in one else None,
        cgroup_writable=one.get("cgroup.writable") == "yes",
        places={
            name: Place(
                path=one[f"{name}.path"],
                free_kb=_int(one.get(f"{name}.free-kb")),
                df=_tried(one, f"{name}.df"),
                type=one.get(f"{name}.type", ""),
                options=one.get(f"{name}.options", ""),
                write=_tried(one, f"{name}.write"),
                exec=_tried(one, f"{name}.exec"),
            )
            for name in ("alloc", "tmp", "shm")
            if f"{name}.path" in one
        },
        programs=tuple(_program(one, number) for number in _numbers(one, "program")),
        ports=ports,
        images=tuple(_tried(one, f"image.{number}") for number in _numbers(one, "image")),
        shared=_tried(one, "shared"),
    )


def _program(one: Mapping[str, str], number: int) -> Program:
    key = f"program.{number}"
    return Program(
        name=one.get(key, ""),
        path=one.get(f"{key}.path", ""),
        answer=_tried(one, f"{key}.answer"),
        version=parse_version(one.get(f"{key}.version", "")),
        squashfs=one.get(f"{key}.squashfs", ""),
        suid=one.get(f"{key}.suid") == "yes",
        plain=_tried(one, f"{key}.plain"),
        userns=_tried(one, f"{key}.userns"),
        nested=_tried(one, f"{key}.nested"),
    )


def _numbers(one: Mapping[str, str], kind: str) -> range:
    """From 0 to the last number that ``kind`` has."""
    found = [int(match[1]) for key in one if (match := re.match(rf"{kind}\.(\d{{1,4}})(\.|$)", key))]
    return range(max(found) + 1) if found else range(0)


def _listener(words: str) -> Listener | None:
    address, _, rest = words.partition(" ")
    uid, _, holder = rest.partition(" ")
    number = _int(uid)
    return None if number is None else Listener(address=address, uid=number, holder=holder.strip())


def _tried(one: Mapping[str, str], key: str) -> Tried:
    said = one.get(key)
    return said if said is None else said.removeprefix("no: ")


def _int(text: str | None, base: int = 10) -> int | None:
    try:
        return int(text or "", base)
    except ValueError:
        return None


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None

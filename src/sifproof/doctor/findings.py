"""What facts mean for the sandboxes of a config. Pure: no file, no clock, no Nomad.

Each judgement is a function of a :class:`Case` that gives the findings about one subject, good ones too: what was
looked at and is well is said as well. None of them changes a verdict. They are put beside the failures that they
explain.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import ip_address
from shlex import quote
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sifproof import command, config, host_tools
from sifproof.doctor.facts import OK, Facts, Listener, Place, Program, in_time
from sifproof.nomad.nodes import NOMAD_DRIVER, Driver
from sifproof.text import one_line

Severity = Literal["blocks", "degrades", "fine"]

RESERVED_KB = 300 * 1024
"""What Nomad reserves of a node's disk for an allocation that does not say otherwise."""

SCARCE_KB = 1024 * 1024
SKEW_S = 1.0

# linux/capability.h, in the order of their numbers
_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
_SYS_ADMIN = 21


# What a node or its Nomad says is in them.
_Text = Annotated[str, AfterValidator(lambda text: one_line(text, 1000))]


class Finding(BaseModel):
    """One thing that was looked at on a machine."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="what was looked at, such as `fuse`")
    severity: Severity = Field(
        description="blocks: sandboxes can't run there; degrades: they run with something missing; fine"
    )
    what: _Text = Field(description="what was seen")
    why: _Text = Field(default="", description="why it matters here")
    mend: str = Field(default="", description="the command that mends it")
    sandboxes: list[str] = Field(default=[], description="names of the sandboxes that it concerns; empty for all")
    checks: list[str] = Field(default=[], description="ids or patterns of the checks whose failure it may explain")
    words: str = Field(default="", description="regular expression: what an error says that it may explain")

    def explains(self, sandbox: str, check: str, text: str) -> bool:
        """Whether it may be behind the failure of ``check`` on ``sandbox``, or of a stage: of what ``text`` tells."""
        if self.severity == "fine" or (self.sandboxes and sandbox and sandbox not in self.sandboxes):
            return False
        if check and any(fnmatchcase(check, pattern) for pattern in self.checks):
            return True
        return bool(self.words) and re.search(self.words, text, re.IGNORECASE) is not None

    @property
    def sentence(self) -> str:
        """What and why, as one text."""
        return " ".join(f"{text.rstrip('.')}." for text in (self.what, self.why) if text)


@dataclass(frozen=True)
class Image:
    """A SIF that the config names, and the sandboxes that run it."""

    path: str
    sandboxes: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A machine to judge, and what is wanted of it."""

    facts: Facts
    sandboxes: Mapping[str, config.Sandbox]
    """Those that may run there, or, on a machine that only makes the images, all."""
    runs: bool = True
    """Whether sandboxes run there."""
    builds: bool = True
    """Whether images are made there."""
    images: tuple[Image, ...] = ()
    """In the order in which the facts have them."""
    drivers: Mapping[str, Driver] = field(default_factory=dict)
    """State of Nomad's drivers there."""
    elsewhere: frozenset[str] = frozenset()
    """Nomad's drivers that another node has."""
    address: str = ""
    """At which its ports are reached."""
    shared: str = ""
    """The file in the folder of SIFs that it should see."""
    between: tuple[float, float] | None = None
    """The moments, in seconds since 1970, between which the machine told its time."""

    def of(self, driver: str) -> dict[str, config.Sandbox]:
        """Its sandboxes of ``driver``."""
        return {name: sandbox for name, sandbox in self.sandboxes.items() if sandbox.driver == driver}

    def program(self, sandbox: config.Sandbox) -> Program | None:
        """What is known of the program that ``sandbox`` runs."""
        return next((p for p in self.facts.programs if p.name == sandbox.apptainer), None)


_HANGS = (
    'for m in $(findmnt -rno TARGET); do timeout -k 1 3 df "$m" >/dev/null || echo "$m"; done'
    "  # then umount -l what it names, or have it served again"
)
_BUSY = "cat /proc/loadavg /proc/pressure/*  # what keeps the machine busy; look again when it is less so"


def judge(case: Case) -> list[Finding]:
    """Every finding on a machine, the worst first."""
    judgements = (told, drivers, user_namespaces, programs, capabilities, fuse, timeout, cgroups)
    found = [finding for judgement in (*judgements, places, images, ports, clock) for finding in judgement(case)]
    return by_weight(found)


def by_weight(findings: Iterable[Finding]) -> list[Finding]:
    """``findings``, those that block first."""
    order: tuple[Severity, ...] = ("blocks", "degrades", "fine")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def needs_userns(facts: Facts, program: str) -> bool:
    """Whether ``program`` needs ``--userns`` there: where a plain start could be tried, because only that works."""
    known = next((p for p in facts.programs if p.name == program), None)
    if known and in_time(known.plain) is not None:
        return known.plain != OK and in_time(known.userns) in (None, OK)
    return facts.capabilities_missing != 0


def told(case: Case) -> Iterator[Finding]:
    """Whether the script told all that it was asked."""
    if not case.facts.complete:
        yield Finding(
            id="told",
            severity="degrades",
            what="The script that looks at the machine did not come to its end",
            why="What it did not tell was not judged; a file system that hangs is a common reason.",
            mend=_HANGS,
        )


def drivers(case: Case) -> Iterator[Finding]:
    """Nomad's drivers for the sandboxes of the config."""
    if not case.runs:
        return
    for driver, name in NOMAD_DRIVER.items():
        wanted = case.of(driver)
        if not wanted:
            continue
        state = case.drivers.get(name)
        if state and state.detected and state.healthy:
            yield Finding(id=f"driver.{name}", severity="fine", what=f"Nomad's driver {name} is healthy")
            continue
        said = "is not enabled" if state is None else state.description or "is not healthy"
        spared = name in case.elsewhere or all(sandbox.optional for sandbox in wanted.values())
        yield Finding(
            id=f"driver.{name}",
            severity="degrades" if spared else "blocks",
            what=f"Nomad's driver {name}: {said}",
            why=f"Without it no sandbox of driver {driver} is placed here.",
            mend="""echo 'plugin "raw_exec" { config { enabled = true } }' > /etc/nomad.d/raw_exec.hcl"""
            " && systemctl restart nomad"
            if name == "raw_exec"
            else "systemctl start docker  # or set DOCKER_HOST for the Nomad client",
            sandboxes=list(wanted),
            words=rf"missing drivers|without the driver|No node can run driver {driver}|\({name}\)",
        )


def user_namespaces(case: Case) -> Iterator[Finding]:
    """User namespaces, one in another, as bubblewrap inside Apptainer makes them."""
    wanted = case.of("singularity")
    facts = case.facts
    if not wanted or (not case.runs and facts.uid == 0):
        return
    contained = any(OK in (p.plain, p.userns) for p in facts.programs)
    one, two = in_time(facts.userns_one), in_time(facts.userns_two)
    tried = [p for p in facts.programs if in_time(p.nested) is not None]
    failed = [p for p in tried if p.nested != OK]
    if tried:
        two = failed[0].nested if failed else OK
    if two == OK or (not case.runs and one == OK):
        text = "User namespaces can be made" + (", one in another" if two == OK else "")
        yield Finding(id="user-namespaces", severity="fine", what=text)
        return
    inside = one == OK or contained
    words = two if inside else one
    if words is None:
        late = next((seen for seen in (facts.userns_one, facts.userns_two) if seen not in (None, OK)), None)
        yield Finding(
            id="user-namespaces",
            severity="degrades",
            what="Whether user namespaces can be made was not seen: "
            + (f"unshare(1): {late}" if late else "there is no unshare(1) on PATH"),
            why="An ordinary user's Apptainer, and bubblewrap in each sandbox, need them.",
            mend=_BUSY if late else "apt-get install util-linux",
            checks=["bubblewrap.*", "isolation.slot.*"],
        )
        return
    cause, mend = _namespace_cause(facts, inside=inside)
    names = [name for name, sandbox in wanted.items() if not failed or sandbox.apptainer in [p.name for p in failed]]
    yield Finding(
        id="user-namespaces",
        severity="degrades" if inside else "blocks",
        what=f"No user namespace can be made{' inside another' if inside else ''} ({cause or words})",
        why="bubblewrap, which keeps the slots of a sandbox apart, needs one inside Apptainer's."
        if inside
        else "Apptainer starts containers in one, and bubblewrap needs a second inside.",
        mend=mend,
        sandboxes=names,
        checks=["bubblewrap.*", "isolation.slot.*", "health.status"] if inside else ["health.*"],
        words=_NO_NAMESPACE,
    )


# Not any namespace: Nomad has some of its own.
_NO_NAMESPACE = r"user.?namespace|(create|creating|new) \w* ?namespaces?|unshare|requesting capability|uid_map"


def _namespace_cause(facts: Facts, *, inside: bool) -> tuple[str, str]:
    """The kernel's setting that forbids user namespaces, ``inside`` another, and the command that changes it.

    AppArmor's setting binds nobody who has CAP_SYS_ADMIN in his namespace, unprivileged_userns_clone nobody who has it
    outside all of them.
    """
    root = facts.uid == 0 and bool((facts.caps_permitted or 0) >> _SYS_ADMIN & 1)
    if facts.userns_apparmor and not root:
        name = "kernel.apparmor_restrict_unprivileged_userns"
        return (
            f"{name} = 1",
            f"sysctl -w {name}=0  # or, for less than all programs, an AppArmor profile with `userns,`",
        )
    if facts.userns_clone == 0 and (inside or not root):
        name = "kernel.unprivileged_userns_clone"
        return f"{name} = 0", f"sysctl -w {name}=1"
    if facts.userns_max is not None and facts.userns_max < 64:
        return f"user.max_user_namespaces = {facts.userns_max}", "sysctl -w user.max_user_namespaces=15000"
    return "", (
        "grep Seccomp: /proc/self/status; dmesg | grep -i -e apparmor -e avc:"
        "  # a seccomp filter (2), a container around the machine or SELinux forbids unshare(2): ask who runs it"
    )


def programs(case: Case) -> Iterator[Finding]:
    """Apptainer: there, new enough, and able to start a container."""
    by_name: dict[str, list[str]] = {}
    for name, sandbox in case.of("singularity").items():
        by_name.setdefault(sandbox.apptainer, []).append(name)
    for program, names in by_name.items():
        found = next((p for p in case.facts.programs if p.name == program), None)
        if found:
            yield _program(found, names, case)


def _program(found: Program, names: list[str], case: Case) -> Finding:
    kind = "set-uid" if found.suid else "rootless"
    path = "Nomad client's PATH" if case.runs and not case.builds else "PATH"
    link = quote(found.name if "/" in found.name else f"/usr/local/bin/{found.name}")
    mend = (
        "make setup"
        if case.builds
        else "dnf install apptainer  # from EPEL, or the .deb of github.com/apptainer/apptainer/releases; "
        f"where it is there by another name, ln -s THAT_NAME {link}"
    )
    wanting = host_tools.NEEDS["apptainer"].minimum
    name = re.escape(found.name)
    if not found.path:
        return Finding(
            id="apptainer",
            severity="blocks",
            what=f"There is no program {found.name} on the {path}",
            why="It makes and runs the SIF." if case.builds else "It runs the SIF.",
            mend=mend,
            sandboxes=names,
            checks=["health.*"],
            words=rf"{name}\S*: (No such file|not found)|failed to run command .*{name}",
        )
    if not host_tools.new_enough("apptainer", found.version):
        hangs = "did not end" in (found.answer or "")
        return Finding(
            id="apptainer",
            severity="blocks",
            what=f"{found.path} --version failed: {found.answer}"
            if found.answer
            else f"{found.path} is {found.version or 'no Apptainer that runs here'}",
            why=f"Options that came with Apptainer {wanting} or SingularityCE 4.0 are used.",
            mend=f"{_HANGS}; where it names none, {mend}" if hangs else mend,
            sandboxes=names,
            checks=["health.*"],
            words=rf"unknown (flag|shorthand|command)|{name}\S*: |FATAL:",
        )
    told = f"{found.path} {found.version}, {kind}"
    if found.plain is None or found.userns is None:
        return Finding(id="apptainer", severity="fine", what=f"{told}; no container was tried")
    if OK not in (found.plain, found.userns):
        late = None in (in_time(found.plain), in_time(found.userns))
        if late:
            mend = _BUSY
        elif case.facts.userns_one not in (None, OK):
            _, mend = _namespace_cause(case.facts, inside=False)
        else:
            mend = f"{quote(found.path)} --debug exec --containall {'' if case.facts.uid else '--userns '}FILE.sif true"
            mend += "  # user namespaces can be made; its last lines tell what else it is refused"
        return Finding(
            id="apptainer",
            severity="blocks" if case.runs and not late else "degrades",
            what=f"{told}, was not seen to start a container: {found.plain}; with --userns: {found.userns}"
            if late
            else f"{told}, can't start a container: {found.userns}",
            why="Every sandbox is one.",
            mend=mend,
            sandboxes=names,
            checks=["health.*"],
            words=rf"{_NO_NAMESPACE}|FATAL:",
        )
    refused = [n for n in names if case.sandboxes[n].userns is True and in_time(found.userns) not in (None, OK)]
    if refused and case.runs:
        return Finding(
            id="apptainer",
            severity="blocks",
            what=f"{told}, can't start a container with --userns: {found.userns}",
            why="The config asks for it.",
            mend="set `userns: auto`",
            sandboxes=refused,
            checks=["health.*"],
            words=rf"{_NO_NAMESPACE}|FATAL:",
        )
    ways = [way for way, seen in (("without", found.plain), ("with", found.userns)) if seen == OK]
    return Finding(id="apptainer", severity="fine", what=f"{told}; containers start {' and '.join(ways)} --userns")


def capabilities(case: Case) -> Iterator[Finding]:
    """The capabilities that a root lacks, and what that means for ``userns``."""
    missing = case.facts.capabilities_missing
    if not missing or not case.runs or not case.of("singularity"):
        return
    known = _CAPABILITIES.split()
    names = [
        f"CAP_{known[n]}" if n < len(known) else f"capability {n}"
        for n in range(missing.bit_length())
        if missing >> n & 1
    ]
    what = f"root lacks {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
    wrong = [
        name
        for name, sandbox in case.of("singularity").items()
        if sandbox.userns is False and needs_userns(case.facts, sandbox.apptainer)
    ]
    if wrong:
        yield Finding(
            id="capabilities",
            severity="blocks",
            what=f"{what}, and the config forbids --userns",
            why="As root, Apptainer asks for every capability of the kernel, and ends where one was taken away.",
            mend="set `userns: auto`, or `true`",
            sandboxes=wrong,
            checks=["health.*"],
            words=r"requesting capability",
        )
    else:
        yield Finding(
            id="capabilities",
            severity="fine",
            what=f"{what}; `userns: auto` starts containers with --userns, which needs none",
        )


def fuse(case: Case) -> Iterator[Finding]:
    """/dev/fuse, by which a rootless Apptainer mounts a SIF."""
    wanted = case.of("singularity")
    if not wanted or not case.runs or case.facts.fuse is None:
        return
    if case.facts.fuse == OK:
        yield Finding(id="fuse", severity="fine", what="/dev/fuse can be opened for reading and writing")
        return
    names = [name for name, sandbox in wanted.items() if not _mounted_by_kernel(case, sandbox)]
    suid = any((p := case.program(wanted[name])) and p.suid for name in names)
    yield Finding(
        id="fuse",
        severity="blocks" if names else "fine",
        what=f"/dev/fuse can't be opened by {case.facts.user or 'this user'} ({case.facts.fuse})"
        + ("" if names else "; the kernel mounts the SIF without it"),
        why=f"A rootless Apptainer{', and a set-uid one as it is set up by default,' if suid else ''} mounts the SIF "
        "through it, and ends where it can't."
        if names
        else "",
        mend="modprobe fuse && chmod 666 /dev/fuse" if names else "",
        sandboxes=names or list(wanted),
        checks=["health.*"],
        words=r"\bfuse|squashfuse",
    )


def _mounted_by_kernel(case: Case, sandbox: config.Sandbox) -> bool:
    """Whether the SIF of ``sandbox`` is mounted without FUSE.

    A set-uid SingularityCE does so. A set-uid Apptainer does by itself only where its configuration says which
    containers may run (``allow setuid-mount squashfs = iflimited``); whether it does is not looked at.
    """
    found = case.program(sandbox)
    if found is None or sandbox.userns is True or needs_userns(case.facts, sandbox.apptainer):
        return False
    own = found.version.startswith("SingularityCE") or found.squashfs == "yes"
    return case.facts.uid == 0 or (found.suid and own)


def timeout(case: Case) -> Iterator[Finding]:
    """timeout(1), which ends a forgotten sandbox."""
    if case.runs and case.of("singularity") and in_time(case.facts.timeout) not in (None, OK):
        yield Finding(
            id="timeout",
            severity="blocks",
            what=f"timeout(1) of GNU coreutils is missing ({case.facts.timeout})",
            why="The job's line starts the sandbox with `timeout --foreground`.",
            mend="apt-get install coreutils",
            sandboxes=list(case.of("singularity")),
            checks=["health.*"],
            words=r"\btimeout: |\btimeout\W+No such file",
        )


def cgroups(case: Case) -> Iterator[Finding]:
    """Control groups, with which Nomad bounds the memory of a raw_exec task."""
    wanted = case.of("singularity")
    facts = case.facts
    if not wanted or not case.runs or not facts.complete:
        return
    wished, version = {"cpu", "memory", "pids"}, facts.cgroup_version
    lacking = sorted(wished - set(facts.cgroup_controllers))
    # Here no agent runs yet: it asks for them as it starts.
    asked = case.builds or facts.cgroup_enabled is None
    idle = [] if asked else sorted(wished - set(facts.cgroup_enabled or ()) - set(lacking))
    if version is None:
        what, mend = "no control groups are mounted", "mount -t cgroup2 none /sys/fs/cgroup"
    elif not facts.cgroup_writable:
        what = f"control groups (version {version}) can't be written by {facts.user or 'this user'}"
        mend = _writable_groups(case)
    elif lacking:
        what = f"control groups (version {version}) lack {', '.join(lacking)}"
        mend = _lacking_controllers(lacking) if version > 1 else _unmounted_controllers(lacking)
    elif idle:
        what = f"control groups (version {version}) keep {', '.join(idle)} from the groups below the root"
        plus = " ".join(f"+{name}" for name in idle)
        mend = f"echo '{plus}' > /sys/fs/cgroup/cgroup.subtree_control  # then restart the Nomad client"
    else:
        text = f"Control groups, version {facts.cgroup_version}, with cpu, memory and pids"
        yield Finding(id="cgroups", severity="fine", what=text)
        return
    yield Finding(
        id="cgroups",
        severity="degrades",
        what=what[0].upper() + what[1:],
        why="Nomad bounds the memory of a raw_exec task by them; without, a slot that eats memory or forks without end "
        "is bounded by the node alone.",
        mend=mend,
        sandboxes=list(wanted),
        checks=["isolation.slot.memory", "isolation.slot.forks", "teardown.processes"],
        words=r"cgroup|out of memory|\boom\b|oom.kill",
    )


def _writable_groups(case: Case) -> str:
    if case.facts.uid == 0:
        return (
            'for m in $(findmnt -rno TARGET -t cgroup,cgroup2); do mount -o remount,rw "$m"; done'
            "  # in a container, have who runs it hand them on"
        )
    if case.builds:
        again = command.by_make(command.current())
        return f"sudo -E {again}  # Nomad makes no groups for other users than root"
    unit = "/etc/systemd/system/nomad.service.d"
    return (
        f"mkdir -p {unit} && printf '[Service]\\nUser=root\\nDelegate=yes\\n' > {unit}/cgroups.conf"
        " && systemctl daemon-reload && systemctl restart nomad"
    )


def _lacking_controllers(names: list[str]) -> str:
    boot = [f"no cgroup_disable={','.join(names)}", *(["cgroup_enable=memory"] if "memory" in names else [])]
    return f"boot with {' and '.join(boot)} on the kernel's command line; in a container, have who runs it hand them on"


def _unmounted_controllers(names: list[str]) -> str:
    folders = {name: f"/sys/fs/cgroup/{name}" for name in names}
    mounts = [f"mkdir -p {folder} && mount -t cgroup -o {name} none {folder}" for name, folder in folders.items()]
    return " && ".join(mounts) + "  # where the kernel refuses it, boot without cgroup_disable="


def places(case: Case) -> Iterator[Finding]:
    """Folders: room, and whether what lies there can be written and started."""
    alloc, tmp, shm = (case.facts.places.get(name) for name in ("alloc", "tmp", "shm"))
    if case.runs and alloc:
        yield from _allocations(alloc, case.facts.user)
    if case.builds and tmp:
        yield from _builds(tmp, shm)


def _allocations(alloc: Place, user: str) -> Iterator[Finding]:
    where = f"the folder of allocations ({alloc.path})"
    free = alloc.free_kb
    checks = ["files.*", "artifacts.*", "storage.*", "persistence.*", "isolation.slot.disk", "resilience.*"]
    if alloc.write not in (None, OK):
        yield Finding(
            id="space.alloc",
            severity="blocks",
            what=f"In {where} nothing can be written ({alloc.write})",
            why="Every file of a sandbox lies there.",
            mend=_writable_again(alloc, user),
            checks=["health.*"],
            words=rf"read-only file system|no space left|{re.escape(alloc.path)}.*permission denied",
        )
    elif free is None and alloc.df is not None:
        yield Finding(
            id="space.alloc",
            severity="degrades",
            what=f"How much is free in {where} can't be told ({alloc.df})",
            why="Where too little is, the files of the slots can't be written.",
            mend=_HANGS,
            checks=checks,
            words=r"no space left|too little disk",
        )
    elif free is not None and free < SCARCE_KB:
        yield Finding(
            id="space.alloc",
            severity="blocks" if free < RESERVED_KB else "degrades",
            what=f"{_size(free)} are free in {where}",
            why="Nomad reserves 300 MiB there for each allocation, and the files of every slot lie there.",
            mend=f"nomad system gc  # then remove what df -h {quote(alloc.path)} counts and nobody needs",
            checks=checks,
            words=r"no space left|too little disk",
        )
    elif free is not None:
        text = f"{_size(free)} are free in {where}, {alloc.type or 'type unknown'}"
        yield Finding(id="space.alloc", severity="fine", what=text)
    yield from _noexec("alloc", alloc, f"Programs in {where} can't be started", ["bash.*", "storage.*"])


def _writable_again(alloc: Place, user: str) -> str:
    said, path = (alloc.write or "").lower(), quote(alloc.path)
    if "read-only" in said:
        return f'mount -o remount,rw "$(findmnt -no TARGET -T {path})"'
    if "no space left" in said:
        return f"nomad system gc  # then remove files: df -h {path} and df -i {path} tell what ran out"
    if "permission denied" in said:
        return f"chown {quote(user)} {path}  # the nearest folder of it that is there"
    return _HANGS


def _noexec(name: str, place: Place, what: str, checks: list[str]) -> Iterator[Finding]:
    mounted = "noexec" in place.options.split(",")
    if in_time(place.exec) is None and not mounted:
        return
    if place.exec == OK and not mounted:
        yield Finding(id=f"noexec.{name}", severity="fine", what=f"Programs in {place.path} can be started")
        return
    yield Finding(
        id=f"noexec.{name}",
        severity="degrades",
        what=f"{what} ({'mounted noexec' if mounted else place.exec})",
        why="What an agent builds in its workspace can't be run there."
        if name == "alloc"
        else "The reference image is made there, with programs of its own.",
        mend=f'mount -o remount,exec "$(findmnt -no TARGET -T {quote(place.path)})"',
        checks=checks,
        words=r"noexec|cannot execute|exec\b.*permission denied",
    )


def _builds(tmp: Place, shm: Place | None) -> Iterator[Finding]:
    roomy = [p for p in (shm, tmp) if p and p.write == OK and (p.free_kb or 0) >= SCARCE_KB]
    if roomy:
        text = f"{_size(roomy[0].free_kb or 0)} are free in {roomy[0].path}, to make images in"
        yield Finding(id="space.tmp", severity="fine", what=text)
    else:
        seen = ", ".join(
            f"{p.path}: {_size(p.free_kb or 0) + ' free' if p.write == OK else p.write}" for p in (shm, tmp) if p
        )
        yield Finding(
            id="space.tmp",
            severity="degrades",
            what=f"There is little room to make images in ({seen})",
            why="A conversion needs room for the image, its files and the SIF at once.",
            mend="export TMPDIR=A_FOLDER_WITH_ROOM  # or set conversion.tmpdir",
            words=r"no space left|disk quota|read-only file system",
        )
    yield from _noexec("tmp", tmp, f"Programs in {tmp.path} can't be started", [])


def images(case: Case) -> Iterator[Finding]:
    """The SIFs, as the user of the task sees them."""
    for image, seen in zip(case.images, case.facts.images, strict=False):
        if seen == OK:
            yield Finding(id="image", severity="fine", what=f"{image.path} can be read", sandboxes=[*image.sandboxes])
        elif seen is not None:
            yield Finding(
                id="image",
                severity="blocks",
                what=f"{image.path} can't be read by {case.facts.user or 'this user'} ({seen})",
                why="The task opens the SIF by this path, as this user.",
                mend=_readable_again(image.path, seen),
                sandboxes=[*image.sandboxes],
                checks=["health.*"],
                words=rf"could not open image|{re.escape(image.path)}.*(no such file|permission denied)",
            )
    if case.runs and case.facts.shared is not None:
        names = [name for name, s in case.of("singularity").items() if not s.image.startswith("/")]
        if case.facts.shared == OK:
            yield Finding(id="shared", severity="fine", what="What is written to results/images/ is seen here")
        elif names:
            folder = quote(posixpath.dirname(case.shared))
            yield Finding(
                id="shared",
                severity="blocks",
                what=f"What is written to results/images/ is not seen here by {case.facts.user or 'this user'} "
                f"({case.facts.shared})",
                why="The job names the SIF by its path there.",
                mend=f"chmod -R a+rX {folder} && umask 022  # and chmod a+x what namei -m {folder} shows as closed"
                if "permission denied" in case.facts.shared.lower()
                else "run from a folder on a file system that the nodes share, or give the SIF by a path that they see",
                sandboxes=names,
                checks=["health.*"],
                words=r"could not open image|\.sif\b.*(no such file|permission denied)",
            )


def _readable_again(path: str, seen: str) -> str:
    said, folder = seen.lower(), quote(posixpath.dirname(path))
    if "permission denied" in said:
        return f"chmod a+r {quote(path)} && chmod a+x {folder}  # and each folder above that is closed to others"
    if "no such file" in said:
        return f"scp {quote(path)} THE_NODE:{quote(path)}  # or mount there what holds {folder}"
    if "is a directory" in said:
        return "name a file in `image`"
    return _HANGS


def ports(case: Case) -> Iterator[Finding]:
    """The static ports of the config."""
    if not case.runs:
        return
    for name, sandbox in case.of("singularity").items():
        if not isinstance(sandbox.port, int) or sandbox.port not in case.facts.ports:
            continue
        port = sandbox.port
        held = [one for one in case.facts.ports[port] if _collides(one.address, case.address)]
        if not held:
            yield Finding(id="port", severity="fine", what=f"Port {port} is free", sandboxes=[name])
            continue
        yield Finding(
            id="port",
            severity="blocks",
            what=f"Port {port} is taken: {_holder(held[0])} listens on it",
            why="The server can't listen there; Nomad, which does not know of that process, starts it all the same.",
            mend=f"ss -ltnp 'sport = :{port}'  # end it, or set `port: auto`",
            sandboxes=[name],
            checks=["health.*"],
            words=rf"address (is )?already in use|\bport {port}\b|:{port}\b",
        )


def _holder(one: Listener) -> str:
    return f"a process of uid {one.uid}" if one.holder.startswith("?") else f"process {one.holder}"


def _collides(listens: str, wanted: str) -> bool:
    """Whether a socket at ``listens``, hexadecimal as in /proc/net/tcp, keeps others from address ``wanted``."""
    try:
        words = [int.from_bytes(bytes.fromhex(listens[n : n + 8]), "little") for n in range(0, len(listens), 8)]
        packed = b"".join(word.to_bytes(4, "big") for word in words)
        address = ip_address(packed)
        if address.is_unspecified or not wanted:
            return True
        mapped = getattr(address, "ipv4_mapped", None)
        return ip_address(wanted) in (address, mapped)
    except ValueError:
        return True


def clock(case: Case) -> Iterator[Finding]:
    """The machine's clock against the one of the machine that the gate runs on."""
    if case.between is None or case.facts.time is None:
        return
    begin, end = case.between
    skew = min(case.facts.time - begin, 0.0) + max(case.facts.time - end, 0.0)
    if abs(skew) <= SKEW_S:
        yield Finding(id="clock", severity="fine", what="Its clock agrees with that of this machine")
        return
    yield Finding(
        id="clock",
        severity="degrades",
        what=f"Its clock is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} that of this machine",
        why="Times that Nomad stamps on different machines are compared, and certificates and tokens expire by them.",
        mend="timedatectl set-ntp true  # or: chronyc makestep",
        checks=["performance.*", "resilience.*"],
        words=r"x509|certificate.*(expired|not yet valid|verify failed)|token.*expired",
    )


def _size(kilobytes: int) -> str:
    return f"{kilobytes / 1024**2:.1f} GiB" if kilobytes >= 1024**2 else f"{kilobytes / 1024:.0f} MiB"

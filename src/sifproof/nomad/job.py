"""The Nomad job of a sandbox, for both drivers.

A job is ``{"Job": {…}}``, as Nomad's HTTP API takes it and as ``nomad job run -json FILE`` reads it. Nothing here
talks to Nomad or looks at this machine: the same arguments give the same job.

Both drivers run one line of shell. Nomad fills in ``$NOMAD_*`` through the environment, when the task starts. All
else in the line that comes from the config is quoted by :func:`quote`, and arrives at the server as it was written.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sifproof import __version__
from sifproof.errors import Fault, SifproofError

GROUP = "sandbox"
TASK = "server"
PORT_LABEL = "http"
COMMAND = ("python3", "/app/sandbox_server.py")
DOCKER_PORT = 8080
KILL_TIMEOUT_S = 5.0
META_VERSION = "sifproof_version"
META_RUN = "sifproof_run"
META_SANDBOX = "sifproof_sandbox"
# Only on a job that production runs (see nomad.deployed_job): what was found in it.
META_TASK = "sifproof_task"
META_PORT = "sifproof_port"
CHANGED = " is not the image that was converted, whose sha256 is "
"""What a task says, between the file and its checksum, before it ends."""

# What bubblewrap takes in a container: Docker's seccomp profile has no pivot_root(2), its AppArmor profile no mount(2).
# Its masks over parts of /proc forbid the kernel to mount a new /proc in a user namespace, and Nomad's driver can't
# leave them out as `docker run --security-opt systempaths=unconfined` does; CAP_SYS_ADMIN lets the server mount one.
NESTED = {"cap_add": ["sys_admin"], "security_opt": ["seccomp=unconfined", "apparmor=unconfined"]}

# Everybody's programs expect these three to be writable; what lies in them is gone with the container.
READ_ONLY = {
    "readonly_rootfs": True,
    "mount": [{"type": "tmpfs", "target": target} for target in ("/tmp", "/var/tmp", "/run")],  # noqa: S108
}

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NANOSECONDS = 1_000_000_000

# The agent's environment reaches a raw_exec task but for a denylist that knows few tokens, and apptainer carries
# APPTAINERENV_* and APPTAINER_BIND over its own --cleanenv and --containall. So apptainer starts with this alone.
# HOME is the task's own directory: ~/.apptainer of the client's user may hold registry passwords. TMPDIR is where a
# SIF is unpacked on a node without FUSE.
_ENVIRONMENT = (
    'PATH="$PATH"',
    'HOME="$NOMAD_TASK_DIR"',
    'TMPDIR="$NOMAD_ALLOC_DIR/tmp"',
    'NOMAD_ALLOC_ID="$NOMAD_ALLOC_ID"',
)


def kill_timeout_s(task: Mapping[str, Any]) -> float:
    """Seconds from SIGTERM to SIGKILL for ``task``, as Nomad's API has it: Nomad's own 5 where it names none.

    https://developer.hashicorp.com/nomad/docs/job-specification/task#kill_timeout
    """
    return (task.get("KillTimeout") or 5 * _NANOSECONDS) / _NANOSECONDS


def validate_id(value: str, what: str = "id") -> str:
    """``value``, if it can stand in a URL as it is; raises :class:`SifproofError` (fault: configuration).

    python-nomad puts ids into paths unquoted: ``#`` or ``?`` would cut the path short and hit another object.
    """
    if not _ID.fullmatch(value):
        raise SifproofError(
            f"{value!r} can't be a {what}",
            why="letters, digits, dots, hyphens and underscores are allowed, a letter or digit first",
            fault=Fault.CONFIGURATION,
        )
    return value


def quote(word: str) -> str:
    """``word`` as one word of a shell line in a task's config: neither the shell nor Nomad changes it.

    Nomad evaluates each string of a task's config as an HCL template, where ``${`` and ``%{`` begin an expression.
    Inside the single quotes of :func:`shlex.quote`, closing and reopening them between the two characters says the
    same to the shell and nothing to Nomad.
    """
    if "\0" in word:
        raise SifproofError(f"{word!r} can't be an argument", why="it holds a NUL character", fault=Fault.CONFIGURATION)
    return shlex.quote(word).replace("${", "$''{").replace("%{", "%''{")


def _literal(value: str) -> str:
    """``value`` as a string of a task's config that Nomad does not change."""
    return value.replace("${", "$${").replace("%{", "%%{")


def _lines(*groups: Sequence[str]) -> str:
    """The words of ``groups`` as one command, a group a line: the rendered job is read by people."""
    return " \\\n  ".join(" ".join(group) for group in groups if group)


def _seconds(value: float) -> str:
    return f"{value:g}" if value < 1e5 else str(int(value))


def _apptainer_line(
    *,
    program: str,
    image: str,
    command: Sequence[str],
    slots: int,
    workdir: str,
    binds: Sequence[str],
    environment: Mapping[str, str],
    userns: bool,
    flags: Sequence[str],
    lifetime_s: float,
    kill_timeout_s: float,
    sha256: str,
    token_sha256: Sequence[str],
) -> str:
    # Apptainer reads the first, SingularityCE the second alone; either may be what goes by the name of the other.
    given = {"NOMAD_ALLOC_ID": '"$NOMAD_ALLOC_ID"', **{name: quote(value) for name, value in environment.items()}}
    handed_on = [f"{kind}ENV_{name}={word}" for name, word in given.items() for kind in ("APPTAINER", "SINGULARITY")]
    return _lines(
        *(_refusal(image, sha256) if sha256 else []),
        ['mkdir -p "$NOMAD_ALLOC_DIR/data" "$NOMAD_ALLOC_DIR/tmp" &&'],
        ["exec env -i", *_ENVIRONMENT, *handed_on],
        # --foreground keeps the server in the process group of the task, which Nomad kills when all else fails.
        ["timeout --foreground", f"-k {_seconds(kill_timeout_s)}", _seconds(lifetime_s)],
        # Without --no-eval a shell inside the container would run what a variable holds.
        [quote(program), "-q exec --containall --no-eval", *(["--userns"] if userns else []), *map(quote, flags)],
        # Without /dev/full bubblewrap can't make its own /dev inside. --workdir puts /tmp on disk: a tmpfs has 64 MiB.
        ["--bind /dev/full", '--bind "$NOMAD_ALLOC_DIR/data:/data"', *(f"--bind {quote(b)}" for b in binds)],
        ['--workdir "$NOMAD_ALLOC_DIR/tmp"', f"--pwd {quote(workdir)}"],
        [quote(image), *map(quote, command)],
        # The address Nomad reports, and no other: a server need not listen where nobody asks it.
        ['--host "$NOMAD_IP_http" --port "$NOMAD_PORT_http"', f"--slots {slots} --data-dir /data"],
        _tokens(token_sha256),
    )


def _tokens(sha256: Sequence[str]) -> list[str]:
    return [f"--token-sha256 {quote(one)}" for one in sha256]


def _plain_line(
    *,
    program: str,
    image: str,
    command: Sequence[str],
    slots: int,
    workdir: str,
    binds: Sequence[str],
    environment: Mapping[str, str],
    userns: bool,
    flags: Sequence[str],
    lifetime_s: float,
    kill_timeout_s: float,
    token_sha256: Sequence[str],
    entrypoint: bool,
) -> str:
    """The line that most clusters deploy: nothing of the node is kept out that Apptainer lets in by default.

    The lifetime alone is added: a job that a killed run forgot must not stay. ``run`` starts the image's own
    ``entrypoint``, with ``command`` as its arguments; so these words are left out where there is one.
    """
    variables = [f"--env {quote(f'{name}={value}')}" for name, value in environment.items()]
    return _lines(
        ['mkdir -p "$NOMAD_ALLOC_DIR/data" &&'],
        ["timeout --foreground", f"-k {_seconds(kill_timeout_s)}", _seconds(lifetime_s)],
        [quote(program), "run", *(["--userns"] if userns else []), *map(quote, flags)],
        ['--bind "$NOMAD_ALLOC_DIR/data:/data"', *(f"--bind {quote(b)}" for b in binds), *variables],
        [f"--pwd {quote(workdir)}"],
        [quote(image), *([] if entrypoint else map(quote, command))],
        ['--port "$NOMAD_PORT_http"', f"--slots {slots} --data-dir /data", *_tokens(token_sha256)],
    )


def _refusal(image: str, sha256: str) -> list[list[str]]:
    """Lines that end the task where the SIF is another one; for a file that can't be read Apptainer has words."""
    file = quote(image)
    # Apptainer itself runs whatever the file holds, signed or not.
    return [
        [f'{{ [ ! -r {file} ] || {{ sum=$(sha256sum < {file}); [ "$sum" = "{sha256}  -" ]; }} ||'],
        [f"{{ printf '%s %.64s\\n' {quote(f'{image}{CHANGED}{sha256}: its is')} \"$sum\" >&2; exit 65; }}; }} &&"],
    ]


def _docker_line(
    *, command: Sequence[str], slots: int, lifetime_s: float, kill_timeout_s: float, token_sha256: Sequence[str]
) -> str:
    """The server, with a limited life.

    Where the image has no timeout(1) the shell does its work: it stays the container's first process, to which no
    signal from inside does anything that it has no trap for, and hands SIGTERM on. Not covered: an image without
    sleep(1) too, whose server lives until it is told to end; that is no reason not to run it.
    """
    server = " ".join(
        [
            *map(quote, command),
            f'--host 0.0.0.0 --port "$NOMAD_PORT_http" --slots {slots} --data-dir "$NOMAD_ALLOC_DIR/data"',
            *_tokens(token_sha256),
        ]
    )
    lifetime, grace = _seconds(lifetime_s), _seconds(kill_timeout_s)
    return f"""\
set -- {server}
if command -v timeout >/dev/null; then exec timeout -k {grace} {lifetime} "$@"; fi
if ! command -v sleep >/dev/null; then exec "$@"; fi
server= told= late=
trap 'told=1; if [ "$server" ]; then kill -TERM $server; fi' TERM INT
trap 'late=1; kill -TERM $server' USR1
"$@" & server=$!
if [ "$told" ]; then kill -TERM $server; fi
(sleep {lifetime}; kill -USR1 $$; sleep {grace}; kill -KILL $server) >/dev/null 2>&1 &
while wait $server; code=$?; kill -0 $server; do :; done 2>/dev/null
if [ "$late" ]; then exit 124; fi
exit $code"""


def create_sandbox_job(  # noqa: PLR0917 - the order of its arguments is public
    job_id: str,
    image: str,
    count: int = 1,
    slots_per_container: int = 5,
    privileged: bool = False,
    cpu: int = 500,
    memory: int = 512,
    port: int | Literal["auto"] | None = None,
    datacenter: str = "dc1",
    driver: Literal["singularity", "docker"] = "singularity",
    singularity_image: str | None = None,
    *,
    nested_sandboxes: bool = False,
    read_only: bool = False,
    command: Sequence[str] = COMMAND,
    workdir: str = "/app",
    binds: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    userns: bool = False,
    apptainer: str = "apptainer",
    apptainer_flags: Sequence[str] = (),
    containment: Literal["contained", "plain"] = "contained",
    entrypoint: bool = False,
    sha256: str = "",
    token_sha256: Sequence[str] = (),
    lifetime_s: float = 1800,
    kill_timeout_s: float = KILL_TIMEOUT_S,
    namespace: str | None = None,
    region: str | None = None,
    priority: int = 50,
    constraints: Sequence[Mapping[str, str]] = (),
    run: str = "",
    sandbox: str = "",
) -> dict[str, Any]:
    """The job of one sandbox as Nomad's API takes it: ``{"Job": {…}}``.

    ``image``
        name of the Docker image (driver ``docker``).
    ``singularity_image``
        absolute path of the SIF on the nodes (driver ``singularity``); ``image`` where it is absent.
    ``port``
        ``singularity``: the static port on the node (``ReservedPorts``); without a number Nomad picks one
        (``DynamicPorts``). ``docker``: the port inside the container, 8080 without a number; outside it is dynamic.
    ``command``
        words that start the server; ``--host``, ``--port``, ``--slots`` and ``--data-dir`` follow, and
        ``--token-sha256`` for each of ``token_sha256``.
    ``cpu``, ``memory``
        MHz and MiB to reserve per allocation.
    ``privileged``
        ``docker`` only: Apptainer gives no rights that its user lacks.
    ``nested_sandboxes``
        ``docker`` only: let bubblewrap work in the container; see :data:`NESTED`.
    ``read_only``
        ``docker`` only: a read-only root file system; see :data:`READ_ONLY`.
    ``binds``
        further paths of the node, ``/on/the/node:/in/the/container[:ro]``.
    ``environment``
        variables of the server; a value must hold no ``${``, which Nomad would replace.
    ``userns``, ``apptainer``, ``apptainer_flags``
        ``singularity`` only: run in a user namespace; the program; more flags of its ``exec``.
    ``containment``
        ``singularity`` only: ``plain`` is the line that most clusters deploy (``apptainer run --bind …``), in the place
        of sifproof's own. It compares no ``sha256``.
    ``entrypoint``
        ``plain`` only: the image's own entrypoint starts the server, and ``command`` is left out.
    ``sha256``
        ``singularity`` only: of the SIF, in hex; a task that finds another one on its node ends with exit code 65.
    ``token_sha256``
        SHA-256 of tokens, in hex: the server lets in who sends one of them. The tokens do not belong in a job.
    ``lifetime_s``, ``kill_timeout_s``
        seconds until the server is ended by itself (with exit code 124), and from SIGTERM to SIGKILL.
    ``constraints``
        as ``{"LTarget": "${attr.unique.hostname}", "Operand": "=", "RTarget": "node1"}``.
    ``run``, ``sandbox``
        id of the run and name of the sandbox, for the job's ``Meta``.

    Raises :class:`SifproofError` (fault: configuration) for a job id, a variable or a path that can't be used.
    """
    validate_id(job_id, "job id")
    environment = dict(environment or {})
    for name, value in environment.items():
        if not _VARIABLE.fullmatch(name):
            raise SifproofError(f"{name!r} can't be the name of a variable", fault=Fault.CONFIGURATION)
        if "${" in value:
            raise SifproofError(
                f"The variable {name} of job {job_id} holds '${{'",
                why="Nomad replaces such references in a task's environment",
                todo="write the value itself",
                fault=Fault.CONFIGURATION,
            )
    number = None if port in (None, "auto") else int(port)
    networks: dict[str, Any] = {}
    plain = driver == "singularity" and containment == "plain"
    if driver == "singularity":
        sif = singularity_image or image
        if not sif.startswith("/"):
            raise SifproofError(
                f"The SIF of job {job_id} is given as {sif!r}",
                why="a task starts in a directory of its own",
                todo="give an absolute path",
                fault=Fault.CONFIGURATION,
            )
        words: dict[str, Any] = {
            "program": apptainer,
            "image": sif,
            "command": command,
            "slots": slots_per_container,
            "workdir": workdir,
            "binds": binds,
            "environment": environment,
            "userns": userns,
            "flags": apptainer_flags,
            "lifetime_s": lifetime_s,
            "kill_timeout_s": kill_timeout_s,
            "token_sha256": token_sha256,
        }
        line = _plain_line(entrypoint=entrypoint, **words) if plain else _apptainer_line(sha256=sha256, **words)
        task: dict[str, Any] = {
            "Driver": "raw_exec",
            "Config": {"command": "/bin/sh", "args": ["-c", line]},
        }
        if number is None:
            networks["DynamicPorts"] = [{"Label": PORT_LABEL}]
        else:
            networks["ReservedPorts"] = [{"Label": PORT_LABEL, "Value": number}]
    else:
        line = _docker_line(
            command=command,
            slots=slots_per_container,
            lifetime_s=lifetime_s,
            kill_timeout_s=kill_timeout_s,
            token_sha256=token_sha256,
        )
        task = {
            "Driver": "docker",
            "Config": {
                "image": _literal(image),
                "force_pull": False,
                "entrypoint": ["/bin/sh", "-c"],
                "args": [line],
                "work_dir": _literal(workdir),
                "ports": [PORT_LABEL],
                "privileged": privileged,
                **(NESTED if nested_sandboxes else {}),
                **(READ_ONLY if read_only else {}),
                **({"volumes": [_literal(b) for b in binds]} if binds else {}),
            },
            "Env": environment,
        }
        networks["DynamicPorts"] = [{"Label": PORT_LABEL, "To": number or DOCKER_PORT}]
    job: dict[str, Any] = {
        "ID": job_id,
        "Name": job_id,
        "Type": "service",
        "Priority": priority,
        "Datacenters": [datacenter],
        **({"Namespace": namespace} if namespace else {}),
        **({"Region": region} if region else {}),
        "Meta": {META_VERSION: __version__, META_RUN: run, META_SANDBOX: sandbox},
        "Constraints": [dict(c) for c in constraints],
        # No deployment: it would wait min_healthy_time for checks that the job does not have.
        "Update": {"MaxParallel": 0},
        "TaskGroups": [
            {
                "Name": GROUP,
                "Count": count,
                "Networks": [networks],
                # A server that ends is a finding, not something to be mended.
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
                "Tasks": [
                    {
                        "Name": TASK,
                        **task,
                        "Resources": {"CPU": cpu, "MemoryMB": memory},
                        # Without `exec` a shell would swallow it; the plain line is deployed without either.
                        **({} if plain else {"KillSignal": "SIGTERM"}),
                        "KillTimeout": int(kill_timeout_s * _NANOSECONDS),
                        "LogConfig": {"MaxFiles": 2, "MaxFileSizeMB": 10},
                    }
                ],
            }
        ],
    }
    return {"Job": job}


def render(job: Mapping[str, Any]) -> str:
    """``job`` as a text that a person can read and submit: ``nomad job run -json FILE``."""
    return json.dumps(job, indent=2, ensure_ascii=False) + "\n"

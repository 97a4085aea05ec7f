"""Typed settings: the one source of the config's schema, its defaults and its reference page.

:func:`load` turns the merged mapping that Snakemake hands over (``config/config.yaml`` plus ``--config``) into
:class:`Settings`, or raises one :class:`~sifproof.errors.SifproofError` that names every wrong key, its value and
what is allowed.
"""

from __future__ import annotations

import contextlib
import datetime
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from sifproof.errors import Fault, SifproofError

Driver = Literal["singularity", "docker"]
Suite = Literal[
    "health",
    "image",
    "bash",
    "stateful",
    "files",
    "artifacts",
    "batch",
    "reset",
    "protocol",
    "isolation",
    "bubblewrap",
    "storage",
    "performance",
    "persistence",
    "resilience",
]

DRIVERS: tuple[str, ...] = get_args(Driver)
SUITES: tuple[str, ...] = get_args(Suite)
"""In the order they run: first who answers, last what may end the server."""
REFERENCE = "reference"
"""The value of ``image`` that names the reference image of this project (``sandbox/``)."""
REFERENCE_COMMAND = ("python3", "/app/sandbox_server.py")
"""Words that start the server in it."""

RENDERED = frozenset(
    {
        "privileged", "nested_sandboxes", "read_only", "containment", "command", "workdir", "binds", "environment",
        "userns", "apptainer", "verify_image", "tokens",
    }
)  # fmt: skip
"""Keys of a sandbox that say how sifproof renders its job: a `job` of the config's has all of that itself."""

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
"""Part of job ids, file names and URLs: lower case, digits and hyphens, 40 characters at most."""


def _words(value: object) -> object:
    """``--config suites=health,bash`` arrives as one string."""
    return re.split(r"[,\s]+", value.strip()) if isinstance(value, str) else value


def _without_password(image: str) -> str:
    if re.match(r"docker://[^/@]*@(?!sha256:)", image):
        # Not shown: what is wrong with it is that it must not be shown.
        raise ValueError("a password does not belong into an image's name; use `skopeo login` or `docker login`")
    return image


Image = Annotated[str, Field(min_length=1), AfterValidator(_without_password)]


def _url(address: str) -> str:
    if not re.match(r"https?://", address):
        # Not shown: it may have a password.
        raise ValueError("a URL such as http://127.0.0.1:4646 or https://nomad.example.org:4646 is expected")
    return address


Url = Annotated[str, AfterValidator(_url)]


class Section(BaseModel):
    """A mapping of the config: unknown keys are errors, numbers are not guessed from words."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Constraint(Section):
    """Where Nomad may place a job; as in its job specification."""

    attribute: str = Field(min_length=1, description="such as `${attr.unique.hostname}` or `${node.class}`")
    operator: str = Field(default="=", min_length=1, description="Nomad's operator")
    value: str = Field(default="", description="what the attribute is compared with")


class Policy(Section):
    """Which checks a sandbox must pass, by id or by a pattern such as `isolation.slot.*`.

    Where several match a check, an id counts more than a pattern, and a longer pattern more than a shorter one. A
    check that none of them names is as `sifproof checks` says for the driver.
    """

    required: list[str] = Field(default=[], description="rejects the image where it does not pass")
    advisory: list[str] = Field(default=[], description="is run and reported, and rejects nothing")
    off: list[str] = Field(default=[], description="is not run; the reports name it")

    @model_validator(mode="before")
    @classmethod
    def _off_is_a_word(cls, values: object) -> object:
        # To YAML an unquoted `off` is the opposite of `on`.
        if not isinstance(values, dict):
            return values
        return {("off", "on")[key] if isinstance(key, bool) else key: value for key, value in values.items()}


def _day(value: object) -> object:
    """A day arrives as YAML's date, or as text on the command line."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        with contextlib.suppress(ValueError):
            return datetime.date.fromisoformat(value)
    if type(value) is not datetime.date:
        raise ValueError(f"{str(value)!r} is no day; write it as 2027-01-31, without a time")
    return value


def _quantity(value: object) -> str:
    """As it was written: only the check that it is for can say which units are allowed."""
    return value if isinstance(value, str) else "" if value is None else str(value)


def _said(reason: str) -> str:
    if not reason.strip():
        raise ValueError("says nothing; a sentence is expected, for who reads the report")
    return reason


class Waiver(Section):
    """A failure that is known and accepted until a day. It shows in every report; afterwards the check fails again."""

    check: str = Field(min_length=1, description="id of the check, or a pattern")
    reason: Annotated[str, AfterValidator(_said)] = Field(description="why it may fail, for who reads the report")
    until: Annotated[datetime.date, BeforeValidator(_day)] = Field(description="last day it counts, such as 2027-01-31")


class Sandbox(Section):
    """One image under one driver."""

    driver: Driver = Field(description="`singularity` (Nomad's raw_exec running apptainer) or `docker`")
    image: Image = Field(
        default=REFERENCE,
        description="`reference`, `docker-daemon:NAME:TAG`, `docker-archive:FILE`, `oci:FOLDER`, "
        "`oci-archive:FILE`, `docker://NAME:TAG`, or the path of a `.sif`",
    )
    slots: int = Field(default=5, ge=1, le=1000, description="slots per container")
    count: int = Field(default=1, ge=1, le=1000, description="allocations; with a static port each needs a node")
    port: Literal["auto"] | Port = Field(
        default="auto",
        description="singularity: the static port on the node (`auto` picks a free one when the job is rendered); "
        "docker: the port inside the container, 8080 with `auto`; outside it is always dynamic",
    )
    cpu: int = Field(default=500, ge=20, description="MHz that Nomad reserves per allocation")
    memory: int = Field(default=512, ge=32, description="MiB that Nomad reserves per allocation")
    privileged: bool = Field(default=False, description="docker: run the container privileged; singularity: no effect")
    nested_sandboxes: bool = Field(
        default=False,
        description="docker: let bubblewrap work in the container. It costs the container's seccomp and AppArmor "
        "profiles, and its server gets CAP_SYS_ADMIN, with which it could reach the node; commands in bubblewrap get "
        "no capability. The clients must allow `sys_admin` (`allow_caps`). singularity: works without",
    )
    read_only: bool = Field(
        default=False,
        description="docker: a read-only root file system, so that no command changes what the next one runs. It costs "
        "a server that writes into its image, and what lies in `/tmp`, `/var/tmp` and `/run` is in memory that counts "
        "against `memory`. singularity: always so",
    )
    datacenter: str = Field(default="dc1", min_length=1, description="Nomad datacenter to place in")
    containment: Literal["contained", "plain"] = Field(
        default="contained",
        description="singularity: `contained` is sifproof's own line, which keeps out all of the node that it can; "
        "`plain` the one that most clusters deploy, `apptainer run --bind …`, to see side by side what it lets in",
    )
    job: str | None = Field(
        default=None,
        min_length=1,
        description="file with the job that production runs, in HCL or as JSON of Nomad's API; it runs in place of "
        "sifproof's own. Its id, marks in its `Meta`, `count`, and the names of its services are set, and `port`, "
        "`datacenter`, `constraints`, `cpu` and `memory` where the config gives them; all else is as the file has it. "
        "The image is the one that the job names: name the same as `image`",
    )
    job_task: str | None = Field(
        default=None, min_length=1, description="`job`: name of the task that is the server, where it has several"
    )
    job_port: str | None = Field(
        default=None,
        min_length=1,
        description="`job`: label of the server's port; absent: the only one, or of several `http`",
    )
    job_token: str | None = Field(
        default=None,
        min_length=1,
        description="`job`: file with the token that its server asks for; absent: it asks for none",
    )
    job_variables: dict[str, str] = Field(default={}, description="`job`: values of the variables that its HCL has")
    command: list[str] = Field(
        default=list(REFERENCE_COMMAND),
        min_length=1,
        description="words that start the server in the image; `--port`, `--host`, `--slots` and `--data-dir` follow, "
        "and `--token-sha256` where it takes `tokens`",
    )
    tokens: Literal["auto"] | bool = Field(
        default="auto",
        description="let nobody use the server but who has the job's token: it is started with `--token-sha256 HEX` "
        "and answers 401 to requests without `Authorization: Bearer TOKEN`. `auto` does so for the server of the "
        "reference image, for another may not know the option (see docs/how-to/own-image.md), and never on the `plain` "
        "line, which clusters deploy without",
    )
    workdir: str = Field(default="/app", pattern=r"^/", description="working directory of the server in the container")
    binds: list[str] = Field(
        default=[], description="further paths of the node in the container, `/on/the/node:/in/the/container[:ro]`"
    )
    environment: dict[str, str] = Field(default={}, description="variables of the server's environment; no secrets")
    userns: Literal["auto"] | bool = Field(
        default="auto",
        description="singularity: run apptainer with `--userns`; `auto` does where this machine needs it",
    )
    apptainer: str = Field(
        default="apptainer",
        min_length=1,
        description="singularity: the program on the nodes, `singularity` or a path where it has another name",
    )
    verify_image: bool = Field(
        default=True,
        description="singularity: before it starts, each task compares the SIF's sha256 with that of the conversion, "
        "and ends where it is another; costs reading the whole file at each start, 0.2 s per 100 MB",
    )
    constraints: list[Constraint] = Field(
        default=[], description="nodes to place on, each with `attribute`, `operator` (`=` by default) and `value`"
    )
    policy: Policy = Field(default=Policy(), description="which checks it must pass")
    waivers: list[Waiver] = Field(default=[], description="known failures, each with a reason and a last day")
    limits: dict[str, Annotated[str, BeforeValidator(_quantity)]] = Field(
        default={},
        description="the most, or for rates the least, that a check may measure, by its id, with a unit: `200 ms`, "
        "`5 s`, `20 /s`; without a limit it is measured and not judged",
    )
    optional: bool = Field(
        default=False,
        description="leave the sandbox out, with a line that says so, where its driver can't be had",
    )

    @property
    def has_reference_server(self) -> bool:
        """Whether its server is that of the reference image."""
        return self.image == REFERENCE and tuple(self.command) == REFERENCE_COMMAND

    @property
    def takes_tokens(self) -> bool:
        """Whether its server is given the hash of a token."""
        if self.tokens == "auto":
            return self.has_reference_server and self.rendered == "contained"
        return self.tokens

    @model_validator(mode="after")
    def _a_job_is_given_whole(self) -> Sandbox:
        if self.job is None:
            if alone := sorted({"job_task", "job_port", "job_token", "job_variables"} & self.model_fields_set):
                raise ValueError(f"{', '.join(alone)}: they are for a `job`, and none is given")
        elif said := sorted(RENDERED & self.model_fields_set):
            raise ValueError(f"{', '.join(said)}: the file that `job` names has them; change them there")
        return self

    @property
    def rendered(self) -> Literal["contained", "plain", "given"]:
        """Whose job it is: sifproof's own, the plain one, or the one that `job` names."""
        return "given" if self.job is not None else self.containment if self.driver == "singularity" else "contained"

    @model_validator(mode="after")
    def _binds_have_two_ends(self) -> Sandbox:
        for bind in self.binds:
            if not re.fullmatch(r"/[^:,]*:/[^:,]*(:ro|:rw)?", bind):
                raise ValueError(f"binds: {bind!r} is not /on/the/node:/in/the/container[:ro]")
        return self


class Nomad(Section):
    """The cluster. Where neither this nor `NOMAD_ADDR` gives an address, the run starts a local agent."""

    address: Url | None = Field(default=None, description="URL of the API; `NOMAD_ADDR` where absent")
    namespace: str | None = Field(default=None, description="namespace; `NOMAD_NAMESPACE` where absent")
    region: str | None = Field(default=None, description="region; `NOMAD_REGION` where absent")
    lifetime_s: Seconds = Field(
        default=1800, description="seconds after which a job ends by itself, so that a forgotten one does not stay"
    )
    placed_within_s: Seconds = Field(default=60, description="seconds that Nomad has to place and start a job")
    ready_within_s: Seconds = Field(default=60, description="seconds that a started server has to answer `/health`")
    stopped_within_s: Seconds = Field(
        default=10,
        description="seconds that a stopped job has to close its port and to leave no process and no mount; its server "
        "is killed after half of them, but not within 5",
    )

    def effective_address(self) -> str:
        """Address of the cluster; empty where the run starts an agent itself."""
        return self.address or os.environ.get("NOMAD_ADDR", "")


class Conversion(Section):
    """How an image becomes a SIF."""

    compression: Literal["zstd", "gzip"] = Field(
        default="zstd", description="of the squashfs; gzip for nodes whose kernel or squashfuse lacks zstd"
    )
    level: int = Field(default=3, ge=1, le=22, description="compression level; gzip has 1 to 9")
    tmpdir: str | None = Field(
        default=None, description="folder to build in; absent: /dev/shm where it holds image and SIF, else TMPDIR"
    )


class Reference(Section):
    """The reference image of `sandbox/`."""

    base: Image | None = Field(
        default=None,
        description="image to build on, as buildah names it; absent: one made from Debian packages, without a registry",
    )


class Settings(Section):
    """The whole config."""

    sandboxes: dict[Name, Sandbox] = Field(min_length=1, description="the sandboxes under test, by name")
    suites: Annotated[list[Suite], BeforeValidator(_words)] = Field(
        default_factory=lambda: list(get_args(Suite)),
        min_length=1,
        description="suites to run; teardown is always checked",
    )
    driver: Driver | None = Field(default=None, description="run only the sandboxes of this driver")
    image: Image | None = Field(default=None, description="image of every sandbox, in place of its own")
    singularity_image: Image | None = Field(
        default=None,
        description="image of the singularity sandboxes, in place of their own: a `.sif`, or any other source",
    )
    nomad: Nomad = Field(default=Nomad(), description="the cluster and its time limits")
    conversion: Conversion = Field(default=Conversion(), description="how an image becomes a SIF")
    reference: Reference = Field(default=Reference(), description="the reference image")

    @model_validator(mode="after")
    def _static_ports_are_distinct(self) -> Settings:
        seen: dict[int, str] = {}
        for name, sandbox in self.selected().items():
            if sandbox.driver == "singularity" and isinstance(sandbox.port, int):
                if sandbox.port in seen:
                    raise ValueError(
                        f"sandboxes.{name}.port: {sandbox.port} is the static port of sandboxes.{seen[sandbox.port]} "
                        "too; give each its own, or `auto`"
                    )
                seen[sandbox.port] = name
        return self

    @model_validator(mode="after")
    def _level_fits_compression(self) -> Settings:
        if self.conversion.compression == "gzip" and self.conversion.level > 9:
            raise ValueError(f"conversion.level: {self.conversion.level} is not allowed with gzip; it has 1 to 9")
        return self

    @model_validator(mode="after")
    def _something_is_selected(self) -> Settings:
        if not self.selected():
            drivers = ", ".join(sorted({s.driver for s in self.sandboxes.values()}))
            raise ValueError(f"driver: no sandbox has driver {self.driver!r}; the config's have: {drivers}")
        return self

    def selected(self) -> dict[str, Sandbox]:
        """The sandboxes of this run by name, with the images that the command line put in place of their own."""
        chosen = {}
        for name, sandbox in self.sandboxes.items():
            if self.driver not in (None, sandbox.driver):
                continue
            image = self.image or sandbox.image
            if sandbox.driver == "singularity":
                image = self.singularity_image or image
            # A driver that was asked for by name is wanted, not optional.
            optional = sandbox.optional and self.driver is None
            chosen[name] = sandbox.model_copy(update={"image": image, "optional": optional})
        return chosen

    def ordered_suites(self) -> list[str]:
        """The suites of the run in the order they run; `health` is always among them, for it proves identity."""
        return [s for s in SUITES if s in self.suites or s == "health"]


def _allowed(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed beside the one at ``location``."""
    here: Any = model
    for part in location[:-1]:
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            return []
        field = here.model_fields.get(str(part))
        if field is None:  # a name in a mapping, such as that of a sandbox
            continue
        arguments = [a for a in get_args(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        here = arguments[0] if arguments else field.annotation
    return list(here.model_fields) if isinstance(here, type) and issubclass(here, BaseModel) else []


Location = tuple[str | int, ...]
"""Where a value stands in the config: keys, and numbers in lists."""


def closest(word: str, allowed: Iterable[str]) -> str:
    """The one of ``allowed`` that ``word`` was probably meant to be; empty where none is near."""
    return next(iter(difflib.get_close_matches(word, list(allowed), n=1)), "")


def _key(location: Location) -> str:
    # pydantic adds the branch of a union to the path ("literal['auto']", "constrained-int"): not a key.
    return ".".join(str(p) for p in location if not re.match(r"(literal\[|constrained-|function-|int$|bool$)", str(p)))


def _description(location: Location) -> str:
    """What the key at ``location`` is for."""
    here: Any = Settings
    text = ""
    for part in location:
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            arguments = [a for a in get_args(here) if isinstance(a, type) and issubclass(a, BaseModel)]
            here = arguments[0] if arguments else None
        elif field := here.model_fields.get(str(part)):
            here, text = field.annotation, field.description or ""
    return text


def _sentences(error: ValidationError, origin: Origin) -> list[str]:
    """One sentence for each wrong key: where it stands, the key, its value, what is allowed."""
    sentences: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        location = item["loc"]
        key = _key(location)
        lines[key] = origin.line_of(location)
        if item["type"] == "extra_forbidden":
            allowed = _allowed(Settings, location)
            close = closest(str(location[-1]), allowed)
            hint = f"did you mean `{close}`? " if close else ""
            text = f"no such key; {hint}allowed are {', '.join(allowed)}"
        elif item["type"] == "missing":
            text = f"is missing: {_description(location)}"
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"])
        elif item["type"] == "string_pattern_mismatch" and str(location[-1]) == "[key]":
            text = "a name has lower-case letters, digits and hyphens, 40 characters at most"
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
        if item["type"] not in ("missing", "value_error"):
            values[key] = f" = {item['input']!r}"
        if text not in sentences.setdefault(key, []):
            sentences[key].append(text)
    return [
        lines[key] + (f"{key}{values.get(key, '')}: {', or '.join(texts)}" if key else "; ".join(texts))
        for key, texts in sentences.items()
    ]


@dataclass(frozen=True)
class Origin:
    """Where a config comes from: ``files``, of which the last counts, and what the command line gives over them."""

    files: Sequence[Path] = ()
    given: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [*map(str, self.files), *(["--config"] if self.given else [])]
        return " and ".join(words) or "the configuration"

    def line_of(self, location: Location) -> str:
        """``config/mine.yaml, line 12: `` for what stands at ``location``; empty where nothing has it.

        A key that is missing has the line of the mapping that it is missing in.
        """
        best, depth = "", 0
        for path in self.files:
            line, found = _line(path, location)
            if line and found >= depth:
                best, depth = f"{path}, line {line}: ", found
        # No line there.
        return "--config: " if 0 < _depth(self.given, location) >= depth else best


def _line(path: Path, location: Location) -> tuple[int, int]:
    """The line of ``path`` with what stands at ``location``, and how many of its parts are there; (0, 0) for none."""
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return 0, 0
    line = depth = 0
    for part in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = (node.value[part], node.value[part])
        if found is None:
            break
        line, depth, node = found[0].start_mark.line + 1, depth + 1, found[1]
    return line, depth


def _depth(value: Any, location: Location) -> int:
    """How many parts of ``location`` are in ``value``; a text that stands for a list has all of it."""
    for depth, part in enumerate(location):
        if isinstance(value, str):
            return len(location)
        known = range(len(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else ()
        if part not in known:
            return depth
        value = value[part]
    return len(location)


def refuse(sentences: Iterable[str], origin: Origin) -> SifproofError:
    """The error of a config that ``sentences`` find wrong, to be raised."""
    return SifproofError(
        f"The configuration is not valid ({origin})",
        why="\n".join(f"  {sentence}" for sentence in sentences),
        todo="See docs/reference/config.md, which lists every key",
        fault=Fault.CONFIGURATION,
    )


def load(mapping: Mapping[str, Any], origin: Origin = Origin()) -> Settings:
    """The settings in ``mapping``, which comes from ``origin``.

    Raises :class:`SifproofError` (fault: configuration) that names each wrong key, its value and what is allowed, with
    the file and line that it stands in.
    """
    try:
        return Settings.model_validate(dict(mapping))
    except ValidationError as error:
        raise refuse(_sentences(error, origin), origin) from None


def retype(mapping: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Give texts in ``mapping`` that come from ``given`` the numbers and truth values that the schema asks for there.

    Snakemake takes all that stands inside of a mapping or list of ``--config`` for text. Changes ``mapping`` itself.
    """
    try:
        Settings.model_validate(mapping)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            _retype_at(item["loc"], mapping, given)


def _retype_at(location: Location, there: Any, given: Any) -> None:
    for part in location:
        if not _depth(given, (part,)):
            return
        if isinstance(text := given[part], str):
            with contextlib.suppress(yaml.YAMLError, ValueError):
                typed = yaml.safe_load(text)
                there[part] = typed if isinstance(typed, bool | int | float) else text
            return
        there, given = there[part], text


def read(path: Path) -> dict[str, Any]:
    """The mapping in the YAML file ``path``.

    Raises :class:`SifproofError` where it can't be read as one, or where YAML would drop or misread a part of it.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if wrong := list(_misread(node, path, (), set())):
            raise refuse(wrong, Origin([path]))
        mapping = loader.construct_document(node) if node else None
    except OSError as error:
        raise SifproofError(
            f"The configuration {path} can't be read", why=str(error.strerror), fault=Fault.CONFIGURATION
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SifproofError(
            f"The configuration {path} is not YAML", why=str(error), fault=Fault.CONFIGURATION
        ) from None
    except ValueError as error:
        raise refuse([f"{path}: {error}"], Origin([path])) from None
    if not isinstance(mapping, dict):
        raise SifproofError(
            f"The configuration {path} holds no mapping",
            why="keys such as `sandboxes:` are expected",
            fault=Fault.CONFIGURATION,
        )
    return mapping


_TAG = "tag:yaml.org,2002:"


def _misread(node: yaml.Node | None, path: Path, where: Location, seen: set[int]) -> Iterator[str]:
    """A sentence for each thing below ``node`` that YAML drops, or takes for something else than its writer.

    That is a key that stands in one mapping twice, a word that YAML takes for a day and that is none, and one that it
    takes for true or false; but `off`, which is a word of a policy, means what it says.
    """
    if id(node) in seen:  # by way of an anchor
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}timestamp":
        try:
            yaml.safe_load(node.value)
        except ValueError as error:
            line = node.start_mark.line + 1
            yield f"{path}, line {line}: {node.value!r} is no day ({error}); write it as 2027-01-31"
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _misread(item, path, (*where, number), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            here = (*where, str(key.value))
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                word, line = key.value.lower() if key.tag == f"{_TAG}bool" else key.value, key.start_mark.line + 1
                begin = f"{path}, line {line}: {'.'.join(map(str, here))}"
                if word in lines:
                    yield f"{begin} stands in line {lines[word]} too, and only one of them can count; take one out"
                if key.tag == f"{_TAG}bool" and word != "off":
                    allowed = [] if where == ("sandboxes",) else _allowed(Settings, here)
                    mend = f"allowed are {', '.join(allowed)}" if allowed else "put it in quotes to mean the word"
                    yield f"{begin}: YAML takes this key for true or false; {mend}"
                lines.setdefault(word, line)
            yield from _misread(value, path, here, seen)

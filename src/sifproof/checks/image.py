"""What runs is the image: the SIF holds what the image holds, and the node runs that SIF and no other.

An image's files were written down when it was converted (:mod:`sifproof.image.tree`); a SIF is read here, once for all
checks of a suite. What conversion can't help changing is in :data:`sifproof.image.fidelity.KNOWN`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sifproof import documents, host_tools
from sifproof.checks.engine.registry import Finding, NotApplicable, NotMeasured, check, expect
from sifproof.checks.engine.subject import Placement, Server
from sifproof.errors import Fault, SifproofError
from sifproof.image import daemon, fidelity, sif, squashfs, tree
from sifproof.image.fidelity import Difference
from sifproof.image.platforms import Platform
from sifproof.image.process import ToolFailure, capture
from sifproof.image.provenance import Provenance
from sifproof.image.records import LoadedImage
from sifproof.nomad.deployed_job import task_of
from sifproof.nomad.job import quote
from sifproof.nomad.node.leftovers import find_containers
from sifproof.records import write_atomically

_SHOWN = 10
_READ_BYTES_S = 20e6
"""Slowest file system that a SIF is waited for on, bytes per second."""


@dataclass(frozen=True)
class Compared:
    """An image and the SIF that was made of it."""

    config: dict[str, Any]
    """The image's config."""
    sif: squashfs.Content
    differences: list[Difference]
    listed_in: Path
    """All differences of files, one a line."""

    @property
    def settings(self) -> dict[str, Any]:
        """How the image wants to be run."""
        return self.config.get("config") or {}


def compared(server: Server) -> Compared:
    """The image of ``server`` and its SIF; read once for each state of the SIF."""
    made = _provenance(server)
    if not made.key:
        raise NotApplicable(
            "the config names a SIF, made elsewhere: there is no image to compare it with; "
            "that the node runs this file is judged by image.on-node"
        )
    if not made.tree:
        reason = next((said for said in made.fallbacks if "were not listed" in said), "no list of its files was made")
        raise NotMeasured(f"the image can't be compared with the SIF: {reason}")
    state = Path(made.sif).stat()
    listed_in = server.placed.image.with_suffix(".differences.tsv")
    return _compared(made.tree, made.sif, listed_in, (state.st_ino, state.st_size, state.st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _compared(listing: str, image: str, listed_in: Path, _state: tuple[int, ...]) -> Compared:
    source = tree.load(Path(listing))
    held = squashfs.read(Path(image), frozenset({fidelity.RUNSCRIPT, fidelity.LABELS}))
    differences = fidelity.compare(source.tree, held.tree)
    write_atomically(listed_in, fidelity.table(differences))
    return Compared(source.config, held, differences, listed_in)


def _provenance(server: Server) -> Provenance:
    return documents.read(server.placed.image, Provenance)


def _finding(differences: Sequence[Difference], aspect: str, alike: str, listed_in: Path | None = None) -> Finding:
    """What ``differences`` amount to for ``aspect``; ``alike`` says what was compared."""
    wrong = fidelity.unexplained(differences, aspect)
    known = fidelity.summary(differences, aspect)
    if not wrong:
        return expect(True, alike + (f"; differences that conversion makes: {known}" if known else ""))
    more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    where = f"; all are in {listed_in}" if listed_in else ""
    return expect(False, f"{len(wrong)} differ. " + "; ".join(map(str, wrong[:_SHOWN])) + more + where)


def _of_files(server: Server, aspect: fidelity.Aspect, what: str) -> Finding:
    both = compared(server)
    return _finding(both.differences, aspect, f"{what} of {len(both.sif.tree)} names compared", both.listed_in)


@check(
    "image.on-node",
    "The image that the node runs is the one that was converted or loaded, byte for byte.",
    why="Apptainer runs a changed SIF without a word, and tags move: everything else would be said of another image.",
    todo="Find out who writes to the folder of the SIFs, or moved the tag; convert or load the image anew.",
    blames=Fault.INFRASTRUCTURE,
)
def on_node(server: Server) -> Finding:
    return _sif_on_node(server) if server.driver == "singularity" else _image_of_container(server)


def _sif_on_node(server: Server) -> Finding:
    made, placed = _provenance(server), server.placed
    script = _ON_NODE.format(file=quote(str(Path(made.sif).resolve())), allocation=quote(placed.allocation.id))
    seen = _on_the_node(server, script, timeout_s=30 + 2 * made.size_bytes / _READ_BYTES_S)
    file, held = (seen.get(key, "").removesuffix("-").strip() for key in ("file", "open"))
    saw = f"sha256 of the conversion {made.sha256}, of {made.sif} on the node {file or 'none: it can not be read'}"
    saw += _HELD.get(held, f"; the running server has another file open, with {held}")
    if file == made.sha256 and held in _UNKNOWN:
        if not placed.sandbox.verify_image:
            raise NotMeasured(saw)
        return expect(True, f"{saw}; its task compared it with the conversion before it began")
    if file == made.sha256 and held == "mounted" and placed.sandbox.job is not None and not _is_named(made, placed):
        # The kernel does not say for whom: sifproof's own job, beside it in the run, has the same image.
        raise NotMeasured(f"{saw}; but the job does not name that file, so it may be mounted for another")
    return expect(file == made.sha256 and held in {"same", "mounted", made.sha256}, saw)


# What holds the SIF of a container that runs. One that the kernel mounts, for root, no process has open.
_HELD = {
    "same": ", which the running server has open",
    "mounted": ", which the node's kernel has mounted",
    "replaced": "; the node's kernel has another file mounted, which was replaced by this one",
    "mountedreplaced": "; the node's kernel has it mounted, and one that it replaced: whose is which can't be told",
    "": "; which file the running server has open could not be seen",
}
_UNKNOWN = {"", "mountedreplaced"}


def _is_named(made: Provenance, placed: Placement) -> bool:
    """Whether the config's job names the SIF, by the path that the config has or by the one that it leads to."""
    task = task_of(placed.job)
    said = json.dumps([task.get("Config"), task.get("Env")], ensure_ascii=False)
    return any(json.dumps(path, ensure_ascii=False)[1:-1] in said for path in (made.sif, str(Path(made.sif).resolve())))


def _on_the_node(server: Server, script: str, timeout_s: float = 30.0) -> dict[str, str]:
    """What ``script`` prints on the node: the rest of each line by its first word."""
    try:
        said = server.placed.node.run(script, timeout_s=timeout_s)
    except SifproofError as error:
        raise NotMeasured(f"the node can't be asked: {error}") from None
    return dict(line.split(" ", 1) for line in said.splitlines() if " " in line)


_ON_NODE = """\
file=$(readlink -f {file}) && printf 'file %s\\n' "$(sha256sum < "$file")"
for environ in $(grep -lsaF -e {allocation} /proc/[0-9]*/environ); do
  for open in "${{environ%/environ}}"/fd/*; do
    case $(readlink "$open") in "$file" | "$file (deleted)")
      if [ "$open" -ef "$file" ]; then echo 'open same'; else printf 'open %s\\n' "$(sha256sum < "$open")"; fi
      exit 0;;
    esac
  done
done
mounted= replaced=
for backing in /sys/block/loop*/loop/backing_file; do
  case $(cat "$backing" 2>/dev/null) in
  "$file") mounted=mounted ;;
  "$file (deleted)") replaced=replaced ;;
  esac
done
[ -z "$mounted$replaced" ] || echo "open $mounted$replaced"
exit 0"""


def _image_of_container(server: Server) -> Finding:
    placed, loaded = server.placed, documents.read(server.placed.image, LoadedImage)
    docker = host_tools.find("docker")
    if docker is None or not placed.cluster.is_here(placed.settings.nomad):
        raise NotMeasured(
            "which image a container runs is asked of the Docker engine, and that of the node is not here"
        )
    containers = find_containers(placed.allocation.id, str(docker.path))
    if not containers:
        raise NotMeasured("the Docker engine of this machine has no container of the allocation")
    try:
        answer = capture("docker", "inspect", "--format", "{{.Image}}", containers[0].partition(" ")[0])
    except ToolFailure as failure:
        raise NotMeasured(
            f"the Docker engine does not tell which image the container runs: {failure.last_words}"
        ) from None
    running = answer.decode().strip()
    layers = daemon.inspect(running).layers
    same = "the same" if layers == loaded.layers else "not the same"
    return expect(
        running == loaded.id and layers == loaded.layers,
        f"the container runs {running}; {loaded.name} was loaded as {loaded.id}; "
        f"its {len(layers)} layers are {same} as the {len(loaded.layers)} of the source",
    )


@check(
    "image.files",
    "Every name of the image is in the SIF with the same type, and no other.",
    why="A file that is missing, or one too many, is found by the agent whose task needed it.",
    todo="Look at the directories that their owner can't read: an ordinary user's conversion drops what is in them.",
    drivers=("singularity",),
    once=True,
)
def files(server: Server) -> Finding:
    return _of_files(server, "files", "types")


@check(
    "image.content",
    "Every file of the SIF has the size and the sha256 that it has in the image.",
    why="A conversion by an ordinary user empties files that their owner may not read, and says nothing.",
    todo="Make the file readable to its owner in the image (`chmod u+r`), or convert as root.",
    drivers=("singularity",),
    once=True,
)
def content(server: Server) -> Finding:
    return _of_files(server, "content", "contents")


@check(
    "image.modes",
    "Every file of the SIF has the mode that it has in the image, with set-uid, set-gid and sticky.",
    why="A program that lost its execute bit does not start, a set-uid bit too many is a hole.",
    todo="Convert the image anew, with the versions that the provenance names.",
    drivers=("singularity",),
    once=True,
)
def modes(server: Server) -> Finding:
    return _of_files(server, "modes", "modes")


@check(
    "image.links",
    "Every symbolic link of the SIF leads where it leads in the image, and hard links are the same files.",
    why="An interpreter or a library is often found through a link.",
    todo="Convert the image anew, with the versions that the provenance names.",
    drivers=("singularity",),
    once=True,
)
def links(server: Server) -> Finding:
    return _of_files(server, "links", "links")


@check(
    "image.environment",
    "The running server finds every variable of the image's environment, with its value.",
    why="Apptainer hands values with quotes, dollars, backslashes or newlines on changed, or none of all at all.",
    todo="Take such characters, and names that stand there twice, out of the image's ENV; or set the variable in the "
    "sandbox's `environment`.",
    drivers=("singularity",),
)
def environment(server: Server) -> Finding:
    placed = server.placed
    given = compared(server).settings.get("Env") or []
    seen = _on_the_node(server, _ENVIRONMENT.format(allocation=quote(placed.allocation.id)))
    if not seen:
        raise NotMeasured("no process of the server's container could be read on the node")
    # What the config sets in their place is the config's matter.
    own = [entry for entry in given if entry.partition("=")[0] not in placed.sandbox.environment]
    return _finding(
        fidelity.compare_environment(own, seen), "environment", f"{len(own)} variables compared, by their checksums"
    )


# The container's first process is the one whose parent is outside. No value leaves the node but that of search paths.
_ENVIRONMENT = """\
inside() {{ grep -qsza -e ^APPTAINER_CONTAINER= -e ^SINGULARITY_CONTAINER= "$1"; }}
for environ in $(grep -lsaF -e {allocation} /proc/[0-9]*/environ); do
  inside "$environ" || continue
  parent=$(sed -n 's/^PPid:[^0-9]*//p' "${{environ%/environ}}/status")
  inside "/proc/$parent/environ" && continue
  xargs -0 -n 1 sh -c 'name=${{1%%=*}}; case $name in
    PATH | LD_LIBRARY_PATH) printf "%s\\n" "$name ${{1#*=}}";;
    *) printf "%s %.64s\\n" "$name" "$(printf %s "$1" | sha256sum)";;
  esac' sh < "$environ"
  exit 0
done
exit 0"""


@check(
    "image.workdir",
    "The SIF names the image's working directory, and it is there, as is the one that the sandbox starts in.",
    why="A server that starts elsewhere does not find its files; in a SIF nobody can make the directory later.",
    todo="Make the directory in the image: `WORKDIR` alone does not with every builder.",
    drivers=("singularity",),
    once=True,
)
def workdir(server: Server) -> Finding:
    both = compared(server)
    wanted = both.settings.get("WorkingDir") or ""
    named = _oci_config(server).get("WorkingDir") or ""
    start = server.placed.sandbox.workdir  # empty for a job of the config's
    missing = [path for path in dict.fromkeys([wanted, start]) if path and not _is_directory(both.sif.tree, path)]
    return expect(
        named == wanted and not missing,
        f"the image's is {wanted or 'not set'}, the SIF names {named or 'none'}"
        + (f", the sandbox starts in {start}" if start else "")
        + (f"; no directory in the SIF: {', '.join(missing)}" if missing else ""),
    )


def _is_directory(held: tree.Tree, path: str) -> bool:
    place = tree.find(held, path)
    return place is not None and held[place].kind == "directory"


def _oci_config(server: Server) -> dict[str, Any]:
    found = sif.read_oci_config(Path(_provenance(server).sif))
    if not found:
        raise NotMeasured("the SIF keeps no settings of the image; Apptainer does from version 1.2 on")
    return found


@check(
    "image.command",
    "What `apptainer run` would start is the image's entrypoint and command.",
    why="Whoever starts the SIF without the gate's command gets something else than the image's users do.",
    todo="Compare `ENTRYPOINT` and `CMD` of the image with `apptainer inspect --runscript`.",
    drivers=("singularity",),
    once=True,
)
def command(server: Server) -> Finding:
    both = compared(server)
    script = both.sif.kept.get(fidelity.RUNSCRIPT, b"").decode(errors="replace")
    found = fidelity.read_runscript(script)
    if found is None:
        raise NotMeasured("the SIF's runscript is not in the form that Apptainer gives it for an OCI image")
    wanted = {name: both.settings.get(name) or [] for name in found}
    kept = {name: _oci_config(server).get(name) or [] for name in found}
    return expect(found == wanted == kept, f"image: {wanted}; runscript: {found}; settings in the SIF: {kept}")


@check(
    "image.labels",
    "The labels of the image are those of the SIF.",
    why="They say what an image is, from which source and of which version.",
    todo="Look at `apptainer inspect --labels`; labels that begin with org.label-schema are Apptainer's own.",
    drivers=("singularity",),
    once=True,
)
def labels(server: Server) -> Finding:
    both = compared(server)
    given = both.settings.get("Labels") or {}
    try:
        held = json.loads(both.sif.kept.get(fidelity.LABELS, b"{}"))
    except ValueError:
        held = {}
    return _finding(fidelity.compare_labels(given, held), "labels", f"{len(given)} labels compared")


@check(
    "image.architecture",
    "SIF and file system are marked for the image's processor, and hold programs for it.",
    why="An image that is marked wrongly ends in `exec format error` on every node.",
    todo="Build the image for the processor that it is marked for: `docker build --platform`.",
    drivers=("singularity",),
    once=True,
)
def architecture(server: Server) -> Finding:
    both = compared(server)
    file = Path(_provenance(server).sif)
    marks = {
        "image": Platform.of(both.config).architecture,
        "SIF": sif.read_header(file).architecture,
        "file system": sif.read_file_system(file).architecture,
    }
    # What says nothing of itself is judged by what it holds; Apptainer marks a SIF by the machine that made it.
    named = set(filter(None, marks.values()))
    programs = both.sif.programs
    held = ", ".join(f"{number} for {name}" for name, number in programs.most_common()) or "none"
    return expect(
        len(named) <= 1 and (not programs or not named or bool(named & set(programs))),
        ", ".join(f"{what}: {mark or 'no mark'}" for what, mark in marks.items()) + f"; ELF programs: {held}",
    )

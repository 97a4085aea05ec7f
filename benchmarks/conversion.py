"""How much faster sifproof converts an image than a plain `apptainer build` of the same archive does.

    python benchmarks/conversion.py [--rounds N] [--archive IMAGE.tar] [--json FILE]

Both make a SIF of one Docker archive, in turn, each round anew: nothing is taken from a cache or a store. Without
--archive it makes one of about 220 MB: a small Debian with Python, the kind of image sandboxes are made of.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from sifproof import host_tools
from sifproof.errors import SifproofError
from sifproof.image.convert import convert
from sifproof.image.provenance import Provenance
from sifproof.image.source import parse

PACKAGES = "python3-minimal,python3-aiohttp,bubblewrap,bash,ca-certificates"


def main() -> int:
    """Measure, print, and return 0 where the ratio reaches the target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="Docker archive to convert")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--target", type=float, default=6.0, help="ratio to reach; exit status 1 below it")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sifproof-benchmark-") as folder:
        work = Path(folder)
        archive = options.archive or make_archive(work)
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} processors")
        print(f"{'round':>5}  {'plain':>8}  {'sifproof':>8}  {'ratio':>6}  {'load':>5}  steps of sifproof")
        plain, ours, steps = [], [], []
        for number in range(1, options.rounds + 1):
            plain.append(build_plainly(archive, work))
            begin = time.monotonic()
            made = build_our_way(archive, work)
            ours.append(time.monotonic() - begin)
            steps.append(made.seconds)
            each = ", ".join(f"{name} {s:.1f}" for name, s in made.seconds.items() if name != "total")
            print(
                f"{number:>5}  {plain[-1]:>6.1f} s  {ours[-1]:>6.1f} s  {plain[-1] / ours[-1]:>6.1f}"
                f"  {os.getloadavg()[0]:>5.1f}  {each}{'; ' if made.fallbacks else ''}{'; '.join(made.fallbacks)}",
                flush=True,
            )
        ratio = statistics.median(plain) / statistics.median(ours)
        print(f"median plain {statistics.median(plain):.1f} s, sifproof {statistics.median(ours):.1f} s: {ratio:.1f}×")
        if options.json:
            options.json.write_text(
                json.dumps({"plain_s": plain, "sifproof_s": ours, "steps_s": steps, "ratio": ratio}, indent=2) + "\n"
            )
    if ratio < options.target:
        print(f"below the target of {options.target:g}", file=sys.stderr)
        return 1
    return 0


def build_plainly(archive: Path, work: Path) -> float:
    """Seconds that `apptainer build` takes, told nothing more than what to build of what."""
    cache, made = work / "cache", work / "plain.sif"
    begin = time.monotonic()
    subprocess.run(
        [host_tools.require("apptainer").path, "--quiet", "build", made, f"docker-archive:{archive}"],
        env={**host_tools.environment("apptainer"), "APPTAINER_CACHEDIR": str(cache)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - begin
    made.unlink()
    shutil.rmtree(cache, ignore_errors=True)
    return seconds


def build_our_way(archive: Path, work: Path) -> Provenance:
    """Convert as the pipeline does, into an empty store."""
    made = convert(parse(f"docker-archive:{archive}"), work / "store", log=work / "log")
    shutil.rmtree(work / "store")
    return made


def make_archive(work: Path) -> Path:
    """A Docker archive, as `docker save` writes it, of one layer: a small Debian with Python."""
    print(f"making a Debian with {PACKAGES} …", flush=True)
    layer, archive = work / "layer.tar", work / "image.tar"
    subprocess.run(
        [
            host_tools.require("mmdebstrap").path,
            "--quiet",
            "--variant=minbase",
            f"--include={PACKAGES}",
            "bookworm",
            layer,
        ],
        env=host_tools.environment("mmdebstrap"),
        check=True,
    )
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    asked = ["dpkg", "--print-architecture"]
    architecture = subprocess.run(asked, capture_output=True, text=True, check=True, env=host_tools.environment())
    config = json.dumps(
        {
            "architecture": architecture.stdout.strip(),
            "os": "linux",
            "config": {"Cmd": ["bash"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    image = {"Config": "config.json", "RepoTags": ["benchmark:latest"], "Layers": ["layer.tar"]}
    with tarfile.open(archive, "w") as tar:
        for name, content in (("config.json", config), ("manifest.json", json.dumps([image]).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        tar.add(layer, "layer.tar")
    layer.unlink()
    return archive


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SifproofError as error:
        sys.exit(str(error))

"""Real conversions of small images, and what can go wrong with them."""

import contextlib
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import image_samples as samples
import pytest

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.image import convert as conversion
from sifproof.image import scratch, sif, tree
from sifproof.image.convert import convert
from sifproof.image.digest import SourceDigest, digest
from sifproof.image.provenance import ConversionSettings, Provenance
from sifproof.image.source import host_architecture, parse

SCRIPT = """
import sys
from pathlib import Path
from sifproof.image import convert
from sifproof.image.provenance import ConversionSettings
from sifproof.image.source import parse
source, store, settings, need = sys.argv[1:]
if need:
    convert.need_bytes = lambda *_: int(need)
settings = ConversionSettings.model_validate_json(settings)
print(convert.convert(parse(source), Path(store), settings, log=Path(store) / "log").model_dump_json())
"""


def command(source: str, store: Path, settings: ConversionSettings | None = None, need: str = "") -> list[str]:
    """A process of its own that converts ``source`` into ``store``."""
    return [
        sys.executable,
        "-c",
        SCRIPT,
        source,
        str(store),
        (settings or ConversionSettings()).model_dump_json(),
        need,
    ]


def in_namespace(*commands: str) -> list[str]:
    """Run what follows as root of a user namespace of its own, after the shell ``commands``; any user may."""
    script = " && ".join([*commands, 'exec "$@"'])
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]


def converted(process: subprocess.CompletedProcess[str]) -> Provenance:
    assert process.returncode == 0, process.stderr
    return Provenance.model_validate_json(process.stdout)


# Found before a test puts a mksquashfs of its own on PATH.
UNSQUASHFS = host_tools.require("mksquashfs").path.resolve().with_name("unsquashfs")


def files(sif: str, folder: Path) -> dict[str, str]:
    """Mode and target of each file in a SIF by name, as unsquashfs lists them."""
    environment = host_tools.environment()
    listed = subprocess.run(
        ["apptainer", "sif", "list", sif], env=environment, capture_output=True, text=True, check=True
    )
    (number,) = re.findall(r"^(\d+) .*\|FS \(Squashfs", listed.stdout, re.MULTILINE)
    squashfs = folder / "squashfs"
    with squashfs.open("wb") as stream:
        subprocess.run(["apptainer", "sif", "dump", number, sif], env=environment, stdout=stream, check=True)
    said = subprocess.run(
        [UNSQUASHFS, "-lln", squashfs],
        env=environment | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = re.findall(r"^(\S{10}) .*? squashfs-root/(.*?)(?: -> (.*))?$", said, re.MULTILINE)
    return {name: f"{mode} {target}".strip() for mode, name, target in rows}


def leftovers(*folders: Path) -> list[Path]:
    return [p for f in folders for p in f.glob("sifproof-build-*")]


@pytest.fixture
def memory(tmp_path):
    """A directory in place of /dev/shm, so that others' conversions are not in the way."""
    (tmp_path / "memory").mkdir()
    return tmp_path / "memory"


@pytest.fixture
def make(tmp_path, memory):
    """Convert in this process; stores and log lie in the test's folder."""

    def make(source: str, identity: SourceDigest | None = None, **settings) -> Provenance:
        how = ConversionSettings(**({"memory": memory} | settings))
        return convert(parse(source), tmp_path / "store", how, log=tmp_path / "log", identity=identity)

    return make


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Put a program of one's own in front of one of the tools; REAL in its text is the real one."""

    def put(name: str, text: str) -> None:
        folder = tmp_path / "path"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text.replace("REAL", shlex.quote(str(host_tools.require(name).path))))
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return put


def of_two_systems(path: Path, mark: str = "", *, deeper: int = 0, top: bool = False) -> Path:
    """The sample for Linux, and an image for Windows before it and after it."""
    linux = {"architecture": host_architecture(), "os": "linux"}
    windows = linux | {"os": "windows"}
    other = samples.image_of(path, "windows", windows) | {"platform": windows}
    entries = [other, samples.image_of(path, mark, linux) | {"platform": linux}]
    if top:
        name = {"annotations": {"org.opencontainers.image.ref.name": "1"}}
        return samples.layout_of(path, [entry | name for entry in entries])
    for _ in range(deeper):
        entries = [samples.index_of(path, entries)]
    return samples.layout_of(path, [samples.index_of(path, [*entries, other])])


SOURCES = {
    "docker-archive": lambda p: f"docker-archive:{samples.docker_archive(p / 'd.tar')}",
    "docker-archive, gzipped": lambda p: f"docker-archive:{samples.docker_archive(p / 'd.tgz', compression='gz')}",
    "docker-archive of two": lambda p: "docker-archive:{}:a:1".format(
        samples.docker_archive_of(p / "d.tar", {"b:1": samples.layers("b"), "registry.example/a:1": samples.layers()})
    ),
    "oci, raw": lambda p: f"oci:{samples.oci_layout(p / 'o')}",
    "oci, raw, named": lambda p: f"oci:{samples.oci_layout(p / 'o')}:latest",
    "oci, compressed": lambda p: f"oci:{samples.oci_layout(p / 'o', raw=False)}",
    "oci, one of two": lambda p: f"oci:{samples.oci_layout(p / 'o', tags=('a', 'b'))}:a",
    "oci, two processors": lambda p: f"oci:{samples.oci_layout(p / 'o', index=True)}",
    "oci, two systems": lambda p: f"oci:{of_two_systems(p / 'o')}",
    "oci, an index in indexes": lambda p: f"oci:{of_two_systems(p / 'o', deeper=3)}",
    "oci, platforms at the top": lambda p: f"oci:{of_two_systems(p / 'o', top=True)}:1",
    "oci-archive, two systems": lambda p: "oci-archive:{}".format(
        samples.oci_archive(p / "o.tar", of_two_systems(p / "o"))
    ),
    "oci-archive": lambda p: f"oci-archive:{samples.oci_archive(p / 'o.tar', samples.oci_layout(p / 'o'))}",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_each_kind_of_source_gives_the_same_files(kind, make, tmp_path, memory):
    made = make(SOURCES[kind](tmp_path))
    assert made.fallbacks == []
    assert made.worked_in == "memory"
    found = files(made.sif, tmp_path)
    assert found["bin/setuid"] == "-rwsr-xr-x"
    assert found["link"] == "lrwxrwxrwx etc/mark"
    assert {"grüße-日本.txt", samples.LONG, "app/empty", "app/data", "locked/inner"} <= set(found)
    assert "etc/gone" not in found
    assert not [name for name in found if ".wh." in name]
    assert leftovers(memory, tmp_path / "store") == []
    # Others convert at the same time.
    assert list(Path("/var/tmp").glob(f"sifproof-build-{scratch.owner()}-*")) == []


def test_provenance_tells_all_and_no_secret(make, tmp_path):
    made = make(f"docker-archive:{samples.docker_archive(tmp_path / 'd.tar')}")
    record = Path(made.sif).with_suffix(".json")
    assert Provenance.model_validate_json(record.read_text()) == made
    assert Path(made.sif).stat().st_size == made.size_bytes
    assert {"sifproof", "apptainer", "mksquashfs", "skopeo"} == set(made.versions)
    assert made.seconds["total"] >= made.seconds["copy"] + made.seconds["build"]
    assert made.image.cmd == ["--slots", "5"]
    assert made.labels["org.example.kind"] == "sample"
    assert any("zstd" in line for line in made.arguments)
    assert "s3cret" not in record.read_text() + (tmp_path / "log").read_text()


def test_gzip_is_taken_when_asked_for(make, tmp_path):
    made = make(SOURCES["oci, raw"](tmp_path), compression="gzip", level=1)
    squashfs = Path(files(made.sif, tmp_path) and tmp_path / "squashfs").read_bytes()
    assert int.from_bytes(squashfs[20:22], "little") == 1  # the superblock's word for gzip


def test_an_unchanged_image_is_not_converted_again_and_a_changed_one_is(make, tmp_path):
    archive = samples.docker_archive(tmp_path / "d.tar")
    first = make(f"docker-archive:{archive}")
    log = (tmp_path / "log").read_text()
    again = make(f"docker-archive:{archive}")
    elsewhere = make(f"docker-archive:{samples.docker_archive(tmp_path / 'copy.tar', compression='gz')}")
    assert (tmp_path / "log").read_text() == log
    assert again.reused
    assert elsewhere.reused
    assert first.sha256 == again.sha256 == elsewhere.sha256
    assert elsewhere.source.endswith("copy.tar")
    samples.docker_archive(archive, mark="changed")
    changed = make(f"docker-archive:{archive}")
    assert not changed.reused
    assert changed.key != first.key
    assert Path(first.sif).exists()


def test_a_changed_image_beside_an_unchanged_one_for_another_system_is_converted(make, tmp_path):
    source = f"oci:{of_two_systems(tmp_path / 'o', 'one')}"
    first = make(source)
    of_two_systems(tmp_path / "o", "two")
    second = make(source)
    assert not second.reused
    content = {made.key: tree.load(Path(made.tree)).tree["etc/mark"].sha256 for made in (first, second)}
    assert content[second.key] == hashlib.sha256(b"two").hexdigest() != content[first.key]


def test_a_spoilt_sif_in_the_store_is_converted_again_and_that_is_said(make, tmp_path):
    source = SOURCES["oci, raw"](tmp_path)
    first = make(source)
    content = bytearray(Path(first.sif).read_bytes())
    content[-1] ^= 1
    Path(first.sif).write_bytes(content)
    second = make(source)
    assert not second.reused
    assert "content is not what was stored" in second.fallbacks[0]
    assert make(source).reused


def test_a_sif_stays_where_it_is(make, tmp_path):
    made = make(SOURCES["oci, raw"](tmp_path))
    own = tmp_path / "own.sif"
    own.write_bytes(Path(made.sif).read_bytes())
    before = sorted((tmp_path / "store").glob("*"))
    found = make(str(own))
    assert found.sif == str(own)
    assert found.sha256 == made.sha256
    assert found.labels["org.example.kind"] == "sample"
    assert found.architecture == made.architecture
    assert sorted((tmp_path / "store").glob("*")) == before
    # `apptainer run` starts it: what renders the plain line of a job has to know.
    assert found.image.entrypoint == made.image.entrypoint == samples.CONFIG["Entrypoint"]


@pytest.mark.parametrize("told", [{}, {"Entrypoint": "one word"}, {"Entrypoint": [1], "Env": 7}, {"Labels": []}])
def test_a_sif_that_tells_nothing_or_nonsense_of_its_image(make, tmp_path, monkeypatch, told):
    made = make(SOURCES["oci, raw"](tmp_path))
    monkeypatch.setattr(sif, "read_oci_config", lambda _: told)
    found = make(made.sif).image
    # Its runscript tells too, where nothing else does.
    assert found.entrypoint == ([] if told else made.image.entrypoint)


def test_two_at_once_convert_once(make, tmp_path):
    source = SOURCES["docker-archive"](tmp_path)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(make, [source, source]))
    assert sorted(m.reused for m in made) == [False, True]
    assert made[0].sha256 == made[1].sha256
    assert (tmp_path / "log").read_text().count("$ apptainer") == 1


def test_two_machines_that_see_no_lock_of_each_other_end_with_one_sif(make, tmp_path, monkeypatch):
    """The one that is late takes that of the other, which may run by then."""
    monkeypatch.setattr(scratch, "is_locked", lambda _: False)
    monkeypatch.setattr(scratch, "lock", lambda _: contextlib.nullcontext(0))
    source = SOURCES["oci, raw"](tmp_path)
    build, other = conversion._Conversion._build, []

    def build_late(*arguments):
        monkeypatch.setattr(conversion._Conversion, "_build", build)
        other.append(make(source))
        build(*arguments)

    monkeypatch.setattr(conversion._Conversion, "_build", build_late)
    late = make(source)
    assert (other[0].reused, late.reused) == (False, True)
    assert late.sha256 == other[0].sha256 == hashlib.sha256(Path(late.sif).read_bytes()).hexdigest()
    assert make(source).reused
    assert leftovers(tmp_path / "store", tmp_path / "memory") == []


def test_damaged_layers_are_the_images_fault_and_nothing_is_lost(make, tmp_path):
    archive = samples.docker_archive(tmp_path / "d.tar")
    first = make(f"docker-archive:{archive}")
    Path(first.sif).write_bytes(b"spoilt")
    samples.docker_archive(archive, damage=True)
    with pytest.raises(SifproofError, match=r"is damaged: layer 1 of 2: it is sha256:") as raised:
        make(f"docker-archive:{archive}")
    assert raised.value.fault is Fault.IMAGE
    assert str(archive) in str(raised.value)
    assert Path(first.sif).read_bytes() == b"spoilt"
    assert leftovers(tmp_path / "store", tmp_path / "memory") == []


def with_others_packed(path: Path, form: str, pack: Callable[[bytes], bytes]) -> str:
    """The sample, its config as ever, but for the content of its packed layers; their digests are right."""
    path.mkdir()
    blobs, others = samples.layers(), [pack(layer) for layer in samples.layers("other")]
    assert blobs != samples.layers("other")
    if form == "docker-archive":
        text = samples.config(blobs)
        listed = [{"Config": "c.json", "Layers": ["0.tar", "1.tar"]}]
        files = {"c.json": text, "0.tar": others[0], "1.tar": others[1], "manifest.json": json.dumps(listed).encode()}
        with tarfile.open(path / "d.tar", "w") as tar:
            for name, content in files.items():
                (path / name).write_bytes(content)
                tar.add(path / name, name)
        return f"docker-archive:{path / 'd.tar'}"
    media = "application/vnd.oci.image.layer.v1.tar+gzip"
    listed = [samples._put(path, content, media) for content in others]
    config = samples._put(path, samples.config(blobs), "application/vnd.oci.image.config.v1+json")
    text = json.dumps({"schemaVersion": 2, "config": config, "layers": listed}).encode()
    return f"oci:{samples.layout_of(path, [samples._put(path, text, 'application/vnd.oci.image.manifest.v1+json')])}"


@pytest.mark.parametrize("form", ["docker-archive", "oci"])
def test_packed_layers_of_another_image_do_not_take_the_place_of_the_right_ones(make, tmp_path, form):
    lying = with_others_packed(tmp_path / "lying", form, gzip.compress)
    with pytest.raises(SifproofError, match="layer 1 is not the one that its config names") as raised:
        make(lying)
    assert (raised.value.fault, lying in str(raised.value)) == (Fault.IMAGE, True)
    # By its config it is the same image as this one.
    made = make(f"oci:{samples.oci_layout(tmp_path / 'right')}")
    assert (made.reused, made.fallbacks, bool(made.tree)) == (False, [], True)
    assert leftovers(tmp_path / "store", tmp_path / "memory") == []


# How a tool is started where the machine lacks something; and what is to be done about it.
LACKING = {
    "files": ("apptainer", "exec prlimit --nofile=7 REAL", "ulimit -n"),
    "memory": ("apptainer", "exec prlimit --as=400000000 REAL", "memory"),
    "passwd": ("apptainer", "exec unshare --user --map-user=54321 REAL", "passwd"),
    "a packer that is killed": ("mksquashfs", "kill -KILL $$; exec REAL", "see who killed it"),
    "a tool that is killed": ("apptainer", "kill -KILL $$; exec REAL", "see who killed it"),
    "file size": ("mksquashfs", "exec prlimit --fsize=4096 REAL", "the whole output"),
    "what nobody has heard of": (
        "apptainer",
        "echo 'FATAL:   the moon is in the wrong phase'; exit 255; :",
        "the whole",
    ),
    "what no packer said": ("mksquashfs", "echo 'no such luck' >&2; exit 1; :", "the whole output"),
}


@pytest.mark.parametrize("lacks", LACKING)
def test_what_the_machine_lacks_is_not_the_images_fault(make, tmp_path, on_path, lacks):
    name, line, todo = LACKING[lacks]
    on_path(name, f'#!/bin/bash\ncase $1 in *version) exec REAL "$@" ;; esac\n{line} "$@"\n')
    with pytest.raises(SifproofError) as raised:
        make(SOURCES["docker-archive"](tmp_path))
    assert raised.value.fault is Fault.INFRASTRUCTURE, raised.value
    assert todo in raised.value.todo, raised.value
    assert leftovers(tmp_path / "store", tmp_path / "memory") == []


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_that_changed_since_it_was_identified_is_not_stored(kind, make, tmp_path, monkeypatch):
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    text = SOURCES[kind](before)
    identity = digest(parse(text))
    layers = samples.layers
    monkeypatch.setattr(samples, "layers", lambda mark="": layers(f"changed{mark}"))
    SOURCES[kind](after)
    shutil.copytree(after, before, dirs_exist_ok=True)
    with pytest.raises(SifproofError, match="changed while it was fetched") as raised:
        make(text, identity=identity)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    assert list((tmp_path / "store").glob("[!.]*")) == []
    assert leftovers(tmp_path / "store", tmp_path / "memory") == []


def test_a_sif_that_changed_since_it_was_identified_is_refused(tmp_path):
    source = parse(str(samples.sif_header(tmp_path / "x.sif")))
    identity = digest(source)
    samples.sif_header(tmp_path / "x.sif", data=101)
    with pytest.raises(SifproofError, match="changed while it was fetched"):
        convert(source, tmp_path / "store", log=tmp_path / "log", identity=identity)


def test_a_step_that_hangs_is_stopped(make, tmp_path, on_path):
    on_path("mksquashfs", '#!/bin/sh\n[ "$1" = -version ] && exec REAL "$@"\nexec sleep 600\n')
    with pytest.raises(SifproofError, match="did not end in time") as raised:
        make(SOURCES["docker-archive"](tmp_path), timeout_s=0.5)
    assert raised.value.fault is Fault.INFRASTRUCTURE


def test_files_take_no_skopeo(make, tmp_path, monkeypatch):
    find = host_tools.find
    monkeypatch.setattr(host_tools, "find", lambda name: None if name == "skopeo" else find(name))
    made = make(SOURCES["docker-archive"](tmp_path))
    assert made.fallbacks == []
    assert "skopeo" not in made.versions
    assert "etc/mark" in files(made.sif, tmp_path)


def test_without_zstd_it_is_gzip(make, tmp_path, on_path):
    # What the real program says of a compressor that it lacks, said of zstd.
    on_path(
        "mksquashfs",
        '#!/bin/sh\ncase "$*" in *"-comp zstd"*)\n'
        "REAL /bin /dev/null -comp lacking 2>&1 | sed s/lacking/zstd/ >&2; exit 1;; esac\n"
        'exec REAL "$@"\n',
    )
    source = SOURCES["oci, raw"](tmp_path)
    made = make(source)
    assert made.fallbacks == ["compressed with gzip: mksquashfs knows no zstd"]
    assert "etc/mark" in files(made.sif, tmp_path)
    assert make(source).reused


def test_an_apptainer_that_cannot_be_told_how_compresses_as_it_does(make, tmp_path, on_path):
    # What the real program says of an option that it lacks, said of the one that came with 1.4.
    on_path(
        "apptainer",
        '#!/bin/sh\ncase "$*" in *"--mksquashfs-args"*)\n'
        "REAL build --no-such-option 2>&1 | sed s/--no-such-option/--mksquashfs-args/ >&2; exit 1;; esac\n"
        'exec REAL "$@"\n',
    )
    made = make(SOURCES["oci, raw"](tmp_path))
    assert made.fallbacks[0] == "compressed as Apptainer does by itself: before 1.4 it can't be told how"
    assert "etc/mark" in files(made.sif, tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "WARNING: no idea",
        "[]",
        "null",
        '{"data": null}',
        '{"data": {"attributes": []}}',
        '{"data": {"attributes": {}}}',
        '{"data": {"attributes": {"labels": null}}}',
        '{"data": {"attributes": {"labels": ["a"]}}}',
        r"\0377",
    ],
)
def test_labels_that_cannot_be_read_end_nothing(said, on_path, tmp_path):
    on_path("apptainer", f'#!/bin/sh\n[ "$1" = inspect ] || exec REAL "$@"\nprintf %b {shlex.quote(said)}\n')
    assert sif.read_labels(samples.sif_header(tmp_path / "x.sif")) == {}


def test_root_without_a_capability_builds_as_an_ordinary_user(tmp_path):
    root, without = os.geteuid() == 0, ["setpriv", "--bounding-set=-mknod"]
    blobs = [*samples.layers(), samples.layer({"dev": None, "dev/null|": b""})]
    archive = samples.docker_archive_of(tmp_path / "d.tar", {"x:1": blobs})
    made = converted(
        subprocess.run(
            [*(without if root else []), *command(f"docker-archive:{archive}", tmp_path / "store")],
            capture_output=True,
            text=True,
            check=False,
        )
    )
    assert [f for f in made.fallbacks if "user namespace" in f] == made.fallbacks
    assert len(made.fallbacks) == root  # others are ordinary users anyway
    assert "dev/null" in files(made.sif, tmp_path)


def test_a_tmpfs_that_is_too_small_is_not_taken(make, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion.scratch, "memory_available", lambda: 1000)
    made = make(SOURCES["oci, raw"](tmp_path))
    assert made.worked_in == "disk"
    assert "may need" in made.fallbacks[0]


def test_a_tmpfs_that_fills_up_makes_it_go_on_on_disk(tmp_path, memory):
    blobs = [*samples.layers(), samples.layer({"big": os.urandom(3_000_000)})]
    archive = samples.docker_archive_of(tmp_path / "d.tar", {"x:1": blobs})
    settings = ConversionSettings(memory=memory)
    made = converted(
        subprocess.run(
            [
                *in_namespace(f"mount -t tmpfs -o size=4m none {shlex.quote(str(memory))}"),
                *command(f"docker-archive:{archive}", tmp_path / "store", settings, need="1"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    )
    assert made.worked_in == "disk"
    assert made.fallbacks == [f"works on disk: {memory} was full, whatever it promised"]
    assert "big" in files(made.sif, tmp_path)


def test_a_full_disk_is_not_the_images_fault(tmp_path, memory):
    archive = samples.docker_archive_of(tmp_path / "d.tar", {"x:1": [samples.layer({"big": os.urandom(3_000_000)})]})
    script = command(f"docker-archive:{archive}", memory / "store", ConversionSettings(memory=None, tmpdir=str(memory)))
    script[2] = "from sifproof.errors import SifproofError\ntry:\n" + re.sub("(?m)^", "  ", SCRIPT)
    script[2] += "\nexcept SifproofError as error:\n  print(error.fault.value, error)\n"
    mount = f"mount -t tmpfs -o size=4m none {shlex.quote(str(memory))}"
    done = subprocess.run([*in_namespace(mount), *script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("infrastructure "), done.stdout + done.stderr
    assert "no space is left" in done.stdout
    assert str(memory) in done.stdout


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_interrupted_in_the_middle_leaves_nothing_half_and_the_next_call_succeeds(
    number, make, tmp_path, memory, on_path
):
    source = SOURCES["docker-archive"](tmp_path)
    os.mkfifo(tmp_path / "started")
    # The real apptainer waits for this one to end, for ever.
    on_path(
        "mksquashfs",
        f'#!/bin/sh\n[ "$1" = -version ] && exec REAL "$@"\necho $$ > {tmp_path}/started\nexec sleep 600\n',
    )
    process = subprocess.Popen(
        command(source, tmp_path / "store", ConversionSettings(memory=memory)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    (tmp_path / "started").read_text()  # opens when the other side does
    process.send_signal(number)
    assert process.wait(60) != 0
    assert list((tmp_path / "store").glob("*.sif")) == []
    if number != signal.SIGKILL:
        assert leftovers(memory, tmp_path / "store") == []
    (tmp_path / "path/mksquashfs").unlink()
    made = make(source)
    assert not made.reused
    assert Path(made.sif).exists()
    assert leftovers(memory, tmp_path / "store") == []


def test_as_an_ordinary_user(tmp_path, memory):
    """Root gives up its rights first; whoever is no root runs as himself, as in every other test here."""
    source = SOURCES["docker-archive"](tmp_path)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    store, result = tmp_path / "store", tmp_path / "result"
    store.mkdir()
    result.touch()
    for path in (store, memory, result):
        path.chmod(0o777)
    child = os.fork()
    if child == 0:  # forked, not started: the interpreter itself may lie where only root can read
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            os.environ |= {"HOME": str(store), "PATH": "/usr/local/bin:/usr/bin:/bin"}
            made = convert(parse(source), store, ConversionSettings(memory=memory), log=store / "log")
            result.write_text(made.model_dump_json())
        except BaseException as error:
            result.write_text(json.dumps({"error": "".join(traceback.format_exception(error))}))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    made = json.loads(result.read_text())
    assert "error" not in made, made
    assert made["fallbacks"] == []
    assert Path(made["sif"]).stat().st_uid != 0
    assert files(made["sif"], tmp_path)["bin/setuid"] == "-rwsr-xr-x"
    assert leftovers(memory, store) == []

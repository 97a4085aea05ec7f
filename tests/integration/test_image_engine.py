"""Images that come from a real Docker engine, and go into one."""

import subprocess
import uuid
from pathlib import Path

import image_samples as samples
import pytest

from sifproof import host_tools
from sifproof.errors import Fault, SifproofError
from sifproof.image import process
from sifproof.image.convert import convert
from sifproof.image.digest import digest
from sifproof.image.engine import engine_version, load_into_engine
from sifproof.image.source import parse, verify


def docker(*arguments: str) -> str:
    done = subprocess.run(
        ["docker", *arguments],
        env=host_tools.environment("docker"),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    return done.stdout.strip()


@pytest.fixture
def name(tmp_path):
    """The name of a fresh sample image in the engine; whatever bears it is removed."""
    assert engine_version(60), "these tests need a Docker engine: start one or set DOCKER_HOST"
    name = f"sample-{uuid.uuid4().hex[:8]}"
    archive = samples.docker_archive(tmp_path / "first.tar", tag=f"{name}:latest", mark=name)
    docker("load", "--input", str(archive))
    yield name
    tags = docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split()
    docker("image", "rm", "--force", *(t for t in tags if name in t))


def test_an_engines_image_is_converted_once_and_again_when_it_changes(name, tmp_path):
    source = parse(f"docker-daemon:{name}")
    verify(source)
    made = convert(source, tmp_path / "store", log=tmp_path / "log")
    assert made.fallbacks == []
    assert made.image.entrypoint == ["/bin/serve"]
    assert Path(made.sif).exists()
    assert convert(source, tmp_path / "store", log=tmp_path / "log").reused
    changed = samples.docker_archive(tmp_path / "second.tar", tag=f"{name}:latest", mark="changed" + name)
    docker("load", "--input", str(changed))
    assert not convert(source, tmp_path / "store", log=tmp_path / "log").reused


def test_what_was_identified_is_taken_though_its_name_has_moved_on(name, tmp_path):
    source = parse(f"docker-daemon:{name}")
    identity = digest(source)
    docker("load", "--input", str(samples.docker_archive(tmp_path / "second.tar", tag=f"{name}:latest", mark="second")))
    assert digest(source) != identity
    made = convert(source, tmp_path / "store", log=tmp_path / "log", identity=identity)
    assert made.digest == identity.digest
    other = convert(source, tmp_path / "store", log=tmp_path / "log")
    assert (other.reused, other.sha256 == made.sha256) == (False, False)
    loaded = load_into_engine(source, name, identity=identity)
    assert loaded.id == docker("image", "inspect", "--format", "{{.Id}}", loaded.name) == identity.digest


def test_an_archive_that_changed_is_not_loaded(name, tmp_path):
    source = parse(f"docker-archive:{tmp_path}/first.tar")
    identity = digest(source)
    samples.docker_archive(tmp_path / "first.tar", mark="second")
    with pytest.raises(SifproofError, match="changed while it was fetched") as raised:
        load_into_engine(source, name, identity=identity)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    assert not docker("image", "ls", "--quiet", f"sifproof/{name}")


def test_a_name_the_engine_does_not_have_gets_similar_ones(name):
    with pytest.raises(SifproofError, match=f"no such image; similar ones: .*{name}:latest") as raised:
        verify(parse(f"docker-daemon:{name[:-1]}"))
    assert raised.value.fault is Fault.CONFIGURATION


@pytest.mark.parametrize("kind", ["docker-archive", "oci", "oci-archive", "docker-daemon"])
def test_any_source_is_loaded_under_a_tag_of_its_own(kind, name, tmp_path):
    layout = samples.oci_layout(tmp_path / "layout", mark=name)
    location = {
        "docker-archive": tmp_path / "first.tar",
        "oci": layout,
        "oci-archive": samples.oci_archive(tmp_path / "o.tar", layout),
        "docker-daemon": name,
    }[kind]
    source = parse(f"{kind}:{location}")
    before = docker("image", "inspect", "--format", "{{.Id}}", name)
    log = tmp_path / "log"
    tag, number = load_into_engine(source, f"Box {name}", log=log)
    assert number == digest(source).digest
    assert tag == f"sifproof/box-{name}:{digest(source).digest[7:19]}"
    assert docker("image", "inspect", "--format", "{{json .Config.Entrypoint}}", tag) == '["/bin/serve"]'
    said = log.read_text()
    assert load_into_engine(source, f"Box {name}", log=log) == (tag, number)
    assert log.read_text() == said
    assert docker("image", "inspect", "--format", "{{.Id}}", name) == before


def test_an_engine_takes_no_sif(tmp_path):
    with pytest.raises(SifproofError, match="can't run") as raised:
        load_into_engine(parse(str(samples.sif_header(tmp_path / "x.sif"))), "box")
    assert raised.value.fault is Fault.CONFIGURATION


@pytest.mark.parametrize("kind", ["docker-archive", "docker-daemon"])
def test_a_tag_that_another_image_bears_is_not_trusted(kind, name, tmp_path):
    """The same layers, and another ENV: the tag is given to the image that was meant."""
    source = parse(f"docker-archive:{tmp_path}/first.tar" if kind == "docker-archive" else f"docker-daemon:{name}")
    tag, number = load_into_engine(source, name)
    layout = samples.oci_layout(tmp_path / "other", mark=name, settings=samples.CONFIG | {"Env": ["PATH=/bin", "B=1"]})
    other = load_into_engine(parse(f"oci:{layout}"), f"other-{name}")
    assert other.id != number
    docker("tag", other.id, tag)
    assert load_into_engine(source, name) == (tag, number)
    assert docker("image", "inspect", "--format", "{{.Id}}", tag) == number
    assert docker("image", "inspect", "--format", "{{.Id}}", other.name) == other.id


def test_a_tag_that_stays_with_another_image_is_told(name, tmp_path, monkeypatch):
    source = parse(f"docker-archive:{tmp_path}/first.tar")
    layout = samples.oci_layout(tmp_path / "other", mark=name, settings={"Entrypoint": ["/bin/other"]})
    other = load_into_engine(parse(f"oci:{layout}"), f"other-{name}")
    run = process.run

    def run_and_move(tool: str, arguments: list[str], **options) -> None:
        run(tool, arguments, **options)
        if arguments[0] == "load":
            docker("tag", other.id, f"sifproof/{name}:{digest(source).digest[7:19]}")

    monkeypatch.setattr(process, "run", run_and_move)
    with pytest.raises(SifproofError, match="has another image as") as raised:
        load_into_engine(source, name)
    assert raised.value.fault is Fault.INFRASTRUCTURE


def test_a_manifest_without_layers_is_the_images_fault_and_no_engine_takes_it(name, tmp_path):
    archive = samples.docker_archive(tmp_path / "none.tar", mark="none", lacks_layers=True)
    with pytest.raises(SifproofError, match="lists 0 layers, and its config names 2") as raised:
        load_into_engine(parse(f"docker-archive:{archive}"), name)
    assert raised.value.fault is Fault.IMAGE
    with pytest.raises(subprocess.CalledProcessError):
        docker("load", "--input", str(archive))


def test_damaged_layers_are_the_images_fault(name, tmp_path):
    archive = samples.docker_archive(tmp_path / "bad.tar", damage=True)
    with pytest.raises(SifproofError, match="is damaged") as raised:
        load_into_engine(parse(f"docker-archive:{archive}"), name)
    assert raised.value.fault is Fault.IMAGE


def test_where_no_engine_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert engine_version() is None
    with pytest.raises(SifproofError, match="No Docker engine answers, and docker-daemon:x:latest needs one") as raised:
        verify(parse("docker-daemon:x"))
    assert raised.value.fault is Fault.CONFIGURATION

"""What identifies an image, read straight from archives and layouts."""

import hashlib
import json
import os

import image_samples as samples
import pytest
from image_samples import (
    config,
    docker_archive,
    docker_archive_of,
    image_of,
    index_of,
    layers,
    layout_of,
    oci_archive,
    oci_layout,
    sif_header,
)

from sifproof.errors import Fault, SifproofError
from sifproof.image import daemon
from sifproof.image.digest import (
    ImageConfig,
    SourceDigest,
    by_digest,
    digest,
    file_digest,
    registry_error,
    require_unchanged,
)
from sifproof.image.platforms import Platform
from sifproof.image.process import ToolFailure
from sifproof.image.source import host_architecture, parse, verify

EXPECTED = "sha256:" + hashlib.sha256(config(layers())).hexdigest()


@pytest.fixture
def sample(tmp_path):
    layout = oci_layout(tmp_path / "layout")
    return {
        "docker-archive": f"docker-archive:{docker_archive(tmp_path / 'd.tar')}",
        "gzipped": f"docker-archive:{docker_archive(tmp_path / 'd.tar.gz', compression='gz')}",
        "oci": f"oci:{layout}",
        "compressed": f"oci:{oci_layout(tmp_path / 'compressed', raw=False)}",
        "index": f"oci:{oci_layout(tmp_path / 'index', index=True)}",
        "named": f"oci:{oci_layout(tmp_path / 'named', tags=('a', 'b'))}:a",
        "oci-archive": f"oci-archive:{oci_archive(tmp_path / 'o.tar', layout)}",
    }


@pytest.mark.parametrize("name", ["docker-archive", "gzipped", "oci", "compressed", "index", "named", "oci-archive"])
def test_one_image_has_one_digest_however_it_is_packed(sample, name):
    found = digest(parse(sample[name]))
    assert found.digest == EXPECTED
    assert len(found.layers) == 2
    assert found.raw_layers == (name != "compressed")
    assert found.config.entrypoint == ["/bin/serve"]
    assert found.config.ports == ["8080/tcp"]
    assert found.config.env_keys == ["PATH", "TOKEN"]
    assert "s3cret" not in found.model_dump_json()


@pytest.mark.parametrize("raw", [True, False])
def test_what_an_image_takes_and_which_manifest_it_has(tmp_path, raw):
    layout = oci_layout(tmp_path / "x", raw=raw)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    held = json.loads((layout / "blobs/sha256" / entry["digest"][7:]).read_text())["layers"]
    found = digest(parse(f"oci:{layout}"))
    assert found.manifest_digest == entry["digest"]
    assert found.layer_bytes == sum((layout / "blobs/sha256" / one["digest"][7:]).stat().st_size for one in held)
    assert found.raw_layers is raw


def test_another_content_has_another_digest(tmp_path):
    assert digest(parse(f"docker-archive:{docker_archive(tmp_path / 'x.tar', mark='new')}")).digest != EXPECTED


def test_an_archive_of_several_images_needs_a_name(tmp_path):
    docker_archive_of(tmp_path / "x.tar", {"one:1": layers(), "registry.example/library/two:latest": layers("2")})
    with pytest.raises(SifproofError, match=r"2 images \(one:1.*x\.tar:one:1"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar"))
    with pytest.raises(SifproofError, match="does not exist"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar:three"))
    assert digest(parse(f"docker-archive:{tmp_path}/x.tar:one:1")).digest == EXPECTED
    assert digest(parse(f"docker-archive:{tmp_path}/x.tar:@0")).digest == EXPECTED
    for name in ("two", "two:latest", "registry.example/two", "registry.example/library/two:latest"):
        assert digest(parse(f"docker-archive:{tmp_path}/x.tar:{name}")).digest != EXPECTED
    with pytest.raises(SifproofError, match="does not exist"):
        digest(parse(f"docker-archive:{tmp_path}/x.tar:other.example/two"))


def test_an_index_without_this_processor(tmp_path, monkeypatch):
    layout = oci_layout(tmp_path / "x", index=True)
    monkeypatch.setattr("sifproof.image.digest.host_architecture", lambda: "riscv64")
    with pytest.raises(SifproofError, match="not for linux/riscv64") as raised:
        digest(parse(f"oci:{layout}"))
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_damaged_config_is_refused(tmp_path):
    layout = oci_layout(tmp_path / "x")
    blob = layout / "blobs/sha256" / EXPECTED[7:]
    blob.write_bytes(blob.read_bytes().replace(b"s3cret", b"s4cret"))
    with pytest.raises(SifproofError, match="damaged"):
        digest(parse(f"oci:{layout}"))


@pytest.mark.parametrize(
    "marks", [{}, {"architecture": None, "os": None}, {"architecture": "", "os": ""}, {"architecture": 7}]
)
def test_what_an_image_does_not_say_speaks_against_nothing(tmp_path, marks):
    layout = layout_of(tmp_path, [image_of(tmp_path, says=marks)])
    found = digest(parse(f"oci:{layout}"))
    assert (found.architecture, found.os) == ("", "")
    verify(parse(f"oci:{layout}"))


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        ({"os": "windows", "architecture": host_architecture()}, f"made for windows/{host_architecture()}, and"),
        ({"os": "windows"}, "made for windows/"),
        ({"os": "linux", "architecture": "s390x"}, "made for linux/s390x, and"),
    ],
)
def test_an_image_of_its_own_for_another_platform(tmp_path, marks, said):
    layout = layout_of(tmp_path, [image_of(tmp_path, says=marks)])
    with pytest.raises(SifproofError, match=said) as raised:
        verify(parse(f"oci:{layout}"))
    assert raised.value.fault is Fault.CONFIGURATION


def test_who_names_a_variant_itself_may_have_it(tmp_path):
    layout = layout_of(tmp_path, [image_of(tmp_path, says={"architecture": host_architecture(), "variant": "v99"})])
    verify(parse(f"oci:{layout}"))
    index = layout_of(
        tmp_path, [index_of(tmp_path, [image_of(tmp_path, says={"variant": "v99", "architecture": "arm"})])]
    )
    with pytest.raises(SifproofError, match="made for linux/arm/v99, not for"):
        digest(parse(f"oci:{index}"))


def lacking(path):
    """The same image without layers, in each form of a file; the last lacks them only in the layout beside."""
    layout = layout_of(path / "one", [image_of(path / "one", lacks_layers=True)])
    beside = {str(f.relative_to(layout)): f.read_bytes() for f in layout.rglob("*") if f.is_file()}
    inner = path / "index"
    return {
        "oci": f"oci:{layout}",
        "oci, in an index": f"oci:{layout_of(inner, [index_of(inner, [image_of(inner, lacks_layers=True)])])}",
        "oci-archive": f"oci-archive:{oci_archive(path / 'o.tar', layout)}",
        "docker-archive": f"docker-archive:{docker_archive(path / 'd.tar', lacks_layers=True)}",
        "both in one": f"docker-archive:{docker_archive_of(path / 'b.tar', {'a:1': layers()}, beside=beside)}",
    }


@pytest.mark.parametrize("kind", ["oci", "oci, in an index", "oci-archive", "docker-archive", "both in one"])
def test_a_manifest_without_layers_is_the_images_fault_wherever_it_lies(tmp_path, kind):
    source = parse(lacking(tmp_path)[kind])
    with pytest.raises(
        SifproofError, match="is not whole: its manifest lists 0 layers, and its config names 2"
    ) as raised:
        digest(source)
    assert raised.value.fault is Fault.IMAGE
    verify(source)  # a verdict on the image is none on the config


def test_a_layout_beside_an_archive_that_agrees_is_fine(tmp_path):
    layout = layout_of(tmp_path, [image_of(tmp_path)])
    beside = {str(f.relative_to(layout)): f.read_bytes() for f in layout.rglob("*") if f.is_file()}
    archive = docker_archive_of(tmp_path / "b.tar", {"a:1": layers()}, beside=beside)
    assert digest(parse(f"docker-archive:{archive}")).digest == EXPECTED
    lost = {name: content for name, content in beside.items() if not name.startswith("blobs")}
    assert (
        digest(parse(f"docker-archive:{docker_archive_of(archive, {'a:1': layers()}, beside=lost)}")).digest == EXPECTED
    )


def test_an_artifact_is_no_image(tmp_path):
    layout = oci_layout(tmp_path / "x")
    (layout / "index.json").write_text(json.dumps({"manifests": [{"digest": "../../x"}]}))
    with pytest.raises(SifproofError, match="no digest"):
        digest(parse(f"oci:{layout}"))


def test_a_sif_is_known_by_its_bytes_and_remembered(tmp_path):
    path = sif_header(tmp_path / "x.sif")
    value = hashlib.sha256(path.read_bytes()).hexdigest()
    found = digest(parse(str(path)), tmp_path / "cache")
    assert found == SourceDigest(digest=f"sha256:{value}", architecture="amd64")
    assert (found.manifest_digest, found.os, found.layers, found.layer_bytes, found.raw_layers) == (
        "",
        "",
        [],
        0,
        False,
    )
    # Status times can't be set, only waited for or looked past.
    assert file_digest(path, tmp_path / "cache") == value


@pytest.fixture
def late(monkeypatch):
    """Let it be so many nanoseconds after a file's status last changed."""

    def let(path, after_ns):
        now = path.stat().st_ctime_ns + after_ns
        monkeypatch.setattr("sifproof.image.digest.time.time_ns", lambda: now)

    return let


def test_what_is_remembered_counts_only_for_the_same_file(tmp_path, late):
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"one")
    late(path, 10**10)
    first = file_digest(path, cache)
    (record,) = cache.iterdir()
    record.write_text(record.read_text().replace(first, "remembered"))
    assert file_digest(path, cache) == "remembered"
    times = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()
    for spoilt in ("no JSON", "{}", "[]", '{"identity": null}', "null"):
        record.write_text(spoilt)
        assert file_digest(path, cache) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("part", range(5))
def test_each_part_of_a_files_identity_counts(tmp_path, late, part):
    """Path, inode, size, and the times of content and of status: with another one nothing is remembered."""
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"one")
    late(path, 10**10)
    first = file_digest(path, cache)
    (record,) = cache.iterdir()
    kept = json.loads(record.read_text())
    status = path.stat()
    assert kept["identity"] == [
        str(path.resolve()), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    ]  # fmt: skip
    kept["identity"][part] = "another"
    record.write_text(json.dumps(kept | {"sha256": "remembered"}))
    assert file_digest(path, cache) == first
    assert json.loads(record.read_text())["identity"][part] != "another"


@pytest.mark.parametrize(("after_ns", "remembered"), [(0, 0), (10**9, 0), (10**9 + 1, 1)])
def test_a_file_that_is_too_young_is_not_remembered(tmp_path, late, after_ns, remembered):
    """Within the clock's grain it could change again and keep its times."""
    path, cache = tmp_path / "x", tmp_path / "cache"
    path.write_bytes(b"one")
    cache.mkdir()
    late(path, after_ns)
    file_digest(path, cache)
    assert len(list(cache.iterdir())) == remembered


def test_a_sif_that_is_remembered_is_not_read_again(tmp_path, late):
    path, cache = sif_header(tmp_path / "x.sif"), tmp_path / "cache"
    late(path, 10**10)
    source, value = parse(str(path)), digest(parse(str(path)), cache).digest.removeprefix("sha256:")
    (record,) = cache.iterdir()
    record.write_text(record.read_text().replace(value, "remembered"))
    known = digest(source, cache)
    assert known.digest == "sha256:remembered"
    require_unchanged(source, known, cache)
    with pytest.raises(SifproofError, match=f"{path} changed while it was fetched"):
        require_unchanged(source, known)


def test_two_files_are_remembered_apart_and_one_by_whatever_name(tmp_path, late):
    cache, paths = tmp_path / "cache", [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(path.name.encode())
        late(path, 10**10)
        assert file_digest(path, cache) == hashlib.sha256(path.name.encode()).hexdigest()
    assert len(list(cache.iterdir())) == 2
    (tmp_path / "link").symlink_to(paths[0])
    file_digest(tmp_path / "link", cache)
    assert len(list(cache.iterdir())) == 2
    assert [file_digest(path) for path in paths] == [file_digest(path, cache) for path in paths]


def test_what_is_still_the_same_image_has_not_changed(tmp_path):
    source = parse(f"docker-archive:{docker_archive(tmp_path / 'd.tar')}")
    identity = digest(source)
    docker_archive(tmp_path / "d.tar", compression="gz")
    require_unchanged(source, identity)
    docker_archive(tmp_path / "d.tar", mark="another")
    with pytest.raises(SifproofError, match=f"it was {EXPECTED} and is now sha256:") as raised:
        require_unchanged(source, identity)
    assert (raised.value.fault, raised.value.todo) == (Fault.INFRASTRUCTURE, "run again")
    (tmp_path / "d.tar").unlink()
    with pytest.raises(SifproofError, match=r"changed while .* is now none \(there is no such file") as raised:
        require_unchanged(source, identity)
    assert raised.value.fault is Fault.INFRASTRUCTURE


@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("why", ["", "the reason"])
def test_who_is_to_blame_for_an_image_that_can_not_be_looked_at_again(monkeypatch, fault, why):
    """That it is gone is a change; a registry that is silent, and an image that is broken, are what they are."""

    def refuse(*_):
        raise SifproofError("What happened", why=why, fault=fault)

    monkeypatch.setattr("sifproof.image.digest.digest", refuse)
    with pytest.raises(SifproofError) as raised:
        require_unchanged(parse("docker://box"), SourceDigest(digest="sha256:1", architecture=""))
    if fault is Fault.CONFIGURATION:
        assert raised.value.fault is Fault.INFRASTRUCTURE
        assert raised.value.why == "it was sha256:1 and is now none" + (f" ({why})" if why else "")
    else:
        assert (raised.value.fault, raised.value.what) == (fault, "What happened")


@pytest.mark.parametrize(
    ("said", "why", "fault"),
    [
        ("UNAUTHORIZED: x", "the registry refuses access", Fault.CONFIGURATION),
        ("authentication required", "the registry refuses access", Fault.CONFIGURATION),
        ("requested access to the resource is denied", "the registry refuses access", Fault.CONFIGURATION),
        ("invalid status code from registry 401; Status 401", "the registry refuses access", Fault.CONFIGURATION),
        ("Manifest Unknown", "the registry has no such image", Fault.CONFIGURATION),
        ("name unknown", "the registry has no such image", Fault.CONFIGURATION),
        ("404 Not Found", "the registry has no such image", Fault.CONFIGURATION),
        ("no image found in manifest list", "the registry has no such image", Fault.CONFIGURATION),
        ("error: connection refused", "error: connection refused", Fault.INFRASTRUCTURE),
        ("error: name resolution", "error: name resolution", Fault.INFRASTRUCTURE),
    ],
)
def test_what_a_registry_says(said, why, fault):
    error = registry_error(parse("docker://box"), ToolFailure("skopeo", 1, said))
    assert (error.why, error.fault) == (why, fault)
    assert "docker://box:latest" in error.what
    assert ("log in" in error.todo) == ("access" in why)
    assert ("tag" in error.todo) == ("no such" in why)
    assert ("network" in error.todo) == (fault is Fault.INFRASTRUCTURE)


@pytest.mark.parametrize(
    "name",
    ["host.example:5000/team/box", "host.example:5000/team/box:1", "host.example:5000/team/box:1@" + EXPECTED],
)
def test_an_image_is_asked_for_by_its_digest(name):
    called = by_digest(parse(f"docker://{name}"), "sha256:abc")
    assert called == "docker://host.example:5000/team/box@sha256:abc"
    assert by_digest(parse("docker://box:1"), "sha256:abc") == "docker://box@sha256:abc"


class Skopeo:
    """In the place of skopeo: what a registry has, by name and by digest, and what it was asked for."""

    def __init__(self, **tags):
        self.held = {f"box:{tag}": content for tag, content in tags.items()}
        self.configs = {}
        self.asked = []

    def put(self, content):
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        name = f"sha256:{hashlib.sha256(text).hexdigest()}"
        self.held[f"box@{name}"] = text
        return name

    def image(self, mark="", marks=None, sizes=(3, 4)):
        text = config(layers(mark), marks=marks)
        layer = [{"digest": "sha256:1"} | ({"size": size} if size else {}) for size in sizes]
        name = self.put({"config": {"digest": hashlib.sha256(text).hexdigest()}, "layers": layer})
        self.configs[f"box@{name}"] = text
        return name

    def __call__(self, *words, timeout_s):
        assert timeout_s > 0  # a registry that never answers is not waited for
        asked = {("skopeo", "inspect", "--raw"): self.held, ("skopeo", "inspect", "--config", "--raw"): self.configs}
        held = asked[words[:-1]]
        name = words[-1].removeprefix("docker://")
        self.asked.append(name)
        if name not in held:
            raise ToolFailure("skopeo", 1, "manifest unknown")
        return held[name]


@pytest.fixture
def skopeo(monkeypatch):
    found = Skopeo()
    monkeypatch.setattr("sifproof.image.digest.capture", found)
    monkeypatch.setattr("sifproof.host_tools.find", lambda name: name)
    return found


HERE = {"architecture": host_architecture(), "os": "linux"}
BOX = parse("docker://box:1")


def test_a_registrys_image_is_known_by_its_config(skopeo):
    name = skopeo.image(sizes=(7, 0))  # one whose size is not told
    skopeo.held["box:1"] = skopeo.held[f"box@{name}"]
    found = digest(BOX)
    assert (found.digest, found.manifest_digest, found.layer_bytes, found.raw_layers) == (EXPECTED, name, 7, False)
    assert skopeo.asked == ["box:1", f"box@{name}"]
    assert (found.architecture, found.os) == (host_architecture(), "linux")


def test_of_a_registrys_index_everything_goes_by_digest(skopeo):
    windows, linux = skopeo.image("w", {"os": "windows"}), skopeo.image()
    entries = [{"digest": windows, "platform": HERE | {"os": "windows"}}, {"digest": linux, "platform": HERE}]
    lost = {"digest": "sha256:" + 64 * "0"}
    inner = skopeo.put({"manifests": [lost, *entries]})
    skopeo.held["box:1"] = json.dumps({"manifests": [{"digest": inner}]}).encode()
    found = digest(BOX)
    assert (found.digest, found.manifest_digest) == (EXPECTED, linux)
    assert skopeo.asked[0] == "box:1"
    assert {"@" in name for name in skopeo.asked[1:]} == {True}


def test_what_a_registry_has_is_refused_with_the_name_of_the_image(skopeo):
    windows = skopeo.image("w", {"os": "windows"})
    entries = [{"digest": windows, "platform": HERE | {"os": "windows"}}]
    artifact = b'{"layers": []}'
    for held, said in (
        (json.dumps({"manifests": entries}).encode(), "docker://box:1 can't run here: it is made for windows"),
        (artifact, "docker://box:1 can't be read"),
        (b"<html>", "docker://box:1 can't be read"),
    ):
        skopeo.held["box:1"] = held
        skopeo.configs[f"box@sha256:{hashlib.sha256(artifact).hexdigest()}"] = b"{}"
        with pytest.raises(SifproofError, match=said) as raised:
            digest(BOX)
        assert raised.value.fault is Fault.CONFIGURATION
        assert raised.value.todo


def test_a_registry_that_gives_another_manifest_than_was_asked_for(skopeo):
    linux = skopeo.image()
    entry = {"digest": linux, "platform": HERE, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    skopeo.held["box:1"] = json.dumps({"manifests": [entry]}).encode()
    skopeo.held[f"box@{linux}"] += b" "
    with pytest.raises(SifproofError, match=f"content of {linux} is another") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.CONFIGURATION


@pytest.mark.parametrize(
    "held", [b"<html>", b"[]", b"null", b'{"manifests": [7]}', b'{"schemaVersion": 1, "fsLayers": []}']
)
def test_a_registry_that_has_something_else(skopeo, held):
    skopeo.held["box:1"] = held
    skopeo.configs[f"box@sha256:{hashlib.sha256(held).hexdigest()}"] = config(layers())
    with pytest.raises(SifproofError, match="no image of today's kinds") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_registry_that_has_nothing_or_is_silent(skopeo, monkeypatch):
    with pytest.raises(SifproofError, match=r"docker://box:1 can't be had.*no such image") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.CONFIGURATION

    def silent(*words, timeout_s):
        raise ToolFailure("skopeo", 1, "connection refused")

    monkeypatch.setattr("sifproof.image.digest.capture", silent)
    with pytest.raises(SifproofError, match="connection refused") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    skopeo.held["box:1"] = json.dumps({"manifests": [{"digest": "sha256:1"}]}).encode()
    one = iter([skopeo.held["box:1"]])
    monkeypatch.setattr(
        "sifproof.image.digest.capture", lambda *words, timeout_s: next(one, None) or silent(timeout_s=timeout_s)
    )
    with pytest.raises(SifproofError, match="connection refused") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.INFRASTRUCTURE


def test_layers_that_a_registrys_manifest_lacks(skopeo):
    name = skopeo.image(sizes=(3,))
    skopeo.held["box:1"] = skopeo.held[f"box@{name}"]
    with pytest.raises(SifproofError, match=r"docker://box:1 .*lists 1 layers, and its config names 2") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.IMAGE


def test_a_registry_takes_skopeo(monkeypatch):
    monkeypatch.setattr("sifproof.host_tools.find", lambda name: None if name == "skopeo" else name)
    with pytest.raises(SifproofError, match=r"docker://box:1.*`skopeo` is missing") as raised:
        digest(BOX)
    assert raised.value.fault is Fault.INFRASTRUCTURE
    assert "install skopeo" in raised.value.todo


def test_an_engines_image_is_known_as_the_engine_knows_it(monkeypatch):
    held = daemon.EngineImage(
        EXPECTED, Platform("linux", "arm64"), 12, {"Entrypoint": None, "Env": ["A=b"], "User": "me"}, ["sha256:1"]
    )
    monkeypatch.setattr("sifproof.image.daemon.inspect", {"box:1": held}.get)
    found = digest(parse("docker-daemon:box:1"))
    assert (found.digest, found.architecture, found.os) == (EXPECTED, "arm64", "linux")
    assert (found.layers, found.layer_bytes, found.raw_layers) == (["sha256:1"], 12, True)
    assert (found.config.entrypoint, found.config.env_keys, found.config.user) == ([], ["A"], "me")


def test_what_an_image_says_of_how_it_wants_to_be_run():
    said = {
        "Entrypoint": ["a"],
        "Cmd": ["b"],
        "Env": ["A=b=c"],
        "WorkingDir": "/w",
        "User": "u",
        "ExposedPorts": {"9/tcp": {}, "8/tcp": {}},
        "Labels": {"k": "v"},
    }
    found = ImageConfig.of(said)
    assert found == ImageConfig(
        entrypoint=["a"], cmd=["b"], env_keys=["A"], workdir="/w", user="u", ports=["8/tcp", "9/tcp"], labels={"k": "v"}
    )
    assert ImageConfig.of(dict.fromkeys(said)) == ImageConfig.of({}) == ImageConfig()


@pytest.mark.parametrize("text", [b"<xml>", b"[]", b"null", b"{}", b'{"rootfs": {}}', b'{"rootfs": {"diff_ids": 1}}'])
def test_what_is_no_config(tmp_path, text):
    blob = samples._put(tmp_path, text, "application/vnd.oci.image.config.v1+json")
    manifest = json.dumps({"config": blob, "layers": []}).encode()
    layout = layout_of(tmp_path, [samples._put(tmp_path, manifest, "application/vnd.oci.image.manifest.v1+json")])
    with pytest.raises(SifproofError, match=f"oci:{layout} can't be read.*what should be its config is none") as raised:
        digest(parse(f"oci:{layout}"))
    assert raised.value.fault is Fault.CONFIGURATION
    assert raised.value.todo

"""Images of a registry: a small one of our own that serves an OCI layout and asks for a password."""

import base64
import gzip
import json
import re
import shutil
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import image_samples as samples
import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.image import tree
from sifproof.image.convert import convert
from sifproof.image.digest import digest
from sifproof.image.process import capture
from sifproof.image.source import host_architecture, parse, verify

PASSWORD = "hunter2"


def log_in(folder: Path, host: str, password: str) -> None:
    """What `skopeo login` keeps."""
    word = base64.b64encode(f"me:{password}".encode()).decode()
    (folder / "login.json").write_text(json.dumps({"auths": {host: {"auth": word}}}))


LINUX = {"architecture": host_architecture(), "os": "linux"}
WINDOWS = LINUX | {"os": "windows"}


def systems(path: Path) -> Path:
    linux, windows = (samples.image_of(path, m, p) | {"platform": p} for m, p in (("", LINUX), ("windows", WINDOWS)))
    return samples.layout_of(path, [samples.index_of(path, [linux, windows])])


def nested(path: Path, *, says: bool = True) -> Path:
    one, other = samples.image_of(path), samples.image_of(path, "windows", WINDOWS)
    if says:
        one, other = one | {"platform": LINUX}, other | {"platform": WINDOWS}
    inner = samples.index_of(path, [samples.index_of(path, [other, one])])
    return samples.layout_of(path, [samples.index_of(path, [inner])])


def dockers(path: Path) -> Path:
    """A config as a Docker engine writes it: with members that OCI does not know, which a tool could leave out."""
    kind = "application/vnd.docker"
    text = json.dumps(json.loads(samples.config(samples.layers())) | {"docker_version": "20.10", "container": "x"})
    packed = [gzip.compress(layer, mtime=0) for layer in samples.layers()]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.distribution.manifest.v2+json",
        "config": samples._put(path, text.encode(), f"{kind}.container.image.v1+json"),
        "layers": [samples._put(path, layer, f"{kind}.image.rootfs.diff.tar.gzip") for layer in packed],
    }
    one = samples._put(path, json.dumps(manifest).encode(), manifest["mediaType"])
    media = f"{kind}.distribution.manifest.list.v2+json"
    listed = [one | {"platform": WINDOWS, "digest": "sha256:" + 64 * "0"}, one | {"platform": LINUX}]
    index = json.dumps({"schemaVersion": 2, "mediaType": media, "manifests": listed}).encode()
    return samples.layout_of(path, [samples._put(path, index, media)])


def lacking(path: Path) -> Path:
    return samples.layout_of(path, [samples.image_of(path, lacks_layers=True)])


MADE = {
    "systems": systems,
    "nested": nested,
    "silent": partial(nested, says=False),
    "docker": dockers,
    "lacking": lacking,
}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Host of a registry that has ``box:1`` and more of that image, for the user `me` alone.

    ``box:many`` is of two processors, ``box:systems`` of two systems, ``box:nested`` lies in indexes in indexes,
    ``box:silent`` too, and its entries say nothing; ``box:docker`` has Docker's types; ``box:lacking`` has no layers.
    """
    layouts = {"1": samples.oci_layout(tmp_path / "one", raw=False)}
    layouts["many"] = samples.oci_layout(tmp_path / "many", raw=False, index=True)
    layouts |= {name: make(tmp_path / name) for name, make in MADE.items()}
    expected = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != expected:
                return self.answer(401, {"errors": [{"code": "UNAUTHORIZED"}]}, {"WWW-Authenticate": 'Basic realm="r"'})
            if self.path == "/v2/":
                return self.answer(200, {})
            kind, name = self.path.removeprefix("/v2/box/").split("/")
            return self.serve(kind, name)

        do_HEAD = do_GET  # noqa: N815 (as http.server calls it)

        def serve(self, kind: str, name: str) -> None:
            if kind == "manifests" and name in layouts:
                name = json.loads((layouts[name] / "index.json").read_text())["manifests"][0]["digest"]
            for layout in layouts.values():
                blob = layout / "blobs/sha256" / name.removeprefix("sha256:")
                if blob.is_file():
                    content = blob.read_bytes()
                    media = json.loads(content)["mediaType"] if kind == "manifests" else "application/octet-stream"
                    return self.answer(200, content, {"Content-Type": media, "Docker-Content-Digest": name})
            return self.answer(404, {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]})

        def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for header, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host = f"127.0.0.1:{server.server_address[1]}"
    # TLS is what skopeo asks of every registry that is not named here.
    configuration = tmp_path / ".config/containers/registries.conf"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "login.json"))
    log_in(tmp_path, host, PASSWORD)
    Thread(target=server.serve_forever, daemon=True).start()
    yield host
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("tag", ["1", "many", "systems", "nested", "silent"])
def test_a_registrys_image_is_converted_with_the_same_digest_as_elsewhere(tag, registry, tmp_path):
    source = parse(f"docker://{registry}/box:{tag}")
    verify(source)
    found = digest(source)
    assert found.digest == digest(parse(f"oci:{tmp_path}/one")).digest
    assert found.layer_bytes > 0
    log = tmp_path / "log"
    made = convert(source, tmp_path / "store", log=log)
    assert made.fallbacks == []
    assert made.source == f"docker://{registry}/box:{tag}"
    assert made.manifest_digest == found.manifest_digest
    assert Path(made.sif).exists()
    assert PASSWORD not in log.read_text() + Path(made.sif).with_suffix(".json").read_text()
    assert convert(parse(f"oci:{tmp_path}/one"), tmp_path / "store", log=log).reused


def test_a_config_of_dockers_types_is_taken_as_it_is(registry, tmp_path):
    source = parse(f"docker://{registry}/box:docker")
    made = convert(source, tmp_path / "store", log=tmp_path / "log")
    assert made.fallbacks == []
    listing = tree.load(Path(made.tree))
    assert made.digest == digest(source).digest == samples._digest(json.dumps(listing.config).encode())
    assert listing.config["docker_version"] == "20.10"
    assert "etc/mark" in listing.tree


def test_a_manifest_without_layers_is_the_images_fault_here_too(registry):
    with pytest.raises(SifproofError, match="its manifest lists 0 layers, and its config names 2") as raised:
        digest(parse(f"docker://{registry}/box:lacking"))
    assert raised.value.fault is Fault.IMAGE


def test_what_is_told_of_a_variant_can_be_done(tmp_path):
    """No image is for every machine of this kind: with the real skopeo one of them is copied out, and taken."""
    marks = LINUX | {"variant": "v9" if LINUX["architecture"] != "arm" else "v99"}
    path = tmp_path / "x"
    entries = [samples.image_of(path, "", marks) | {"platform": marks}]
    entries += [samples.image_of(path, "windows", WINDOWS) | {"platform": WINDOWS}]
    layout = samples.layout_of(path, [samples.index_of(path, entries)])
    with pytest.raises(SifproofError, match="skopeo copy --override-variant") as raised:
        verify(parse(f"oci:{layout}"))
    words = re.search(r"`skopeo (copy) (--override-variant) (\S+)`", raised.value.todo).groups()
    capture("skopeo", words[1], words[2], "--insecure-policy", words[0], f"oci:{layout}", f"oci:{tmp_path}/y")
    verify(parse(f"oci:{tmp_path}/y"))
    assert convert(parse(f"oci:{tmp_path}/y"), tmp_path / "store", log=tmp_path / "log").fallbacks == []


def test_what_was_identified_is_taken_though_the_tag_has_moved_on(registry, tmp_path):
    source = parse(f"docker://{registry}/box:1")
    identity = digest(source)
    samples.oci_layout(tmp_path / "pushed", raw=False, mark="pushed")
    index = (tmp_path / "one/index.json").read_text()
    shutil.copytree(tmp_path / "pushed", tmp_path / "one", dirs_exist_ok=True)
    pushed = digest(source)
    assert pushed.digest != identity.digest
    made = convert(source, tmp_path / "store", log=tmp_path / "log", identity=identity)
    assert (made.digest, made.manifest_digest) == (identity.digest, identity.manifest_digest)
    (tmp_path / "one/index.json").write_text(index)
    assert convert(source, tmp_path / "store", log=tmp_path / "log").sha256 == made.sha256
    # By its digest, not as whatever the tag names now.
    again = convert(source, tmp_path / "store", log=tmp_path / "log", identity=pushed)
    assert again.sha256 != made.sha256


@pytest.mark.parametrize(
    ("name", "password", "said", "fault"),
    [
        ("HOST/box:2", PASSWORD, "no such image", Fault.CONFIGURATION),
        ("HOST/box:1", "wrong", "refuses access", Fault.CONFIGURATION),
        ("HOST/box:1", None, "refuses access", Fault.CONFIGURATION),
        ("127.0.0.1:1/box:1", None, "refused", Fault.INFRASTRUCTURE),
    ],
)
def test_what_a_registry_refuses(registry, tmp_path, *, name, password, said, fault):
    if password:
        log_in(tmp_path, registry, password)
    else:
        (tmp_path / "login.json").unlink()
    with pytest.raises(SifproofError, match=said) as raised:
        verify(parse("docker://" + name.replace("HOST", registry)))
    assert raised.value.fault is fault

"""Images of a registry: a small one of our own that serves an OCI layout and asks for a password."""

import base64
import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import image_samples as samples
import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.image.convert import convert
from sifproof.image.digest import digest
from sifproof.image.source import parse, verify

PASSWORD = "hunter2"


def log_in(folder: Path, host: str, password: str) -> None:
    """What `skopeo login` keeps."""
    word = base64.b64encode(f"me:{password}".encode()).decode()
    (folder / "login.json").write_text(json.dumps({"auths": {host: {"auth": word}}}))


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Host of a registry that has ``box:1`` and, of two processors, ``box:many``, for the user `me` alone."""
    layouts = {"1": samples.oci_layout(tmp_path / "one", raw=False)}
    layouts["many"] = samples.oci_layout(tmp_path / "many", raw=False, index=True)
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


@pytest.mark.parametrize("tag", ["1", "many"])
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

"""The config: what is accepted, and how what is not is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sifproof import config
from sifproof.errors import Fault, SifproofError

ROOT = Path(__file__).parents[2]


def settings(**top: Any) -> dict[str, Any]:
    mapping: dict[str, Any] = {"sandboxes": {"one": {"driver": "singularity"}, "two": {"driver": "docker"}}}
    return {**mapping, **top}


def refusal(mapping: dict[str, Any]) -> str:
    with pytest.raises(SifproofError) as caught:
        config.load(mapping)
    assert caught.value.fault is Fault.CONFIGURATION
    return str(caught.value)


def test_default_config_runs_both_drivers_on_the_reference_image() -> None:
    loaded = config.load(config.read(ROOT / "config/config.yaml"))
    chosen = loaded.selected()
    assert {s.driver for s in chosen.values()} == {"singularity", "docker"}
    assert {s.image for s in chosen.values()} == {config.REFERENCE}
    assert {s.slots for s in chosen.values()} == {5}
    assert chosen["singularity"].port == "auto"
    assert loaded.ordered_suites() == ["health", "bash", "files"]


def test_command_line_chooses_driver_and_sif() -> None:
    loaded = config.load(settings(driver="singularity", singularity_image="x.sif"))
    assert {name: s.image for name, s in loaded.selected().items()} == {"one": "x.sif"}


def test_image_of_the_command_line_counts_for_all_but_singularity_image_is_closer() -> None:
    loaded = config.load(settings(image="docker-archive:a.tar", singularity_image="x.sif"))
    assert {name: s.image for name, s in loaded.selected().items()} == {"one": "x.sif", "two": "docker-archive:a.tar"}


def test_a_driver_asked_for_by_name_is_not_optional() -> None:
    mapping = settings(driver="docker")
    mapping["sandboxes"]["two"]["optional"] = True
    assert config.load(mapping).selected()["two"].optional is False


@pytest.mark.parametrize("words", ["bash,files", "bash files", "bash, files", ["bash", "files"]])
def test_suites_may_come_as_one_word(words: object) -> None:
    assert config.load(settings(suites=words)).ordered_suites() == ["health", "bash", "files"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slot": 5}, ["sandboxes.one.slot = 5", "did you mean `slots`?"]),
        ({"slots": "5"}, ["sandboxes.one.slots = '5'", "integer"]),
        ({"slots": 0}, ["sandboxes.one.slots = 0", "greater than or equal to 1"]),
        ({"slots": True}, ["sandboxes.one.slots = True", "integer"]),
        ({"port": 65536}, ["sandboxes.one.port = 65536", "'auto'", "65535"]),
        ({"port": 0}, ["sandboxes.one.port = 0", "greater than or equal to 1"]),
        ({"port": "http"}, ["sandboxes.one.port = 'http'", "'auto'"]),
        ({"driver": "podman"}, ["sandboxes.one.driver = 'podman'", "'singularity' or 'docker'"]),
        ({"workdir": "app"}, ["sandboxes.one.workdir = 'app'"]),
        ({"binds": ["/a"]}, ["/a", "/on/the/node:/in/the/container"]),
        ({"command": []}, ["sandboxes.one.command = []"]),
        ({"memory": 1e400}, ["sandboxes.one.memory = inf"]),
    ],
)
def test_a_wrong_key_of_a_sandbox_is_named_with_its_value_and_what_is_allowed(
    change: dict[str, Any], said: list[str]
) -> None:
    mapping = settings()
    mapping["sandboxes"]["one"].update(change)
    text = refusal(mapping)
    for words in said:
        assert words in text


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({}, "sandboxes: is missing"),
        ({"sandboxes": {}}, "sandboxes = {}"),
        (settings(nomad={"lifetime": 3}), "did you mean `lifetime_s`?"),
        (settings(nomad={"address": "localhost:4646"}), "nomad.address = 'localhost:4646'"),
        (settings(nomad={"lifetime_s": -1}), "nomad.lifetime_s = -1"),
        (settings(suites=["health", "speed"]), "'speed': input should be 'health', 'image', 'bash', 'files'"),
        (settings(conversion={"compression": "gzip", "level": 19}), "conversion.level: 19"),
        (settings(colour="red"), "colour = 'red': no such key"),
        ({"sandboxes": {"Über": {"driver": "docker"}}}, "lower-case letters"),
        ({"sandboxes": {"two": {"driver": "docker"}}, "driver": "singularity"}, "no sandbox has driver 'singularity'"),
    ],
)
def test_other_wrong_keys(mapping: dict[str, Any], said: str) -> None:
    assert said in refusal(mapping)


@pytest.mark.parametrize("key", ["image", "singularity_image"])
def test_a_password_in_an_image_is_refused_and_not_shown(key: str) -> None:
    text = refusal(settings(**{key: "docker://me:hunter2@registry.example.org/box"}))
    assert "skopeo login" in text
    assert "hunter2" not in text


def test_a_digest_in_an_image_is_no_password() -> None:
    config.load(settings(image=f"docker://box:1@sha256:{'0' * 64}"))


def test_two_sandboxes_on_one_static_port_are_both_named() -> None:
    mapping = {"sandboxes": {name: {"driver": "singularity", "port": 9000} for name in ("a", "b")}}
    text = refusal(mapping)
    assert "sandboxes.b.port: 9000" in text
    assert "sandboxes.a too" in text


def test_the_same_number_is_no_clash_where_one_is_a_port_in_a_container() -> None:
    config.load({"sandboxes": {d: {"driver": d, "port": 9000} for d in ("singularity", "docker")}})


@pytest.mark.parametrize(("content", "said"), [("[1, 2", "is not YAML"), ("- a\n", "holds no mapping")])
def test_a_file_that_is_no_config(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(SifproofError, match=said):
        config.read(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SifproofError, match="can't be read: No such file"):
        config.read(tmp_path / "none.yaml")

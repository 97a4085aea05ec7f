"""The config: what is accepted, and how what is not is told."""

from __future__ import annotations

import datetime
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
    assert loaded.ordered_suites() == list(config.SUITES)


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
        (settings(nomad={"address": "localhost:4646"}), "nomad.address: a URL such as"),
        (settings(nomad={"lifetime_s": -1}), "nomad.lifetime_s = -1"),
        (settings(suites=["health", "speed"]), "'speed': input should be 'health', 'image', 'bash'"),
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


def sandboxes(tmp_path: Path, text: str) -> config.Origin:
    path = tmp_path / "mine.yaml"
    path.write_text(f"sandboxes:\n  one:\n    driver: docker\n{text}")
    return config.Origin([path])


def refused(origin: config.Origin) -> str:
    with pytest.raises(SifproofError) as caught:
        config.load(config.read(origin.files[-1]), origin)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "    waivers:\n      - check: bash.output\n        reason: so\n",
            ["mine.yaml, line 5: sandboxes.one.waivers.0.until: is missing: last day it counts, such as 2027-01-31"],
        ),
        ("    waivers: [{check: a, until: 2027-01-31}]\n", ["line 4: sandboxes.one.waivers.0.reason: is missing"]),
        ("    waivers: [{check: a, until: 2027-01-31, reason: ' '}]\n", ["line 4:", "says nothing"]),
        ("    waivers: [{check: a, reason: b, until: 20270131}]\n", ["line 4:", "'20270131' is no day", "2027-01-31"]),
        (
            "    waivers: [{check: a, reason: b, until: soon}]\n",
            ["line 4:", "'soon' is no day; write it as 2027-"],
        ),
        ("    waivers: [{check: a, reason: b, until: }]\n", ["line 4:", "'None' is no day"]),
        (
            "    waivers:\n      - check: a\n        reason: b\n        until: 2027-01-31 10:00:00\n",
            ["line 7:", "is no day; write it as 2027-01-31, without a time"],
        ),
        (
            "    waivers:\n      - check: a\n        reason: b\n        until: 2027-02-30\n",
            ["mine.yaml, line 7: '2027-02-30' is no day (day is out of range for month)"],
        ),
        *(
            (f"    waivers: [{{check: a, reason: b, until: '{day}'}}]\n", ["line 4:", "write it as 2027-01-31"])
            for day in ("2030-W01-1", "20300101")
        ),
        ("    waivers: [{check: a, raeson: b, until: 2027-01-31}]\n", ["did you mean `reason`?"]),
        (
            "    policy:\n      No: [bash.*]\n",
            ["line 5: sandboxes.one.policy.No: ", "allowed are required, advisory, off"],
        ),
        (
            "    policy:\n      on: [bash.*]\n",
            ["line 5: sandboxes.one.policy.on: ", "allowed are required, advisory, off"],
        ),
        ("    environment:\n      on: so\n", ["line 5: sandboxes.one.environment.on: ", "put it in quotes"]),
        (
            "    slots: 5\n    limits:\n      a.b: 1 s\n      a.c: 1 s\n      a.b: 2 s\n",
            ["mine.yaml, line 8: sandboxes.one.limits.a.b stands in line 6 too, and only one of them can count"],
        ),
        (
            "  two: {driver: docker}\n  one: {driver: singularity}\n",
            ["mine.yaml, line 5: sandboxes.one stands in line 2 too"],
        ),
        (
            "    policy:\n      off: [bash.*]\n      'off': [batch.*]\n      OFF: []\n",
            [
                "line 6: sandboxes.one.policy.off stands in line 5 too",
                "line 7: sandboxes.one.policy.OFF stands in line 5",
            ],
        ),
        ("    policy:\n      optional: [bash.*]\n", ["line 5:", "allowed are required, advisory, off"]),
        ("    policy:\n      off: bash.*\n", ["line 5: sandboxes.one.policy.off = 'bash.*'", "list"]),
    ],
)
def test_a_wrong_policy_waiver_or_limit_is_told_with_its_line(tmp_path: Path, text: str, said: list[str]) -> None:
    text = refused(sandboxes(tmp_path, text))
    for words in said:
        assert words in text


def test_off_needs_no_quotes(tmp_path: Path) -> None:
    origin = sandboxes(tmp_path, "    policy:\n      off: [bash.*]\n      required: [bash.output]\n")
    loaded = config.load(config.read(origin.files[0]), origin)
    assert loaded.sandboxes["one"].policy == config.Policy(off=["bash.*"], required=["bash.output"])


def test_a_key_beside_a_merged_mapping_is_no_second_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "sandboxes:\n  one: &one\n    driver: docker\n    slots: 5\n  two:\n    <<: *one\n    slots: 3\n  three: *one\n"
    )
    loaded = config.load(config.read(path))
    assert {name: sandbox.slots for name, sandbox in loaded.sandboxes.items()} == {"one": 5, "two": 3, "three": 5}


def test_a_policy_that_comes_as_a_mapping_is_told_the_words_too() -> None:
    mapping = settings()
    mapping["sandboxes"]["one"]["policy"] = {True: ["bash.*"]}
    assert "sandboxes.one.policy.on = ['bash.*']: no such key; " in refusal(mapping)
    assert "allowed are required, advisory, off" in refusal(mapping)


def test_texts_of_the_command_line_get_the_types_of_the_schema() -> None:
    """Within mappings and lists Snakemake hands over texts alone."""
    given = {
        "sandboxes": {
            "one": {"slots": "3", "port": "9000", "userns": "false", "environment": {"A": "3"}, "cpu": "much"}
        },
        "nomad": {"lifetime_s": "60.5"},
    }
    mapping = {"sandboxes": {"one": {"driver": "docker", "memory": "64", **given["sandboxes"]["one"]}}}
    mapping["nomad"] = {"namespace": "7", **given["nomad"]}
    config.retype(mapping, given)
    assert mapping == {
        # What a file gives as a text stays one, and so does what is wrong either way.
        "sandboxes": {
            "one": {
                "driver": "docker",
                "memory": "64",
                "slots": 3,
                "port": 9000,
                "userns": False,
                "environment": {"A": "3"},
                "cpu": "much",
            }
        },
        "nomad": {"namespace": "7", "lifetime_s": 60.5},
    }


@pytest.mark.parametrize("day", [datetime.date(2027, 1, 31), "2027-01-31"])
def test_a_day_may_come_from_a_file_or_from_the_command_line(day: object) -> None:
    mapping = settings()
    mapping["sandboxes"]["one"]["waivers"] = [{"check": "bash.output", "reason": "so", "until": day}]
    (waiver,) = config.load(mapping).sandboxes["one"].waivers
    assert waiver.until == datetime.date(2027, 1, 31)


def test_the_line_is_that_of_the_file_that_has_the_value(tmp_path: Path) -> None:
    first, last = tmp_path / "first.yaml", tmp_path / "last.yaml"
    first.write_text("driver: docker\nsandboxes:\n  one:\n    slots: 0\n")
    last.write_text("sandboxes:\n  one:\n    driver: docker\n")
    origin = config.Origin([first, last])
    assert origin.line_of(("sandboxes", "one", "slots")) == f"{first}, line 4: "
    assert origin.line_of(("sandboxes", "one", "driver")) == f"{last}, line 3: "
    # What is missing: where the mapping is that misses it, in the file that counts.
    assert origin.line_of(("sandboxes", "one", "nothing")) == f"{last}, line 2: "
    assert origin.line_of(("nothing",)) == ""


def test_what_the_command_line_gives_is_not_blamed_on_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("suites: [health]\nsandboxes:\n  one: {driver: docker, slots: 0}\n")
    origin = config.Origin([path], {"suites": "health,speed"})
    mapping = {**config.read(path), "suites": "health,speed"}
    with pytest.raises(SifproofError) as caught:
        config.load(mapping, origin)
    assert f"{path} and --config" in str(caught.value)
    assert "--config: suites.1 = 'speed'" in str(caught.value)
    assert f"{path}, line 3: sandboxes.one.slots = 0" in str(caught.value)

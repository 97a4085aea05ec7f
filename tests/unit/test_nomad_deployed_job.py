"""The job that production runs: what is found in it, what is set in it, and what stays as it is."""

import copy
import json
import re

import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.nomad import job_copy
from sifproof.nomad.deployed_job import Wanted, port_label_of, read, slots_in, task_of, under_test
from sifproof.nomad.job import create_sandbox_job

LINE = "apptainer run --bind ${NOMAD_ALLOC_DIR}/data:/data /sif/box.sif python server.py --port 18080 --slots 7"


def job(**changes):
    task = {"Name": "sandbox-server", "Driver": "raw_exec", "Config": {"command": "/bin/sh", "args": ["-c", LINE]}}
    group = {
        "Name": "sandbox",
        "Count": 12,
        "RestartPolicy": {"Attempts": 3},
        "Networks": [{"Mode": "host", "ReservedPorts": [{"Label": "api", "Value": 18080}]}],
        "Services": [{"Name": "sandboxes", "PortLabel": "api"}],
        "Tasks": [task],
    }
    whole = {"ID": "agents", "Name": "agents", "Type": "service", "Datacenters": ["hpc"], "Namespace": "agents"}
    return {**whole, "Constraints": None, "Meta": {"team": "agents"}, "TaskGroups": [group], **changes}


def under_the_gate(found, driver="singularity", **wanted):
    return under_test(found, Wanted(**wanted), driver=driver, job_id="sifproof-r-box", run="r", sandbox="box")


def test_all_but_its_identity_is_as_production_has_it():
    before = job()
    found = copy.deepcopy(before)
    made = under_the_gate(found)["Job"]
    assert found == before
    assert (made.pop("ID"), made.pop("Name"), made.pop("Stop")) == ("sifproof-r-box", "sifproof-r-box", False)
    meta = made.pop("Meta")
    assert meta["team"] == "agents"
    assert (meta["sifproof_run"], meta["sifproof_sandbox"]) == ("r", "box")
    (group,) = made["TaskGroups"]
    assert group.pop("Count") == 1
    assert group.pop("Services") == [{"Name": "sandboxes-sifproof-r-box", "PortLabel": "api"}]
    for gone in ("ID", "Name", "Meta", "Namespace"):
        before.pop(gone)
    before["TaskGroups"][0].pop("Count")
    before["TaskGroups"][0].pop("Services")
    before["TaskGroups"][0]["Tasks"][0]["Resources"] = {}
    assert made == before


@pytest.mark.parametrize("name", ["s" * 46, "s" * 49, "agents-of-the-team-" * 4, "-".join("x" * 40)])
def test_names_of_services_are_no_longer_than_nomad_takes(name):
    def named(job_id):
        found = job()
        found["TaskGroups"][0]["Services"][0]["Name"] = name
        made = under_test(found, Wanted(), driver="singularity", job_id=job_id, run="r", sandbox="box")
        return made["Job"]["TaskGroups"][0]["Services"][0]["Name"]

    one, other = named("sifproof-r-box-1"), named("sifproof-r-box-2")
    # As Nomad has it.
    assert all(re.fullmatch(r"(?i)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", made) for made in (one, other))
    assert len({one, other, name}) == 3


def test_a_name_that_nomad_fills_in_is_not_cut_in_the_middle():
    found = job()
    found["TaskGroups"][0]["Services"][0]["Name"] = name = "${NOMAD_JOB_NAME}-${attr.unique.hostname}-" + "s" * 20
    (service,) = under_the_gate(found)["Job"]["TaskGroups"][0]["Services"]
    assert service["Name"].startswith(f"{name}-")


def test_what_the_config_gives_is_set():
    only = [{"LTarget": "${node.class}", "Operand": "=", "RTarget": "test"}]
    made = under_the_gate(job(), count=3, port=20001, datacenter="dc1", constraints=only, cpu=100, memory=64)["Job"]
    (group,) = made["TaskGroups"]
    assert (group["Count"], made["Datacenters"], made["Constraints"]) == (3, ["dc1"], only)
    assert group["Networks"][0]["ReservedPorts"] == [{"Label": "api", "Value": 20001}]
    assert group["Tasks"][0]["Resources"] == {"CPU": 100, "MemoryMB": 64}


def test_port_and_task_are_found_and_marked():
    made = under_the_gate(job())
    assert port_label_of(made) == "api"
    assert task_of(made)["Name"] == "sandbox-server"


def test_port_and_task_are_named_where_several_may_be_meant():
    several = job()
    group = several["TaskGroups"][0]
    group["Networks"][0]["DynamicPorts"] = [{"Label": "metrics"}]
    group["Tasks"].insert(0, {"Name": "log", "Driver": "raw_exec", "Config": {}})
    with pytest.raises(SifproofError, match=r"its tasks are log, sandbox-server.*job_task"):
        under_the_gate(several)
    with pytest.raises(SifproofError, match=r"its ports are api, metrics.*job_port"):
        under_the_gate(several, task="sandbox-server")
    made = under_the_gate(several, task="sandbox-server", port_label="api")
    assert (task_of(made)["Name"], port_label_of(made)) == ("sandbox-server", "api")
    group["Tasks"][0]["Lifecycle"] = {"Hook": "prestart"}
    assert task_of(under_the_gate(several, port_label="api"))["Name"] == "sandbox-server"


def test_of_several_ports_http_is_the_servers():
    several = job()
    several["TaskGroups"][0]["Networks"][0]["DynamicPorts"] = [{"Label": "http"}]
    assert port_label_of(under_the_gate(several)) == "http"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Type": "system"}, "it is a system job"),
        ({"Periodic": {"Spec": "@daily"}}, "it is a periodic job"),
        ({"ParameterizedJob": {"Payload": ""}}, "it is a parameterized job"),
        ({"TaskGroups": [{"Name": "a"}, {"Name": "b"}]}, "it has the groups a, b"),
        ({"TaskGroups": [{"Name": "a", "Tasks": None}]}, "Name the one that is the server"),
    ],
)
def test_a_job_that_can_not_be_meant_is_refused(changes, words):
    with pytest.raises(SifproofError, match=words) as raised:
        under_the_gate(job(**changes))
    assert raised.value.fault is Fault.CONFIGURATION


def test_another_driver_is_refused():
    with pytest.raises(SifproofError, match="raw_exec, which is not that of a docker sandbox"):
        under_the_gate(job(), driver="docker")


@pytest.mark.parametrize("around", [lambda found: found, lambda found: {"Job": found}])
def test_json_is_read_without_nomad(tmp_path, around):
    path = tmp_path / "job.json"
    path.write_text(json.dumps(around(job())))
    assert read(path, None) == job()
    assert slots_in(path) == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"Job": ', "it is no JSON"),
        ('{"Job": []}', "it holds no job"),
        ('{"job": {"agents": {}}}', "it holds no job"),
        ("{" + " " * 2**20, "more than 1048576 bytes"),
    ],
)
def test_what_is_no_job_is_refused_in_words(tmp_path, text, words):
    path = tmp_path / "job.json"
    path.write_text(text)
    with pytest.raises(SifproofError, match=words) as raised:
        read(path, None)
    assert raised.value.fault is Fault.CONFIGURATION


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SifproofError, match="No such file"):
        slots_in(tmp_path / "none.hcl")


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ('args = ["-c", "server --slots 4 --port 1"]', 4),
        ('args = ["--slots", "12"]', 12),
        ("--slots=3", 3),
        ("--slots '3'", 3),
        ("--slots 3 # once --slots 3", 3),
    ],
)
def test_slots_are_found_in_the_text(tmp_path, text, slots):
    path = tmp_path / "job.hcl"
    path.write_text(text)
    assert slots_in(path) == slots


@pytest.mark.parametrize("text", ["--slots ${var.slots}", "", "--slots 3 --slots 4", "--slots 0"])
def test_slots_that_can_not_be_told_are_to_be_set(tmp_path, text):
    path = tmp_path / "job.hcl"
    path.write_text(text)
    with pytest.raises(SifproofError, match="Set `slots` of the sandbox"):
        slots_in(path)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-c", LINE], ["-c", LINE.replace("18080", "${NOMAD_PORT_api}")]),
        (["run", "x.sif", "--port", "18080"], ["run", "x.sif", "--port", "${NOMAD_PORT_api}"]),
        (["run", "x.sif", "--port=18080"], ["run", "x.sif", "--port=${NOMAD_PORT_api}"]),
        (["-c", "x --port $NOMAD_PORT_api"], ["-c", "x --port $NOMAD_PORT_api"]),
    ],
)
def test_a_twin_listens_on_a_port_of_its_own(words, named):
    found = job()
    found["TaskGroups"][0]["Tasks"][0]["Config"]["args"] = words
    made = job_copy.create_twin(under_the_gate(found), node_id="n", restarts=False)
    (group,) = made["Job"]["TaskGroups"]
    assert group["Tasks"][0]["Config"]["args"] == named
    assert group["Networks"][0]["DynamicPorts"] == [{"Label": "api"}]
    assert group["Networks"][0]["ReservedPorts"] == []
    assert group["RestartPolicy"]["Attempts"] == 0
    assert "Services" not in group


def test_a_port_that_can_not_be_changed_leaves_no_twin():
    found = job()
    found["TaskGroups"][0]["Tasks"][0]["Config"]["args"] = ["-c", "PORT=18080 /srv/start"]
    with pytest.raises(job_copy.NoTwinError, match="no `--port 18080`"):
        job_copy.create_twin(under_the_gate(found), node_id="n")


@pytest.mark.parametrize("name", ['"$NOMAD_PORT_api"', "$NOMAD_PORT_api", "${NOMAD_PORT_api}", '"${NOMAD_PORT_api}"'])
def test_a_twin_can_be_told_to_listen_where_another_does(name):
    found = job()
    found["TaskGroups"][0]["Tasks"][0]["Config"]["args"] = ["-c", f"serve --port {name} --slots 1"]
    made = job_copy.create_twin(under_the_gate(found), node_id="n")
    job_copy.listen_on(made, 4711)
    assert task_of(made)["Config"]["args"] == ["-c", "serve --port 4711 --slots 1"]


def test_a_docker_job_keeps_the_port_inside():
    found = job()
    (group,) = found["TaskGroups"]
    group["Tasks"][0].update(Driver="docker", Config={"image": "box:1", "ports": ["api"]})
    made = job_copy.create_twin(under_the_gate(found, driver="docker"), node_id="n")
    assert made["Job"]["TaskGroups"][0]["Networks"][0]["DynamicPorts"] == [{"Label": "api", "To": 18080}]


def test_the_plain_line_is_the_one_that_clusters_deploy():
    made = create_sandbox_job("a", "/x.sif", containment="plain", entrypoint=True, port=8080)
    line = " ".join(task_of(made)["Config"]["args"][-1].replace("\\\n", " ").split())
    assert line.endswith(
        'apptainer run --bind "$NOMAD_ALLOC_DIR/data:/data" --pwd /app /x.sif '
        '--port "$NOMAD_PORT_http" --slots 5 --data-dir /data'
    )
    assert not {"exec", "env", "--containall", "--cleanenv"} & set(line.split())
    assert "KillSignal" not in task_of(made)


def test_without_an_entrypoint_the_plain_line_names_the_command():
    made = create_sandbox_job("a", "/x.sif", containment="plain", command=["python", "a b.py"])
    assert "/x.sif python 'a b.py' \\" in task_of(made)["Config"]["args"][-1]

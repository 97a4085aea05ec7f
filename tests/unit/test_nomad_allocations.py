"""Address, port and times of an allocation, from answers as Nomad's API gives them."""

import pytest
from pydantic import ValidationError

from sifproof.nomad.allocations import get_job_allocations, parse_allocation, parse_ports
from sifproof.nomad.job import META_PORT, META_TASK

# The shape of /v1/allocation/:id of Nomad 1.11, cut to what is read.
RAW = {
    "ID": "0ba30273-ab51-b549-191a-8b1165f6c4b4",
    "Name": "sif-0.sandbox[0]",
    "JobID": "sif-0",
    "NodeID": "b5f93364",
    "NodeName": "node1",
    "TaskGroup": "sandbox",
    "ClientStatus": "running",
    "DesiredStatus": "run",
    "CreateTime": 1795462061371000000,
    "Job": {"TaskGroups": [{"Name": "sandbox", "Tasks": [{"Name": "server"}]}]},
    "AllocatedResources": {
        "Tasks": {"server": {"Networks": None}},
        "Shared": {
            "Networks": [{"IP": "192.0.2.1", "ReservedPorts": [{"Label": "http", "Value": 1, "To": 0}]}],
            "Ports": [{"Label": "http", "Value": 22732, "To": 0, "HostIP": "10.0.0.7"}],
        },
    },
    "TaskStates": {
        "server": {
            "Failed": False,
            "Events": [
                {"Type": "Received", "Time": 100, "DisplayMessage": "Task received by client", "Details": {}},
                {"Type": "Task Setup", "Time": 200, "DisplayMessage": "Building", "Details": None},
                {"Type": "Started", "Time": 300, "DisplayMessage": "Task started", "Details": {}},
            ],
        }
    },
}


def with_resources(**resources):
    return {**RAW, "AllocatedResources": resources}


def test_all_that_an_answer_says_is_taken_over():
    assert parse_allocation(RAW).model_dump() == {
        "id": "0ba30273-ab51-b549-191a-8b1165f6c4b4",
        "name": "sif-0.sandbox[0]",
        "job_id": "sif-0",
        "node_id": "b5f93364",
        "node_name": "node1",
        "task": "server",
        "address": "10.0.0.7",
        "port": 22732,
        "ports": {"http": 22732},
        "client_status": "running",
        "desired_status": "run",
        "failed": False,
        "events": (
            {"type": "Received", "time_ns": 100, "message": "Task received by client", "details": {}},
            {"type": "Task Setup", "time_ns": 200, "message": "Building", "details": {}},
            {"type": "Started", "time_ns": 300, "message": "Task started", "details": {}},
        ),
        "created_ns": 1795462061371000000,
    }


def test_a_job_s_marks_say_which_port_and_which_task_count():
    ports = [{"Label": label, "Value": n, "HostIP": f"10.0.0.{n}"} for n, label in enumerate(("http", "api", "x"), 1)]
    states = {name: {"Failed": name == "agent", "Events": []} for name in ("log", "agent")}
    groups = [{"Name": "sandbox", "Tasks": [{"Name": "log"}, {"Name": "agent"}]}]
    raw = {**with_resources(Shared={"Ports": ports}), "TaskStates": states}
    marks = {META_PORT: "api", META_TASK: "agent"}
    marked = parse_allocation({**raw, "Job": {"TaskGroups": groups, "Meta": marks}})
    assert (marked.url, marked.task, marked.failed) == ("http://10.0.0.2:2", "agent", True)
    plain = parse_allocation({**raw, "Job": {"TaskGroups": groups, "Meta": None}})
    assert (plain.url, plain.task, plain.failed) == ("http://10.0.0.1:1", "log", False)


@pytest.mark.parametrize(
    "shared",
    [
        {"Ports": [{"Label": "http", "Value": "8080"}]},
        {"Networks": [{"DynamicPorts": [{"Label": "http", "Value": "8080"}]}]},
    ],
)
def test_a_port_without_an_address_is_at_none(shared):
    assert parse_ports(with_resources(Shared=shared)) == {"http": ("", 8080)}


@pytest.mark.parametrize("group", [{"Name": "sandbox", "Tasks": None}, {"Name": "sandbox"}, {"Name": "other"}])
def test_a_group_that_names_no_task_leaves_it_to_the_states(group):
    assert parse_allocation({**RAW, "Job": {"TaskGroups": [group]}}).task == "server"
    untold = {**RAW, "Job": {"TaskGroups": [group]}, "TaskStates": {}}
    assert (parse_allocation(untold).task, parse_allocation(untold).events) == ("", ())


def test_a_task_that_has_not_begun_has_no_events():
    states = {"server": {"Failed": False, "Events": None}}
    assert parse_allocation({**RAW, "TaskStates": states}).events == ()
    event = {"Type": "Received", "Time": 1}
    (seen,) = parse_allocation({**RAW, "TaskStates": {"server": {"Events": [event]}}}).events
    assert (seen.message, seen.details) == ("", {})


def test_shared_ports_win_over_networks():
    allocation = parse_allocation(RAW)
    assert (allocation.address, allocation.port, allocation.ports) == ("10.0.0.7", 22732, {"http": 22732})
    assert allocation.url == "http://10.0.0.7:22732"


@pytest.mark.parametrize("kind", ["DynamicPorts", "ReservedPorts"])
@pytest.mark.parametrize("place", ["group", "task"])
def test_networks_are_the_fallback(kind, place):
    network = {"IP": "10.1.1.1", "DynamicPorts": None, "ReservedPorts": None, kind: [{"Label": "http", "Value": 9}]}
    if place == "group":
        raw = with_resources(Shared={"Ports": None, "Networks": [network]}, Tasks={"server": {"Networks": None}})
    else:
        raw = with_resources(Shared={"Ports": [], "Networks": None}, Tasks={"server": {"Networks": [network]}})
    assert parse_ports(raw) == {"http": ("10.1.1.1", 9)}
    assert parse_allocation(raw).url == "http://10.1.1.1:9"


@pytest.mark.parametrize("given", ["fd00::7", "[fd00::7]"])
def test_ipv6_is_bracketed_once_in_the_url(given):
    raw = with_resources(Shared={"Ports": [{"Label": "http", "Value": 8080, "HostIP": given}]})
    assert parse_allocation(raw).address == "fd00::7"
    assert parse_allocation(raw).url == "http://[fd00::7]:8080"


def test_the_port_labelled_http_counts_among_several():
    ports = [{"Label": "admin", "Value": 1, "HostIP": "10.0.0.1"}, {"Label": "http", "Value": 2, "HostIP": "10.0.0.2"}]
    allocation = parse_allocation(with_resources(Shared={"Ports": ports}))
    assert (allocation.address, allocation.port) == ("10.0.0.2", 2)
    assert allocation.ports == {"admin": 1, "http": 2}


def test_an_allocation_that_is_not_placed_has_no_port():
    allocation = parse_allocation({**RAW, "AllocatedResources": None, "TaskStates": None})
    assert (allocation.address, allocation.port, allocation.events) == ("", 0, ())


def test_times_are_those_of_the_first_event_of_a_kind():
    allocation = parse_allocation(RAW)
    assert [allocation.time_ns(e) for e in ("Received", "Task Setup", "Started", "Terminated")] == [100, 200, 300, None]


@pytest.mark.parametrize(
    ("status", "terminal"),
    [
        ("complete", True),
        ("failed", True),
        ("lost", True),
        ("running", False),
        ("pending", False),
        ("unknown", False),
        ("", False),
    ],
)
def test_what_has_ended_on_its_node(status, terminal):
    assert parse_allocation({**RAW, "ClientStatus": status}).terminal is terminal


def test_a_time_is_that_of_the_first_of_several():
    events = [{"Type": "Started", "Time": time, "Message": f"at {time}"} for time in (300, 200, 400)]
    allocation = parse_allocation({**RAW, "TaskStates": {"server": {"Failed": True, "Events": events}}})
    assert allocation.time_ns("Started") == 300
    assert [event.message for event in allocation.events] == ["at 300", "at 200", "at 400"]
    assert allocation.failed


def test_the_job_s_own_task_counts_not_a_sidecar():
    states = {name: {"Failed": name == "sidecar", "Events": []} for name in ("sidecar", "server")}
    groups = [
        {"Name": "sandbox", "Tasks": [{"Name": "server"}, {"Name": "sidecar"}]},
        {"Name": "other", "Tasks": [{"Name": "sidecar"}]},
    ]
    allocation = parse_allocation({**RAW, "TaskStates": states, "Job": {"TaskGroups": groups}})
    assert (allocation.task, allocation.failed) == ("server", False)
    # Without the job, the first of those that have a state.
    assert parse_allocation({**RAW, "TaskStates": states, "Job": None}).task == "sidecar"


def test_a_port_of_another_label_is_better_than_none_and_the_first_network_counts():
    networks = [
        {"IP": "10.0.0.1", "ReservedPorts": [{"Label": "web", "Value": 1}]},
        {"IP": "10.0.0.2", "ReservedPorts": [{"Label": "web", "Value": 2}]},
    ]
    raw = with_resources(Shared={"Ports": None, "Networks": networks[:1]}, Tasks={"t": {"Networks": networks[1:]}})
    assert parse_ports(raw) == {"web": ("10.0.0.1", 1)}
    assert parse_allocation(raw).url == "http://10.0.0.1:1"


def test_what_nomad_leaves_out_is_empty():
    allocation = parse_allocation({"ID": "a"})
    assert allocation.model_dump(exclude={"events"}) == {
        "id": "a",
        "name": "",
        "job_id": "",
        "node_id": "",
        "node_name": "",
        "task": "",
        "address": "",
        "port": 0,
        "ports": {},
        "client_status": "",
        "desired_status": "",
        "failed": False,
        "created_ns": 0,
    }


def test_the_words_of_an_event_and_its_details_are_text():
    event = {"Type": "Terminated", "Time": "7", "Message": "old", "DisplayMessage": "new", "Details": {"exit_code": 3}}
    (seen,) = parse_allocation({**RAW, "TaskStates": {"server": {"Events": [event]}}}).events
    assert (seen.message, seen.details, seen.time_ns) == ("new", {"exit_code": "3"}, 7)


def test_the_allocations_of_a_job_are_read_in_full_and_given_by_name():
    class Nomad:
        def get(self, *path):
            if path == ("job", "j", "allocations"):
                return [{"ID": "b"}, {"ID": "c"}, {"ID": "a"}]
            assert path[0] == "allocation"
            return {**RAW, "ID": path[1], "Name": "y" if path[1] == "c" else "z"}

    assert [(a.name, a.id) for a in get_job_allocations(Nomad(), "j")] == [("y", "c"), ("z", "a"), ("z", "b")]


def test_it_can_be_written_down_and_read_back():
    allocation = parse_allocation(RAW)
    assert type(allocation).model_validate_json(allocation.model_dump_json()) == allocation


def test_what_is_known_of_it_is_not_changed():
    allocation = parse_allocation(RAW)
    for known in (allocation, allocation.events[0]):
        with pytest.raises(ValidationError):
            known.message = known.id = "other"

"""Address, port and times of an allocation, from answers as Nomad's API gives them."""

import pytest

from sifproof.nomad.allocations import parse_allocation, parse_ports

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


def test_it_can_be_written_down_and_read_back():
    allocation = parse_allocation(RAW)
    assert type(allocation).model_validate_json(allocation.model_dump_json()) == allocation

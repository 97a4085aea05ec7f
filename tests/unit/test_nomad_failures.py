"""What Nomad knows about a failure becomes one sentence with what to do; shapes as Nomad 1.11 answers them."""

import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.nomad import submit
from sifproof.nomad.allocations import Allocation, Event
from sifproof.nomad.nodes import check_driver_available


class Recorded:
    """Answers as a cluster would; ``stderr`` is what the task wrote."""

    def __init__(self, stderr="", nodes=()):
        self.stderr, self.nodes = stderr, list(nodes)

    def get(self, *path, params=None):
        assert path == ("nodes",)
        return self.nodes

    def logs(self, allocation, task, stream, tail):
        assert (task, stream) == ("server", "stderr")
        return self.stderr


def node(name="n1", status="ready", eligible=True, drain=False, datacenter="dc1", **drivers):
    return {
        "ID": f"id-{name}",
        "Name": name,
        "Datacenter": datacenter,
        "Status": status,
        "SchedulingEligibility": "eligible" if eligible else "ineligible",
        "Drain": drain,
        "Drivers": drivers,
    }


HEALTHY = {"Detected": True, "Healthy": True, "HealthDescription": "Healthy"}
NO_ENGINE = {"Detected": False, "Healthy": False, "HealthDescription": "Failed to connect to docker daemon"}


def evaluation(**metric):
    return [{"ID": "e", "Status": "complete", "BlockedEval": "b", "FailedTGAllocs": {"sandbox": metric}}]


@pytest.mark.parametrize(
    ("metric", "says", "todo"),
    [
        (
            {"DimensionExhausted": {"network: reserved port collision http=8080": 1}},
            "1 node on which the static port 8080 is reserved by another allocation",
            "auto",
        ),
        ({"DimensionExhausted": {"memory": 2}}, "2 nodes with too little memory left", "less cpu or memory"),
        (
            {"ConstraintFiltered": {"missing drivers": 1}},
            "docker: Failed to connect to docker daemon",
            "enable the driver",
        ),
        (
            {"ConstraintFiltered": {"${attr.cpu.arch} = arm64": 1}},
            "do not meet '${attr.cpu.arch} = arm64'",
            "constraint",
        ),
        ({"QuotaExhausted": ["memory exhausted"]}, "quota", "quota"),
        ({"NodesAvailable": {"dc1": 0}, "NodesEvaluated": 0}, "0 in dc1; n1 in dc1 is ready", "datacenter"),
        ({"NodesAvailable": None}, "counted: none", "datacenter"),
    ],
)
def test_no_placement_is_told_at_once(metric, says, todo):
    client = Recorded(nodes=[node(docker=NO_ENGINE, raw_exec=HEALTHY)])
    with pytest.raises(SifproofError) as caught:
        submit.check_placed(client, "job", evaluation(**metric))
    assert says in str(caught.value)
    assert todo in caught.value.todo
    assert caught.value.fault is Fault.INFRASTRUCTURE


COLLISION = {"DimensionExhausted": {"network: reserved port collision http=8080": 1}}


@pytest.mark.parametrize(
    ("other", "says", "todo"),
    [
        (node("n2", drain=True), "n2, which is draining", "nomad node drain -disable id-n2"),
        (node("n2", eligible=False), "n2, which is not eligible", "nomad node eligibility -enable id-n2"),
        (node("n2", status="down"), "n2, which is down", "systemctl restart nomad"),
    ],
)
def test_a_node_that_takes_nothing_is_the_first_to_mend_where_the_others_are_full(other, says, todo):
    client = Recorded(nodes=[node("n1"), other, node("n3", status="down", datacenter="west")])
    for metric in (COLLISION, {"DimensionExhausted": {"memory": 1}}):
        with pytest.raises(SifproofError) as caught:
            submit.check_placed(client, "job", evaluation(NodesAvailable={"dc1": 1}, **metric))
        assert says in caught.value.why
        assert "n3" not in caught.value.why
        assert caught.value.todo.startswith(f"have n2 back (`{todo}")
    with pytest.raises(SifproofError) as caught:
        submit.check_placed(Recorded(nodes=[node("n1")]), "job", evaluation(**COLLISION))
    assert "places nothing" not in caught.value.why


@pytest.mark.parametrize(
    ("kinds", "after_ns", "ended"),
    [
        (["Started", "Terminated"], 0, True),
        (["Started", "Terminated"], 5, False),
        (["Started", "Restart Signaled", "Terminated", "Restarting", "Started"], 0, False),
        (["Started", "Killing", "Terminated", "Killed"], 0, False),
        (["Started", "Restart Signaled", "Terminated", "Restarting", "Started", "Terminated", "Restarting"], 0, True),
        (["Terminated", "Restarting", "Started"], 0, True),
        (["Received", "Task Setup", "Started"], 0, False),
    ],
)
def test_an_end_that_nobody_asked_for(kinds, after_ns, ended):
    seen = allocation(*((kind, "", {}) for kind in kinds), status="running")
    assert (submit.unplanned_end(seen, after_ns) is not None) is ended


def test_what_died_is_told_as_that_though_nomad_replaces_it():
    error = submit.failure_of(Recorded("Boom"), allocation(terminated(3), desired="stop"))
    assert "exit code 3" in str(error)
    error = submit.failure_of(
        Recorded(), allocation(("Killing", "", {}), terminated(0), status="complete", desired="stop")
    )
    assert "told to end" in str(error)


def test_coalesced_failures_are_counted():
    with pytest.raises(SifproofError, match="3 allocations"):
        submit.check_placed(Recorded(), "job", evaluation(CoalescedFailures=2, DimensionExhausted={"memory": 1}))


def allocation(*events, status="failed", desired="run", **changes):
    return Allocation(
        id="0ba30273-ab51",
        name="a",
        job_id="job",
        node_id="n",
        node_name="node1",
        task="server",
        address="",
        port=0,
        ports={},
        client_status=status,
        desired_status=desired,
        failed=status == "failed",
        events=[Event(type=t, time_ns=1, message=m, details=d) for t, m, d in events],
        created_ns=1,
        **changes,
    )


def terminated(code, signal=0, oom="false"):
    return (
        "Terminated",
        f"Exit Code: {code}",
        {"exit_code": str(code), "signal": str(signal), "oom_killed": oom},
    )


NOT_RESTARTING = ("Not Restarting", "Policy allows no restarts", {})


@pytest.mark.parametrize(
    ("events", "stderr", "says", "todo", "fault"),
    [
        (
            [terminated(1)],
            "Boom\nValueError: x",
            "exit code 1; its last words were: Boom | ValueError: x",
            "by hand",
            Fault.IMAGE,
        ),
        ([terminated(0)], "", "it wrote nothing to stderr", "by hand", Fault.IMAGE),
        ([terminated(0, signal=11)], "", "signal 11", "by hand", Fault.IMAGE),
        # Whoever sent it: no image kills its own server so.
        ([terminated(137)], "", "was killed, Nomad does not know by whom", "dmesg", Fault.INFRASTRUCTURE),
        ([terminated(0, signal=9)], "", "was killed, Nomad does not know by whom", "dmesg", Fault.INFRASTRUCTURE),
        ([terminated(134)], "", "exit code 134", "by hand", Fault.IMAGE),
        # What is left of a server whose image is mounted no more, seen where squashfuse_ll was killed.
        ([terminated(0, signal=7)], "", "signal 7", "squashfuse_ll", Fault.INFRASTRUCTURE),
        ([terminated(135)], "", "exit code 135", "squashfuse_ll", Fault.INFRASTRUCTURE),
        ([terminated(137, oom="true")], "", "memory", "raise memory", Fault.CONFIGURATION),
        ([terminated(124)], "", "lifetime", "lifetime_s", Fault.CONFIGURATION),
        (
            [terminated(1)],
            "OSError: [Errno 98] Address already in use",
            "Errno 98",
            "holds the port",
            Fault.INFRASTRUCTURE,
        ),
        (
            [terminated(127)],
            "timeout: failed to run command 'apptainer': No such file or directory",
            "exit code 127",
            "PATH",
            Fault.INFRASTRUCTURE,
        ),
        (
            [terminated(255)],
            "FATAL:   could not open image /x.sif: failed to retrieve path: lstat /x.sif: no such file or directory",
            "255",
            "shared file system",
            Fault.INFRASTRUCTURE,
        ),
        ([terminated(255)], 'FATAL:   "python9": executable file not found in $PATH', "255", "`command`", Fault.IMAGE),
        (
            [terminated(255)],
            "ERROR  : Requesting capability set 0x1ff while permitted capability set is 0x1fe",
            "255",
            "userns",
            Fault.INFRASTRUCTURE,
        ),
        (
            [("Driver Failure", "Failed to create container: Docker privileged mode is disabled", {}), NOT_RESTARTING],
            "",
            "could not start",
            "allow_privileged",
            Fault.INFRASTRUCTURE,
        ),
        (
            [("Driver Failure", "driver does not allow the following capabilities: sys_admin", {}), NOT_RESTARTING],
            "",
            "could not start",
            "allow_caps",
            Fault.INFRASTRUCTURE,
        ),
        ([("Driver Failure", "Failed to pull `x:latest`", {})], "", "Failed to pull", "latest", Fault.INFRASTRUCTURE),
        (
            [("Driver Failure", "Bind for 10.0.0.1:80: port is already allocated", {})],
            "",
            "80",
            "end it",
            Fault.INFRASTRUCTURE,
        ),
        ([("Setup Failure", "failed to setup alloc", {})], "", "could not set up", "log", Fault.INFRASTRUCTURE),
        (
            [("Driver Failure", 'runc create failed: exec: "x": executable file not found in $PATH', {})],
            "",
            "x",
            "`command`",
            Fault.IMAGE,
        ),
        (
            [("Driver Failure", "error while mounting volume: lstat /gone: no such file or directory", {})],
            "",
            "/gone",
            "log",
            Fault.INFRASTRUCTURE,
        ),
        (
            [("Driver Failure", 'exec: "/bin/sh": fork: resource temporarily unavailable', {})],
            "",
            "fork",
            "ulimit -u",
            Fault.INFRASTRUCTURE,
        ),
        ([("Failed Artifact Download", "404", {})], "", "could not download", "log", Fault.INFRASTRUCTURE),
        ([("Failed Validation", "bad", {})], "", "invalid", "log", Fault.INFRASTRUCTURE),
        ([], "", "no event", "log", Fault.INFRASTRUCTURE),
    ],
)
def test_a_task_that_ended_says_why_and_who_has_to_act(events, stderr, says, todo, fault):
    error = submit.failure_of(Recorded(stderr), allocation(*events))
    assert says in str(error)
    assert todo in error.todo
    assert error.fault is fault
    assert "allocation 0ba30273 of job job on node node1" in str(error)


def test_a_task_whose_words_can_not_be_read_is_not_blamed_on_the_image():
    class Gone(Recorded):
        def logs(self, *_):
            raise SifproofError("Unknown node")

    error = submit.failure_of(Gone(), allocation(terminated(1)))
    assert error.fault is Fault.INFRASTRUCTURE
    assert "exit code 1; its last words were: (not readable: Unknown node" in str(error)


def test_what_a_long_trace_begins_with_counts():
    trace = "runtime/cgo: pthread_create failed: Resource temporarily unavailable\nSIGABRT: abort\n" + "0x0: 0\n" * 900
    error = submit.failure_of(Recorded(trace), allocation(terminated(2)))
    assert (error.fault, "ulimit -u" in error.todo) == (Fault.INFRASTRUCTURE, True)


@pytest.mark.parametrize("status", ["lost", "unknown"])
def test_a_lost_node_is_told(status):
    error = submit.failure_of(Recorded(), allocation(status=status))
    assert "stopped answering" in str(error)
    assert error.fault is Fault.INFRASTRUCTURE


@pytest.mark.parametrize("status", ["pending", "running"])
def test_what_runs_is_no_failure(status):
    assert submit.failure_of(Recorded(), allocation(status=status)) is None


def test_only_the_last_lines_are_quoted():
    error = submit.failure_of(Recorded("\n".join(f"line {n}" for n in range(100))), allocation(terminated(1)))
    assert "line 99" in str(error)
    assert "line 50" not in str(error)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "nodes in: none"),
        ([node(datacenter="east", docker=HEALTHY)], "nodes in: east"),
        ([node(docker=NO_ENGINE)], "node n1 is ready, docker: Failed to connect to docker daemon"),
        ([node(raw_exec=HEALTHY)], "docker: not enabled"),
        ([node(eligible=False, docker=HEALTHY)], "node n1 is not eligible"),
        ([node(drain=True, docker=HEALTHY)], "node n1 is draining"),
        ([node(status="down", docker=HEALTHY)], "node n1 is down"),
    ],
)
def test_a_driver_that_no_node_has_is_told_with_each_node(nodes, says):
    with pytest.raises(SifproofError) as caught:
        check_driver_available(Recorded(nodes=nodes), "docker", "dc1")
    assert says in str(caught.value)


def test_one_able_node_will_do():
    nodes = [node("a", status="down", docker=HEALTHY), node("b", docker=NO_ENGINE), node("c", docker=HEALTHY)]
    (able,) = check_driver_available(Recorded(nodes=nodes), "docker", "dc1")
    assert able.name == "c"

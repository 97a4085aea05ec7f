"""What facts mean: recorded answers of machines of several kinds, and what is said of each."""

import ast
import fnmatch
import inspect
import json
import unicodedata

import pytest
from report_samples import ALLOCATION, fault, plan, planned, record, verdict, verdicts

from sifproof import config
from sifproof.checks.engine import registry
from sifproof.doctor import findings, look
from sifproof.doctor.facts import OK, parse
from sifproof.doctor.findings import Case, Finding, Image, judge, needs_userns
from sifproof.doctor.look import Questions
from sifproof.doctor.record import Doctor, Look
from sifproof.errors import SifproofError
from sifproof.nomad.cluster import Cluster
from sifproof.nomad.nodes import Driver
from sifproof.records import PlannedSandbox, write_atomically
from sifproof.report.decision import decide
from sifproof.report.recorded import read_run
from sifproof.report.terminal import closing_lines
from sifproof.report.write import write_reports
from sifproof.run import Run
from sifproof.workflow import deploy

# As look.sh printed it, run by Nomad as root in a virtual machine that keeps one capability back.
ROOT = """\
time=1795494357.511342928
user=root
uid=0
kernel=6.18.44
machine=x86_64
caps.permitted=000001fffeffffff
no-new-privileges=0
caps.last=40
userns.max=96365
fuse=ok
timeout=ok
userns.one=ok
userns.two=ok
cgroup.version=1
cgroup.controllers=blkio cgroup.procs cpu cpuacct cpuset devices freezer memory pids systemd unified
cgroup.writable=yes
alloc.path=/var/lib/nomad/alloc/d95fbb1e/alloc
alloc.free-kb=79573828
alloc.type=ext4
alloc.options=rw,relatime,discard
alloc.write=ok
alloc.exec=ok
tmp.path=/tmp
tmp.free-kb=79573828
tmp.type=ext4
tmp.options=rw,relatime
tmp.write=ok
tmp.exec=ok
shm.path=/dev/shm
shm.free-kb=24684084
shm.type=tmpfs
shm.options=rw,relatime
shm.write=ok
shm.exec=ok
program.0=apptainer
program.0.path=/usr/bin/apptainer
program.0.version=apptainer version 1.4.5
program.0.suid=no
program.0.plain=no: \x1b[91mERROR  : Requesting capability set 0x1ffffffffff while permitted capability set is \
0x1fffeffffff \x1b[0m
program.0.userns=ok
program.0.nested=ok
port.0=8080
image.0=ok
shared=ok
end=ok
"""

HEALTHY = {name: Driver(detected=True, healthy=True, description="") for name in ("raw_exec", "docker")}
SIF = "/shared/x.sif"


def settings(**sandbox: object) -> config.Settings:
    common = {"driver": "singularity", "image": SIF, "port": 8080}
    return config.load({"sandboxes": {"box": common | sandbox}})


def facts(**changes: str | None):
    """ROOT with lines changed: ``userns_one`` for ``userns.one``, None to leave it out."""
    new = {name.replace("__", "-").replace("_", "."): value for name, value in changes.items()}
    lines = [line for line in ROOT.splitlines() if line.partition("=")[0] not in new]
    return parse("\n".join([*lines, *(f"{name}={value}" for name, value in new.items() if value is not None)]))


def case(seen=None, sandbox: dict | None = None, **changes: object) -> Case:
    values = {
        "sandboxes": settings(**(sandbox or {})).selected(),
        "drivers": HEALTHY,
        "images": (Image(SIF, ("box",)),),
        "address": "10.0.0.7",
        "between": (1795494357.0, 1795494358.0),
    }
    return Case(facts() if seen is None else seen, **(values | changes))


def bad(one: Case) -> dict[str, str]:
    """Severity of each finding that is not fine; each says what, why, and what mends it."""
    wrong = [f for f in judge(one) if f.severity != "fine"]
    assert [f.id for f in wrong if not (f.what and f.why and f.mend)] == []
    return {f.id: f.severity for f in wrong}


def finding(one: Case, name: str) -> Finding:
    return next(f for f in judge(one) if f.id == name)


def test_a_good_machine_is_fine_and_says_what_was_looked_at():
    assert bad(case()) == {}
    assert {f.id for f in judge(case())} == {
        "driver.raw_exec", "user-namespaces", "apptainer", "capabilities", "fuse", "cgroups", "space.alloc",
        "noexec.alloc", "space.tmp", "noexec.tmp", "image", "shared", "port", "clock",
    }  # fmt: skip


def test_a_root_that_lacks_a_capability_gets_userns_and_is_told_which():
    assert needs_userns(facts(), "apptainer")
    assert "CAP_SYS_RESOURCE" in finding(case(), "capabilities").what
    assert "with --userns" in finding(case(), "apptainer").what
    refused = case(sandbox={"userns": False})
    assert bad(refused) == {"capabilities": "blocks"}
    assert finding(refused, "capabilities").explains("box", "", "FATAL: Requesting capability set 0x1")


def test_a_root_that_has_them_all_does_without():
    whole = facts(caps_permitted="000001ffffffffff", program_0_plain=OK)
    assert not needs_userns(whole, "apptainer")
    assert "capabilities" not in {f.id for f in judge(case(whole))}


def test_where_no_container_was_tried_capabilities_tell():
    assert needs_userns(facts(program_0_plain=None, program_0_userns=None), "apptainer")
    assert not needs_userns(facts(program_0_plain=None, uid="1000"), "apptainer")


LATE = "no: it did not end within 10 s"


@pytest.mark.parametrize(
    ("changes", "needed", "wrong"),
    [
        # What capabilities say holds where nothing contradicts them.
        ({"program_0_plain": LATE}, True, {}),
        ({"program_0_userns": LATE}, True, {"apptainer": "degrades"}),
        ({"program_0_plain": LATE, "program_0_userns": LATE}, True, {"apptainer": "degrades"}),
        ({"program_0_plain": LATE, "caps_permitted": "000001ffffffffff"}, False, {}),
        ({"program_0_plain": OK, "program_0_userns": LATE}, False, {}),
        ({"program_0_nested": LATE}, True, {}),
        ({"program_0_nested": LATE, "userns_two": LATE}, True, {"user-namespaces": "degrades"}),
        ({"userns_one": LATE, "userns_two": LATE}, True, {}),
        ({"program_0_nested": LATE, "userns_one": None, "userns_two": None}, True, {"user-namespaces": "degrades"}),
        ({"timeout": LATE}, True, {}),
        ({"alloc_exec": LATE, "tmp_exec": LATE}, True, {}),
    ],
)
def test_what_does_not_end_in_time_on_a_busy_machine_is_not_taken_for_a_no(changes, needed, wrong):
    seen = facts(**changes)
    assert needs_userns(seen, "apptainer") is needed
    assert bad(case(seen)) == wrong
    for name in wrong:
        assert "No user namespace" not in finding(case(seen), name).what


def test_a_plain_start_that_is_refused_is_certain_and_one_that_does_not_end_is_not():
    whole = {"caps_permitted": "000001ffffffffff"}
    assert needs_userns(facts(**whole, program_0_userns=LATE), "apptainer")
    assert not needs_userns(facts(**whole, program_0_userns="no: refused"), "apptainer")
    # The config asks for what was not seen to fail.
    assert bad(case(facts(**whole, program_0_plain=OK, program_0_userns=LATE), sandbox={"userns": True})) == {}


NO_NAMESPACES = {"program_0_plain": "no: FATAL: no namespace", "program_0_userns": "no: FATAL: no namespace",
                 "program_0_nested": None, "userns_one": "no: unshare failed", "userns_two": "no: unshare failed",
                 "uid": "1000"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"userns_apparmor": "1"}, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        ({"userns_max": "0"}, "sysctl -w user.max_user_namespaces="),
        ({}, "seccomp"),
    ],
)
def test_user_namespaces_that_are_forbidden_block_and_the_command_is_told(changes, said):
    one = case(facts(**NO_NAMESPACES, **changes))
    assert bad(one) == {"user-namespaces": "blocks", "apptainer": "blocks"}
    assert said in finding(one, "user-namespaces").mend


def test_a_set_uid_apptainer_runs_without_them_but_bubblewrap_does_not():
    changes = NO_NAMESPACES | {"program_0_plain": OK, "program_0_suid": "yes", "program_0_nested": "no: unshare failed"}
    one = case(facts(**changes))
    assert bad(one) == {"user-namespaces": "degrades"}
    assert finding(one, "user-namespaces").explains("box", "bubblewrap.available", "")


def test_a_second_level_that_is_forbidden_degrades():
    one = case(facts(userns_two="no: unshare failed", program_0_nested="no: unshare failed"))
    assert bad(one) == {"user-namespaces": "degrades"}
    assert "inside another" in finding(one, "user-namespaces").what


def test_where_one_inside_apptainer_was_tried_that_decides():
    one = case(facts(program_0_nested="no: unshare: Operation not permitted"))
    assert bad(one) == {"user-namespaces": "degrades"}
    assert "Operation not permitted" in finding(one, "user-namespaces").what
    # And the other way round.
    assert bad(case(facts(userns_two="no: unshare failed"))) == {}


def test_a_program_that_gets_no_namespace_inside_concerns_its_own_sandboxes():
    other = {"program_1": "singularity", "program_1_path": "/usr/bin/singularity", "program_1_userns": OK,
             "program_1_plain": OK, "program_1_version": "1.4.5", "program_1_nested": "no: refused"}  # fmt: skip
    both = config.load(
        {"sandboxes": {name: {"driver": "singularity", "image": SIF, "apptainer": name}
                       for name in ("apptainer", "singularity")}}
    )  # fmt: skip
    one = case(facts(**other), sandboxes=both.selected())
    assert bad(one) == {"user-namespaces": "degrades"}
    assert finding(one, "user-namespaces").sandboxes == ["singularity"]


@pytest.mark.parametrize("changes", [{"userns_apparmor": "1"}, {"userns_clone": "0"}])
def test_a_setting_for_ordinary_users_is_not_blamed_for_what_root_is_refused(changes):
    whole = {"uid": "0", "caps_permitted": "000001ffffffffff"}
    one = finding(case(facts(**NO_NAMESPACES | whole | changes)), "user-namespaces")
    assert "sysctl" not in one.mend
    assert "unshare failed" in one.what


def test_below_its_own_namespace_root_is_bound_by_what_binds_users():
    """unprivileged_userns_clone asks for a capability outside all namespaces."""
    changes = {"program_0_nested": "no: unshare failed", "userns_clone": "0", "userns_apparmor": "1"}
    one = case(facts(**changes, caps_permitted="000001ffffffffff", program_0_plain=OK))
    assert finding(one, "user-namespaces").mend == "sysctl -w kernel.unprivileged_userns_clone=1"


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"program_0_path": None}, {"apptainer": "blocks"}, "no program apptainer"),
        ({"program_0_version": "apptainer version 1.1.9"}, {"apptainer": "blocks"}, "is 1.1.9"),
        ({"program_0_version": "singularity version 3.8.7"}, {"apptainer": "blocks"}, "Singularity 3.8.7"),
        ({"program_0_version": None, "program_0_answer": "no: it did not end within 10 s"},
         {"apptainer": "blocks"}, "--version failed: it did not end"),
        ({"alloc_free__kb": None, "alloc_df": LATE}, {"space.alloc": "degrades"}, "not end"),
        ({"fuse": "no: cannot open /dev/fuse: Permission denied"}, {"fuse": "blocks"}, "by root"),
        ({"timeout": "no: unrecognized option"}, {"timeout": "blocks"}, "coreutils"),
        ({"cgroup_version": None}, {"cgroups": "degrades"}, "No control groups"),
        ({"cgroup_writable": None}, {"cgroups": "degrades"}, "can't be written by root"),
        ({"cgroup_controllers": "cpuset cpu io"}, {"cgroups": "degrades"}, "lack memory, pids"),
        ({"alloc_free__kb": "200000"}, {"space.alloc": "blocks"}, "195 MiB"),
        ({"alloc_free__kb": "900000"}, {"space.alloc": "degrades"}, "879 MiB"),
        ({"alloc_write": "no: Read-only file system"}, {"space.alloc": "blocks"}, "nothing can be written"),
        ({"alloc_exec": "no: Permission denied", "alloc_options": "rw,noexec"}, {"noexec.alloc": "degrades"}, "noexec"),
        ({"tmp_exec": "no: Permission denied"}, {"noexec.tmp": "degrades"}, "Permission denied"),
        ({"tmp_free__kb": "9", "shm_free__kb": "9"}, {"space.tmp": "degrades"}, "/dev/shm"),
        ({"tmp_free__kb": "9"}, {}, ""),
        ({"image_0": "no: dd: failed to open: Permission denied"}, {"image": "blocks"}, "Permission denied"),
        ({"end": None}, {"told": "degrades", }, "did not come to its end"),
        ({"time": "1795494363"}, {"clock": "degrades"}, "5.0 s ahead"),
        ({"time": "1795494350"}, {"clock": "degrades"}, "7.0 s behind"),
    ],
)  # fmt: skip
def test_each_thing_that_can_be_wrong_is_told(changes, expected, said):
    one = case(facts(**changes))
    assert bad(one) == expected
    for name in expected:
        assert said in finding(one, name).what


KERNEL = {"fuse": "no: No such file", "caps_permitted": "000001ffffffffff", "program_0_plain": OK}
SET_UID = KERNEL | {"uid": "1000", "caps_permitted": "0000000000000000", "program_0_suid": "yes"}


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        (KERNEL, False),
        (SET_UID, True),
        (SET_UID | {"program_0_squashfs": "iflimited"}, True),
        (SET_UID | {"program_0_squashfs": "no"}, True),
        (SET_UID | {"program_0_squashfs": "yes"}, False),
        (SET_UID | {"program_0_version": "singularity-ce version 4.1.0"}, False),
        (SET_UID | {"program_0_version": "singularity-ce version 4.1.0", "program_0_suid": "no"}, True),
    ],
)
def test_a_kernel_mount_needs_no_fuse(changes, needed):
    assert bad(case(facts(**changes))) == ({"fuse": "blocks"} if needed else {})
    # With --userns the kernel mounts for nobody.
    assert bad(case(facts(**changes), sandbox={"userns": True})) == {"fuse": "blocks"}


VERSION_2 = {"cgroup_version": "2", "cgroup_controllers": "cpuset cpu io memory pids",
             "cgroup_enabled": "cpuset cpu io memory pids"}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"cgroup_controllers": "blkio cpu freezer memory"}, "mount -t cgroup -o pids none /sys/fs/cgroup/pids"),
        (VERSION_2, ""),
        # What the kernel does not have can't be handed down.
        (VERSION_2 | {"cgroup_controllers": "cpu pids"}, "cgroup_enable=memory"),
        (VERSION_2 | {"cgroup_enabled": "cpu"}, "echo '+memory +pids' > /sys/fs/cgroup/cgroup.subtree_control"),
        (VERSION_2 | {"cgroup_enabled": ""}, "echo '+cpu +memory +pids'"),
    ],
)
def test_control_groups_are_mended_where_they_lack_something(changes, mend):
    one = case(facts(**changes), builds=False)
    assert bad(one) == ({"cgroups": "degrades"} if mend else {})
    told = finding(one, "cgroups").mend
    assert mend in told if mend else told == ""
    assert ("subtree_control" in told) is ("echo" in mend)


def test_an_agent_that_does_not_run_yet_has_asked_for_no_control_groups():
    assert bad(case(facts(**VERSION_2 | {"cgroup_enabled": ""}), builds=True)) == {}


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("dd: failed to open '/shared/x.sif': Permission denied", "chmod a+r /shared/x.sif"),
        ("dd: failed to open '/shared/x.sif': No such file or directory", "mount there what holds /shared"),
        ("dd: error reading '/shared/x.sif': Is a directory", "name a file"),
        ("it did not end within 10 s", "umount -l"),
    ],
)
def test_an_image_is_made_readable_by_what_the_reader_said(said, mend):
    assert mend in finding(case(facts(image_0=f"no: {said}")), "image").mend


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("mktemp: Read-only file system", "mount -o remount,rw"),
        ("mktemp: No space left on device", "nomad system gc"),
        ("mktemp: Permission denied", "chown root /var/lib/nomad"),
        ("it did not end within 10 s", "umount -l"),
    ],
)
def test_a_folder_is_made_writable_by_what_the_writer_said(said, mend):
    assert mend in finding(case(facts(alloc_write=f"no: {said}")), "space.alloc").mend


EVERYTHING_WRONG = {
    "fuse": "no: x", "timeout": "no: x", "cgroup_version": None, "alloc_free__kb": "1", "alloc_exec": "no: x",
    "image_0": "no: x", "port_0_held": "00000000 0 1 x", "time": "1", "program_0_nested": "no: x", "shared": "no: x",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "the server refused it: Connection refused",
        "Read timed out. (read timeout=5.0)",
        "Nomad namespace 'default' is unknown to node good",
        "the waiver expired on 2026-01-01",
        "no room for it: 1080800 bytes on disk; a report on every port",
        "a file system that is read-only: permission denied",
        "the sandbox of driver singularity: No such file or directory",
    ],
)
def test_no_finding_stands_beside_what_it_does_not_explain(text):
    for changes in (EVERYTHING_WRONG, NO_NAMESPACES, {"program_0_version": "apptainer version 1.1.9"}):
        for one in (case(facts(**changes)), case(facts(**changes), sandbox={"image": "reference", "port": "auto"})):
            assert [f.id for f in judge(one) if f.explains("box", "", text)] == []


@pytest.mark.parametrize(
    ("text", "explained"),
    [
        ("FATAL: squashfuse: fuse: failed to open /dev/fuse: Permission denied", "fuse"),
        ("timeout: unrecognized option '--foreground'", "timeout"),
        ("exit code 127: timeout: not found", "timeout"),
        ("OSError: [Errno 98] Address already in use", "port"),
        ("no answer at http://10.0.0.7:8080/health", "port"),
        ("FATAL: could not open image /shared/x.sif", "image"),
        ("1 node with too little disk left", "space.alloc"),
        ("x509: certificate has expired or is not yet valid", "clock"),
        ("bwrap: No permissions to create new namespace", "user-namespaces"),
        ("Failed to create user namespace: not allowed", "user-namespaces"),
    ],
)
def test_a_finding_stands_beside_what_it_explains(text, explained):
    assert explained in [f.id for f in judge(case(facts(**EVERYTHING_WRONG))) if f.explains("box", "", text)]


def test_a_shared_folder_matters_to_images_that_lie_there():
    unseen = facts(shared="no: No such file")
    assert bad(case(unseen)) == {}
    assert bad(case(unseen, sandbox={"image": "reference"})) == {"shared": "blocks"}


@pytest.mark.parametrize(
    ("said", "mend"),
    [
        ("head: cannot open '/home/x/results/images/.w' for reading: No such file or directory", "nodes share"),
        ("head: cannot open '/home/x/results/images/.w' for reading: Permission denied",
         "chmod -R a+rX /home/x/results/images && umask 022"),
    ],
)  # fmt: skip
def test_a_shared_folder_is_made_visible_by_what_the_reader_said(said, mend):
    one = case(facts(shared=f"no: {said}"), sandbox={"image": "reference"}, shared="/home/x/results/images/.w")
    assert mend in finding(one, "shared").mend


@pytest.mark.parametrize(
    ("changes", "builds", "mend"),
    [
        ({"uid": "1000"}, False, "Delegate=yes"),
        ({"uid": "1000"}, True, "sudo"),
        ({}, False, "mount -o remount,rw"),
    ],
)
def test_control_groups_are_made_writable_as_the_user_can(changes, builds, mend):
    one = case(facts(**changes, cgroup_writable=None, caps_permitted="000001ffffffffff"), builds=builds)
    assert "cgroups" in bad(one)
    assert mend in finding(one, "cgroups").mend


def test_a_finding_that_is_not_fine_is_never_made_without_why_and_mend():
    made = [
        {word.arg: word.value for word in call.keywords}
        for module in (findings, look)
        for call in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding"
    ]
    wrong = [words for words in made if getattr(words["severity"], "value", "") != "fine"]
    assert len(wrong) > 20
    assert [ast.unparse(words["what"]) for words in wrong if not {"why", "mend"} <= words.keys()] == []


def test_a_cluster_that_cannot_be_looked_at_is_told_with_why_and_mend(tmp_path):
    def nowhere():
        raise SifproofError("Nomad has a cold")

    class Broken:
        def connect(self, _):
            raise ZeroDivisionError

    seen = [
        *look.cluster(nowhere, settings(), run="r", images=None),
        *look.nodes_of(Broken(), settings(), Run("r", tmp_path)),
    ]
    assert [(f.severity, bool(f.why and f.mend)) for one in seen for f in one.findings] == [
        ("blocks", True),
        ("degrades", True),
    ]


@pytest.mark.parametrize(
    ("held", "taken"),
    [
        ("00000000 0 4711 python3 -m http.server", True),
        ("0700000A 1000 ?", True),
        ("0100007F 0 12 sshd", False),
        ("00000000000000000000000000000000 0 12 sshd", True),
        ("0000000000000000FFFF00000700000A 0 12 sshd", True),
        ("00000000000000000000000001000000 0 12 sshd", False),
        ("", False),
        ("nonsense", False),
        ("zzzz 0 1 x", True),
    ],
)
def test_a_port_is_taken_by_who_listens_on_the_address_of_the_node(held, taken):
    one = case(facts(port_0_held=held))
    assert bad(one) == ({"port": "blocks"} if taken else {})


def test_drivers_that_are_missing():
    none = case(drivers={})
    assert bad(none) == {"driver.raw_exec": "blocks"}
    assert bad(case(drivers={}, elsewhere=frozenset({"raw_exec"}))) == {"driver.raw_exec": "degrades"}
    docker = case(sandbox={"driver": "docker", "image": "reference"}, drivers={}, images=())
    assert bad(docker)["driver.docker"] == "blocks"
    assert "driver.raw_exec" not in bad(docker)


def test_a_machine_that_only_makes_the_images_is_not_judged_as_a_node():
    one = case(facts(fuse="no: none", cgroup_version=None, port_0_held="00000000 0 1 x"), runs=False)
    assert bad(one) == {}


@pytest.mark.parametrize("answer", ["", "\0\1\2", "end=ok=\nport.x=1\nport.99999=2\nprogram.7.plain=ok\nuid=x\n" * 9])
def test_an_answer_that_makes_no_sense_is_no_error(answer):
    assert "told" in bad(case(parse(answer)))


@pytest.mark.parametrize(
    "changes",
    [
        NO_NAMESPACES | {"program_0_plain": OK},
        {"program_0_path": None},
        {"fuse": "no: x"},
        {"timeout": "no: x"},
        {"cgroup_version": None},
        {"alloc_free__kb": "1"},
        {"alloc_exec": "no: x"},
        {"image_0": "no: x"},
        {"port_0_held": "00000000 0 1 x"},
        {"time": "1"},
    ],
)
def test_each_pattern_of_checks_names_some(changes):
    for found in judge(case(facts(**changes))):
        for pattern in found.checks:
            assert fnmatch.filter(registry.load(), pattern), (found.id, pattern)


def test_a_local_agent_starts_containers_as_the_trial_on_this_machine_did(tmp_path):
    """A root that lacks no capability, and whose plain `apptainer exec` is refused something else."""
    seen = facts(caps_permitted="000001ffffffffff", program_0_plain="no: mount: Operation not permitted")
    here = Doctor(looks=[Look(machine="here", seconds=0.1, facts=seen, findings=[])])
    image = tmp_path / "box.json"
    made = {"source": "x", "digest": "x", "architecture": "amd64", "sif": "/x.sif", "sha256": "0" * 64}
    image.write_text(json.dumps({**made, "size_bytes": 1, "created": "2026-01-01T00:00:00Z"}))
    output = tmp_path / "jobs" / "box.json"
    output.parent.mkdir()
    for program, needed in (("apptainer", True), ("no-such", False)):
        deploy.render_job(
            Run("r", tmp_path),
            PlannedSandbox(
                name="box", driver="singularity", image="x", slots=1, count=1, suites=[], job_id="sifproof-r-box"
            ),
            settings(port=20000, apptainer=program),
            Cluster(address="http://127.0.0.1:1", version="", local=True),
            image=str(image),
            output=output,
            doctor=here,
        )
        assert ("--userns" in output.read_text()) is needed
    assert here.needs_userns("dc1", "apptainer", local=False) is None


EVIL = "\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b31m\u202ebad\x0bend=ok"


def test_what_a_machine_says_does_nothing_to_a_terminal():
    anything = ("user", "kernel", "alloc.path", "program.0.path", "program.0.plain", "userns.two", "cgroup.controllers")
    lines = [line + EVIL * line.startswith(anything) for line in ROOT.splitlines() if line != "end=ok"]
    seen = parse("\n".join([*lines, f"port.0.held=00000000 0 7 x{EVIL}", f"fuse=no: {EVIL}", f"image.0=no: {EVIL}"]))
    # A local user who listens on a port chooses the words of his command line: they end no line.
    assert not seen.complete
    assert "bad end=ok" in seen.ports[8080][0].holder
    driver = Driver(detected=False, healthy=False, description=f"broken{EVIL}")
    one = case(seen, drivers={"raw_exec": driver})
    told = Doctor(looks=[Look(machine=f"node{EVIL}", node="id", datacenter="dc", seconds=0, facts=seen,
                              findings=judge(one))])  # fmt: skip
    text = "\n".join(told.lines())
    assert "Port 8080 is taken: process 7 x 31mbad end=ok" in text
    for shown in (text, told.model_copy(update={"looks": [told.looks[0].model_copy(update={"machine": ""})]})
                  .model_dump_json()):  # fmt: skip
        assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Cf"} and c != "\n"]
    assert "bad" in told.looks[0].findings[0].sentence


def test_what_is_asked_comes_from_the_config():
    asked = Questions.of(
        config.load(
            {
                "sandboxes": {
                    "a": {"driver": "singularity", "image": SIF, "port": 8080},
                    "b": {"driver": "singularity", "image": SIF, "apptainer": "singularity"},
                    "c": {"driver": "docker"},
                }
            }
        )
    )
    assert asked == Questions(("apptainer", "singularity"), (Image(SIF, ("a", "b")),), (8080,))


# -- beside the failures ---------------------------------------------------------------------------------------------


FUSE = Finding(id="fuse", severity="degrades", what="no fuse", why="w", mend="modprobe fuse", checks=["bash.*"],
               words="squashfuse", sandboxes=["singularity"])  # fmt: skip


def doctor(*findings: Finding, machine: str = "node-1", node: str = "id1") -> Doctor:
    return Doctor(looks=[Look(machine=machine, node=node, datacenter="dc1", seconds=0.1, findings=list(findings))])


def reasons(seen: Doctor | None, rows, faults=()) -> list[list[str]]:
    decision = decide(plan(planned()), rows, faults, doctor=seen)
    return [[e.finding for e in reason.doctor] for reason in decision.reasons if not reason.follows]


def test_a_finding_stands_beside_the_check_that_it_may_explain():
    rows = verdicts("singularity", bash_output={"verdict": "fail"}, files_round_trip={"verdict": "fail"})
    assert reasons(doctor(FUSE), rows) == [["fuse"], []]
    assert reasons(doctor(FUSE, machine="node-2"), rows) == [[], []]
    assert reasons(doctor(FUSE, machine="laptop", node=""), rows) == [["fuse"], []]
    assert reasons(doctor(FUSE.model_copy(update={"severity": "fine"})), rows) == [[], []]
    assert reasons(doctor(FUSE.model_copy(update={"sandboxes": ["docker"]})), rows) == [[], []]
    assert reasons(None, rows) == [[], []]


def test_a_finding_stands_beside_the_fault_whose_words_it_knows():
    broken = fault("submit").model_copy(update={"why": "squashfuse: permission denied on node node-1"})
    rows = verdicts("singularity")
    assert reasons(doctor(FUSE), rows, [broken]) == [["fuse"]]
    # The fault names the node.
    both = Doctor(looks=[*doctor(FUSE).looks, *doctor(FUSE, machine="node-2", node="id2").looks])
    (explained,) = decide(plan(planned()), rows, [broken], doctor=both).reasons[0].doctor
    assert explained.machine == "node-1"
    assert reasons(doctor(FUSE), rows, [fault("submit")]) == [[]]


def test_findings_decide_nothing():
    blocking = FUSE.model_copy(update={"severity": "blocks", "checks": ["*"]})
    rows = verdicts("singularity")
    assert decide(plan(planned()), rows, doctor=doctor(blocking)) == decide(plan(planned()), rows)


@pytest.mark.parametrize("content", [None, "", "{", '{"looks": 7}', '{"fault": {}}'])
def test_reports_do_without_the_doctor(tmp_path, content):
    folder = record(tmp_path, plan(), verdicts())
    if content is not None:
        write_atomically(folder / "doctor.json", content)
    assert write_reports(folder, tmp_path).exit_code == 0
    assert read_run(folder).problems == []


def test_the_reports_show_it_and_hold_its_text_for_text(tmp_path):
    evil = FUSE.model_copy(update={"what": "<script>alert(1)</script> of `x`", "mend": "<b>rm</b>"})
    rows = [verdict("bash.output", verdict="fail", allocation=ALLOCATION["singularity"])]
    folder = record(tmp_path, plan(planned()), rows)
    write_atomically(folder / "doctor.json", doctor(evil).model_dump_json())
    decision = write_reports(folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert "<b>rm" not in page
    assert 'data-finding="fuse"' in page
    assert '"finding": "fuse"' in (tmp_path / "verdict.json").read_text()
    (line,) = [line for line in closing_lines(decision, tmp_path / "report.html") if line.startswith("doctor, node-1")]
    assert "→ <b>rm</b>" in line

"""The rendered job: what Nomad is told, and what a real shell makes of the line in it."""

import hashlib
import json
import os
import re
import shutil
import stat
import subprocess

import pytest

from sifproof.errors import Fault, SifproofError
from sifproof.nomad.job import create_sandbox_job, quote, render

NASTY = [
    "two words",
    "a'b\"c",
    "$(touch /tmp/never)",
    "`id`",
    "line\nline",
    "${node.unique.id}",
    "$${x}",
    "%{if true}x%{endif}",
    "$HOME",
    "",
    "-n",
    "*",
    "\\",
    "ünïcode ☃",
    "$'{'",
]


def task(job):
    (group,) = job["Job"]["TaskGroups"]
    (only,) = group["Tasks"]
    return only


def line(job):
    return task(job)["Config"]["args"][-1]


def singularity(**changes):
    arguments = {"port": 8080, "singularity_image": "/images/a b.sif", **changes}
    return create_sandbox_job("sandbox-1", "/images/a b.sif", **arguments)


@pytest.fixture
def shell(tmp_path):
    """Runs a task's line in a real /bin/sh, with programs on PATH that print what they were called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("apptainer", "python3"):
        fake = programs / name
        fake.write_text(
            f"#!{os.path.realpath('/usr/bin/env')} -S /bin/sh\n"
            'env -0 > "$RECORD_ENV" 2>/dev/null || env -0 > /proc/$PPID/cwd/env\nprintf \'%s\\0\' "$0" "$@"\n'
        )
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    task_dir = tmp_path / "alloc" / "server"
    task_dir.mkdir(parents=True)

    def run(text, **environment):
        done = subprocess.run(
            ["/bin/sh", "-c", text],
            cwd=task_dir,
            env={
                "PATH": f"{programs}:/usr/bin:/bin",
                "NOMAD_ALLOC_DIR": str(tmp_path / "alloc dir"),
                "NOMAD_TASK_DIR": str(task_dir),
                "NOMAD_ALLOC_ID": "1234",
                "NOMAD_IP_http": "10.0.0.7",
                "NOMAD_PORT_http": "31337",
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        words = done.stdout.split("\0")[:-1]
        seen = dict(v.split("=", 1) for v in (task_dir / "env").read_text().split("\0") if v)
        return words[1:], seen

    run.alloc = tmp_path / "alloc dir"
    return run


def after(words, flag):
    return [words[i + 1] for i, word in enumerate(words) if word == flag]


def test_line_runs_contained_with_the_words_of_the_config(shell):
    words, _ = shell(line(singularity(command=["python3", "/app/server.py", *NASTY], slots_per_container=7)))
    assert words[:3] == ["-q", "exec", "--containall"]
    assert after(words, "--bind") == ["/dev/full", f"{shell.alloc}/data:/data"]
    assert after(words, "--workdir") == [f"{shell.alloc}/tmp"]
    assert after(words, "--pwd") == ["/app"]
    image = words.index("/images/a b.sif")
    assert words[image + 1 :] == [
        *["python3", "/app/server.py", *NASTY],
        *["--host", "10.0.0.7", "--port", "31337", "--slots", "7", "--data-dir", "/data"],
    ]


@pytest.mark.parametrize("driver", ["singularity", "docker"])
def test_the_hash_of_each_token_is_given_to_the_server_last(shell, driver):
    hashes = ["a" * 64, "b" * 64]
    words, environment = shell(line(singularity(driver=driver, command=["python3", "x"], token_sha256=hashes)))
    assert words[-4:] == ["--token-sha256", hashes[0], "--token-sha256", hashes[1]]
    assert not [name for name, value in environment.items() if hashes[0] in value]
    assert "--token-sha256" not in line(singularity(driver=driver))


def test_line_makes_the_directories_it_binds(shell):
    shell(line(singularity()))
    assert {p.name for p in shell.alloc.iterdir()} == {"data", "tmp"}


@pytest.mark.parametrize(
    "changes",
    [
        {"binds": ["/scratch/a b:/scratch:ro"]},
        {"apptainer_flags": ["--no-mount", "sys"]},
        {"workdir": "/a $(b)"},
        {"userns": True},
    ],
)
def test_line_takes_further_settings(shell, changes):
    words, _ = shell(line(singularity(**changes)))
    before_image = words[: words.index("/images/a b.sif")]
    for value in changes.values():
        for word in value if isinstance(value, list) else ["--userns" if value is True else value]:
            assert word in before_image


def test_nothing_of_the_agent_reaches_apptainer_but_what_it_needs(shell):
    tokens = dict.fromkeys(
        (
            "NOMAD_TOKEN",
            "HF_TOKEN",
            "GITHUB_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "SLURM_JOB_ID",
            "APPTAINERENV_LEAK",
            "SINGULARITYENV_LEAK",
            "APPTAINER_BIND",
            "SSH_AUTH_SOCK",
            "HTTPS_PROXY",
        ),
        "secret",
    )
    _, seen = shell(line(singularity(environment={"GREETING": "a,b=$(c)"})), **tokens)
    assert "secret" not in seen.values()
    given = {k: v for k, v in seen.items() if k not in ("PWD", "SHLVL", "_", "OLDPWD")}
    assert set(given) == {
        "PATH",
        "HOME",
        "TMPDIR",
        "NOMAD_ALLOC_ID",
        "APPTAINERENV_NOMAD_ALLOC_ID",
        "APPTAINERENV_GREETING",
        "SINGULARITYENV_NOMAD_ALLOC_ID",
        "SINGULARITYENV_GREETING",
    }
    # Apptainer warns where they differ.
    for name in ("GREETING", "NOMAD_ALLOC_ID"):
        assert given[f"APPTAINERENV_{name}"] == given[f"SINGULARITYENV_{name}"]
    assert given["APPTAINERENV_GREETING"] == "a,b=$(c)"
    assert given["APPTAINERENV_NOMAD_ALLOC_ID"] == "1234"


def test_docker_line_keeps_the_words(shell):
    job = create_sandbox_job("sandbox-1", "image:1", driver="docker", command=["python3", "/app/server.py", *NASTY])
    assert task(job)["Config"]["entrypoint"] == ["/bin/sh", "-c"]
    words, _ = shell(line(job))
    assert words == [
        *["/app/server.py", *NASTY],
        *["--host", "0.0.0.0", "--port", "31337", "--slots", "5", "--data-dir", f"{shell.alloc}/data"],
    ]


@pytest.fixture(params=["dash", "bash"])
def bare(request, tmp_path):
    """Starts a docker task's line where there is no timeout(1): in a shell, with the given programs on PATH."""
    programs = tmp_path / "bare"
    programs.mkdir()
    sh = shutil.which(request.param)
    assert sh, f"{request.param} is needed"

    def start(server, *names, **changes):
        for name in names:
            (programs / name).symlink_to(shutil.which(name))
        job = create_sandbox_job("j", "i", driver="docker", command=["/bin/sh", "-c", server, "sh"], **changes)
        environment = {"PATH": str(programs), "NOMAD_PORT_http": "1", "NOMAD_ALLOC_DIR": "/x"}
        return subprocess.Popen(
            [sh, "-c", line(job)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def test_without_timeout_a_server_ends_by_its_lifetime(bare):
    with bare("echo up; exec /bin/sleep 600", "sleep", lifetime_s=0.3, kill_timeout_s=30) as process:
        assert process.wait(60) == 124
        # The last words of a server that ended are told to a person.
        assert process.stderr.read() == ""


def test_without_timeout_a_server_that_stays_is_killed(bare):
    with bare(
        "trap '' TERM; while :; do /bin/sleep 0.05; done", "sleep", lifetime_s=0.2, kill_timeout_s=0.2
    ) as process:
        assert process.wait(60) == 124


def test_without_timeout_the_end_and_its_code_are_handed_on(bare):
    with bare("exit 7", "sleep", lifetime_s=60) as process:
        assert process.wait(60) == 7


def test_without_timeout_sigterm_reaches_the_server(bare):
    server = "trap 'echo told; exit 0' TERM; echo up; while :; do /bin/sleep 0.05; done"
    with bare(server, "sleep", lifetime_s=60) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.readline() == "told\n"
        process.wait(60)


def test_without_timeout_and_sleep_the_server_runs_all_the_same(bare):
    with bare("echo up") as process:
        assert process.stdout.readline() == "up\n"
        assert process.wait(60) == 0


@pytest.mark.parametrize("driver", ["singularity", "docker"])
def test_nomad_finds_nothing_to_interpolate(driver):
    job = create_sandbox_job("j", "/a.sif", driver=driver, port=8080, command=NASTY)
    assert not re.search(r"[$%]\{", line(job))


@pytest.mark.parametrize("word", NASTY)
def test_quote_survives_the_shell(word):
    out = subprocess.run(["/bin/sh", "-c", f"printf %s {quote(word)}"], capture_output=True, check=True).stdout
    assert out.decode() == word


def test_quote_refuses_nul():
    with pytest.raises(SifproofError, match="NUL"):
        quote("a\0b")


def test_static_port_is_reserved_and_dynamic_port_is_not():
    (static,) = singularity(port=8080)["Job"]["TaskGroups"][0]["Networks"]
    assert static == {"ReservedPorts": [{"Label": "http", "Value": 8080}]}
    (dynamic,) = singularity(port="auto")["Job"]["TaskGroups"][0]["Networks"]
    assert dynamic == {"DynamicPorts": [{"Label": "http"}]}


@pytest.mark.parametrize(("port", "inside"), [(None, 8080), ("auto", 8080), (9000, 9000)])
def test_docker_port_is_dynamic_outside(port, inside):
    job = create_sandbox_job("j", "image:1", driver="docker", port=port, privileged=True)
    (network,) = job["Job"]["TaskGroups"][0]["Networks"]
    assert network == {"DynamicPorts": [{"Label": "http", "To": inside}]}
    assert task(job)["Config"]["ports"] == ["http"]
    assert task(job)["Config"]["privileged"] is True
    assert task(job)["Config"]["force_pull"] is False


def test_nested_sandboxes_take_a_capability_and_two_profiles():
    plain, nested = (
        task(create_sandbox_job("j", "image:1", driver="docker", nested_sandboxes=given))["Config"]
        for given in (False, True)
    )
    assert nested.pop("cap_add") == ["sys_admin"]
    assert nested.pop("security_opt") == ["seccomp=unconfined", "apparmor=unconfined"]
    assert nested == plain


def test_a_job_is_set_up_for_a_quick_verdict():
    job = singularity(count=3, cpu=700, memory=900, datacenter="east", kill_timeout_s=2.5)["Job"]
    (group,) = job["TaskGroups"]
    (only,) = group["Tasks"]
    assert job["Datacenters"] == ["east"]
    assert group["Count"] == 3
    assert group["RestartPolicy"] == {"Attempts": 0, "Mode": "fail"}
    assert group["ReschedulePolicy"] == {"Attempts": 0, "Unlimited": False}
    assert job["Update"] == {"MaxParallel": 0}
    assert only["Resources"] == {"CPU": 700, "MemoryMB": 900}
    assert (only["KillSignal"], only["KillTimeout"]) == ("SIGTERM", 2_500_000_000)


def test_positional_arguments_are_in_the_published_order():
    job = create_sandbox_job("j", "img:1", 2, 3, False, 100, 200, None, "dc9", "singularity", "/x.sif")
    assert "--slots 3" in line(job)
    assert "/x.sif" in line(job)
    assert job["Job"]["Datacenters"] == ["dc9"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"job_id": "a b"}, "job id"),
        ({"job_id": "../x"}, "job id"),
        ({"job_id": "a#b"}, "job id"),
        ({"singularity_image": "rel.sif"}, "absolute"),
        ({"environment": {"A B": "c"}}, "A B"),
        ({"environment": {"A": "${node.id}"}}, "Nomad replaces"),
    ],
)
def test_what_cannot_be_said_is_refused(changes, says):
    arguments = {"job_id": "j", "image": "", "singularity_image": "/x.sif", "port": 1} | changes
    with pytest.raises(SifproofError, match=says) as caught:
        create_sandbox_job(**arguments)
    assert caught.value.fault is Fault.CONFIGURATION


def test_render_is_the_same_job_again():
    job = singularity(command=NASTY)
    assert json.loads(render(job)) == job
    assert render(job).count("\n") > 30


def test_a_task_runs_the_sif_that_was_converted_and_no_other(shell, tmp_path):
    sif = tmp_path / "it's ${here}.sif"
    sif.write_bytes(b"converted")
    text = line(singularity(singularity_image=str(sif), sha256=hashlib.sha256(b"converted").hexdigest()))
    assert str(sif) in shell(text)[0]
    sif.write_bytes(b"c0nverted")
    with pytest.raises(AssertionError, match="is not the image that was converted"):
        shell(text)
    # For a file that is not there Apptainer has words of its own.
    sif.unlink()
    assert str(sif) in shell(text)[0]

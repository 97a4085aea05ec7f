"""Who is to blame for what programs say: recorded words, and some that nobody has heard before."""

import pytest

from sifproof.errors import Fault
from sifproof.image.blame import of_conversion, of_start

# What Apptainer, mksquashfs, skopeo and buildah say where a machine lacks something: as they said it, but for paths.
LACKING = {
    "FATAL:   While performing build: while creating squashfs: exit status 1: Write failed because No space left on "
    "device": "make room",
    "FATAL ERROR: Probably out of space on output filesystem": "make room",
    "FATAL:   container creation failed: failed to create /x/home: mkdir /x/home: no space left on device": "make room",
    "FATAL:   while extracting /x.sif: root filesystem extraction failed: write /x: disk quota exceeded": "quota",
    "runtime/cgo: pthread_create failed: Resource temporarily unavailable\nSIGABRT: abort\nPC=0x7f m=0": "ulimit -u",
    "/bin/sh: 1: Cannot fork": "ulimit -u",
    "/bin/sh: fork: retry: Resource temporarily unavailable": "ulimit -u",
    "FATAL:   while starting: fork/exec /usr/libexec/apptainer/bin/starter: resource temporarily unavailable": "ulimit",
    "FATAL:   exec /bin/serve failed: fork/exec /bin/serve: resource temporarily unavailable": "ulimit -u",
    "runtime: eventfd failed with 24\nfatal error: runtime: eventfd failed": "ulimit -n",
    "FATAL:   while extracting /x.sif: root filesystem extraction failed: command error: while getting library "
    "dependencies: pipe2: too many open files": "ulimit -n",
    "fatal error: failed to reserve page summary memory\n\nruntime stack:": "memory",
    "FATAL:   While performing build: while creating squashfs: signal: killed": "killed",
    "FATAL:   container creation failed: stat /images/x.sif: stale NFS file handle": "mount the file system anew",
    "FATAL:   container creation failed: read /images/x.sif: input/output error": "disk or the network file system",
    "FATAL:   Couldn't determine user account information: user: unknown userid 54321": "passwd",
    "FATAL:   container creation failed: mount /proc/self/fd/3->/x error: while mounting image /proc/self/fd/3: failed "
    "to find loop device: no loop devices available": "loop",
    "FATAL:   container creation failed: mount hook function failure: mount /proc/self/fd/3->/x error: kernel reported "
    "a bad superblock for squashfs image partition, possible causes are that your kernel doesn't support the "
    "compression algorithm or the image is corrupted": "gzip",
    "FATAL:   container creation failed: image driver mount failure: image driver squashfuse_ll instance exited with "
    "error: squashfuse_ll exited: fuse: failed to open /dev/fuse: Permission denied": "/dev/fuse",
    'FATAL:   container creation failed: "fuseapps": no such image driver': "/dev/fuse",
    "FATAL:   container creation failed: squashfuse_ll exited: Something went wrong trying to read the squashfs image.":
        "copy it anew",
    "ERROR  : Failed to create user namespace: not allowed to create user namespace": "user namespaces",
    "ERROR  : Failed to create user namespace: maximum number of user namespaces exceeded, check "
    "/proc/sys/user/max_user_namespaces": "user namespaces",
    "FATAL:   newuidmap was not found in PATH (/bin), required with fakeroot": "user namespaces",
    "ERROR  : Requesting capability set 0x1ff while permitted capability set is 0x1fe": "userns",
    "FATAL:   Installation issue: starter-suid doesn't have setuid bit set": "set-uid",
    "FATAL:   configuration disallows users from mounting squashFS in setuid mode, try --userns": "apptainer.conf",
    "FATAL:   While initializing: couldn't parse configuration file /x: open /x: no such file or directory": "config",
    "FATAL:   container creation failed: mount hook function failure: mount /a->/data error: while mounting /a: mount "
    "source /a doesn't exist": "binds",
    "FATAL:   container creation failed: mount hook function failure: mount proc->/proc error: can't mount proc: "
    "permission denied": "mount",
    "FATAL:   While checking container encryption: could not open image /x.sif: lstat /x.sif: no such file or "
    "directory": "shared file system",
}  # fmt: skip
UNHEARD = "FATAL:   container creation failed: the moon is in the wrong phase"

IMAGES_START = [
    'FATAL:   "python9": executable file not found in $PATH',
    "FATAL:   stat /bin/nosuch: no such file or directory",
    "FATAL:   permission denied",
    "FATAL:   is a directory",
    "FATAL:   exec /bin/x failed: fork/exec /bin/x: no such file or directory",
    "FATAL:   exec /bin/x failed: fork/exec /bin/x: exec format error",
    "FATAL:   failed to set working directory: chdir /app: no such file or directory",
    "\x1b[33mWARNING:\x1b[0m passwd file doesn't exist in container\n\x1b[31mFATAL:  \x1b[0m stat /x: not a directory",
]
IMAGES_CONTENT = [
    'time="2026-01-01T00:00:00Z" level=fatal msg="writing blob: happened during read: unexpected EOF"',
    'level=fatal msg="Digest did not match, expected sha256:1, got sha256:2"',
    "FATAL:   While performing build: conveyor failed to get: unpack entry: a/b: link a/c: no such file or directory",
    "Error processing tar file(exit status 1): archive/tar: invalid tar header",
    "gzip: invalid header",
    'level=fatal msg="unsupported MIME type for compression: application/x"',
]


@pytest.mark.parametrize(("words", "todo"), LACKING.items())
def test_what_a_machine_lacks_is_the_infrastructures_with_the_remedy(words, todo):
    started, converted = of_start(words), of_conversion(words, 255)
    if "FATAL ERROR" not in words:  # mksquashfs's: it starts no sandbox
        assert started is not None
        assert started.fault is Fault.INFRASTRUCTURE
        assert todo in started.todo
    assert converted.fault is Fault.INFRASTRUCTURE
    assert todo in converted.todo


def test_what_nobody_has_heard_before_is_not_the_images():
    started = of_start(UNHEARD)
    assert started is not None and started.fault is Fault.INFRASTRUCTURE
    for words, status in ((UNHEARD, 255), ("who knows", 1), ("", 1), ("", -9), ("", -11), ("unexpected EOF", None)):
        assert of_conversion(words, status).fault is Fault.INFRASTRUCTURE, (words, status)


@pytest.mark.parametrize(
    "words",
    [
        "unexpected EOF",
        "Loaded image: a:1\nunexpected EOF\n",
        'error during connect: Post "http://%2Fvar%2Frun%2Fdocker.sock/v1.47/images/load?quiet=1": EOF',
        'error during connect: Post "http://x/v1.47/images/load": write: broken pipe; unexpected EOF',
    ],
)
def test_an_engine_that_goes_away_is_not_the_images(words):
    blamed = of_conversion(words, 1)
    assert (blamed.fault, "Docker engine" in blamed.todo) == (Fault.INFRASTRUCTURE, True)


@pytest.mark.parametrize("words", IMAGES_START)
def test_what_the_images_program_lacks_is_the_images(words):
    started = of_start(words)
    assert started is not None and started.fault is Fault.IMAGE


@pytest.mark.parametrize("words", IMAGES_CONTENT)
def test_broken_content_is_the_images(words):
    assert of_conversion(words, 1).fault is Fault.IMAGE


@pytest.mark.parametrize(
    "words",
    [
        "",
        "Boom",
        "ValueError: x",
        "starting\nFATAL:   no database",  # what stands before it is the program's
        "ERROR:root:no database",
        "ERROR:    Application startup failed. Exiting.",
        "FATAL: no database",
        "panic: x\n\ngoroutine 1 [running]:",
        "fatal error: all goroutines are asleep - deadlock!",
        "the user namespace of my program, by squashfuse",
    ],
)
def test_what_the_images_program_says_is_not_apptainers(words):
    assert of_start(words) is None

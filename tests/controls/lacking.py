"""A file system that lacks something: ``python lacking.py FOLDER MOUNTPOINT``, by root.

It shows FOLDER, over FUSE as the kernel speaks it (fuse(4), protocol 7.31), and does with one thing what file systems
of clusters do: refuse it, take its time, or never answer. The name of a defect on standard input plants it, an empty
line takes it out; each is acknowledged by a line. The end of standard input ends it, and with it whatever still waits.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
import threading
import time
from pathlib import Path

DEFECTS = {
    "": "Nothing is wrong.",
    "rename-in-two-steps": "A file renamed over another is there a moment later, as over object stores.",
    "directories-are-copied": "Directories can't be renamed (EXDEV), as on unions of file systems: `mv` copies them.",
    "fsync-refused": "`fsync` of a file fails with an input/output error.",
    "directory-fsync-refused": "`fsync` of a directory is an invalid argument.",
    "no-flock": "`flock` is not implemented, as on Lustre without `-o flock`.",
    "flock-for-all": "`flock` gives everybody the lock.",
    "no-posix-locks": "There are no POSIX locks, as on NFS without its lock daemon.",
    "posix-locks-for-all": "Every process gets the POSIX lock.",
    "sockets-hang": "Binding a Unix socket never returns, until it is killed.",
    "sockets-hang-for-good": "Binding a Unix socket never returns, and can't even be killed.",
    "no-sockets": "Unix sockets are not permitted.",
    "no-fifos": "FIFOs are not permitted, as on exFAT or SMB.",
    "no-symlinks": "Symbolic links are not permitted.",
    "no-hard-links": "Hard links are not permitted, as on many object and FUSE file systems.",
    "names-fold-case": "Names that differ in case are one.",
    "slow-creation": "Making a file takes 100 ms.",
    "nearly-full": "There is 1 MiB left.",
    "few-inodes": "There are 100 inodes left.",
}

LOSES = {
    "modes-for-all": "Every file may be read, written and executed, whatever mode it is given, as on exFAT or SMB.",
    "times-of-its-own": "Times that are given to files are not kept.",
}
"""What it does not keep, and no server has to: no check turns red."""

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ = (
    *range(1, 7), *range(8, 16)
)  # fmt: skip
WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 16, 17, 18, 20, 25, *range(26, 31)
SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 32, 33, 34, 35, 36, 42, 45
POSIX_LOCKS, ATOMIC_TRUNCATE, BIG_WRITES, FLOCK_LOCKS = 1 << 1, 1 << 3, 1 << 5, 1 << 10
BY_FLOCK = 1
NOREPLACE = 1
NO_ANSWER = object()

header = struct.Struct("=IIQQIIIHH")
attributes = struct.Struct("=6Q10I")


class Lacking:
    """One mount. ``nodes`` are the files that the kernel knows, each by a descriptor that only names it."""

    def __init__(self, folder: Path, device: int) -> None:
        self.device = device
        self.defect = ""
        self.nodes = {1: os.open(folder, os.O_PATH)}
        self.known: dict[tuple[int, int], int] = {}
        self.files: dict[int, int] = {}
        self.hanging: set[int] = set()
        self.lock = threading.Lock()

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue
                return
            _, operation, unique, node, *_ = header.unpack_from(request)
            try:
                answer = self.answer(operation, unique, node, request[header.size :])
            except OSError as error:
                answer = error
            if answer is not NO_ANSWER:
                self.reply(unique, answer)

    def reply(self, unique: int, answer) -> None:
        data = answer if isinstance(answer, bytes) else b""
        code = -(answer.errno or errno.EIO) if isinstance(answer, OSError) else 0
        try:
            os.write(self.device, struct.pack("=IiQ", 16 + len(data), code, unique) + data)
        except OSError as error:
            if error.errno != errno.ENOENT:  # it was interrupted meanwhile
                raise

    def plant(self, defect: str) -> None:
        with self.lock:
            self.defect, hanging, self.hanging = defect, self.hanging, set()
        for unique in hanging:
            self.reply(unique, OSError(errno.EIO, ""))

    def path(self, node: int) -> str:
        return f"/proc/self/fd/{self.nodes[node]}"

    def name(self, data: bytes) -> bytes:
        name = data.partition(b"\0")[0]
        return name.lower() if self.defect == "names-fold-case" else name

    def attributes(self, descriptor: int) -> bytes:
        s = os.fstat(descriptor)
        times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
        mode = s.st_mode | (0o777 if self.defect == "modes-for-all" else 0)
        return attributes.pack(
            s.st_ino, s.st_size, s.st_blocks, *(t // 10**9 for t in times), *(t % 10**9 for t in times),
            mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_blksize, 0,
        )  # fmt: skip

    def entry(self, parent: int, name: bytes) -> bytes:
        """What LOOKUP answers; nothing is cached, so that every call comes here."""
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self.nodes[parent])
        s = os.fstat(descriptor)
        with self.lock:
            # A descriptor keeps its inode from being used again: a number once given stays right.
            node = self.known.setdefault((s.st_dev, s.st_ino), max(self.nodes) + 1)
            if node in self.nodes:
                os.close(descriptor)
            else:
                self.nodes[node] = descriptor
        return struct.pack("=QQQQII", node, 0, 0, 0, 0, 0) + self.attributes(self.nodes[node])

    def opened(self, descriptor: int) -> bytes:
        self.files[descriptor] = descriptor
        return struct.pack("=QIi", descriptor, 0, 0)

    def owned(self, parent: int, name: bytes, request_owner: tuple[int, int]) -> bytes:
        os.chown(name, *request_owner, dir_fd=self.nodes[parent], follow_symlinks=False)
        return self.entry(parent, name)

    def answer(self, operation: int, unique: int, node: int, data: bytes):  # noqa: PLR0911, PLR0912, PLR0915
        defect = self.defect
        here = self.nodes.get(node, -1)
        if operation == INIT:
            flags = POSIX_LOCKS | ATOMIC_TRUNCATE | BIG_WRITES | FLOCK_LOCKS
            return struct.pack("=IIIIHHIIHHII24x", 7, 31, 1 << 17, flags, 64, 48, 1 << 17, 1, 0, 0, 0, 0)
        if operation in (FORGET, BATCH_FORGET):
            return NO_ANSWER
        if operation == INTERRUPT:
            (which,) = struct.unpack_from("=Q", data)
            if defect != "sockets-hang-for-good" and which in self.hanging:
                self.hanging.discard(which)
                self.reply(which, OSError(errno.EINTR, ""))
            return NO_ANSWER
        if operation == LOOKUP:
            return self.entry(node, self.name(data))
        if operation == GETATTR:
            return struct.pack("=QII", 0, 0, 0) + self.attributes(here)
        if operation == SETATTR:
            self.change(node, data)
            return struct.pack("=QII", 0, 0, 0) + self.attributes(here)
        if operation == READLINK:
            return os.fsencode(os.readlink("", dir_fd=here))
        if operation == SYMLINK:
            refuse(defect == "no-symlinks", errno.EPERM)
            name, target = data.split(b"\0")[:2]
            os.symlink(target, self.name(name), dir_fd=here)
            return self.entry(node, self.name(name))
        if operation == MKNOD:
            mode, device = struct.unpack_from("=II", data)
            if stat.S_ISSOCK(mode) and defect.startswith("sockets-hang"):
                with self.lock:
                    self.hanging.add(unique)
                return NO_ANSWER
            refuse(stat.S_ISSOCK(mode) and defect == "no-sockets", errno.EPERM)
            refuse(stat.S_ISFIFO(mode) and defect == "no-fifos", errno.EPERM)
            os.mknod(self.name(data[16:]), mode, device, dir_fd=here)
            return self.entry(node, self.name(data[16:]))
        if operation == MKDIR:
            (mode,) = struct.unpack_from("=I", data)
            os.mkdir(self.name(data[8:]), mode, dir_fd=here)
            return self.entry(node, self.name(data[8:]))
        if operation == UNLINK:
            return os.unlink(self.name(data), dir_fd=here)
        if operation == RMDIR:
            return os.rmdir(self.name(data), dir_fd=here)
        if operation in (RENAME, RENAME2):
            target, flags = struct.unpack_from("=QI", data)
            old, new = map(self.name, data[16 if operation == RENAME2 else 8 :].split(b"\0")[:2])
            return self.rename(here, old, self.nodes[target], new, flags if operation == RENAME2 else 0)
        if operation == LINK:
            refuse(defect == "no-hard-links", errno.EPERM)
            (source,) = struct.unpack_from("=Q", data)
            os.link(self.path(source), self.name(data[8:]), dst_dir_fd=here, follow_symlinks=True)
            return self.entry(node, self.name(data[8:]))
        if operation == CREATE:
            flags, mode = struct.unpack_from("=II", data)
            if defect == "slow-creation":
                time.sleep(0.1)
            name = self.name(data[16:])
            made = os.open(name, flags & ~os.O_APPEND | os.O_CREAT, mode, dir_fd=here)
            return self.entry(node, name) + self.opened(made)
        if operation == OPEN:
            (flags,) = struct.unpack_from("=I", data)
            return self.opened(os.open(self.path(node), flags & ~(os.O_APPEND | os.O_NOFOLLOW | os.O_CREAT)))
        if operation == OPENDIR:
            return self.opened(os.open(self.path(node), os.O_RDONLY | os.O_DIRECTORY))
        if operation == READ:
            file, offset, size = struct.unpack_from("=QQI", data)
            return os.pread(file, size, offset)
        if operation == WRITE:
            file, offset, size = struct.unpack_from("=QQI", data)
            return struct.pack("=II", os.pwrite(file, data[40 : 40 + size], offset), 0)
        if operation == READDIR:
            return self.list(*struct.unpack_from("=QQI", data))
        if operation in (RELEASE, RELEASEDIR):
            (file,) = struct.unpack_from("=Q", data)
            return os.close(self.files.pop(file))
        if operation in (FSYNC, FSYNCDIR):
            refuse(operation == FSYNC and defect == "fsync-refused", errno.EIO)
            refuse(operation == FSYNCDIR and defect == "directory-fsync-refused", errno.EINVAL)
            return None
        if operation in (SETLK, SETLKW):
            return self.set_lock(data)
        if operation == STATFS:
            s = os.fstatvfs(here)
            free = (1 << 20) // s.f_frsize if defect == "nearly-full" else s.f_bavail
            inodes = 100 if defect == "few-inodes" else s.f_ffree
            return struct.pack(
                "=5Q4I24x", s.f_blocks, free, free, s.f_files, inodes, s.f_bsize, s.f_namemax, s.f_frsize, 0
            )
        if operation in (FLUSH, ACCESS):
            return None
        raise OSError(errno.ENOSYS, "")

    def rename(self, source: int, old: bytes, target: int, new: bytes, flags: int) -> None:
        refuse(bool(flags & ~NOREPLACE), errno.EINVAL)
        there = exists(new, target)
        refuse(bool(flags & NOREPLACE) and there, errno.EEXIST)
        if self.defect == "directories-are-copied":
            refuse(stat.S_ISDIR(os.stat(old, dir_fd=source, follow_symlinks=False).st_mode), errno.EXDEV)
        if self.defect == "rename-in-two-steps" and there:
            # The kernel lets nobody look at a folder while it waits for an answer: what is late must come after it.
            kept = b".late-%d" % time.monotonic_ns()
            os.rename(old, kept, src_dir_fd=source, dst_dir_fd=target)
            os.unlink(new, dir_fd=target)
            late = os.dup(target)
            threading.Timer(0.005, os.rename, (kept, new), {"src_dir_fd": late, "dst_dir_fd": late}).start()
            return
        os.rename(old, new, src_dir_fd=source, dst_dir_fd=target)

    def change(self, node: int, data: bytes) -> None:
        valid, _, _, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = struct.unpack_from(
            "=II6Q8I", data
        )
        if valid & 1:
            Path(self.path(node)).chmod(stat.S_IMODE(mode))
        if valid & 6:
            os.chown(self.path(node), uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 8:
            os.truncate(self.path(node), size)
        if valid & 48 and self.defect != "times-of-its-own":
            now = time.time_ns()
            stamp = Path(self.path(node)).stat()
            a = now if valid & 128 else atime * 10**9 + atime_ns if valid & 16 else stamp.st_atime_ns
            m = now if valid & 256 else mtime * 10**9 + mtime_ns if valid & 32 else stamp.st_mtime_ns
            os.utime(self.path(node), ns=(a, m))

    def list(self, file: int, offset: int, size: int) -> bytes:
        names = sorted(os.listdir(file))
        found = b""
        for number, name in enumerate(names[offset:], offset + 1):
            encoded = os.fsencode(name)
            record = struct.pack("=QQII", 1, number, len(encoded), 0) + encoded
            record += b"\0" * (-len(record) % 8)
            if len(found) + len(record) > size:
                break
            found += record
        return found

    def set_lock(self, data: bytes) -> None:
        """A lock of the file below: each opening of it has a descriptor of its own, which is who holds it."""
        file, _, start, end, kind, _, flags = struct.unpack_from("=QQQQIII", data)
        flock = bool(flags & BY_FLOCK)
        refuse(self.defect == ("no-flock" if flock else "no-posix-locks"), errno.ENOSYS if flock else errno.ENOLCK)
        if self.defect == ("flock-for-all" if flock else "posix-locks-for-all"):
            return
        if flock:
            how = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}[kind]
            fcntl.flock(file, how | fcntl.LOCK_NB)
            return
        length = 0 if end >= 2**63 - 1 else end - start + 1
        ofd_setlk = 37
        fcntl.fcntl(file, ofd_setlk, struct.pack("hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0))


def refuse(condition: bool, code: int) -> None:
    if condition:
        raise OSError(code, os.strerror(code))


def exists(name: bytes, directory: int) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def main(folder: Path, mountpoint: Path) -> None:
    os.umask(0)
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    if libc.mount(b"lacking", bytes(mountpoint), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    made = Lacking(folder, device)
    for _ in range(3):  # one that takes its time must not keep the others waiting
        threading.Thread(target=made.serve, daemon=True).start()
    try:
        print("mounted", flush=True)
        for line in sys.stdin:
            made.plant(line.strip())
            print("planted", flush=True)
    finally:
        libc.umount2(bytes(mountpoint), 2)  # MNT_DETACH


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)

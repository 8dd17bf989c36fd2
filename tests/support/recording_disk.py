"""A disk that remembers in which order it was told what, and what a power cut would have left of it.

`recording_disk` mounts a file system of our own (FUSE, spoken directly with the kernel, as Linux's ``fuse.h`` has it),
in memory and in a process of its own. Everything done to it is a line in a log; `Cut` builds from the first n of them
what a disk may hold that kept all it was told to keep, and of the rest whatever it liked:

- a file's content is kept by `fsync` or `fdatasync` of that file; what was written since may be there, in part, as
  zeros of the right length, or not;
- a name is kept by `fsync` of its folder, not of the file; names made, changed and removed since may be as before or as
  after, each by itself.
"""

import ctypes
import errno
import os
import pickle
import signal
import stat
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
FOREVER = 10**6
MAX_WRITE = 2**17


@dataclass
class Node:
    """A file (bytes) or a folder (nodes by name)."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)
    mtime: float = field(default_factory=time.time)

    @property
    def is_folder(self):
        return stat.S_ISDIR(self.mode)


class Disk:
    """Answers the kernel's requests. A node's number is its identity for ever."""

    def __init__(self, log):
        self.nodes = {1: Node(stat.S_IFDIR | 0o755)}
        self.log = log

    def record(self, *what):
        pickle.dump(what, self.log)

    def serve(self, device):
        while True:
            try:
                request = os.read(device, MAX_WRITE + 2**16)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, code, unique, node, *_ = struct.unpack_from("<IIQQIIII", request)
            handler = HANDLERS.get(code)
            if code in (2, 36, 42):  # forget, interrupt: no answer
                continue
            try:
                answer, failed = handler(self, node, request[40:]) if handler else b"", 0 if handler else errno.ENOSYS
            except OSError as error:
                answer, failed = b"", error.errno
            os.write(device, struct.pack("<IiQ", 16 + len(answer), -failed, unique) + answer)

    # --- what is told of a node ---

    def attributes(self, number):
        node = self.nodes[number]
        size, seconds, part = len(node.data), int(node.mtime), int(node.mtime % 1 * 1e9)
        times = (seconds, seconds, seconds, part, part, part)
        return struct.pack("<QQQQQQIIIIIIIIII", number, size, -(-size // 512), *times, node.mode, 1, 0, 0, 0, 4096, 0)

    def entry(self, number):
        return struct.pack("<QQQQII", number, 0, FOREVER, FOREVER, 0, 0) + self.attributes(number)

    def child(self, folder, name):
        try:
            return self.nodes[folder].names[name]
        except KeyError:
            raise OSError(errno.ENOENT, "no such name") from None

    def made(self, folder, name, mode):
        if name in self.nodes[folder].names:
            raise OSError(errno.EEXIST, "there already")
        number = len(self.nodes) + 1
        self.nodes[number] = Node(mode)
        self.named(folder, name, number)
        return number

    def named(self, folder, name, number):
        """The name now stands for that node; None takes it away."""
        names = self.nodes[folder].names
        names.pop(name, None)
        if number is not None:
            names[name] = number
        self.nodes[folder].mtime = time.time()
        self.record("name", folder, name, number, number and self.nodes[number].mode)

    # --- requests ---

    def init(self, _, body):
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, 2**17, 1 << 5, 16, 12, MAX_WRITE, 1, 32, 0, 0, *(0,) * 7)

    def lookup(self, node, body):
        return self.entry(self.child(node, text(body)))

    def getattr(self, node, body):
        return struct.pack("<QII", FOREVER, 0, 0) + self.attributes(node)

    def setattr(self, node, body):
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & 8:
            data = self.nodes[node].data
            del data[size:]
            data.extend(bytes(size - len(data)))
            self.record("size", node, size)
        if valid & 1:
            self.nodes[node].mode = stat.S_IFMT(self.nodes[node].mode) | (
                struct.unpack_from("<I", body, 68)[0] & 0o7777
            )
        return self.getattr(node, body)

    def mknod(self, node, body):
        return self.entry(self.made(node, text(body[16:]), struct.unpack_from("<I", body)[0]))

    def mkdir(self, node, body):
        return self.entry(self.made(node, text(body[8:]), stat.S_IFDIR | struct.unpack_from("<I", body)[0]))

    def create(self, node, body):
        mode = struct.unpack_from("<II", body)[1]
        return self.entry(self.made(node, text(body[16:]), stat.S_IFREG | stat.S_IMODE(mode))) + self.open(node, body)

    def unlink(self, node, body):
        self.child(node, text(body))
        self.named(node, text(body), None)
        return b""

    def rmdir(self, node, body):
        if self.nodes[self.child(node, text(body))].names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        return self.unlink(node, body)

    def rename(self, node, body):
        return self.renamed(node, struct.unpack_from("<Q", body)[0], body[8:])

    def rename2(self, node, body):
        return self.renamed(node, struct.unpack_from("<Q", body)[0], body[16:])

    def renamed(self, old_folder, new_folder, names):
        old, new = names.split(b"\0")[:2]
        number = self.child(old_folder, old)
        there = self.nodes[new_folder].names.get(new)
        if there is not None and self.nodes[there].is_folder and self.nodes[there].names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self.named(new_folder, new, number)
        self.named(old_folder, old, None)
        return b""

    def link(self, node, body):
        number, name = struct.unpack_from("<Q", body)[0], text(body[8:])
        if name in self.nodes[node].names:
            raise OSError(errno.EEXIST, "there already")
        self.named(node, name, number)
        return self.entry(number)

    def open(self, node, body):
        return struct.pack("<QII", 0, 0, 0)

    def read(self, node, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        return bytes(self.nodes[node].data[offset : offset + size])

    def write(self, node, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        content, data = body[40 : 40 + size], self.nodes[node].data
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + size] = content
        self.nodes[node].mtime = time.time()
        self.record("write", node, offset, content)
        return struct.pack("<II", size, 0)

    def sync(self, node, body):
        self.record("sync", node)
        return b""

    def readdir(self, node, body):
        _, offset, size = struct.unpack_from("<QQI", body)
        listing, found = b"", [(b".", node), (b"..", 1), *self.nodes[node].names.items()]
        for place, (name, number) in enumerate(found[offset:], offset + 1):
            one = struct.pack("<QQII", number, place, len(name), self.nodes[number].mode >> 12) + name
            one += bytes(-len(one) % 8)
            if len(listing) + len(one) > size:
                break
            listing += one
        return listing

    def statfs(self, node, body):
        return struct.pack("<QQQQQIIII6I", 2**30, 2**30, 2**30, 2**30, 2**30, 4096, 255, 4096, 0, *(0,) * 6)

    def nothing(self, node, body):
        return b""


def text(body):
    return body.split(b"\0", 1)[0]


HANDLERS = {
    1: Disk.lookup, 3: Disk.getattr, 4: Disk.setattr, 8: Disk.mknod, 9: Disk.mkdir, 10: Disk.unlink, 11: Disk.rmdir,
    12: Disk.rename, 13: Disk.link, 14: Disk.open, 15: Disk.read, 16: Disk.write, 17: Disk.statfs, 18: Disk.nothing,
    20: Disk.sync, 25: Disk.nothing, 26: Disk.init, 27: Disk.open, 28: Disk.readdir, 29: Disk.nothing, 30: Disk.sync,
    35: Disk.create, 45: Disk.rename2,
}  # fmt: skip


def _serve(mount, log):
    """The process that is the disk. Says ``ready`` once it is mounted."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if LIBC.mount(b"recording", mount.encode(), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("ready", flush=True)
    with open(log, "wb") as file:  # noqa: PTH123
        Disk(file).serve(device)


@contextmanager
def recording_disk(mount, log):
    """Such a disk at `mount`. Raises `OSError` where none can be had; `log` is whole once it is over."""
    command = [sys.executable, __file__, str(mount), str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if process.stdout.readline().strip() != "ready":
        raise OSError(process.communicate()[1].strip().splitlines()[-1])
    try:
        yield
    finally:
        LIBC.umount2(str(mount).encode(), 2)
        if process.wait(30):
            raise OSError(process.stderr.read())


def read_log(log):
    """What the disk was told, in order."""
    found = []
    with Path(log).open("rb") as file:
        while True:
            try:
                found.append(pickle.load(file))
            except EOFError:
                return found


class Cut:
    """What may be there after a power cut behind the first `count` lines of a log; `chance` decides what else is."""

    def __init__(self, log, count, chance):
        self._chance = chance
        self._whim = chance.choice(["nothing more", "all", "anything", "anything"])
        self._now: dict[int, bytearray] = {}
        self._kept: dict[int, bytes] = {}
        self._names: dict[int, dict[bytes, int]] = {1: {}}
        self._kept_names: dict[int, dict[bytes, int]] = {1: {}}
        self._modes = {1: stat.S_IFDIR | 0o755}
        for what, node, *more in log[:count]:
            getattr(self, f"_{what}")(node, *more)

    def _name(self, folder, name, number, mode):
        if number is None:
            self._names[folder].pop(name, None)
            return
        self._names[folder][name] = number
        if number not in self._modes:
            self._modes[number] = mode
            if stat.S_ISDIR(mode):
                self._names[number], self._kept_names[number] = {}, {}
            else:
                self._now[number], self._kept[number] = bytearray(), b""

    def _write(self, node, offset, content):
        data = self._now[node]
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + len(content)] = content

    def _size(self, node, size):
        data = self._now[node]
        del data[size:]
        data.extend(bytes(size - len(data)))

    def _sync(self, node):
        if node in self._names:
            self._kept_names[node] = dict(self._names[node])
        else:
            self._kept[node] = bytes(self._now[node])

    def build(self, root, folder=1):
        """Make the files and folders that are left, at `root`."""
        Path(root).mkdir(exist_ok=True)
        for name, number in self._left(folder).items():
            place = Path(root, name.decode())
            if stat.S_ISDIR(self._modes[number]):
                self.build(place, number)
            else:
                place.write_bytes(self._content(number))

    def _left(self, folder):
        before, after = self._kept_names[folder], self._names[folder]
        left = {}
        for name in {**before, **after}:
            number = (after if self._survives() else before).get(name)
            if number is not None:
                left[name] = number
        return left

    def _content(self, number):
        kept, now = self._kept[number], bytes(self._now[number])
        if kept == now or not self._survives():
            return kept
        some = self._chance.randrange(len(now) + 1)
        return self._chance.choice([now, now, now[:some], bytes(len(now)), now[:some] + bytes(len(now) - some)])

    def _survives(self):
        return {"nothing more": False, "all": True}.get(self._whim, self._chance.random() < 0.5)


if __name__ == "__main__":
    _serve(*sys.argv[1:])

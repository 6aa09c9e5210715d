#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real dcmemd on a private socket, with both back ends: the text socket, the packet gate seen from
outside, configurations, and the end of it all. Waits on descriptors, never sleeps.

usage: test-control.py DCMEMD [DCMEM]   (without the dcmem tool no model is read)
"""
import array
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile

DCMEMD = os.path.abspath(sys.argv[1])
DCMEM = os.path.abspath(sys.argv[2]) if len(sys.argv) > 2 else None
TIMEOUT = 20
HEADER = struct.Struct("<HHIIIQ")
MAGIC, HELLO, ATTACH, SEGMENT, ACQUIRE, RELEASE, DETACH, JSON = 0x6d63, 1, 2, 3, 5, 6, 9, 10


class Daemon:
    def __init__(self, directory, io, *flags):
        self.path = os.path.join(directory, "socket")
        ready, write = os.pipe()
        self.process = subprocess.Popen(
            [DCMEMD, "-c", os.path.join(directory, "empty.json"), "--socket", self.path, "--io", io,
             "--budget", "256MiB", "--ready-fd", str(write), *flags],
            pass_fds=[write], stderr=subprocess.PIPE, text=True)
        os.close(write)
        readable, _, _ = select.select([ready], [], [], TIMEOUT)
        self.ready = bool(readable) and os.read(ready, 6) == b"READY\n"
        os.close(ready)

    def packets(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        s.settimeout(TIMEOUT)
        s.connect(self.path)
        return s

    def text(self):
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        s.settimeout(TIMEOUT)
        s.connect(self.path + ".text")
        return s

    def ask_raw(self, data):
        """One connection: send, close the sending half, read everything."""
        with self.text() as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            parts = []
            try:
                while part := s.recv(1 << 20):
                    parts.append(part)
            except ConnectionResetError:
                pass  # after its answer, the daemon hung up on what it did not read
        return b"".join(parts)

    def ask(self, **command):
        return json.loads(self.ask_raw(json.dumps(command).encode() + b"\n"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=TIMEOUT)[1]
        assert self.process.returncode == 0, (self.process.returncode, said)
        assert not os.path.exists(self.path) and not os.path.exists(self.path + ".text")
        return said


def packet(kind, payload=b"", tag=0, magic=MAGIC, length=None, status=0, flags=0):
    return HEADER.pack(magic, kind, len(payload) if length is None else length, status, flags,
                       tag) + payload


def hello(s):
    s.send(packet(HELLO, struct.pack("<IIQQ", 1, 0, 0, 0), tag=7))
    reply = s.recv(8192)
    _, kind, _, status, flags, tag = HEADER.unpack_from(reply)
    assert (kind, status, flags, tag) == (HELLO, 0, 1, 7), reply
    return struct.unpack_from("<IIQQ", reply, HEADER.size)[3]


def ended(s):
    """True when the daemon has closed: only a reset or an end counts, replies do not."""
    try:
        while s.recv(8192):
            pass
    except (ConnectionResetError, BrokenPipeError):
        pass
    return True


def json_packet(s, **command):
    s.send(packet(JSON, json.dumps(command).encode(), tag=9))
    data, fds, _, _ = socket.recv_fds(s, 8192, 4)
    _, kind, n_bytes, status, flags, tag = HEADER.unpack_from(data)
    assert (kind, status, tag) == (JSON, 0, 9)
    text = data[HEADER.size:]
    if flags & 2:
        assert len(fds) == 1 and not text
        text = os.pread(fds[0], 1 << 24, 0)
    for fd in fds:
        os.close(fd)
    return json.loads(text)


def test_text(daemon):
    stats = daemon.ask(cmd="stats")
    assert stats["ok"] and stats["pid"] > 0 and stats["budget_bytes"] == 256 << 20, stats
    assert len(stats["instance"]) == 16 and stats["io"] in ("io_uring", "epoll")
    states = daemon.ask(cmd="status")["status"]
    assert {"io_uring", "huge pages", "NUMA nodes", "CPU", "kernel"} <= {s["what"] for s in states}
    assert daemon.ask(cmd="list") == {"ok": True, "models": []}
    # several lines, no final newline, answers in order
    lines = daemon.ask_raw(b'{"cmd":"list"}\r\n\n{"cmd":"nonsense"}\n{"cmd":"list"}').splitlines()
    assert [json.loads(line)["ok"] for line in lines] == [True, False, True]
    for bad in (b"\n\n", b""):
        assert daemon.ask_raw(bad) == b""
    for bad in (b"{", b"[]", b"7", b'{"cmd":7}', b'{"cmd":"list","x":1}', b'{"cmd":"l\\u0000"}',
                b'{"cmd":"list","cmd":"list"}', b"\xff\xfe", b"[" * 60000,
                b'{"cmd":"load"}', b'{"cmd":"load","path":"relative"}',
                b'{"cmd":"unload","name":"../x"}', b'{"cmd":"read","model":"m","tensor":"t"}',
                b'{"cmd":"read","model":"m","tensor":"t","offset":-1}',
                b'{"cmd":"tensors","model":"none"}', b"x" * 70000):
        answer = json.loads(daemon.ask_raw(bad + b"\n").splitlines()[0])
        assert answer["ok"] is False and answer["code"] and answer["error"], (bad[:40], answer)


def test_garbage(daemon):
    good = struct.pack("<IIQQ", 1, 0, 0, 0)
    before = daemon.ask(cmd="stats")["protocol_errors"]
    bad = [b"x", b"\0" * 24, packet(HELLO, good, magic=1), packet(HELLO, good, length=23),
           packet(HELLO, good[:-1]), packet(HELLO, good + b"x"), packet(HELLO, good, status=1),
           packet(HELLO, good, flags=1), packet(HELLO, struct.pack("<IIQQ", 1, 1, 0, 0)),
           packet(HELLO, struct.pack("<IIQQ", 1, 0, 0, 5)), packet(99), packet(0),
           packet(JSON, b"{}"), packet(ACQUIRE, b"\0" * 32), b"\xff" * 5000, b"\0" * 60000]
    for data in bad:
        with daemon.packets() as s:
            s.send(data)
            assert ended(s)
    after_hello = [packet(HELLO, good), packet(JSON), packet(JSON, b"a\0b"),
                   packet(ATTACH, struct.pack("<II", 3, 0) + b"../"),
                   packet(ATTACH, struct.pack("<II", 9, 0) + b"abc"), packet(SEGMENT, b"\0" * 15),
                   packet(ACQUIRE, struct.pack("<QQQQ", 1, 2, 3, 0)),
                   packet(RELEASE, struct.pack("<Q", 12345)),
                   packet(DETACH, struct.pack("<Q", 12345)), packet(JSON, b"x", length=4097),
                   packet(JSON, b"x" * 5000), packet(JSON, b"x", flags=2)]
    for data in after_hello:
        with daemon.packets() as s:
            hello(s)
            s.send(data)
            assert ended(s)
    now = daemon.ask(cmd="stats")["protocol_errors"]
    assert now == before + len(bad) + len(after_hello), (before, now)
    # descriptors travel the other way only; also more of them than there is room for
    for n_fds in (1, 4, 40):
        with daemon.packets() as s:
            hello(s)
            fds = array.array("i", [0] * n_fds)
            s.sendmsg([packet(JSON, b"{}")],
                      [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            assert ended(s)
    # a name nobody has is an answer, not the end
    with daemon.packets() as s:
        assert hello(s) != 0
        s.send(packet(ATTACH, struct.pack("<II", 4, 0) + b"none", tag=3))
        _, kind, _, status, flags, tag = HEADER.unpack_from(s.recv(8192))
        assert (kind, status, flags, tag) == (ATTACH, 1, 1, 3)
        assert json_packet(s, cmd="list")["ok"]
        assert not json_packet(s, cmd="read", model="m", tensor="t")["ok"]
    noise = random.Random(1)
    for _ in range(200):
        with daemon.packets() as s:
            data = bytearray(packet(HELLO, good))
            data[noise.randrange(len(data))] ^= 1 << noise.randrange(8)
            s.send(bytes(data))


def test_connections(daemon):
    idle = [daemon.packets() for _ in range(100)]
    for s in idle[:50]:
        s.close()
    # half a handshake is given up after a second
    for s in idle[50:]:
        assert ended(s)
        s.close()
    for _ in range(100):
        with daemon.packets() as s:
            hello(s)
            s.send(packet(JSON, b'{"cmd":"stats"}'))
    # a client that asks a lot and reads nothing is not read further, and costs others nothing
    with daemon.packets() as s:
        hello(s)
        s.setblocking(False)
        sent = 0
        try:
            for _ in range(100000):
                s.send(packet(JSON, b'{"cmd":"status"}', tag=sent))
                sent += 1
        except BlockingIOError:
            pass
        assert sent < 100000
        assert daemon.ask(cmd="list")["ok"]
        s.settimeout(TIMEOUT)
        tags = [HEADER.unpack_from(s.recv(8192))[5] for _ in range(sent)]
        assert tags == list(range(sent))


def test_double_start(directory, daemon, io):
    second = Daemon(directory, io)
    said = second.process.communicate(timeout=TIMEOUT)[1]
    assert not second.ready and second.process.returncode == 1 and "another dcmemd" in said, said
    assert daemon.ask(cmd="list")["ok"]


def test_stale_socket(directory, io):
    path = os.path.join(directory, "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
        s.bind(path)
    daemon = Daemon(directory, io)
    assert daemon.ready, daemon.process.communicate(timeout=TIMEOUT)
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.ask(cmd="list")["ok"]
    with daemon.packets() as held:
        hello(held)
        daemon.stop()
        assert ended(held)


def make_model(directory):
    """A safetensors file of a kind that needs several windows: 9 MiB and a small tensor."""
    noise = random.Random(2)
    large = noise.randbytes(1 << 20) * 9 + b"tail"
    small = bytes(range(64))
    head = json.dumps({"large": {"dtype": "U8", "shape": [len(large)],
                                 "data_offsets": [0, len(large)]},
                       "na\"me\n\u00e9": {"dtype": "U8", "shape": [8, 8],
                                          "data_offsets": [len(large), len(large) + 64]},
                       "zero": {"dtype": "F32", "shape": [0, 4],
                                "data_offsets": [len(large) + 64, len(large) + 64]}}).encode()
    head += b" " * (-len(head) % 8)
    source = os.path.join(directory, "model.safetensors")
    with open(source, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + large + small)
    packed = os.path.join(directory, "tiny.dcmem")
    subprocess.run([DCMEM, "pack", source, "-o", packed], check=True, timeout=60,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return packed, {"large": large, "na\"me\n\u00e9": small, "zero": b""}


def test_models(directory, daemon, packed, tensors):
    reply = daemon.ask(cmd="load", path=packed)
    assert reply == {"ok": True, "name": "tiny"}, reply
    assert daemon.ask(cmd="load", path=packed)["code"] == 12
    assert daemon.ask(cmd="load", path=packed, name="other")["ok"]
    assert daemon.ask(cmd="load", path="/etc/passwd")["code"] == 9
    assert daemon.ask(cmd="load", path=os.path.join(directory, "none"))["code"] == 1
    assert not daemon.ask(cmd="load", path=os.path.join(directory, "empty.json"))["ok"]
    assert {m["name"] for m in daemon.ask(cmd="list")["models"]} == {"tiny", "other"}
    listed = daemon.ask(cmd="tensors", model="tiny")
    assert {t["name"]: t["n_bytes"] for t in listed["tensors"]} == \
        {name: len(data) for name, data in tensors.items()}
    part = daemon.ask(cmd="tensors", model="tiny", first=1, count=1)
    assert part["tensors"] == listed["tensors"][1:2] and part["next"] == 2
    for name, data in tensors.items():
        for offset, length in ((0, None), (0, len(data)), (len(data), 0), (len(data) // 3, 7),
                               (len(data) // 2, None)):
            if length is not None and offset + length > len(data):
                continue
            end = len(data) if length is None else offset + length
            command = {"cmd": "read", "model": "tiny", "tensor": name, "offset": offset}
            if length is not None:
                command["length"] = length
            answer = daemon.ask_raw(json.dumps(command).encode() + b"\n{\"cmd\":\"list\"}\n")
            line, rest = answer.split(b"\n", 1)
            assert json.loads(line) == {"ok": True, "n_bytes": end - offset}, line
            assert rest[:end - offset] == data[offset:end], (name, offset, length)
            assert json.loads(rest[end - offset:])["ok"]
    assert daemon.ask(cmd="read", model="tiny", tensor="large", offset=1 << 40)["code"] == 4
    assert daemon.ask(cmd="read", model="tiny", tensor="none")["code"] == 1
    # gone in the middle of a read: the lease comes back
    for _ in range(5):
        with daemon.text() as s:
            s.sendall(b'{"cmd":"read","model":"tiny","tensor":"large"}\n')
            s.recv(100)
    assert daemon.ask(cmd="unload", name="other")["ok"]
    assert daemon.ask(cmd="unload", name="other")["code"] == 1
    with daemon.packets() as s:
        hello(s)
        s.send(packet(ATTACH, struct.pack("<II", 4, 0) + b"tiny"))
        data, fds, _, _ = socket.recv_fds(s, 8192, 4)
        assert HEADER.unpack_from(data)[3] == 0 and len(fds) == 2
        for fd in fds:
            os.close(fd)


def test_configs(directory):
    path = os.path.join(directory, "config.json")
    bad = {'{"nonsense": 1}': "nonsense", '{"budget": "4XB"}': "budget", '{"budget": true}':
           "budget", '{"io": "kqueue"}': "io", '{"socket_mode": "9"}': "socket_mode",
           '{"numa": "bind:x"}': "numa", '{"models": [{"name": "a"}]}': "models",
           '{"models": [{"path": "/a", "name": "../a"}]}': "models",
           '{"model_dirs": ["relative"]}': "model_dirs", '{"workers": -1}': "workers",
           '{"text_socket": "yes"}': "text_socket", '{"log_level": "loud"}': "log_level",
           '{"chunk": 1}': "chunk", '{"budget": 1}': "budget", '[]': "object", '{"a": 1, "a": 1}':
           "duplicate", '{': "line 1"}
    for text, word in bad.items():
        with open(path, "w", encoding="utf-8") as f:
            f.write(text)
        done = subprocess.run([DCMEMD, "--check-config", "-c", path], capture_output=True, text=True,
                              timeout=TIMEOUT)
        assert done.returncode == 1 and word in done.stderr, (text, done)
        assert done.stderr.count("\n") == 1, done.stderr
    with open(path, "w", encoding="utf-8") as f:
        json.dump({"budget": "50%", "chunk": "64MiB", "numa": "bind:0", "socket_group": None}, f)
    done = subprocess.run([DCMEMD, "--check-config", "-c", path], timeout=TIMEOUT,
                          stdout=subprocess.DEVNULL)
    assert done.returncode == 0
    done = subprocess.run([DCMEMD, "-c", path, "--socket", os.path.join(directory, "s"), "--model",
                           os.path.join(directory, "none.dcmem")], capture_output=True, text=True,
                          timeout=TIMEOUT)
    assert done.returncode == 1 and "none.dcmem" in done.stderr, done
    assert not os.path.exists(os.path.join(directory, "s"))
    for flags in (["--nonsense"], ["argument"]):
        assert subprocess.run([DCMEMD, *flags], stderr=subprocess.DEVNULL,
                              timeout=TIMEOUT).returncode == 2


def main():
    for io in ("uring", "epoll"):
        with tempfile.TemporaryDirectory() as directory:
            with open(os.path.join(directory, "empty.json"), "w", encoding="utf-8") as f:
                f.write("{}")
            daemon = Daemon(directory, io, "--model-dir", directory)
            if not daemon.ready:
                said = daemon.process.communicate(timeout=TIMEOUT)[1]
                if io == "uring" and "io_uring" in said:
                    print("io_uring cannot be used here: its half is skipped")
                    continue
                sys.exit(said)
            try:
                test_text(daemon)
                test_garbage(daemon)
                test_connections(daemon)
                test_double_start(directory, daemon, io)
                if DCMEM:
                    test_models(directory, daemon, *make_model(directory))
                daemon.stop()
            except BaseException:
                daemon.process.kill()
                print(daemon.process.communicate()[1])
                raise
            test_stale_socket(directory, io)
            test_configs(directory)
            print(io, "passed")


main()

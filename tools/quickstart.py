# SPDX-License-Identifier: Apache-2.0
"""The second half of ./quickstart: pack, serve, read by three processes at once, compare.

usage: quickstart.py BUILD_DIR MODEL [--keep] [--tokens N]

What it makes lies in BUILD_DIR/run.* and in a directory of the socket, both removed at the end.

Each way to hold the weights (a private copy each, a shared mmap, dcmem) runs the same three
prompts in three processes. Memory is Pss of /proc/PID/smaps_rollup, private and file pages: a page
that n processes map counts 1/n for each. Shared memory that the daemon made counts as the daemon's,
whether anybody maps it or not, at the peak of the daemon's own books. So the sum is what the host
gives.
"""
import argparse
import filecmp
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

PROMPTS = ["Once upon a time", "The little dog", "One day, Anna"]
TOKENS = 400  # of each process; enough that starting up does not count
READY_SECONDS = 60
KNOWN = ("llama", "opt")
COLUMNS = 80
SAMPLE_SECONDS = 0.05  # reading smaps_rollup takes time from the readers; untuned
SOCKET_PATH_BYTES = 100  # sun_path has 108, and the text socket has a suffix
WAYS = [("private copies", "copy"), ("shared mmap", "mmap"), ("dcmem", "dcmem")]


class Failure(Exception):
    """One sentence for the user."""


def failed(command, status, errors):
    """What a program said as it failed, or its command line and exit status if it said nothing."""
    return errors.strip() or f"{shlex.join(command)}: exit {status}"


def run(command, **options):
    """Runs a command to its end; its output, or a Failure with what it said."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, text=True, capture_output=True,
                          check=False, **options)
    if done.returncode:
        raise Failure(failed(command, done.returncode, done.stderr))
    return done.stdout


def pss_bytes(pid):
    """Pss of a process without shared memory, 0 if it is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as rollup:
            return sum(int(line.split()[1]) * 1024 for line in rollup
                       if line.startswith(("Pss_Anon:", "Pss_File:")))
    except OSError:
        return 0


def stats_of(dcmem, environment):
    """The daemon's own books; peak_bytes is the most it has shared: compressed, decoded, tables."""
    return json.loads(run([dcmem, "stats", "--json"], env=environment))


def shown(path):
    """A path as short as it can be written here."""
    return min(path, os.path.relpath(path), key=len)


def say(text, first="  - ", rest="    "):
    """Prints a paragraph that fits 80 columns."""
    print(textwrap.fill(text, COLUMNS, initial_indent=first, subsequent_indent=rest,
                        break_long_words=False, break_on_hyphens=False))


def size(n_bytes):
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e10 else f"{n_bytes / 1e9:.1f} GB"


class Daemon:
    """dcmemd in the foreground, on a socket of its own."""

    def __init__(self, build, runtime):
        self.socket = os.path.join(runtime, "socket")
        self.log = os.path.join(runtime, "dcmemd.log")
        read_fd, write_fd = os.pipe()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(build, "daemon", "dcmemd"), "--socket", self.socket,
                 "--model-dir", os.path.abspath(build),
                 "--ready-fd", str(write_fd)],
                pass_fds=[write_fd], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        os.close(write_fd)
        ready = select.select([read_fd], [], [], READY_SECONDS)[0]
        said = os.read(read_fd, 1) if ready else b""
        os.close(read_fd)
        if not said:
            self.stop()
            with open(self.log, encoding="utf-8", errors="replace") as log:
                raise Failure("dcmemd did not start; it said:\n" + log.read())

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def at_once(commands, environment, watched):
    """Runs all commands at once. Gives their outputs, and memory while all of them ran, the median
    of the samples by their sum: [Pss of each command], Pss of `watched`."""
    readers = [subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for command in commands]
    outputs = [None] * len(readers)

    def collect(i):
        outputs[i] = readers[i].communicate()

    threads = [threading.Thread(target=collect, args=(i,)) for i in range(len(readers))]
    for thread in threads:
        thread.start()
    samples = [([0] * len(readers), 0)]
    try:
        while any(thread.is_alive() for thread in threads):
            now = [pss_bytes(reader.pid) for reader in readers]
            now_watched = pss_bytes(watched) if watched else 0
            if all(now):
                samples.append((now, now_watched))
            time.sleep(SAMPLE_SECONDS)
    finally:
        for reader, thread in zip(readers, threads):
            if reader.poll() is None:
                reader.kill()
            thread.join()
    for reader, command, (_, errors) in zip(readers, commands, outputs):
        if reader.returncode:
            raise Failure(failed(command, reader.returncode, errors.decode(errors="replace")))
    samples = sorted(samples[1:] or samples, key=lambda sample: sum(sample[0]) + sample[1])
    pss, watched_pss = samples[len(samples) // 2]
    return [(out, errors.decode(errors="replace")) for out, errors in outputs], pss, watched_pss


def tokens_a_second(errors):
    found = re.search(r"([0-9.]+) tokens/s", errors)
    return float(found.group(1)) if found else None


def raw_tensors(model):
    """name -> (file, offset, bytes) of every tensor, by the safetensors format itself."""
    if os.path.isdir(model):
        paths = [os.path.join(model, f) for f in sorted(os.listdir(model))
                 if f.endswith(".safetensors")]
        index = os.path.join(model, "model.safetensors.index.json")
        single = os.path.join(model, "model.safetensors")
        if os.path.exists(index):
            with open(index, encoding="utf-8") as file:
                shards = set(json.load(file)["weight_map"].values())
            paths = [os.path.join(model, shard) for shard in sorted(shards)]
        elif os.path.exists(single):
            paths = [single]
    else:
        paths = [model]
    tensors = {}
    for path in paths:
        with open(path, "rb") as file:
            n_header = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_header))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                tensors[name] = (path, 8 + n_header + begin, end - begin)
    return tensors


def bytes_on_disk(model):
    if not os.path.isdir(model):
        return os.path.getsize(model)
    return sum(os.path.getsize(os.path.join(folder, file))
               for folder, _, files in os.walk(model) for file in files)


def check_served(dcmem, name, tensors, environment):
    """Reads tensors from the daemon and compares them with the source; how many, of how many."""
    names = sorted(tensors)
    chosen = names[::max(1, len(names) // 256)]
    for tensor in chosen:
        served = subprocess.run([dcmem, "cat", name, tensor], env=environment, check=False,
                                stdin=subprocess.DEVNULL, capture_output=True)
        path, offset, n_bytes = tensors[tensor]
        with open(path, "rb") as file:
            file.seek(offset)
            same = served.stdout == file.read(n_bytes)
        if served.returncode or not same:
            raise Failure(f"{tensor}: what dcmemd serves differs from {path}\n"
                          f"{served.stderr.decode(errors='replace')}")
    return len(chosen), len(names)


def check_restored(dcmem, model, container, directory):
    """Unpacks the container and compares every file with the source."""
    restored = os.path.join(directory, "restored")
    run([dcmem, "unpack", container, "-o", restored])
    n_files = 0
    for folder, _, files in os.walk(model):
        for file in files:
            path = os.path.join(folder, file)
            copy = os.path.join(restored, os.path.relpath(path, model))
            if not os.path.exists(copy) or not filecmp.cmp(path, copy, shallow=False):
                raise Failure(f"{path}: unpacking gives other bytes")
            n_files += 1
    shutil.rmtree(restored)
    return n_files


def architecture(model):
    try:
        with open(os.path.join(model, "config.json"), encoding="utf-8") as file:
            return json.load(file).get("model_type")
    except (OSError, ValueError):
        return None


def generate_all(build, model, name, n_tokens, environment, daemon):
    """The three ways; way -> (tokens/s each, Pss each, Pss of the daemon, texts); and the daemon's
    books after its turn."""
    lm = os.path.join(build, "examples", "lm", "lm")
    results = {}
    for title, source in WAYS:
        target = name if source == "dcmem" else model
        commands = [[lm, "generate", "--model", target, "--source", source, "--prompt", prompt,
                     "--tokens", str(n_tokens), "--threads", "1"] for prompt in PROMPTS]
        outputs, pss, daemon_pss = at_once(commands, environment,
                                           daemon.process.pid if source == "dcmem" else 0)
        results[title] = ([tokens_a_second(errors) for _, errors in outputs], pss, daemon_pss,
                          [out for out, _ in outputs])
    return results, stats_of(os.path.join(build, "tools", "dcmem", "dcmem"), environment)


def print_comparison(results, stats, n_raw, n_packed):
    titles = [title for title, _ in WAYS]
    own = results["dcmem"][2]

    def row(label, cells):
        print(f"  {label:<27}" + "".join(f"{cell:>16}" for cell in cells))

    def daemon_row(label, n_bytes):
        row(label, ["-", "-", size(n_bytes)])

    print()
    row("", titles)
    row("model on disk", [size(n_raw), size(n_raw), size(n_packed)])
    daemon_row("daemon: compressed pages", stats["compressed_bytes"])
    daemon_row("daemon: decoded, at most", stats["peak_bytes"] - stats["compressed_bytes"] -
               stats["index_bytes"])
    daemon_row("daemon: tables, itself", stats["index_bytes"] + own)
    for i in range(len(PROMPTS)):
        row(f"process {i + 1}", [size(results[title][1][i]) for title in titles])
    totals = [sum(results[title][1]) for title in titles]
    totals[-1] += stats["peak_bytes"] + own
    row("memory in all", [size(total) for total in totals])
    speeds = [results[title][0] for title in titles]
    for i in range(len(PROMPTS)):
        row(f"tokens/s, process {i + 1}",
            [f"{speed[i]:.0f}" if speed[i] else "?" for speed in speeds])
    sums = [sum(speed) if all(speed) else None for speed in speeds]
    row("tokens/s in all", [f"{speed:.0f}" if speed else "?" for speed in sums])
    say(f"{os.cpu_count()} processors, a thread each process. Memory is Pss: a page that n "
        "processes map counts 1/n for each. What the daemon shares counts as its own, mapped "
        "or not.)", "  (", "  ")
    return totals, sums


def print_worse(totals, speeds, n_tokens, stats, n_raw, n_packed):
    """Where dcmem is worse and where it is better, by the figures just taken."""
    print("\nWhere dcmem is worse, and why:")
    copy, mmap, dcmem = totals
    held = max(1, stats["peak_bytes"] - stats["compressed_bytes"] - stats["index_bytes"])
    say(f"Lossless packing saves {100 * (1 - n_packed / n_raw):.0f} % of this model: trained "
        "weights are nearly random in their low bits. Quantization gives more, with loss.")
    if dcmem > mmap:
        say(f"It takes {dcmem / mmap:.2f} times the memory of a shared mmap here: beside "
            f"{size(stats['compressed_bytes'])} compressed the daemon keeps what it decoded, "
            f"{size(held)}, because its budget ({size(stats['budget_bytes'])}) has room for it.")
    if dcmem > copy:
        say("It takes more memory even than three private copies.")
    if not (speeds[2] and speeds[1]):
        return
    ratio = speeds[2] / speeds[1]
    if ratio < 1:
        n_generated = len(PROMPTS) * n_tokens
        decoded = stats["decoded_total_bytes"] / max(1, stats["models"][0]["decoded_model_bytes"])
        why = (f"the weights were decoded {decoded:.1f} times over, which costs processor time."
               if decoded > 1.5 else
               f"every weight was decoded once; readers take windows up and give them back, "
               f"{stats['packets'] / n_generated:.1f} messages to the daemon a token. `lm --hold` "
               "keeps them.")
        say(f"It gives {ratio:.2f} of the tokens per second of a shared mmap: {why}")
    better = []
    if dcmem < copy:
        better.append(f"{dcmem / copy:.2f} of the memory of private copies")
    if dcmem < mmap:
        better.append(f"{dcmem / mmap:.2f} of the memory of a shared mmap")
    if ratio >= 1:
        better.append(f"{ratio:.2f} times the speed of a shared mmap")
    better.append(f"{n_packed / n_raw:.2f} of the disk")
    say(", ".join(better) + ".", "Where it is better: ", "  ")


def pack_quantized(build, model, directory, n_raw):
    """The model once more, smaller, with loss; and what it writes then."""
    dcmem = os.path.join(build, "tools", "dcmem", "dcmem")
    container = os.path.join(directory, "quantized.dcmem")
    print("Packing it again, quantized: smaller, with loss")
    try:
        report = json.loads(run([dcmem, "pack", model, "-o", container, "--quantize", "--json",
                                 "--quiet"]))["quantization"]
    except Failure as error:
        say(str(error))
        return
    n_packed = os.path.getsize(container)
    print(f"  {n_raw} bytes -> {n_packed}, ratio {n_raw / n_packed:.3f}; linear layers take "
          f"{report['bits_per_linear_weight']:.2f} bits\n  a weight. With text to calibrate "
          "(--calibration-ids) they lose half as much.")
    if architecture(model) in KNOWN:
        text = run([os.path.join(build, "examples", "lm", "lm"), "generate", "--model", container,
                    "--prompt", PROMPTS[0], "--tokens", "40"])
        print("  | " + " ".join(text.split())[:COLUMNS - 4])
    os.unlink(container)


def serve(build, model, n_tokens, directory, runtime, keep):
    dcmem = os.path.join(build, "tools", "dcmem", "dcmem")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", os.path.basename(model.rstrip("/"))) or "model"
    name = re.sub(r"\.safetensors$", "", name)
    container = os.path.join(directory, name + ".dcmem")
    n_raw = bytes_on_disk(model)

    print(f"Packing {shown(model)}")
    begin = time.monotonic()
    run([dcmem, "pack", model, "-o", container, "--quiet"])
    n_packed = os.path.getsize(container)
    print(f"  {n_raw} bytes -> {n_packed} in {time.monotonic() - begin:.1f} s, "
          f"ratio {n_raw / n_packed:.3f}, every file included")
    run([dcmem, "verify", container, "--against", model])
    tensors = raw_tensors(model)
    if os.path.isdir(model):
        n_files = check_restored(dcmem, model, container, directory)
        print(f"  bit for bit: {len(tensors)} tensors verified, {n_files} files restored alike")

    pack_quantized(build, model, directory, n_raw)

    print("Starting dcmemd")
    daemon = Daemon(build, runtime)
    environment = dict(os.environ, DCMEM_SOCKET=daemon.socket)
    try:
        run([dcmem, "load", container, "--name", name], env=environment)
        known = architecture(model) in KNOWN
        if known:
            print("Three processes generate text at once: private copies, shared mmap, dcmem")
            results, stats = generate_all(build, model, name, n_tokens, environment, daemon)
            for prompt, text in zip(PROMPTS, results["dcmem"][3]):
                words = " ".join(text.decode(errors="replace").split())
                print(f"  | {words[:COLUMNS - 4]}")
            texts = [results[title][3] for title, _ in WAYS]
            if not texts[0] == texts[1] == texts[2]:
                raise Failure("the three ways generated different texts")
            print("  the three ways gave the same text, byte for byte")
        else:
            print("lm does not know this architecture: three processes read tensors instead")
            some = sorted(tensors)[:3]
            some += some[:1] * (3 - len(some))
            at_once([[dcmem, "cat", name, tensor] for tensor in some], environment, 0)
        n_checked, n_all = check_served(dcmem, name, tensors, environment)
        print(f"  bit for bit: {n_checked} of {n_all} tensors of dcmemd compared with the source")
        if known:
            totals, speeds = print_comparison(results, stats, n_raw, n_packed)
            print_worse(totals, speeds, n_tokens, stats, n_raw, n_packed)
        else:
            held = pss_bytes(daemon.process.pid) + stats_of(dcmem, environment)["peak_bytes"]
            print(f"\n  model on disk {size(n_raw)}, packed {size(n_packed)}, "
                  f"memory of the daemon {size(held)}")
        print_next(build, name, model, container, daemon if keep else None,
                   None if known else sorted(tensors)[0])
    except BaseException:
        keep = False
        raise
    finally:
        if not keep:
            daemon.stop()


def print_next(build, name, model, container, daemon, tensor):
    print("\nThree commands to try next:")
    tool, lm = shown(f"{build}/bin/dcmem"), shown(f"{build}/bin/lm")
    if daemon:
        print(f"  export DCMEM_SOCKET={daemon.socket}\n")
        print(f"  {tool} stats")
        print(f"  {tool} ls {name}")
        if tensor:
            print(f"  {tool} cat {name} {shlex.quote(tensor)} --npy -o tensor.npy")
        else:
            print(f"  {lm} generate --model {name} --prompt 'Once upon a time'")
        print("\ndcmemd still runs (--keep). To stop it and remove what is left:\n"
              f"  kill {daemon.process.pid}; rm -r {shown(os.path.dirname(container))} "
              f"{os.path.dirname(daemon.socket)}")
    else:
        default = os.path.join("examples", "models", "tiny-llama")
        own = "" if shown(model) == default else shlex.quote(shown(model)) + " "
        print(f"  {tool} pack {shlex.quote(shown(model))} -o {name}.dcmem")
        print(f"  {tool} ls {name}.dcmem")
        print(f"  ./quickstart {own}--keep")


def link_programs(build):
    """BUILD_DIR/bin: short names for what the user is told to try."""
    directory = os.path.join(build, "bin")
    os.makedirs(directory, exist_ok=True)
    for program in ("tools/dcmem/dcmem", "daemon/dcmemd", "examples/lm/lm"):
        link = os.path.join(directory, os.path.basename(program))
        if not os.path.islink(link):
            os.symlink(os.path.join("..", program), link)


def socket_parent():
    """Where the directory of the socket goes: the path of a socket has few bytes."""
    default = tempfile.gettempdir()
    return default if len(os.fsencode(default)) + len("/dcmem-12345678/socket.text") < \
        SOCKET_PATH_BYTES else "/tmp"


def main():
    parser = argparse.ArgumentParser(description="pack, serve, compare; see ./quickstart --help")
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    arguments = parser.parse_args()
    build, model, keep, n_tokens = (arguments.build, arguments.model, arguments.keep,
                                    arguments.tokens)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    sys.stdout.reconfigure(line_buffering=True)
    link_programs(build)
    directory = tempfile.mkdtemp(prefix="run.", dir=os.path.abspath(build))
    runtime = tempfile.mkdtemp(prefix="dcmem-", dir=socket_parent())
    done, status = False, 1
    try:
        serve(build, model, n_tokens, directory, runtime, keep)
        done = True
    except Failure as error:
        print(f"quickstart: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("quickstart: interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        if not (keep and done):
            shutil.rmtree(directory, ignore_errors=True)
            shutil.rmtree(runtime, ignore_errors=True)
    return 0 if done else status


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Memory against speed, end to end: processes of the example program that run one INT8 model, through a
dcmemd that tunes itself within a budget, beside the same program on a shared mapping of the source.

    lm-memory.py BUILD_DIR MODEL_DIR [--processes 4] [--batch 1,8,32] [--budgets 45,60,80,110]
                 [--tokens 16] [--rounds 3] [--json FILE]

MODEL_DIR is a Hugging Face directory, for instance of `dcmem generate llama-1b --bits 3.64`. Budgets are
in percent of its tensors' bytes; the daemon gets each as its whole budget and nothing else is told to
it. Processes start an eighth of a second apart, with one thread each. Each way runs for `--tokens` steps
to settle and then again, measured; ways take turns, and the ratio is the median over rounds."""
import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time


def run_lm(lm, arguments, processes, work, environment):
    running = []
    for i in range(processes):
        path = os.path.join(work, f"lm-{i}.json")
        command = [lm, "bench", "--threads", "1", "--json", path, *arguments]
        running.append((subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL), path))
        time.sleep(0.125)
    rates = []
    for process, path in running:
        if process.wait() != 0:
            raise SystemExit("lm failed")
        with open(path, encoding="utf-8") as file:
            rates.append(json.load(file)["tokens_per_second"])
    return sum(rates)


class Daemon:
    def __init__(self, build, container, budget, work):
        self.socket = os.path.join(work, "socket")
        self.tool = os.path.join(build, "tools/dcmem/dcmem")
        config = os.path.join(work, "dcmemd.json")
        with open(config, "w", encoding="utf-8") as file:
            json.dump({"budget": budget, "objective": "latency",
                       "models": [{"path": container, "name": "m"}]}, file)
        read, write = os.pipe()
        self.process = subprocess.Popen(
            [os.path.join(build, "daemon/dcmemd"), "--socket", self.socket, "--config", config,
             "--ready-fd", str(write)], pass_fds=[write], stderr=subprocess.DEVNULL)
        os.close(write)
        if os.read(read, 5) != b"READY":
            raise SystemExit("dcmemd failed")
        os.close(read)

    def ask(self, *words):
        return json.loads(subprocess.run([self.tool, *words, "--json", "--socket", self.socket],
                                         check=True, capture_output=True).stdout)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def measure(options, container, raw_bytes, work):
    lm = os.path.join(options.build, "examples/lm/lm")
    rows = []
    for batch in options.batch:
        arguments = ["--batch", str(batch), "--tokens", str(options.tokens)]
        mapped, served, facts = [], {b: [] for b in options.budgets}, {}
        for _ in range(options.rounds):
            raw = run_lm(lm, ["--model", options.model, "--source", "mmap", *arguments],
                         options.processes, work, dict(os.environ))
            mapped.append(raw)
            for percent in options.budgets:
                daemon = Daemon(options.build, container, raw_bytes * percent // 100, work)
                environment = dict(os.environ, DCMEM_SOCKET=daemon.socket)
                try:
                    run_lm(lm, ["--model", "m", *arguments], options.processes, work, environment)
                    before = daemon.ask("stats")
                    rate = run_lm(lm, ["--model", "m", *arguments], options.processes, work,
                                  environment)
                    after = daemon.ask("stats")
                finally:
                    daemon.stop()
                served[percent].append(rate / raw)
                sweeps = options.tokens * options.processes
                facts[percent] = {
                    "peak_bytes": after["peak_bytes"],
                    "stored_bytes": after["compressed_bytes"],
                    "decodes_per_sweep": (after["decoded_total_bytes"] -
                                          before["decoded_total_bytes"]) / raw_bytes / sweeps}
        for percent in options.budgets:
            row = {"batch": batch, "budget_percent": percent,
                   "mmap_tokens_s": statistics.median(mapped),
                   "to_mmap": statistics.median(served[percent]),
                   "lowest": min(served[percent]), "highest": max(served[percent]), **facts[percent]}
            rows.append(row)
            print(f"batch {batch:3}  budget {percent:4} %  {row['to_mmap']:.2f} of mmap's "
                  f"{row['mmap_tokens_s']:.1f} tokens/s ({row['lowest']:.2f} to {row['highest']:.2f})"
                  f"  peak {row['peak_bytes'] / raw_bytes:.2f}  decoded {row['decodes_per_sweep']:.2f}"
                  " of each sweep", flush=True)
    return rows


def numbers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32])
    parser.add_argument("--budgets", type=numbers, default=[45, 60, 80, 110])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    options = parser.parse_args()
    tool = os.path.join(options.build, "tools/dcmem/dcmem")
    with tempfile.TemporaryDirectory() as work:
        container = os.path.join(work, "m.dcmem")
        subprocess.run([tool, "pack", options.model, "-o", container, "--quiet"], check=True)
        raw_bytes = sum(os.path.getsize(os.path.join(options.model, name))
                        for name in os.listdir(options.model) if name.endswith(".safetensors"))
        rows = measure(options, container, raw_bytes, work)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"raw_bytes": raw_bytes, "processes": options.processes, "rows": rows}, file,
                      indent=1)


if __name__ == "__main__":
    main()

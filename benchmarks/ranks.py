"""Several ranks against one process: training, links, kills, frames, cells, and the table on paper.

    python benchmarks/ranks.py train SCENE --downscale 4 --steps 400
    python benchmarks/ranks.py link SCENE --downscale 4            # as root: two network namespaces, 1 Gbit/s, 0.5 ms
    python benchmarks/ranks.py kills SCENE --kills 30
    python benchmarks/ranks.py render RUN
    python benchmarks/ranks.py sweep PICTURE
    python benchmarks/ranks.py kernels
    python benchmarks/ranks.py table

Everything but `table` needs a quiet machine of two cores. Rows go to results/ranks.csv; the table is computed from them
and stands in docs/many_machines.md.
"""

import argparse
import ctypes
import fcntl
import itertools
import json
import math
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
RESULTS = Path(__file__).parent / "results"
HERE = str(Path(__file__).resolve())
PORT = 29650


def torchrun(n: int, *words: str) -> list[str]:
    """The command that starts n ranks on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={n}", f"--master-port={PORT}", *words]


def environment(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


# --- one training, as a rank or alone


def worker(a: argparse.Namespace) -> None:
    """Train some steps and print what they took; run by each rank."""
    from contextlib import nullcontext
    from dataclasses import replace

    import torch

    from hashfield.data import ReadOptions, load_scene
    from hashfield.steps import gradient_mean
    from hashfield.steps.joining import joined
    from hashfield.tasks.evaluate import evaluate_views
    from hashfield.tasks.nerf import NerfTask
    from hashfield.tasks.nerf_config import PRESETS

    if a.whole:
        gradient_mean.LEAST_SPARSE = 2**60
    with joined() if os.environ.get("WORLD_SIZE", "1") != "1" else nullcontext() as ranks:
        if ranks is not None:
            ranks.wire = a.wire
        config = PRESETS[a.preset]
        config = replace(config, train=replace(config.train, batch=a.batch), refine=())  # ranks learn no exposures
        task = NerfTask(config, load_scene(a.scene, ReadOptions(downscale=a.downscale)), seed=a.seed)
        task.warm_up()
        task.begin()
        n_samples, spent, own, marks = 0, [], time.process_time(), []
        parts: dict[str, float] = dict.fromkeys(("offer", "call", "arrive", "adam", "refresh"), 0.0)
        sent: list[list[int]] = []
        measured(task.steps, parts, sent)
        began = time.perf_counter()
        for k in range(a.steps):
            before = time.perf_counter()
            found = task.step(k, k / a.steps)
            spent.append(time.perf_counter() - before)
            n_samples += int(found.n_samples)
            marks.append(n_samples)
        seconds = time.perf_counter() - began
        own = time.process_time() - own
        late = len(spent) // 2
        row = {
            "ranks": 1 if ranks is None else ranks.n, "threads": torch.get_num_threads(), "steps": a.steps,
            "samples": n_samples, "seconds": round(seconds, 2), "samples_per_s": round(n_samples / seconds),
            "late_samples_per_s": round((marks[-1] - marks[late - 1]) / sum(spent[late:])),
            "late_step_ms": round(1e3 * sum(spent[late:]) / len(spent[late:]), 2),
            "cpu_share": round(own / seconds / torch.get_num_threads(), 2), "seed": a.seed,
            "cores": len(os.sched_getaffinity(0)), "adam_ms": round(1e3 * parts["adam"] / a.steps, 2),
            "refresh_ms": round(1e3 * parts["refresh"] / a.steps, 2),
        }  # fmt: skip
        if ranks is not None:
            row |= {
                "mb_per_step": round(sum(map(sum, sent[late:])) / len(sent[late:]) / 1e6, 2),
                "kb_by_level": " ".join(str(round(sum(x) / len(x) / 1e3)) for x in zip(*sent[late:], strict=True)),
                "take_ms": round(1e3 * parts["offer"] / a.steps, 2),
                "exchange_ms": round(1e3 * parts["call"] / a.steps, 2),
                "arrive_ms": round(1e3 * parts["arrive"] / a.steps, 2),
            }
        if ranks is None or ranks.is_first:
            if a.judge:
                from hashfield.steps.ranks import working_alone

                with working_alone():
                    row["psnr"] = round(evaluate_views(task.model(), task.scene.splits["test"])["psnr"], 3)
            print("ROW " + json.dumps(row), flush=True)


def measured(steps: Any, parts: dict[str, float], sent: list[list[int]]) -> None:
    """Let the parts of a step that ranks change add up their time, in which waiting is included, and note each step's
    bytes. Adam's has that of the entries' arrival in it."""

    def timed(name: str, work: Any) -> Any:
        def call(*arguments: Any) -> Any:
            before = time.perf_counter()
            found = work(*arguments)
            parts[name] += time.perf_counter() - before
            return found

        return call

    optimizer, mean = steps.optimizer, steps.mean
    optimizer._step_table, steps._refresh = timed("adam", optimizer._step_table), timed("refresh", steps._refresh)
    if mean is None:
        return
    kind = type(mean)

    class Timed(kind):
        def __call__(self, *arguments: Any) -> Any:
            found = timed("call", kind.__call__)(self, *arguments)
            sent.append(list(self.bytes_of_levels))
            return found

    mean.offer, mean._arrived, mean.__class__ = timed("offer", mean.offer), timed("arrive", mean._arrived), Timed


def row_of(text: str) -> dict[str, Any]:
    found = re.findall(r"^ROW (.*)$", text, re.M)
    if not found:
        raise SystemExit(text)
    return json.loads(found[-1])


def worker_words(a: argparse.Namespace, wire: str = "bfloat16", whole: bool = False, judge: bool = False) -> list[str]:
    words = ["worker", str(a.scene), "--downscale", str(a.downscale), "--steps", str(a.steps), "--batch", str(a.batch)]
    words += ["--preset", a.preset, "--wire", wire, "--seed", str(a.seed)]
    return words + (["--whole"] if whole else []) + (["--judge"] if judge else [])


def run(command: list[str], threads: int) -> str:
    found = subprocess.run(command, env=environment(threads), capture_output=True, text=True)
    return found.stdout + found.stderr


def train(a: argparse.Namespace) -> None:
    """1 process of 2 threads, then 2 ranks of 1 thread, on equal numbers of samples."""
    from common import append

    variants = [("alone", None, False), ("bfloat16", "bfloat16", False), ("float32", "float32", False)]
    for seed, (name, wire, whole) in itertools.product(a.seeds or [a.seed], variants):
        if name not in a.only and a.only:
            continue
        a.seed = seed
        words = [HERE, *worker_words(a, wire or "bfloat16", whole, judge=not a.no_judge)]
        text = run([sys.executable, *words], 2) if wire is None else run(torchrun(2, *words), 1)
        row = {
            "what": "train",
            "scene": a.scene.name,
            "batch": a.batch,
            "wire": wire or "",
            "link": "loopback" if wire else "",
        }
        row |= row_of(text)
        print(row, flush=True)
        append("ranks", [row])


# --- a link of 1 Gbit/s and half a millisecond, made of two TUN devices and a relay


def tun_in(namespace: str, address: str) -> int:
    """The file of a TUN device in a network namespace that is made for it. Its packets are as large as can be, as those
    that a network card is handed: a relay written in Python then takes little of the processor."""
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
        device = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"t0", 0x1001))  # TUNSETIFF: IFF_TUN | IFF_NO_PI
        libc.setns(home.fileno(), 0)
    inside = ["ip", "netns", "exec", namespace]
    for words in (
        ["ip", "addr", "add", f"{address}/24", "dev", "t0"], ["ip", "link", "set", "t0", "mtu", "65000", "up"],
        ["ip", "link", "set", "lo", "up"],
    ):  # fmt: skip
        subprocess.run([*inside, *words], check=True)
    return device


def relay(source: int, target: int, rate: float, delay: float) -> None:
    """Pass packets on, `rate` bits a second, `delay` seconds late; two threads for each direction."""
    waiting: deque[tuple[float, bytes]] = deque()
    there = threading.Semaphore(0)

    def read() -> None:
        free = 0.0
        while True:
            packet = os.read(source, 65536)
            now = time.perf_counter()
            free = max(free, now) + 8 * len(packet) / rate
            waiting.append((free + delay, packet))
            there.release()

    def write() -> None:
        while True:
            there.acquire()
            due, packet = waiting.popleft()
            left = due - time.perf_counter()
            if left > 0:
                time.sleep(left)
            os.write(target, packet)

    for work in (read, write):
        threading.Thread(target=work, daemon=True).start()


def link(a: argparse.Namespace) -> None:
    """Two ranks in two namespaces: the whole table, touched entries, and these in bfloat16."""
    from common import append

    names, addresses = ("hashfield0", "hashfield1"), ("10.77.0.1", "10.77.0.2")
    try:
        devices = [tun_in(*pair) for pair in zip(names, addresses, strict=True)]
        relay(devices[0], devices[1], a.gbits * 1e9, 1e-3 * a.delay_ms)
        relay(devices[1], devices[0], a.gbits * 1e9, 1e-3 * a.delay_ms)
        ping = subprocess.run(
            ["ip", "netns", "exec", names[0], "ping", "-c", "5", "-i", "0.2", "-q", addresses[1]],
            capture_output=True, text=True,
        )  # fmt: skip
        print(ping.stdout.strip().splitlines()[-1] if ping.stdout else ping.stderr)
        for wire, whole in (("bfloat16", False), ("float32", False), ("float32", True)):
            label = "whole" if whole else wire
            if a.only and label not in a.only:
                continue
            words = [sys.executable, HERE, *worker_words(a, wire, whole)]
            started = []
            for rank, name in enumerate(names):
                own = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": addresses[0], "MASTER_PORT": str(PORT + 1)}
                started.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *words], env={**environment(1), **own, "GLOO_SOCKET_IFNAME": "t0"},
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    )
                )  # fmt: skip
            texts = [p.communicate()[0] for p in started]
            row = {
                "what": "train",
                "scene": a.scene.name,
                "batch": a.batch,
                "wire": label,
                "link": f"{a.gbits:g} Gbit/s {a.delay_ms:g} ms",
            }
            row |= row_of(texts[0])
            print(row, flush=True)
            append("ranks", [row])
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


# --- kills


def kills(a: argparse.Namespace) -> None:
    """Kill a random rank at random moments of a run with restarts; compare its end with that of a run left alone.
    Without kills, only the latter: with other seeds, that is the noise."""
    from common import append

    with tempfile.TemporaryDirectory() as folder:
        for name, n_kills in [("left alone", 0), ("killed", a.kills)][: 2 if a.kills else 1]:
            out = Path(folder) / name.replace(" ", "_")
            words = [
                "-m", "hashfield", "train", "nerf", str(a.scene), "--downscale", str(a.downscale), "--preset", "fast",
                "--n-steps", str(a.steps), "--train.batch", str(a.batch), "--out", str(out), "--autosave-seconds", "1",
                "--seed", str(a.seed), "--encoding.log2-hashmap-size", "16",
            ]  # fmt: skip
            began = time.perf_counter()
            process = subprocess.Popen(
                torchrun(2, f"--max-restarts={n_kills + 5}", "--monitor-interval=0.1", *words), env=environment(1),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip
            lines: list[str] = []
            reader = threading.Thread(target=lambda: lines.extend(process.stdout or []), daemon=True)
            reader.start()
            done = killed_by_us(process, n_kills, random.Random(a.seed), a.settle)
            code = process.wait()
            reader.join()
            text = "".join(lines)
            if code:
                raise SystemExit(f"exit code {code} after {done} kills:\n{text}")
            metadata = checkpoint_of(out)
            # All pixels, which the run itself judges only as far as they take little time.
            judged = run([sys.executable, "-m", "hashfield", "evaluate", str(out)], 2)
            psnr = re.findall(r"PSNR ([\d.]+) dB", judged)
            row = {
                "what": "kills", "scene": a.scene.name, "ranks": 2, "threads": 1, "kills": done, "exit_code": code,
                "seed": a.seed,
                "steps": metadata["loop"]["step"], "steps_planned": a.steps, "psnr": float(psnr[-1]) if psnr else None,
                "seconds": round(time.perf_counter() - began, 1),
                "lines_that_name_a_rank": len(re.findall(r"hashfield: .*rank \d .*", text)),
            }  # fmt: skip
            print(row, flush=True)
            if not psnr:
                print(judged)
            append("ranks", [row])


def killed_by_us(process: "subprocess.Popen[str]", n: int, chance: random.Random, settle: float) -> int:
    """How many ranks could be killed, one after another, each a random time after its run began to train again, which
    takes `settle` seconds, about."""
    done = 0
    while done < n and process.poll() is None:
        children = [int(x) for x in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        ranks = [x for x in children if is_old(x, settle)]
        if len(ranks) == 2:
            time.sleep(chance.uniform(0.0, 2.5))
            try:
                os.kill(chance.choice(ranks), signal.SIGKILL)
                done += 1
            except ProcessLookupError:
                pass
        time.sleep(0.2)
    return done


def is_old(pid: int, seconds: float) -> bool:
    """Whether a process has lived for so long: since then it has read its data, mostly."""
    try:
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return False
    return float(Path("/proc/uptime").read_text().split()[0]) - started > seconds


def checkpoint_of(out: Path) -> dict[str, Any]:
    from hashfield.train.checkpoint import read_metadata

    return read_metadata(out / "checkpoint.safetensors")


# --- frames and cells


def render(a: argparse.Namespace) -> None:
    """60 frames by one process of 2 threads and by two ranks of 1: the same files, and their time."""
    from common import append

    with tempfile.TemporaryDirectory() as folder:
        outs = {}
        for form in a.forms:
            for name, n in (("one", 1), ("two", 2)):
                out = Path(folder) / f"{form}_{name}"
                words = [
                    "-m", "hashfield", "render", str(a.run), "--views", "orbit", "--n-frames", str(a.frames), "--format",
                    form, "--out", str(out), "--width", str(a.width), "--output", "color", "depth",
                ]  # fmt: skip
                began = time.perf_counter()
                text = run([sys.executable, *words] if n == 1 else torchrun(2, *words), 2 // n)
                seconds = time.perf_counter() - began
                outs[form, name] = {p.name: p.read_bytes() for p in sorted(out.glob(f"*.{form}"))}
                row = {
                    "what": f"render {form}", "ranks": n, "threads": 2 // n, "frames": a.frames, "seconds": round(seconds, 1),
                    "files": len(outs[form, name]),
                }  # fmt: skip
                if n == 2:
                    row["equal"] = outs[form, "one"] == outs[form, "two"]
                print(row, text[-300:] if not row["files"] else "", flush=True)
                append("ranks", [row])


def sweep(a: argparse.Namespace) -> None:
    """Six cells by one process of 2 threads, one of 1 thread, and two ranks of 1: equal rows, and their time."""
    from common import append

    with tempfile.TemporaryDirectory() as folder:
        rows = {}
        for name, n, threads in (("1x1", 1, 1), ("2x1", 2, 1), ("1x2", 1, 2)):
            out = Path(folder) / name
            words = [
                "-m", "hashfield", "sweep", "image", str(a.picture), "--max-samples", str(a.samples), "--batch", "16384",
                "--out", str(out), "--threads", str(threads),
            ]  # fmt: skip
            began = time.perf_counter()
            text = run([sys.executable, *words] if n == 1 else torchrun(2, *words), threads)
            seconds = time.perf_counter() - began
            cells = (
                [p for p in (out / "cells.csv").read_text().splitlines()] if (out / "cells.csv").exists() else [text]
            )
            head = cells[0].split(",")
            rows[name] = [
                {k: v for k, v in zip(head, line.split(","), strict=False) if k in ("cell", "psnr", "steps", "samples")}
                for line in cells[1:]
            ]
            row = {
                "what": "sweep",
                "ranks": n,
                "threads": threads,
                "cells": len(rows[name]),
                "seconds": round(seconds, 1),
            }
            if name == "2x1":
                row["equal"] = rows["1x1"] == rows["2x1"]
            print(row, rows[name] if not rows[name] else "", flush=True)
            append("ranks", [row])


# --- the table on paper

MEASURED = {
    "samples": 2**15,
    "kb_by_level": (66, 26, 132, 248, 553, 921, 1259, 1359),
    "step_ms": 39.2,
    "step_samples": 2**16,
    "take_ns": 1.4,
    "sum_ns": 1.1,
    "update_ns": 2.1,
    "send_ns": 1.2,
}
"""Of a machine of 2 cores, lego, L8 F4 T 2^19: rows of results/ranks.csv, and what `kernels` prints. Bytes are those of one
rank of two with half a batch of 2^16, in bfloat16, as a mean over steps; the first level travels whole. Of the kernels:
nanoseconds on one core for each entry of a level: to take out what is touched, to add up what one rank sends, and Adam's.
The last one is nanoseconds of a core for each byte that it receives while it sends as many: the rows' `exchange_ms` on
loopback, in which some waiting is."""
ROW = 16  # bytes of an entry of four float32
EXCHANGES = 3  # that wait for each other: figures and counts, the touched entries, the small things


def entries(log2_t: int) -> list[int]:
    """Entries of each level of the default preset's grid, with another size of table."""
    from dataclasses import replace

    from hashfield.tasks.nerf_config import PRESETS

    config = PRESETS["default"]
    config = replace(config, encoding=replace(config.encoding, log2_hashmap_size=log2_t))
    return config.field_config(1, 0.0).encoding.layout(3).entries.tolist()


def intervals(log2_t: int, batch: int) -> list[int]:
    """Steps between two updates of each level."""
    from hashfield.steps.recipes import update_parts
    from hashfield.tasks.nerf_config import LONGEST_INTERVAL, PRESETS

    wanted = PRESETS["default"].train.touches_per_update
    return [k for _, k in update_parts(entries(log2_t), 8 * batch, wanted, LONGEST_INTERVAL) or ()]


def touched(log2_t: int, samples: float, batch: int) -> list[float]:
    """Entries of each level that so many samples a step touch until its update: of balls thrown into a level's entries,
    how many it holds. What one sample throws is fitted to the measurement, since neighbours share most of their
    corners."""
    known, sizes, turns = entries(19), entries(log2_t), intervals(log2_t, batch)
    found = []
    for kb, size, turn, new, own in zip(
        MEASURED["kb_by_level"], known, intervals(19, MEASURED["step_samples"]), sizes, turns, strict=True
    ):
        rows = min(size - 1, (1e3 * kb * turn - size / 8) / (ROW / 2)) if size >= 2**14 else size - 1
        each = -size / (MEASURED["samples"] * turn) * math.log(1 - rows / size)
        found.append(new * (1 - math.exp(-each * samples * own / new)))
    return found


def kernels(a: argparse.Namespace) -> None:
    """What taking touched entries out, adding them up and Adam cost on one core; prints what `MEASURED` holds of it."""
    import numpy as np
    import torch

    from hashfield.ops.adam import adam_table
    from hashfield.ops.touched_rows import RowRoom, TouchedRows, take_rows

    def least_ns(work: Any) -> float:
        spent = []
        for _ in range(a.repeats):
            before = time.perf_counter()
            work()
            spent.append(time.perf_counter() - before)
        return 1e9 * min(spent) / n

    torch.set_num_threads(1)
    n, draw = a.rows, torch.Generator().manual_seed(0)
    param, first, second = (torch.zeros(n, 4) for _ in range(3))
    copy, takes, updates, rows = param.to(torch.bfloat16), [], [], []
    for _ in range(4):
        room = RowRoom([slice(0, n)], 4, torch.bfloat16)
        source = (torch.rand(n, 1, generator=draw) < a.share) * torch.randn(n, 4, generator=draw)
        gradient = source.clone()
        counts = take_rows(gradient, room, [0], 0.5)
        rows.append(room.rows(0, counts[0]))

        def take(source: Any = source, gradient: Any = gradient, room: Any = room) -> None:
            take_rows(gradient.copy_(source), room, [0], 0.5)

        def update(rows: list[TouchedRows] = rows) -> None:
            adam_table(param, gradient, first, second, copy, step=9, learning_rate=1e-3, rows=rows)

        takes.append(least_ns(take) - least_ns(lambda gradient=gradient, source=source: gradient.copy_(source)))
        updates.append(least_ns(update))
    each, base = np.polyfit([1, 2, 3, 4], updates, 1)
    print(
        f"take_ns {np.median(takes):.2f}, sum_ns {each:.2f}, update_ns {base:.2f}; Adam of 1 to 4 ranks' entries: ",
        end="",
    )
    print(" ".join(f"{x:.2f}" for x in updates), "ns an entry")


def cpu_seconds(
    n: int, batch: int, log2_t: int, gbits: float, delay: float, *, cores: int = 2, wire: str = "bfloat16",
    is_shared: bool = False,
) -> float:  # fmt: skip
    """Seconds of a step of n machines whose cores are like those measured.

    Args:
        n: Machines.
        batch: Samples of all of them together.
        log2_t: Logarithm of a level's most entries.
        gbits: What a machine sends, and receives, in a second.
        delay: Seconds of a packet's way.
        cores: Of a machine.
        wire: "whole" sends no touched entries, but every level whole in float32.
        is_shared: Whether each machine updates its share of the entries only, and sends the values to the others.
    """
    m, sizes, turns, known = MEASURED, entries(log2_t), intervals(log2_t, batch), MEASURED["step_samples"]
    core = 1e-9 / cores  # kernels were timed in nanoseconds on one core
    adam_known = (
        0.5e-9 * m["update_ns"] * sum(s / turn for s, turn in zip(entries(19), intervals(19, known), strict=True))
    )
    per_sample = (1e-3 * m["step_ms"] - adam_known) / known * 2 / cores
    updated = sum(size / turn for size, turn in zip(sizes, turns, strict=True))
    if n == 1:
        return per_sample * batch + core * m["update_ns"] * updated
    own, all_ = touched(log2_t, batch / n, batch), touched(log2_t, batch, batch)
    row = ROW / 2 if wire == "bfloat16" else ROW
    part, received, handled = (n - 1) / n, 80e3 * (n - 1) / n, 0.0
    for size, count, union, turn in zip(sizes, own, all_, turns, strict=True):
        whole = (1 if is_shared else 2) * part * ROW * size
        sparse = (part if is_shared else n - 1) * (size / 8 + count * row)
        if size < 2**14 or wire == "whole":
            sparse = math.inf
        received += min(whole, sparse) / turn
        nanoseconds = m["update_ns"] / (n if is_shared else 1)
        if sparse < whole:
            nanoseconds += m["take_ns"] + m["sum_ns"] * (1 if is_shared else n)
        if is_shared:  # values are packed by their owner and spread out by all others
            received += part * min(ROW / 2 * size, size / 8 + union * ROW / 2) / turn
            nanoseconds += m["take_ns"] / n + m["sum_ns"] * part
        handled += nanoseconds * size / turn
    handled += m["send_ns"] * received
    hops = (EXCHANGES + is_shared) * (n - 1) * delay
    return per_sample * batch / n + core * handled + 8 * received / (gbits * 1e9) + hops


def gpu_seconds(n: int, batch: int, log2_t: int) -> float:
    """Seconds of a step of n GPUs that sum whole tables in float32, by rings for size and trees for delay."""
    compute = 1.16e-3 * batch / n / 2**18  # an H100's step, README
    if n == 1:
        return compute
    size = ROW * sum(entries(log2_t))
    return compute + 2 * (n - 1) / n * size / (0.8 * 50e9) + 20e-6 * math.log2(n)


def percent(one: float, n: int, many: float) -> str:
    return f"{100 * one / (n * many):.0f} %"


def cpu_table(counts: tuple[int, ...], sizes: tuple[int, ...], *, is_shared: bool = False) -> list[str]:
    """Lines of a table of the efficiency of n machines with CPUs.

    Args:
        counts: Machines.
        sizes: Logarithms of a level's most entries.
        is_shared: As for `cpu_seconds`.
    """
    head = "| batch, T | network | " + " | ".join(f"{n} CPUs" for n in counts) + " |"
    lines = [head, "|---" * (2 + len(counts)) + "|"]
    for batch, log2_t in itertools.product((2**16, 2**18, 2**20), sizes):
        for gbits, delay in ((1.0, 0.5e-3), (10.0, 0.1e-3)):
            one = cpu_seconds(1, batch, log2_t, 1, 0)
            many = [cpu_seconds(n, batch, log2_t, gbits, delay, is_shared=is_shared) for n in counts]
            row = [percent(one, n, seconds) for n, seconds in zip(counts, many, strict=True)]
            lines.append(f"| 2^{round(math.log2(batch))}, 2^{log2_t} | {gbits:g} Gbit/s | " + " | ".join(row) + " |")
    return lines


def tables() -> str:
    """The efficiency of n machines, the time of one over n times theirs: three tables in Markdown."""
    counts = (8, 64, 256, 1024)
    lines = [*cpu_table((2, 4, 8, 16, 32, 64), (17, 19)), "", "| batch, T | " + " | ".join(f"{n} GPUs" for n in counts)]
    lines[-1] += " |"
    lines.append("|---" * (1 + len(counts)) + "|")
    for batch in (2**20, 2**23, 2**26):
        for log2_t in (19, 21):
            one = gpu_seconds(1, batch, log2_t)
            row = [percent(one, n, gpu_seconds(n, batch, log2_t)) for n in counts]
            lines.append(f"| 2^{round(math.log2(batch))}, 2^{log2_t} | " + " | ".join(row) + " |")
    lines += ["", "If each CPU updated its share of the entries only:", ""]
    lines += cpu_table((2, 4, 8, 16, 32, 64), (19,), is_shared=True)
    return "\n".join(lines) + "\n"


def measured_cases() -> str:
    """Milliseconds of a step of two machines of one core each, as the reckoning has them: what can be measured here."""
    found = []
    for batch, gbits, delay, wire in (
        (2**16, 1e6, 0.0, "bfloat16"), (2**18, 1e6, 0.0, "bfloat16"), (2**20, 1e6, 0.0, "bfloat16"),
        (2**16, 1.0, 5e-4, "bfloat16"), (2**16, 1.0, 5e-4, "float32"), (2**16, 1.0, 5e-4, "whole"),
    ):  # fmt: skip
        plain, shared = (
            1e3 * cpu_seconds(2, batch, 19, gbits, delay, cores=1, wire=wire, is_shared=is_shared)
            for is_shared in (False, True)
        )
        link = "loopback" if gbits > 1e3 else f"{gbits:g} Gbit/s"
        found.append(f"2^{round(math.log2(batch))} {wire} {link}: {plain:.1f} ms, shared update {shared:.1f} ms")
    return "\n".join(found) + "\n"


def table(a: argparse.Namespace) -> None:
    """Print the tables, put them into docs/many_machines.md, and print what they can be checked by."""
    page = Path(__file__).resolve().parents[1] / "docs" / "many_machines.md"
    before, _, rest = page.read_text().partition("<!-- table -->\n")
    after = rest.partition("<!-- end of table -->\n")[2]
    print(tables())
    print(measured_cases())
    page.write_text(f"{before}<!-- table -->\n{tables()}<!-- end of table -->\n{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, function in (("worker", worker), ("train", train), ("link", link), ("kills", kills)):
        own = verbs.add_parser(name)
        own.set_defaults(call=function)
        own.add_argument("scene", type=Path)
        own.add_argument("--downscale", type=int, default=4)
        own.add_argument("--steps", type=int, default=400)
        own.add_argument("--batch", type=int, default=2**16)
        own.add_argument("--preset", default="default")
        own.add_argument("--seed", type=int, default=0)
        own.add_argument("--only", nargs="*", default=[])
        own.add_argument("--no-judge", action="store_true")
        if name == "train":
            own.add_argument("--seeds", nargs="*", type=int, default=[])
        if name == "worker":
            own.add_argument("--wire", default="bfloat16")
            own.add_argument("--whole", action="store_true")
            own.add_argument("--judge", action="store_true")
        if name == "link":
            own.add_argument("--gbits", type=float, default=1.0)
            own.add_argument("--delay-ms", type=float, default=0.5)
        if name == "kills":
            own.add_argument("--kills", type=int, default=30)
            own.add_argument("--settle", type=float, default=5.0)
    own = verbs.add_parser("render")
    own.set_defaults(call=render)
    own.add_argument("run", type=Path)
    own.add_argument("--frames", type=int, default=60)
    own.add_argument("--forms", nargs="+", default=["png", "mp4"])
    own.add_argument("--width", type=int, default=200)
    own = verbs.add_parser("sweep")
    own.set_defaults(call=sweep)
    own.add_argument("picture", type=Path)
    own.add_argument("--samples", type=int, default=2**20)
    own = verbs.add_parser("kernels")
    own.set_defaults(call=kernels)
    own.add_argument("--rows", type=int, default=2**21)
    own.add_argument("--repeats", type=int, default=7)
    own.add_argument("--share", type=float, default=0.4)
    own = verbs.add_parser("table")
    own.set_defaults(call=table)
    a = parser.parse_args()
    a.call(a)


if __name__ == "__main__":
    main()

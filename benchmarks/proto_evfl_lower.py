"""One lower-level epoch of Proto-EVFL with our kernels, and the same code on the reference.

    python -m benchmarks.proto_evfl_lower [--rows 50000] [--width 128] [--classes 100] [--batch B]

An epoch: one look at all unaligned rows (prior, costs, selection), then steps of local
cross-entropy and transport loss over all of them, a batch at a time. Both backends run epoch by
epoch in turn, each in a process of its own; what is printed is the median, and the most memory that
an epoch takes for a quarter of the rows and for all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import torch

from benchmarks.memory import peak_bytes
from python_api.algorithms.proto_evfl.learner import OwnRows
from python_api.algorithms.vertical.local_head import local_head
from python_api.config.schema import ProtoEvflConfig, VerticalPartyConfig
from python_api.models.encoder import build_encoder

__all__ = ["Epoch", "measure"]

FEATURES = 32


class Epoch:
    """A party with n rows of random columns, half of them with a label."""

    def __init__(self, n: int, width: int, classes: int, batch: int) -> None:
        torch.manual_seed(0)
        config = VerticalPartyConfig(
            name="party", table="-", id="id", model={"hidden": (64,), "out": width}
        )
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"batch_size": batch})}
        )
        keys = ProtoEvflConfig(select="none")
        self.encoder = build_encoder(config.model, FEATURES, seed=0)
        self.head = local_head(keys, classes, width)
        party = SimpleNamespace(
            name="party",
            classes=classes,
            config=config,
            device="cpu",
            encode=lambda x, noisy=False, scale=1.0: self.encoder(x),
            encoder=self.encoder,
            run=SimpleNamespace(seed=0),
        )
        y = torch.randint(0, classes, (n,))
        y[::2] = -1
        self.rows = OwnRows(party, keys, torch.randn(n, FEATURES), y, 1.0)  # type: ignore[arg-type]
        self.steps = -(-n // batch)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        self.world = torch.full((classes,), 1 / classes)

    def run(self) -> float:
        """Seconds of one epoch."""
        start = time.perf_counter()
        self.rows.look(self.head, self.world, 1.0)
        for _ in range(self.steps):
            self.rows.loss(self.head, None).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        return time.perf_counter() - start


def serve(n: int, width: int, classes: int, batch: int) -> None:
    """Runs an epoch for every line that arrives and answers with its seconds."""
    epoch = Epoch(n, width, classes, batch)
    for _ in sys.stdin:
        print(epoch.run(), flush=True)


class Worker:
    """An epoch in a process of its own: the backend that `auto` means is read at import."""

    def __init__(self, backend: str, sizes: tuple[int, int, int, int]) -> None:
        names = ("--rows", "--width", "--classes", "--batch")
        options = [text for pair in zip(names, map(str, sizes), strict=True) for text in pair]
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, "--serve", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"FEDKERNELS_BACKEND": backend},
        )

    def seconds(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(sizes: tuple[int, int, int, int], repeats: int) -> dict[str, float]:
    """Median seconds of an epoch per backend, interleaved, and the ratio."""
    workers = {name: Worker(name, sizes) for name in ("auto", "reference")}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for repeat in range(repeats + 1):
        for name, worker in workers.items():
            seconds = worker.seconds()
            if repeat:  # the first of each warms up
                times[name].append(seconds)
    for worker in workers.values():
        worker.close()
    found = {name: statistics.median(each) for name, each in times.items()}
    return found | {"ratio": found["reference"] / found["auto"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = (args.rows, args.width, args.classes, args.batch)
    if args.serve:
        serve(*sizes)
        return
    for n in (args.rows // 4, args.rows):
        epoch = Epoch(n, *sizes[1:])
        peak = peak_bytes(epoch.run) / 2**20
        print(f"{n} rows: at most {peak:.1f} MB beside the rows and the model")
    found = measure(sizes, args.repeats)
    print(
        f"{args.rows} rows, d {args.width}, C {args.classes}, batch {args.batch}, "
        f"{torch.get_num_threads()} threads: kernels {found['auto']:.3f} s, reference "
        f"{found['reference']:.3f} s, ratio {found['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()

"""One lower-level epoch of Proto-EVFL with our kernels, and the same code on the reference.

    python -m benchmarks.proto_evfl_lower [--rows 50000] [--width 128] [--classes 100] [--batch B]

An epoch: one look at all unaligned rows (prior, costs, selection), then steps of local
cross-entropy and transport loss over all of them. Both backends run in this process, interleaved,
each with its own copy of the same party; what is printed is the median, and the growth of the
process's peak memory from a quarter of the rows to all of them beside the rows themselves.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from types import SimpleNamespace

import torch

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


def measure(n: int, width: int, classes: int, batch: int, repeats: int) -> dict[str, float]:
    """Median seconds of an epoch per backend, and the ratio."""
    times: dict[str, list[float]] = {"auto": [], "reference": []}
    epochs = {name: Epoch(n, width, classes, batch) for name in times}
    for repeat in range(repeats + 1):
        for name, epoch in epochs.items():
            os.environ["FEDKERNELS_BACKEND"] = name
            seconds = epoch.run()
            if repeat:  # the first of each warms up
                times[name].append(seconds)
    os.environ.pop("FEDKERNELS_BACKEND")
    found = {name: statistics.median(each) for name, each in times.items()}
    return found | {"ratio": found["reference"] / found["auto"]}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    sizes = (args.width, args.classes, args.batch)
    Epoch(args.rows // 4, *sizes).run()
    before = peak_mb()
    whole = Epoch(args.rows, *sizes)
    whole.run()
    held = whole.rows.x.nbytes * 3 / 4 / 2**20
    print(f"peak memory from {args.rows // 4} to {args.rows} rows: +{peak_mb() - before:.1f} MB,")
    print(f"of which the rows themselves {held:.1f} MB")
    found = measure(args.rows, *sizes, args.repeats)
    print(
        f"{args.rows} rows, d {args.width}, C {args.classes}, batch {args.batch}, "
        f"{torch.get_num_threads()} threads: kernels {found['auto']:.3f} s, reference "
        f"{found['reference']:.3f} s, ratio {found['ratio']:.2f}"
    )


if __name__ == "__main__":
    main()

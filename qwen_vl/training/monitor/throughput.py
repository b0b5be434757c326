"""Throughput monitor: counts between two lines of the log."""

import dataclasses
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from qwen_vl.families import v1_costs as costs
from qwen_vl.training import param_groups

from . import flops

Reduce = Callable[[torch.Tensor], torch.Tensor]  # sums a tensor over all ranks; every rank must call it


class SpeedMeter:
    """Tokens, samples, operations, peak memory and data wait of a run since the last `take`.

    The clock runs from `timed` to `stop` or `take`, so evaluation and checkpoints do not count. All counts are known to
    the host, so nothing waits for the device before `take`.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._config: Any = model.config
        self._device, self._dtype = torch.device(device), dtype
        self._trained = {param_groups.label_of(name) for name in names}
        self._adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad)
        self._seconds = 0.0
        self._started: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._tokens = self._positions = self._samples = self._steps = self._targets = 0
        self._waited = 0.0
        self._work: dict[tuple[str, ...], costs.Work] = {}  # by the parts that do not run

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches of an iterator and count the time until each arrives as data wait."""
        self._started = self._started or time.perf_counter()
        while True:
            before = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._waited += time.perf_counter() - before
            yield batch

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch of `ConversationCollator`."""
        lengths = batch["lengths"] if "lengths" in batch else batch["segment_lengths"]
        source = next((key for key in ("pixel_values", *costs.SPARED) if key in batch), None)
        self._tokens += sum(lengths)
        self._positions += batch["input_ids"].numel()
        self._samples += len(lengths)
        self._targets += len(batch["target_index"])
        work = costs.work(lengths, targets=0, images=0 if source is None else len(batch[source]))
        cached = () if source is None else costs.SPARED.get(source, ())
        self._work[cached] = self._work.get(cached, costs.Work()) + work

    def count_step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def stop(self) -> None:
        """Wait for the device, then stop the clock; `timed` starts it again."""
        if self._started is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def operations(self) -> int:
        """Return the operations of the counted batches, forward and backward."""
        work: dict[tuple[str, ...], costs.Work] = dict(self._work) or {(): costs.Work()}
        first = next(iter(work))
        work[first] = dataclasses.replace(work[first], targets=self._targets)
        counted = [
            costs.training_operations(
                self._config, batch, cached=cached, trained=self._trained, adapter_parameters=self._adapters
            )
            for cached, batch in work.items()
        ]
        return sum(sum(parts.values()) for parts in counted)

    def take(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return the throughput of all ranks for the log, and reset the counts.

        {"tokens_per_second", "samples_per_second", "step_seconds", "data_wait": share of the time, "padding": share of
        the computed positions, "mfu": share of the machine's measured peak in matrix products, "memory_gib": this
        process's peak}. reduce: needed with several ranks; then every rank must call this.
        """
        self.stop()
        seconds, peak = max(self._seconds, 1e-9), flops.measured_peak(self._device, self._dtype)
        counts = [self._tokens, self._positions, self._samples, self._waited / seconds, self.operations(), peak, 1]
        if reduce:
            counts = reduce(torch.tensor(counts, dtype=torch.float64)).tolist()
        tokens, positions, samples, waited, operations, peaks, ranks = counts
        logs = {
            "tokens_per_second": round(tokens / seconds, 1),
            "samples_per_second": round(samples / seconds, 2),
            "step_seconds": round(seconds / max(self._steps, 1), 4),
            "data_wait": round(waited / ranks, 3),
            "padding": round(1 - tokens / max(positions, 1), 3),
            "mfu": round(operations / seconds / peaks, 4),
            "memory_gib": round(peak_memory(self._device) / 2**30, 3),
        }
        self._seconds = 0.0
        self._forget()
        return logs


def peak_memory(device: torch.device | str) -> int:
    """Return the peak bytes of this process: allocated on the device, or resident memory if that is the CPU."""
    if torch.device(device).type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    peak = own_memory("VmHWM")  # of this program alone; `ru_maxrss` includes the peak of its parent
    if peak is not None:
        return peak
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def own_memory(field: str) -> int | None:
    """Return a memory field of this process in bytes: VmHWM, VmRSS or RssAnon; None if the system has none."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else None


class SourceMeter:
    """Tokens, targets and summed loss of each source since the last `take`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self._sums: torch.Tensor | None = None  # [sources, 3]: tokens, targets, loss; on the device of the losses

    def add(self, sources: torch.Tensor, index: torch.Tensor, losses: torch.Tensor) -> None:
        """Count a batch: `sources` [batch, length], -1 in padding, its `target_index`, and its targets' losses."""
        if self._sums is None:
            self._sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=losses.device)
        tokens, targets = sources.flatten(), sources.flatten()[index + 1]
        self._sums[:, 0].index_add_(0, tokens.clamp(min=0), (tokens >= 0).double())
        self._sums[:, 1].index_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
        self._sums[:, 2].index_add_(0, targets, losses.double())

    def take(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return {"tokens/NAME", "loss/NAME"} of every source that occurred, and reset the sums.

        reduce: needed with several ranks; then every rank must call this.
        """
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64) if self._sums is None else self._sums
        self._sums = None
        rows = (reduce(sums) if reduce else sums).tolist()
        logs: dict[str, float] = {}
        for name, (tokens, targets, loss) in zip(self.names, rows, strict=True):
            if tokens:
                logs[f"tokens/{name}"] = int(tokens)
            if targets:
                logs[f"loss/{name}"] = loss / targets
        return logs

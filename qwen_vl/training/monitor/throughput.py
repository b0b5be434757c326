"""What a run counts between two lines of its log."""

import re
import resource
import sys
import time
from pathlib import Path

import torch

from qwen_vl.families import v1_costs as costs
from qwen_vl.training import param_groups

from . import flops


class SpeedMeter:
    """Tokens, samples and operations of a run, its memory and the time that it waited for data, since the last `take`.

    The clock runs from `timed` to `stop` or `take`, so that evaluation and checkpoints do not count. What is counted is
    known to the host: nothing waits for the device before `take`.
    """

    def __init__(self, model, device, dtype):
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._config, self._device, self._dtype = model.config, torch.device(device), dtype
        self._trained = {param_groups.part_of(name) for name in names}
        self._adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name and p.requires_grad)
        self._seconds, self._started = 0.0, None
        self._forget()

    def _forget(self):
        self._tokens = self._positions = self._samples = self._steps = self._targets = 0
        self._waited, self._work = 0.0, {}

    def timed(self, batches):
        """Yields the batches of an iterator; what they are waited for counts as waiting."""
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

    def add(self, batch):
        """Count a batch of `ConversationCollator` in."""
        lengths = batch["lengths"] if "lengths" in batch else batch["segment_lengths"]
        source = next((key for key in ("pixel_values", *costs.SPARED) if key in batch), None)
        self._tokens += sum(lengths)
        self._positions += batch["input_ids"].numel()
        self._samples += len(lengths)
        self._targets += len(batch["target_index"])
        work = costs.work(lengths, targets=0, pictures=0 if source is None else len(batch[source]))
        cached = costs.SPARED.get(source, ())
        self._work[cached] = self._work.get(cached, costs.Work()) + work

    def count_step(self):
        """Count an optimizer step in."""
        self._steps += 1

    def stop(self):
        """Stop the clock, once the device has done what it was given; `timed` starts it again."""
        if self._started is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def operations(self):
        """Operations of the batches that were counted in, forward and backward."""
        work = dict(self._work) or {(): costs.Work()}
        first = next(iter(work))
        work[first] = work[first]._replace(targets=self._targets)
        kinds = {"trained": self._trained, "adapter_parameters": self._adapters}
        counted = [costs.training_operations(self._config, batch, cached=c, **kinds) for c, batch in work.items()]
        return sum(sum(parts.values()) for parts in counted)

    def take(self, reduce=None):
        """What the log says of speed, over all ranks, and counting starts again.

        {"tokens_per_second", "samples_per_second", "step_seconds", "data_wait": share of the time, "padding": share of
        the computed positions, "mfu": share of what this machine reaches in products of matrices, "memory_gib": the
        most that this process held}. reduce: sums a tensor over all ranks; every rank then has to call this.
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


def peak_memory(device):
    """The most bytes that this process has held: on the device, or where that is the CPU, resident at all."""
    if torch.device(device).type != "cpu":
        return torch.accelerator.max_memory_allocated(device)
    peak = own_memory("VmHWM")  # of this program alone; `ru_maxrss` begins with what its parent had taken
    if peak is not None:
        return peak
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def own_memory(field):
    """A memory field of this process in bytes, as Linux counts it: VmHWM, VmRSS, RssAnon; None where there is none."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s*(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else None


class SourceMeter:
    """Tokens, targets and summed loss of each source since the last `take`."""

    def __init__(self, names):
        self.names = list(names)
        self._sums = None  # [sources, 3]: tokens, targets, loss; on the device of the losses

    def add(self, sources, index, losses):
        """Count in a batch: `sources` [batch, length], -1 in padding, its `target_index`, and the targets' losses."""
        if self._sums is None:
            self._sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=losses.device)
        tokens, targets = sources.flatten(), sources.flatten()[index + 1]
        self._sums[:, 0].index_add_(0, tokens.clamp(min=0), (tokens >= 0).double())
        self._sums[:, 1].index_add_(0, targets, torch.ones_like(targets, dtype=torch.float64))
        self._sums[:, 2].index_add_(0, targets, losses.double())

    def take(self, reduce=None):
        """{"tokens/NAME", "loss/NAME"} of every source that occurred; then counting starts again.

        reduce: sums a tensor over all ranks; every rank then has to call this.
        """
        sums = torch.zeros(len(self.names), 3, dtype=torch.float64) if self._sums is None else self._sums
        sums, self._sums = (reduce(sums) if reduce else sums).tolist(), None
        logs = {}
        for name, (tokens, targets, loss) in zip(self.names, sums, strict=True):
            if tokens:
                logs[f"tokens/{name}"] = int(tokens)
            if targets:
                logs[f"loss/{name}"] = loss / targets
        return logs

"""What a run counts between two lines of its log."""

import time

import torch


class SpeedMeter:
    """Tokens and samples of this rank, and the time that it waited for data, since the last `take`."""

    def __init__(self):
        self._tokens = self._samples = 0
        self._waited, self._started = 0.0, None

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
        """Count a batch in."""
        mask = batch.get("attention_mask")
        self._tokens += batch["input_ids"].numel() if mask is None else int(mask.sum())
        self._samples += len(batch["ids"])

    def take(self):
        """{"tokens_per_second", "samples_per_second", "data_wait"}; the last is a share of the time."""
        now = time.perf_counter()
        seconds = now - self._started
        logs = {
            "tokens_per_second": round(self._tokens / seconds, 1),
            "samples_per_second": round(self._samples / seconds, 2),
            "data_wait": round(self._waited / seconds, 3),
        }
        self._tokens = self._samples = 0
        self._waited, self._started = 0.0, now
        return logs


class SourceMeter:
    """Tokens, targets and summed loss of each source since the last `take`."""

    def __init__(self, names):
        self.names = list(names)
        self._sums = None  # [sources, 3]: tokens, targets, loss; on the device of the losses

    def add(self, sources, is_target, losses):
        """Count a batch in: `sources` [batch, length], the mask and the losses of `token_losses`."""
        if self._sums is None:
            self._sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=losses.device)
        tokens, targets = sources[sources >= 0], sources[:, 1:][is_target]
        self._sums[:, 0].index_add_(0, tokens, torch.ones_like(tokens, dtype=torch.float64))
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

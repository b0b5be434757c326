"""Data loaders of a run: one over RankBatches, and the end of data workers."""

from typing import Any

from torch.utils.data import DataLoader

from qwen_vl.data.samplers import RankBatches


class TrainLoader(DataLoader):
    """A DataLoader over RankBatches whose epoch the Trainer sets."""

    batch_sampler: RankBatches

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.batch_sampler.set_epoch(epoch)


def end_workers(loader: DataLoader) -> None:
    """End the persistent workers of a loader.

    The garbage collector would close their queues before they are told to end. It would then wait 5 seconds for each.
    """
    own: Any = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader of evaluation data
    iterator, own._iterator = own._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()  # after an error, the frames of its traceback still hold the iterator

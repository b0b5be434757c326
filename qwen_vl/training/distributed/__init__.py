"""Several processes: DDP, DeepSpeed and FSDP."""

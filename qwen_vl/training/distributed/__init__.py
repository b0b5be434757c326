"""Distributed training: DDP, DeepSpeed and FSDP."""

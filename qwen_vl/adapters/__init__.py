"""Adapter folders: targets, the base that an adapter belongs to, attaching and merging."""

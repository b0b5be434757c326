"""What an adapter folder is: where adapters sit, the base that they belong to, attaching and merging."""

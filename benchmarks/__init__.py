"""What the package costs, each figure measured against a peer in the same run."""

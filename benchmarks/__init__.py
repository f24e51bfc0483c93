"""The cost of the package; each figure is compared with an alternative in the same run."""

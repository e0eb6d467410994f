"""From fields to a dataset: pieces, their assembly, the folder they become."""

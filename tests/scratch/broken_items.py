"""A data set with a fault, in a file of its own: a worker process that imports it need not import PyTorch too."""


class Broken:
    """Its third item cannot be read."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> int:
        if i == 2:
            raise ValueError("item 2 is damaged")
        return i

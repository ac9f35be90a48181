"""Streams that count how they are read, are shared among workers, or can be read once."""

from torch.utils.data import IterableDataset, get_worker_info


class Counted(IterableDataset):
    """Begins anew each time; `read` holds how many rows each reading took.

    Args:
        count: rows.
        fails: the row at which it fails.
        rows: the rows, where they matter.
    """

    info = "mine"

    def __init__(self, count, fails=None, rows=None):
        self.count, self.fails, self.read, self.rows, self.changed = count, fails, [], rows, None

    def __iter__(self):
        self.read.append(0)
        place = len(self.read) - 1
        for row in range(self.count):
            if row == self.fails:
                raise ValueError("broken")
            self.read[place] += 1
            yield self.rows[row] if self.rows is not None else {"input_ids": [row, int(row == self.changed)]}


class Sized(Counted):
    """One that says how many rows it has."""

    def __len__(self):
        return self.count


class Sharded(IterableDataset):
    """Each worker reads a share."""

    def __init__(self, count):
        self.count = count

    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        yield from ({"input_ids": [row]} for row in range(first, self.count, step))


class OneShot(IterableDataset):
    """Hands out one iterator again and again."""

    def __init__(self, numbers):
        self.source = ({"input_ids": [number]} for number in numbers)

    def __iter__(self):
        return self.source


class Loose(OneShot):
    """Goes on reading its only source."""

    def __iter__(self):
        yield from iter(self.source.__next__, None)

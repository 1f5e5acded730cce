"""A cache whose rows come and go: an answer that has ended makes its place free at once, and another one takes it."""

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class RunningLayer(DynamicLayer):
    """Keys and values of one layer, (A, heads, tokens, head width): a window on tensors with room around it.

    All rows end in the same column, where the next token is written, and are padded on the left. So nothing is copied
    when a token comes, and one row when another one leaves.

    Args:
        num_rows: Most rows.
        num_columns: Most tokens of a row, with its padding.
    """

    def __init__(self, num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.num_rows, self.num_columns = num_rows, num_columns
        self.rows = self.start = self.stop = 0
        self._room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes the next tokens of all rows; returns keys and values of all tokens."""
        begin, end = self.stop, self.stop + key_states.shape[-2]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[: self.rows, :, begin:end] = new
        self.show(self.rows, self.start, end)
        return self.keys, self.values

    def show(self, rows: int, start: int, stop: int) -> None:
        """Sets the window: the first rows, and columns from `start` up to `stop`."""
        self.rows, self.start, self.stop = rows, start, stop
        self.keys, self.values = (room[:rows, :, start:stop] for room in self._room)

    def add(self, encoded: DynamicLayer, picked: Tensor) -> None:
        """Puts encoded prompts, the picked rows of a padded batch, behind the rows that are there."""
        if self._room is None:
            self.lazy_initialization(encoded.keys, encoded.values)
            # Zeros, not what memory happens to hold: a weight of 0 times NaN would be NaN.
            self._room = tuple(
                states.new_zeros(self.num_rows, states.shape[1], self.num_columns, states.shape[-1])
                for states in (encoded.keys, encoded.values)
            )
        rows = slice(self.rows, self.rows + len(picked))
        for room, states in zip(self._room, (encoded.keys, encoded.values), strict=True):
            room[rows, :, self.stop - states.shape[-2] : self.stop] = states[picked]
        self.show(rows.stop, self.start, self.stop)

    def move(self, source: int, target: int) -> None:
        """Copies a row over another one."""
        for states in (self.keys, self.values):
            states[target] = states[source]

    def slide(self) -> None:
        """Moves the window to the first column."""
        width = self.stop - self.start
        for room, states in zip(self._room, (self.keys, self.values), strict=True):
            room[: self.rows, :, :width] = states.clone()
        self.show(self.rows, 0, width)


class RunningCache(Cache):
    """The cache of a model whose rows come and go.

    Args:
        num_layers: Layers that keep keys and values.
        num_rows: Most rows.
        num_columns: Most tokens of a row, with its padding on the left.

    Attributes:
        starts: Column of the first token of each row, (A,).
    """

    def __init__(self, num_layers: int, num_rows: int, num_columns: int) -> None:
        super().__init__(layers=[RunningLayer(num_rows, num_columns) for _ in range(num_layers)])
        self.num_columns = num_columns
        self.starts: list[int] = []

    @property
    def window(self) -> range:
        """The columns that hold tokens."""
        layer = self.layers[0]
        return range(layer.start, layer.stop)

    def add(self, encoded: Cache, picked: Tensor, lengths: list[int]) -> None:
        """Gives encoded prompts rows, behind those that are there.

        Args:
            encoded: Cache of prompts that are padded on the left, not longer than the longest row where there is one.
            picked: Which prompt each new row starts with, (R,).
            lengths: Tokens of these prompts.
        """
        stop = self.window.stop if self.starts else max(encoded.get_seq_length(), self.window.stop)
        self.starts += [stop - length for length in lengths]
        for layer, prompts in zip(self.layers, encoded.layers, strict=True):
            layer.start, layer.stop = min(self.starts), stop
            layer.add(prompts, picked)

    def drop(self, row: int) -> None:
        """Takes a row away; the last one takes its place."""
        last = len(self.starts) - 1
        for layer in self.layers:
            if row != last:
                layer.move(last, row)
        self.starts[row] = self.starts[last]
        self.starts.pop()
        for layer in self.layers:
            if self.starts:
                layer.show(last, min(self.starts), layer.stop)
            else:
                layer.show(0, 0, 0)

    def make_room(self) -> None:
        """Sees to a free column for the next token of all rows."""
        if self.window.stop == self.num_columns:
            self.starts = [start - self.window.start for start in self.starts]
            for layer in self.layers:
                layer.slide()

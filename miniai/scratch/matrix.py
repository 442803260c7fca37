"""2. A matrix that Python's own syntax understands: `m[i, j]`, `a @ b`, `len(m)`, `for row in m`.

Each sign is a method with two underscores at either end, which Python calls for us: the data model.
"""

from collections.abc import Iterator, Sequence

from miniai.scratch.lists import matmul_lists, matrix_shape, transpose


class Matrix:
    """A list of rows with the syntax of a matrix."""

    def __init__(self, rows: Sequence[Sequence[float | int]]) -> None:
        """Copies the rows. Raises ValueError where they differ in length."""
        self.rows = [[float(x) for x in row] for row in rows]
        self.shape = matrix_shape(self.rows)

    def __getitem__(self, index: tuple[int, int]) -> float:
        i, j = index
        return self.rows[i][j]

    def __setitem__(self, index: tuple[int, int], value: float | int) -> None:
        i, j = index
        self.rows[i][j] = float(value)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[list[float]]:
        return iter(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Matrix) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]  # a matrix can change, so it has no hash

    def __repr__(self) -> str:
        return f"Matrix({self.rows})"

    def __matmul__(self, other: "Matrix") -> "Matrix":
        return Matrix(matmul_lists(self.rows, other.rows))

    def transpose(self) -> "Matrix":
        return Matrix(transpose(self.rows))

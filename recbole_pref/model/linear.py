"""Linear item-item models: one ridge regression over the training sequences, and scores from it.

Each training row is a pair of sparse vectors over the items: a source (what came before) and a target (what
came after). With the sources as rows of S and the targets as rows of T,

    B = (S'S + lambda I)^-1 S'T,

and a history scores every item by x B, where x_i = sum over its occurrences of exp(-age / tau_inf) and the
latest item has age 0. The module uses numpy, scipy and torch, not RecBole.

References: EASE, arXiv 1905.03375; SLIST, arXiv 2103.16104; TALE, WSDM 2025. The sparse form restricts every
target's regression to its strongest sources, as fsSLIM does (Ning and Karypis, ICDM 2011).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import lapack
from torch.nn import functional as F

from recbole_pref.errors import PrefError

_CHUNK_ENTRIES = 2**22  # entries of S made at a time
_DOUBLE_ITEMS = 8192  # below this number of items float64 costs little
_AUTO_REG = 4.0  # reg_weight auto: this many times the mean of the diagonal of S'S
_NEIGHBOURS = 200  # sparse form: most sources that a target's regression has
_LOCAL_ENTRIES = 2**22  # sparse form: entries of local Gram matrices solved at a time
_SCATTERED = 2**24  # sparse form: weights added to scores at a time


@dataclass(frozen=True)
class Sequences:
    """Training sequences, one after the other.

    Attributes:
        items: [M] item ids, the latest of each sequence last.
        starts: [U + 1] where each sequence starts; the last entry is M.
        times: [M] time of each interaction.
        rows: [M] number of the training row whose target each item is, -1 if it is the target of none.
    """

    items: np.ndarray
    starts: np.ndarray
    times: np.ndarray | None = None
    rows: np.ndarray | None = None


@dataclass(frozen=True)
class LinearSettings:
    """The settings of a linear model's fit.

    Attributes:
        targets: ``next``: a row per prefix, its target is the next item (TALE); ``later``: its targets are
            all later items (SLIST); ``none``: no such rows.
        whole: weight in [0, 1] of rows that are whole sequences, source and target alike (EASE: 1); the
            rows of prefixes weigh 1 - whole.
        reg_weight: lambda, > 0, or ``auto``: four times the mean of the diagonal of S'S.
        tau_train: an item at distance d from the target weighs exp(-d / tau_train); None: 1.
        c: least weight of a source, in [0, 1].
        beta: sources and targets are multiplied by (training count) ** beta.
        window: most items of a source, and of ``later`` targets.
        use_times: distances are times in units of the median gap, rather than positions.
        zero_diagonal: no item predicts itself.
        memory_mb: most MiB for the dense solution; above it the sparse form is used.
    """

    targets: str = "next"
    whole: float = 0.0
    reg_weight: float | str = "auto"
    tau_train: float | None = None
    c: float = 0.0
    beta: float = 0.0
    window: int = 50
    use_times: bool = False
    zero_diagonal: bool = False
    memory_mb: float = 4096.0


def normal_equations(sequences: Sequences, n_items: int, settings: LinearSettings) -> tuple[sp.csr_array, sp.csr_array]:
    """Return S'S and S'T of the training sequences: two sparse [n_items, n_items] arrays.

    float64 up to 8192 items, float32 above. Memory besides the result is bounded.
    """
    dtype = np.float64 if n_items <= _DOUBLE_ITEMS else np.float32
    gram = sp.csr_array((n_items, n_items), dtype=dtype)
    cross = gram.copy()
    if settings.whole > 0:
        lengths = np.diff(sequences.starts)
        ones = np.ones(len(sequences.items), dtype)
        rows = _rows(np.arange(len(lengths)).repeat(lengths), sequences.items, ones, len(lengths), n_items)
        gram = settings.whole * (rows.T @ rows).tocsr()
        cross = gram.copy()
    if settings.targets != "none" and settings.whole < 1:
        for sources, targets in _prefix_rows(sequences, n_items, settings, dtype):
            gram = gram + (1 - settings.whole) * (sources.T @ sources)
            cross = cross + (1 - settings.whole) * (sources.T @ targets)
    return gram, cross


def _prefix_rows(
    sequences: Sequences, n_items: int, settings: LinearSettings, dtype: Any
) -> Iterator[tuple[sp.csr_array, sp.csr_array]]:
    """Yield (sources, targets) of the prefixes in chunks: sparse [rows, n_items] arrays."""
    items, window = sequences.items, settings.window
    lengths = np.diff(sequences.starts)
    begin = sequences.starts[:-1].repeat(lengths)  # [M] start and end of each position's sequence
    end = sequences.starts[1:].repeat(lengths)
    place = np.arange(len(items))
    positions = place[place > begin]  # of the next item of every prefix
    when = place if not settings.use_times else _scaled_times(sequences)
    popularity = np.ones(n_items)
    if settings.beta:
        counts = np.bincount(items, minlength=n_items)
        popularity = np.where(counts > 0, np.maximum(counts, 1.0) ** settings.beta, 0.0)

    def entries(position: np.ndarray, first: np.ndarray, stop: np.ndarray, least: float) -> sp.csr_array:
        """Return the sparse rows of the items first..stop - 1 of each position, weighted by distance."""
        count = stop - first
        row = np.arange(len(position)).repeat(count)
        other = first[row] + np.arange(len(row)) - (count.cumsum() - count)[row]
        weight = popularity[items[other]]
        if settings.tau_train is not None:
            # A later target's distance is that to the item after the prefix, which weighs 1.
            distance = np.abs(when[position[row]] - when[other])
            weight = weight * np.maximum(np.exp(-distance / settings.tau_train), least)
        return _rows(row, items[other], weight.astype(dtype), len(position), n_items)

    sizes = np.minimum(positions - begin[positions], window)
    if settings.targets == "later":
        sizes = sizes + np.minimum(end[positions] - positions, window)
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _CHUNK_ENTRIES, prepend=0))
    for part in np.split(positions, cuts):
        if len(part) == 0:
            continue
        last = part + 1 if settings.targets == "next" else np.minimum(end[part], part + window)
        yield (
            entries(part, np.maximum(begin[part], part - window), part, settings.c),
            entries(part, part, last, 0.0),
        )


def _rows(row: np.ndarray, column: np.ndarray, value: np.ndarray, n_rows: int, n_items: int) -> sp.csr_array:
    return sp.csr_array((value, (row, column)), shape=(n_rows, n_items))


def _scaled_times(sequences: Sequences) -> np.ndarray:
    """Return times in units of the median gap between two items of a sequence: float array [M]."""
    assert sequences.times is not None  # LinearModel.fit checks
    times = sequences.times.astype(np.float64)
    inner = np.ones(len(times), bool)
    inner[sequences.starts[:-1]] = False  # the gap before a sequence's first item does not belong to the sequence
    gaps = np.diff(times, prepend=0.0)[inner]
    gaps = gaps[gaps > 0]
    return times / (np.median(gaps) if len(gaps) else 1.0)


def regularization(gram: sp.csr_array, reg_weight: float | str) -> float:
    """Return lambda: ``reg_weight`` itself, or for ``auto`` four times the mean diagonal of the items in training."""
    if reg_weight != "auto":
        return float(reg_weight)
    diagonal = gram.diagonal()
    in_training = diagonal > 0
    return _AUTO_REG * float(diagonal[in_training].mean()) if in_training.any() else 1.0


def regularized_inverse(gram: sp.csr_array, reg: float) -> np.ndarray:
    """Return P = (gram + reg I)^-1, dense, in the dtype of ``gram``: [n, n].

    Raises:
        PrefError: the matrix is not positive definite in this precision.
    """
    inverse = np.asfortranarray(gram.toarray())
    inverse[np.diag_indices_from(inverse)] += reg
    potrf, potri = lapack.get_lapack_funcs(("potrf", "potri"), (inverse,))
    inverse, failed = potrf(inverse, lower=True, overwrite_a=True)
    if failed:
        raise PrefError(f"reg_weight={reg:g} is too small for these data: raise it.")
    inverse = potri(inverse, lower=True, overwrite_c=True)[0]
    _mirror(inverse)
    return inverse


def solve_dense(inverse: np.ndarray, cross: sp.csr_array, zero_diagonal: bool = False) -> np.ndarray:
    """Return B = P cross for P from ``regularized_inverse``, dense, in its dtype: [n, n].

    With ``zero_diagonal`` it is the minimum under diag(B) = 0: column j loses P_:j B_jj / P_jj, and P is
    overwritten. For cross = gram this is EASE.
    """
    transposed = cross.T.tocsr() @ inverse.T  # [target, source]; the transposed inverse is C-ordered
    if zero_diagonal:
        excess = transposed.diagonal() / inverse.diagonal()
        inverse *= excess  # column j by excess_j
        transposed -= inverse.T
        np.fill_diagonal(transposed, 0.0)
    return transposed.T


def _mirror(matrix: np.ndarray, block: int = 1024) -> None:
    """Copy the lower triangle of a matrix [n, n] to the upper one, in place."""
    for start in range(0, len(matrix), block):
        stop = start + block
        square = matrix[start:stop, start:stop]
        square[...] = np.tril(square) + np.tril(square, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T


def target_excess(
    inverse: np.ndarray, weights: np.ndarray, sequences: Sequences, settings: LinearSettings, tau_inf: float | None
) -> np.ndarray:
    """Return by how much each row of the fit raises the score that its history gives to its own target.

    Without a row with source s and target value t at item j, the weights are exactly

        B - P s (t e_j - B's)' / (1 - s'P s),    P = (S'S + lambda I)^-1.

    The row's history x, the items of s weighted by age, then scores j lower by the excess

        x'P s (t - s'B_j) / (1 - s'P s).

    It scores every other item i higher by x'P s s'B_i / (1 - s'P s); that is small and left out. The weights by
    popularity stay those of all rows. A row must have one target: SLIST's have several, and SeqEASE's are whole
    sequences. The sparse form has no P.

    Args:
        inverse: P [n, n].
        weights: B [n, n].
        sequences, settings: of the fit, ``settings.targets`` being ``next``.
        tau_inf: as in ``LinearModel``.

    Returns:
        ndarray: [M] float32 for each item as a target, 0 for the first one of a sequence.
    """
    items, n_items = sequences.items, len(inverse)
    begin = sequences.starts[:-1].repeat(np.diff(sequences.starts))
    positions = np.flatnonzero(np.arange(len(items)) > begin)
    ages = np.arange(min(settings.window, int((positions - begin[positions]).max(initial=1))))
    decay = np.ones(len(ages)) if tau_inf is None else np.exp(-ages / tau_inf)
    excess = np.zeros(len(items), np.float32)
    step, done = max(1, _CHUNK_ENTRIES // len(ages) ** 2), 0
    for sources, targets in _prefix_rows(sequences, n_items, settings, inverse.dtype):
        for start in range(0, sources.shape[0], step):
            source, s = _padded(sources[start : start + step])  # [R, W]
            target, t = targets.indices[start : start + step, None], targets.data[start : start + step]
            position = positions[done : done + len(t)]
            done += len(t)
            place = position[:, None] - 1 - ages
            row, column = (place >= begin[position, None]).nonzero()
            history = _rows(row, items[place[row, column]], decay[column], len(t), n_items)
            x = _padded(history)[1]  # [R, W], of the same items in the same order
            inner = np.einsum("rij,rj->ri", inverse[source[:, :, None], source[:, None]], s)  # P s at these items
            residual = t - (s * weights[source, target]).sum(axis=1)
            excess[position] = (x * inner).sum(axis=1) * residual / (1 - (s * inner).sum(axis=1))
    return excess


def _padded(rows: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and the values of sparse rows [R, n], with values 0 as padding: two arrays [R, W]."""
    count = np.diff(rows.indptr)[:, None]
    inside = np.arange(count.max()) < count
    place = np.where(inside, rows.indptr[:-1, None] + np.arange(count.max()), 0)
    return rows.indices[place], rows.data[place] * inside


def solve_sparse(
    gram: sp.csr_array, cross: sp.csr_array, reg: float, zero_diagonal: bool = False, neighbours: int = _NEIGHBOURS
) -> sp.csr_array:
    """Return a sparse B: for every target the ridge regression on its strongest sources: csr [n, n] float32.

    The sources of target j are the ``neighbours`` items i with the largest cross_ij^2 / (gram_ii + reg), the part
    that each explains alone. On them, and with all other weights 0, the solution is exact. Time grows with
    n * neighbours^2; nothing of size n * n is held.
    """
    size = gram.shape[0]
    gram = gram.tocsr()
    gram.sort_indices()
    sources, starts = _supports(gram, cross, reg, zero_diagonal, neighbours)
    cross = cross.T.tocsr()  # [target, source]
    cross.sort_indices()
    values = np.zeros(len(sources), np.float32)
    widths = np.diff(starts)
    order = np.argsort(widths, kind="stable")
    order = order[widths[order] > 0]
    first = 0
    while first < len(order):
        # Targets with supports of about the same size are solved together.
        width = int(widths[order[first]] * 1.25) + 1
        stop = int(np.searchsorted(widths[order], width, side="right"))
        stop = min(stop, first + max(1, _LOCAL_ENTRIES // width**2))
        part = order[first:stop]
        first = stop
        width = int(widths[part].max())
        inside = np.arange(width) < widths[part, None]  # [J, m]
        place = np.where(inside, starts[part, None] + np.arange(width), 0)
        local = np.where(inside, sources[place], 0)  # [J, m]
        pairs = (len(part), width, width)
        left = np.broadcast_to(local[:, :, None], pairs).ravel()
        right = np.broadcast_to(local[:, None, :], pairs).ravel()
        matrix = np.asarray(gram[left, right], np.float64).reshape(pairs)
        matrix *= inside[:, :, None] & inside[:, None, :]
        matrix[:, np.arange(width), np.arange(width)] += np.where(inside, reg, 1.0)
        right_side = np.asarray(cross[part.repeat(width), local.ravel()], np.float64).reshape(local.shape) * inside
        solution = torch.linalg.solve(torch.from_numpy(matrix), torch.from_numpy(right_side)).numpy()
        values[place[inside]] = solution[inside]
    return sp.csr_array((values, sources, starts), shape=(size, size)).T.tocsr()


def _supports(
    gram: sp.csr_array, cross: sp.csr_array, reg: float, zero_diagonal: bool, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sources of each target, concatenated, and where each target's start: [E], [n + 1]."""
    by_target = cross.T.tocoo()
    target, source = by_target.row, by_target.col
    strength = by_target.data.astype(np.float64) ** 2 / (gram.diagonal()[source] + reg)
    allowed = strength > 0
    if zero_diagonal:
        allowed &= target != source
    target, source, strength = target[allowed], source[allowed], strength[allowed]
    order = np.lexsort((-strength, target))
    target, source = target[order], source[order]
    starts = np.searchsorted(target, np.arange(gram.shape[0] + 1))
    rank = np.arange(len(target)) - starts[target]
    strongest = rank < neighbours
    target, source = target[strongest], source[strongest]
    return source, np.searchsorted(target, np.arange(gram.shape[0] + 1))


class LinearModel(torch.nn.Module):
    """Item-item weights B, dense or sparse, and the scores that they give to histories.

    B is stored in buffers, so that it moves between devices and is part of ``state_dict``. Before ``fit`` or
    ``load_state_dict`` all weights are 0.

    Args:
        n_items: items with the padding item 0.
        tau_inf: the decay of a history's items by their age; None: all weigh 1.

    Attributes:
        weights: B [n_items, n_items], or [0, n_items] in the sparse form.
        starts, columns, values: [n_items + 1], [E], [E] rows of B in compressed form; no entry in the dense.
    """

    weights: torch.Tensor
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def __init__(self, n_items: int, tau_inf: float | None = None) -> None:
        super().__init__()
        self.n_items, self.tau_inf = n_items, tau_inf
        self.register_buffer("weights", torch.zeros(0, n_items))
        self.register_buffer("starts", torch.zeros(n_items + 1, dtype=torch.int64))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Only the stored weights determine the form and the size of the buffers.
        for name, buffer in self._buffers.items():
            if buffer is not None and prefix + name in state_dict:
                setattr(self, name, buffer.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def is_sparse(self) -> bool:
        """Whether B is in the sparse form."""
        return len(self.weights) == 0

    def fit(self, sequences: Sequences, settings: LinearSettings, with_excess: bool = False) -> np.ndarray | None:
        """Fit B to training sequences and store it.

        Args:
            sequences: of the training split alone.
            settings: see ``LinearSettings``.
            with_excess: whether ``target_excess`` is needed.

        Returns:
            ndarray or None: ``target_excess``; None if it is not needed or these weights have none.

        Raises:
            PrefError: no training row, missing times, or a ``reg_weight`` that is too small.
        """
        if settings.use_times and sequences.times is None:
            raise PrefError("train_ages='times' needs times, and these data have none: set it to positions.")
        gram, cross = normal_equations(sequences, self.n_items, settings)
        if cross.nnz == 0:
            raise PrefError("a linear model needs sequences of at least two items: use other data.")
        reg = regularization(gram, settings.reg_weight)
        excess = None
        dense_mb = 8 * self.n_items**2 / 2**20
        if dense_mb <= settings.memory_mb:
            getLogger().info(f"linear model: dense weights, reg_weight {reg:.4g}")
            inverse = regularized_inverse(gram, reg)
            weights = solve_dense(inverse, cross, settings.zero_diagonal)
            if with_excess and settings.targets == "next" and not (settings.whole or settings.zero_diagonal):
                excess = target_excess(inverse, weights, sequences, settings, self.tau_inf)
            del inverse  # two dense matrices at a time
            self.set_weights(weights)
        else:
            getLogger().info(
                f"linear model: a dense solution for {self.n_items} items takes {dense_mb:.0f} MiB, more than "
                f"linear_memory_mb={settings.memory_mb:g}: sparse weights, at most {_NEIGHBOURS} per item, "
                f"reg_weight {reg:.4g}"
            )
            self.set_weights(solve_sparse(gram, cross, reg, settings.zero_diagonal))
        return excess

    def set_weights(self, matrix: np.ndarray | sp.csr_array) -> None:
        """Take B from a dense array or a scipy sparse array [n_items, n_items]."""
        empty = np.zeros((0, self.n_items))
        dense, rows = matrix, sp.csr_array((self.n_items, self.n_items))
        if isinstance(matrix, sp.sparray):
            dense, rows = empty, matrix.tocsr()
        parts = {"weights": dense, "starts": rows.indptr, "columns": rows.indices, "values": rows.data}
        for name, part in parts.items():
            setattr(self, name, torch.as_tensor(part).to(self._buffers[name]).contiguous())

    def scores(self, item_lists: torch.Tensor, lengths: torch.Tensor, ages: torch.Tensor | None = None) -> torch.Tensor:
        """Return x B for a batch of histories.

        Args:
            item_lists: [R, L] item ids, right-padded with 0, the latest item last.
            lengths: [R] items of each row.
            ages: [R, L] age of each item; by default 0 for the latest, 1 for the one before.

        Returns:
            Tensor: [R, n_items] float32; 0 for the padding item.
        """
        if ages is None:
            ages = lengths.unsqueeze(1) - 1 - torch.arange(item_lists.shape[1], device=item_lists.device)
        decay = torch.ones_like(ages, dtype=torch.float32)
        if self.tau_inf is not None:
            decay = torch.exp(-ages / self.tau_inf)
        decay = torch.where(item_lists > 0, decay, 0.0).to(self.values.dtype)  # [R, L]
        if not self.is_sparse:
            return F.embedding_bag(item_lists, self.weights, mode="sum", per_sample_weights=decay)
        scores = decay.new_zeros(len(item_lists), self.n_items)
        mean = max(1, len(self.values) // self.n_items)
        step = max(1, _SCATTERED // (mean * item_lists.shape[1]))
        for part, ids, weight in zip(scores.split(step), item_lists.split(step), decay.split(step), strict=True):
            row, place = ids.nonzero(as_tuple=True)
            self._add_rows(part, row, ids[row, place], weight[row, place])
        return scores

    def _add_rows(self, scores: torch.Tensor, row: torch.Tensor, items: torch.Tensor, weight: torch.Tensor) -> None:
        """Add weight_e B[items_e] to scores[row_e] in place, B being sparse; row, items and weight are [E]."""
        first = self.starts[items]
        count = self.starts[items + 1] - first
        entry = torch.arange(len(row), device=row.device).repeat_interleave(count)  # [W]
        place = first[entry] + torch.arange(len(entry), device=row.device) - (count.cumsum(0) - count)[entry]
        scores.view(-1).index_add_(
            0, row[entry] * self.n_items + self.columns[place], weight[entry] * self.values[place]
        )

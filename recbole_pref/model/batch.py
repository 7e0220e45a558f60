"""The rows of a training step. Two kinds of batches have the same interface.

``targets`` [R], ``histories`` [R, L] (right-padded with 0), ``rows`` [R] (numbers of RecBole's training rows) and
``encode(model)`` [R, H].
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from recbole.data.interaction import Interaction
from torch.utils.data import DataLoader

from recbole_pref.model.backbones import encode_last


class Batch(Protocol):
    """The interface between a training step and its rows."""

    @property
    def targets(self) -> torch.Tensor:
        """Target items: [R]."""

    @property
    def histories(self) -> torch.Tensor:
        """Item sequences, right-padded with 0: [R, L]."""

    @property
    def rows(self) -> torch.Tensor | None:
        """Numbers of RecBole's training rows [R], or None when they are unknown."""

    def encode(self, model: Any) -> torch.Tensor:
        """Return the representations of the rows' sequences: [R, H]."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""

    def parts(self) -> int:
        """Return the largest number of parts into which the batch can be divided."""

    def share(self, size: int, rank: int) -> "Batch":
        """Return the part of process ``rank`` of ``size`` processes."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class RowBatch:
    """Rows of RecBole's loader; each is encoded separately.

    Attributes:
        interaction: the rows in RecBole's form.
        targets, histories, rows: see the module; ``rows`` is None when the rows have no numbers.
    """

    interaction: Interaction
    targets: torch.Tensor
    histories: torch.Tensor
    rows: torch.Tensor | None = None

    @classmethod
    def of(cls, interaction: Interaction, fields: tuple[str, str], rows: torch.Tensor | None = None) -> "RowBatch":
        """Return the batch of an interaction; ``fields`` names its target and its item list."""
        target, item_list = fields
        return cls(interaction, interaction[target], interaction[item_list], rows)

    def encode(self, model: Any) -> torch.Tensor:
        """Return the representations of the rows' sequences: [R, H]."""
        return encode_last(model, model.backbone, self.interaction)

    def to(self, device: torch.device) -> "RowBatch":
        """Return the batch on a device."""
        rows = None if self.rows is None else self.rows.to(device)
        return replace(
            self,
            interaction=self.interaction.to(device),
            targets=self.targets.to(device),
            histories=self.histories.to(device),
            rows=rows,
        )

    def parts(self) -> int:
        """Return the number of rows."""
        return len(self)

    def share(self, size: int, rank: int) -> "RowBatch":
        """Return every ``size``-th row, starting with row ``rank``."""
        part = slice(rank, None, size)
        rows = None if self.rows is None else self.rows[part]
        return RowBatch(self.interaction[part], self.targets[part], self.histories[part], rows)

    def __len__(self) -> int:
        return len(self.targets)


class RowLoader:
    """Yields the batches of RecBole's training loader, in its order, with the numbers of their rows.

    Args:
        train_data: RecBole's training data loader.
        fields: names of the target and of the item list.
    """

    def __init__(self, train_data: Any, fields: tuple[str, str]) -> None:
        self.train_data, self.fields = train_data, fields

    def __len__(self) -> int:
        return len(self.train_data)

    def __iter__(self) -> Iterator[RowBatch]:
        data = self.train_data
        # Built like RecBole's loader, so that the same generator gives the same batches.
        numbered: DataLoader = DataLoader(
            range(data.sample_size),  # type: ignore[arg-type]  # as RecBole does
            batch_size=data.step,
            shuffle=data.shuffle,
            generator=data.generator,
            num_workers=data.num_workers,
            collate_fn=lambda index: (torch.tensor(index), data.collate_fn(index)),
        )
        for rows, interaction in numbered:
            yield RowBatch.of(interaction, self.fields, rows if len(rows) == len(interaction) else None)

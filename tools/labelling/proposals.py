"""What looks wrong, as proposals that a person accepts or refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tools.labelling.session import Session


@dataclass(frozen=True)
class Proposal:
    """One thing that looks wrong.

    key: the same for the same proposal after a restart. kind: what it is, in a word or two. reason: why, in a sentence.
    images, beside: the rows that are shown on the two sides. accept: the decision that it becomes when it is accepted.
    weight: the larger, the earlier it is shown.
    """

    key: str
    kind: str
    reason: str
    images: tuple[int, ...]
    beside: tuple[int, ...] = ()
    accept: dict[str, Any] = field(default_factory=dict)
    weight: float = 0.0

    def content(self) -> dict[str, Any]:
        """Returns what the page needs of it."""
        return {
            "key": self.key, "kind": self.kind, "reason": self.reason, "images": self.images, "beside": self.beside,
            "accept": self.accept,
        }  # fmt: skip


class Proposals:
    """Finds proposals for a session; this one finds none. pending: what is still being computed, in words."""

    pending = ""

    def of(self, session: Session) -> list[Proposal]:
        """Returns the proposals in the light of the decisions, the gravest first."""
        return []

    def open(self, session: Session, proposal: Proposal) -> bool:
        """Returns whether a proposal to replace given labels has not been accepted yet."""
        return True

    def save(self, session: Session, path: Path) -> bool:
        """Writes the table where it does not follow from the clusters, and returns whether it did."""
        return False

    def state(self, session: Session) -> dict[str, Any]:
        """Returns further entries of the page's state."""
        return {}

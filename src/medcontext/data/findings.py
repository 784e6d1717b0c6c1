"""What a check says: one thing wrong with one file, and whether it keeps the data set from being trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medcontext.errors import MedContextError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file. Errors keep a data set from being trained on; warnings do not.

    Attributes:
        severity: How bad it is.
        case: Name of the case; None where it is about the data set as a whole.
        error: The file, what was found, what was expected and what to do.
    """

    severity: Severity
    case: str | None
    error: MedContextError

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"severity": self.severity, "case": self.case, **self.error.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Finding:
        """From what :meth:`to_dict` gave."""
        details = {name: values[name] for name in ("file", "found", "expected", "remedy")}
        return cls(values["severity"], values["case"], MedContextError(values["problem"], **details))

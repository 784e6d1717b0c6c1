"""One kind of error for everything a user can mend: which file, what was found, what was expected, what to do."""

from __future__ import annotations

from pathlib import Path


class MedContextError(Exception):
    """A problem that the user can mend.

    Args:
        problem: One sentence that says what is wrong.
        file: The file or folder it is about.
        found: What is there.
        expected: What should be there.
        remedy: What to do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        found: str | None = None,
        expected: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = None if file is None else str(file)
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(problem)

    def __str__(self) -> str:
        parts = [
            ("file", self.file),
            ("found", self.found),
            ("expected", self.expected),
            ("to mend it", self.remedy),
        ]
        return "\n".join([self.problem, *(f"  {name}: {text}" for name, text in parts if text)])

    def to_dict(self) -> dict[str, str | None]:
        """As JSON holds it."""
        return {name: getattr(self, name) for name in ("problem", "file", "found", "expected", "remedy")}

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (worker pools, data loaders) whole."""
        return _rebuild, (self.problem, self.file, self.found, self.expected, self.remedy)


def require(holds: bool, setting: str, found: object, expected: str) -> None:
    """Refuse a setting that is out of range.

    Raises:
        MedContextError: ``holds`` is false.
    """
    if not holds:
        raise MedContextError(
            f"The setting '{setting}' is out of range.",
            found=f"{setting} = {found}",
            expected=expected,
            remedy=f"set {setting} to {expected}",
        )


def _rebuild(
    problem: str, file: str | None, found: str | None, expected: str | None, remedy: str | None
) -> MedContextError:
    return MedContextError(problem, file=file, found=found, expected=expected, remedy=remedy)

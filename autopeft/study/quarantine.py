"""What is damaged is set apart, with the reason beside it, and never deleted. Torch-free."""

from __future__ import annotations

from pathlib import Path

QUARANTINE = "quarantine"


def set_apart(study: Path, damaged: Path, reason: str) -> Path:
    """Moves a damaged file or folder of a study to `quarantine/` and writes the reason to a text beside it.

    Args:
        study: The study directory.
        damaged: What to move; inside of it.
        reason: One line.

    Returns:
        Where it is now.

    Raises:
        OSError: The disk refuses.

    Example:
        >>> set_apart(study, study / "trials/0007", "file a does not match its checksum")  # doctest: +SKIP
        PosixPath('runs/reviews/quarantine/trials-0007')
    """
    root = study / QUARANTINE
    root.mkdir(exist_ok=True)
    plain = "-".join(damaged.relative_to(study).parts)
    names = (plain if n == 0 else f"{plain}-{n}" for n in range(10**6))
    target = next(root / name for name in names if not (root / name).exists())
    # The reason goes first: what is moved has it, whenever this process is killed.
    target.with_name(f"{target.name}.txt").write_text(f"{reason}\n", encoding="utf-8")
    damaged.rename(target)
    return target

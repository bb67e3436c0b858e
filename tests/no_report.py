"""Runs that are about something else than their report."""

import pytest


def leave_out_report(patch: pytest.MonkeyPatch) -> None:
    """Draw and write none at the end of runs."""
    from fedhq_lightning.finish import complete

    patch.setattr(complete, "pictured", lambda run: [])
    patch.setattr(complete, "write_report", lambda run, pictures: None)

"""Comparing certificates."""

import pytest


def same_claims(found, expected):
    """Assert that two certificates claim the same, numbers up to rounding."""
    for (name, claim), (_, other) in zip(found.claims(), expected.claims(), strict=True):
        assert (claim.kind, claim.source) == (other.kind, other.source), name
        number = isinstance(other.value, float)
        assert claim.value == (pytest.approx(other.value, rel=1e-9, abs=1e-14) if number else other.value), name

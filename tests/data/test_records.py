from t2i.data.chance import hash_fraction
from t2i.data.records import split_of


def test_the_split_depends_only_on_the_identity() -> None:
    identities = [f"record {n}" for n in range(4000)]
    heldout = {identity for identity in identities if split_of(identity, 0.1) == "heldout"}
    assert 0.08 < len(heldout) / len(identities) < 0.12
    assert heldout <= {identity for identity in identities if split_of(identity, 0.2) == "heldout"}


def test_the_split_is_independent_of_source_selection() -> None:
    low = [f"record {n}" for n in range(4000) if hash_fraction(f"record {n}") < 0.1]
    assert 0.03 < sum(split_of(identity, 0.1) == "heldout" for identity in low) / len(low) < 0.2

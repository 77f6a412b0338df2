import pytest

from stratascope.datasets import split_caption
from stratascope.errors import InvalidInputError


@pytest.mark.parametrize(
    ("caption", "relation", "subject", "obj"),
    [
        ("The cat is under the bed.", "under", "cat", "bed"),
        ("The dog is on the person.", "on", "dog", "person"),
        ("The suitcase contains the teddy bear.", "contains", "suitcase", "teddy bear"),
        ("The bed has as a part the couch.", "has as a part", "bed", "couch"),
        ("The hot dog is at the left side of the dining table.", "at the left side of", "hot dog", "dining table"),
        ("The spoon is on the book on the table", "on", "spoon", "book on the table"),
        ("the people are facing away from a truck .", "facing away from", "people", "truck"),
        ("The star is left of the moon.", "left of", "star", "moon"),
    ],
)
def test_subject_and_object_are_what_is_left(caption: str, relation: str, subject: str, obj: str) -> None:
    parts = split_caption(caption, relation)
    assert caption[slice(*parts.subject)] == subject
    assert caption[slice(*parts.relation)] == relation
    assert caption[slice(*parts.object)] == obj


@pytest.mark.parametrize(
    ("caption", "relation"),
    [
        ("The cat is under the bed.", "above"),
        ("The person sits.", "on"),
        ("under the bed.", "under"),
        ("The cat is under.", "under"),
        ("x", " "),
    ],
)
def test_a_caption_without_its_relation_is_refused(caption: str, relation: str) -> None:
    with pytest.raises(InvalidInputError, match="relation"):
        split_caption(caption, relation)

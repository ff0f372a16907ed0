"""Labels of a form."""

from app.inference.audits import read_labels


def test_only_the_first_wrong_label_is_told_with_what_was_perhaps_meant() -> None:
    """Looking for it takes long, and a form has many fields."""
    read = read_labels(["green", "red"], {4: "red", 2: "gren", 7: "greeen"})
    assert read.found == {4: "red"}
    assert read.wrong == {2: "No class of the job. Perhaps “green”?", 7: "No class of the job."}

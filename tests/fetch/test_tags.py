from t2i.fetch.tags import most_frequent


def test_tags_are_counted_in_lower_case_without_blanks() -> None:
    captions = ["1girl, Red Hair,  solo", "red hair,,1girl ", "1girl", " , ,"]
    assert most_frequent(captions) == {"1girl": 3, "red hair": 2, "solo": 1}


def test_the_most_frequent_tags_come_first_and_ties_by_name() -> None:
    captions = ["b, a, c", "c", *(f"tag {n:03d}" for n in range(200))]
    found = most_frequent(captions)
    assert list(found.items())[:3] == [("c", 2), ("a", 1), ("b", 1)]
    assert len(found) == 100
    assert list(found)[-1] == "tag 096"
    assert most_frequent(captions, most=1) == {"c": 2}

import json

import numpy as np
import pytest

from gadc.errors import InputError
from gadc.features.class_map import match_classes, read_class_map

HEAD = ["tabby", "tiger cat", "beagle", "crane", "crane"]
PROBABILITIES = np.float32([[0.1, 0.2, 0.3, 0.15, 0.25], [0, 0, 0, 1, 0]])


def test_equal_names_are_the_identity():
    found = match_classes(["a", "b"], ["a", "b"], None)
    assert found.is_identity
    np.testing.assert_array_equal(found(PROBABILITIES[:, :2]), PROBABILITIES[:, :2])


def test_equal_names_in_another_order_are_reordered_bit_by_bit():
    found = match_classes(["b", "c", "a"], ["a", "b", "c"], None)
    assert not found.is_identity
    np.testing.assert_array_equal(found(PROBABILITIES[:, :3]), PROBABILITIES[:, [2, 0, 1]])


@pytest.mark.parametrize("class_names", [["a"], ["a", "b", "c"], ["a", "x"], []])
def test_other_names_are_no_match(class_names):
    assert match_classes(["a", "b"], class_names, None) is None


def test_no_head_is_no_match():
    assert match_classes(None, ["a"], None) is None


def test_columns_are_summed_and_renormalised():
    found = match_classes(HEAD, ["cat", "dog"], {"cat": ["tabby", "tiger cat"], "dog": "beagle"})
    np.testing.assert_allclose(found(PROBABILITIES)[0], [0.5, 0.5], rtol=1e-6)


def test_row_without_any_mass_is_uniform():
    found = match_classes(HEAD, ["cat", "dog"], {"cat": ["tabby", "tiger cat"], "dog": "beagle"})
    np.testing.assert_array_equal(found(PROBABILITIES)[1], [0.5, 0.5])


def test_name_that_the_head_has_twice_takes_both_columns():
    found = match_classes(HEAD, ["bird", "dog"], {"bird": "crane", "dog": "beagle"})
    np.testing.assert_allclose(found(PROBABILITIES)[0], [0.4 / 0.7, 0.3 / 0.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("class_map", "code", "named"),
    [
        ({"cat": "tabby"}, "class_map_incomplete", "'dog'"),
        ({"cat": "tabby", "dog": []}, "class_map_incomplete", "'dog'"),
        ({"cat": "tabby", "dog": "pug"}, "class_map_unknown", "'pug'"),
        ({"cat": "tabby", "dog": "beagle", "cow": "crane"}, "class_map_unknown", "'cow'"),
    ],
)
def test_map_that_does_not_fit_names_the_class(class_map, code, named):
    with pytest.raises(InputError, match=named) as caught:
        match_classes(HEAD, ["cat", "dog"], class_map)
    assert caught.value.code == code


def test_map_for_an_encoder_without_head_is_an_error():
    with pytest.raises(InputError) as caught:
        match_classes(None, ["cat"], {"cat": "tabby"})
    assert caught.value.code == "no_head"


def test_map_is_read_from_json(tmp_path):
    content = {"cat": ["tabby", "tiger cat"], "dog": "beagle"}
    (tmp_path / "map.json").write_text(json.dumps(content))
    assert read_class_map(tmp_path / "map.json") == content


@pytest.mark.parametrize("content", ["", "[1]", '{"cat": 3}', '{"cat": [1]}', "[" * 100_000])
def test_other_json_is_an_error(tmp_path, content):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_class_map(tmp_path / "map.json")
    assert caught.value.code == "bad_class_map"

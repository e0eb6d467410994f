"""What a manifest tells about a dataset."""

from cellclr_jax.data.building.manifest import differences


def test_differences_name_nested_settings_one_by_one() -> None:
    built = {"crop_size": 96, "simulation": {"seed": 0, "weeks": 3}, "plates": ["a", "b"]}
    wanted = {"crop_size": 64, "simulation": {"seed": 1, "weeks": 3}, "plates": ("a", "b")}
    assert differences(built, wanted) == ["crop_size is 96, not 64", "simulation.seed is 0, not 1"]
    assert differences(built, built) == []


def test_a_group_of_settings_that_only_one_has_differs() -> None:
    assert differences({}, {"simulation": {"seed": 1}}) == ["simulation.seed is None, not 1"]
    assert differences({"cut": 3}, {"cut": {"size": 3}}) == [
        "cut is 3, not None",
        "cut.size is None, not 3",
    ]

"""Configs from JSON: every key is known, every value of its type."""

import dataclasses
import json
from typing import Any, Literal

import pytest

from miniai.base.configs import config_from_dict, config_to_dict, without_neutral
from miniai.base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclasses.dataclass(frozen=True)
class Outer:
    size: int
    eps: float = 1e-5
    kind: Literal["epsilon", "v_prediction"] = "epsilon"
    channels: tuple[int, ...] = (1, 2)
    heads: int | tuple[int, ...] = 8
    sigmas: tuple[float, ...] | None = None
    name: str | None = None
    flag: bool = False
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")


def test_a_config_survives_the_way_through_json() -> None:
    config = Outer(size=2, channels=(4, 5, 6), heads=(1, 2), sigmas=(0.5, 1.0), name="n", inner=Inner(9))
    assert config_from_dict(Outer, json.loads(json.dumps(config_to_dict(config))), "here") == config


def test_whole_numbers_are_taken_for_fractions_as_json_writes_them() -> None:
    config = config_from_dict(Outer, {"size": 1, "eps": 1, "sigmas": [1, 2.5]}, "here")
    assert isinstance(config.eps, float)
    assert config.sigmas == (1.0, 2.5)


def test_lists_become_tuples_so_that_a_config_can_be_hashed() -> None:
    config = config_from_dict(Outer, {"size": 1, "channels": [7], "heads": [1]}, "here")
    assert config.channels == (7,)
    assert hash(config) == hash(config_from_dict(Outer, config_to_dict(config), "here"))


def test_notes_of_other_programs_are_ignored() -> None:
    assert config_from_dict(Outer, {"size": 1, "_class_name": "X", "_diffusers_version": "0"}, "here") == Outer(1)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"size": 1, "colour": 3}, "does not know colour"),
        ({}, "needs size"),
        ({"size": 1.5}, "size is 1.5"),
        ({"size": True}, "size is True"),
        ({"size": None}, "size is None"),
        ({"size": "1"}, "size is '1'"),
        ({"size": 0}, "must be positive"),
        ({"size": 1, "kind": "sample"}, "kind is 'sample'"),
        ({"size": 1, "channels": [1, "a"]}, "channels is 'a'"),
        ({"size": 1, "channels": 4}, "channels is 4"),
        ({"size": 1, "heads": "many"}, "heads is 'many'"),
        ({"size": 1, "inner": {"width": "a"}}, "inner: width is 'a'"),
        ({"size": 1, "inner": {"depth": 1}}, "does not know depth"),
        ([1, 2], "expected a JSON object"),
    ],
)
def test_a_wrong_config_is_a_user_error_that_names_file_and_key(values: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        config_from_dict.__wrapped__(Outer, values, "unet/config.json")  # past the type check, as in production
    assert str(caught.value).startswith("unet/config.json")
    assert "\n" not in str(caught.value)


def test_options_in_their_one_known_setting_are_dropped_and_any_other_is_refused() -> None:
    assert without_neutral({"dropout": 0.0, "size": 1}, {"dropout": 0.0, "act_fn": "silu"}, "here") == {"size": 1}
    with pytest.raises(UserError, match=r"unet/config.json: dropout is 0.1, and miniai knows 0.0 only"):
        without_neutral({"dropout": 0.1}, {"dropout": 0.0}, "unet/config.json")

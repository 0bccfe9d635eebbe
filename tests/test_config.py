from dataclasses import dataclass, field

import pytest

from causvid import config
from causvid.bundle import TeacherSampling
from causvid.errors import UserError
from causvid.flow import GuidanceSteps
from causvid.rollout import RolloutConfig


@dataclass(frozen=True)
class Optim:
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)


@dataclass(frozen=True)
class Stage:
    name: str
    steps: int = 10
    resume: str | None = None
    optim: Optim = field(default_factory=Optim)


def test_round_trip():
    stage = Stage("x", 3, "here", Optim(1e-3, (0.0, 0.99)))
    assert config.from_json(Stage, config.to_json(stage)) == stage
    rollout = RolloutConfig(sigmas=(1.0, 0.5, 0.0), chunk=3)
    assert config.from_json(RolloutConfig, config.to_json(rollout)) == rollout
    for guidance in (3.0, GuidanceSteps(((1.0, 3.0), (0.8, 2.0)))):
        teacher = TeacherSampling(50, guidance, 3.0)
        assert config.from_json(TeacherSampling, config.to_json(teacher)) == teacher


def test_overrides_are_parsed_against_the_type_of_the_field():
    stage = config.override(Stage("x"), ["optim.lr=2e-5", "optim.betas=[0, 0.9]", "steps=7", "resume=none", "name=y"])
    assert stage == Stage("y", 7, None, Optim(2e-5, (0.0, 0.9)))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("optim.rl=1", "no setting 'optim.rl'; did you mean lr"),
        ("stepz=1", "did you mean steps"),
        ("optin.lr=1", "no setting 'optin'; did you mean optim"),
        ("steps=many", "steps: .*integer.*got 'many'"),
        ("steps=1.5", "steps: .*integer"),
        ("steps", "not of the form"),
        ("name.first=x", "no setting 'name'"),
    ],
)
def test_mistakes_name_the_path_and_the_remedy(assignment, message):
    with pytest.raises(UserError, match=message):
        config.override(Stage("x"), [assignment])


def test_unknown_keys_in_files_are_errors_at_any_depth():
    with pytest.raises(UserError, match=r"run.json: there is no setting 'optim.momentum'; known: betas, lr"):
        config.from_json(Stage, {"name": "x", "optim": {"momentum": 0.9}}, source="run.json")
    with pytest.raises(UserError, match="name: field required"):
        config.from_json(Stage, {})


def test_what_was_written_before_a_field_existed_is_completed():
    assert config.completed(Stage, {"name": "x", "steps": 3}) == config.to_json(Stage("x", 3))
    assert config.completed(Stage, {"name": "x", "gone": 3}) == {"name": "x", "gone": 3}


def test_difference():
    a, b = config.to_json(Stage("x")), config.to_json(Stage("x", optim=Optim(2e-4)))
    assert config.difference(a, b) == {"optim.lr": (1e-4, 2e-4)}
    assert config.difference(a, a) == {}

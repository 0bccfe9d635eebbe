"""The checker behind `pytest --jaxtyping-packages=causvid,shape_checks.check`: whole numbers may stand for floats, and
typer hands commands a context that is not of its own class."""

from typing import Any

import typer
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({typer.Context: Any})))

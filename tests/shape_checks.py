"""The checker behind `pytest --jaxtyping-packages=causvid,shape_checks.check`: whole numbers may stand for floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))

"""Files that are complete or not there, whoever writes them and whatever happens on the way."""

import pytest

from causvid.atomic import all_or_nothing, whole_file
from causvid.errors import UserError


def test_all_appear_at_the_end_with_the_modes_of_files_made_here(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    (tmp_path / "plain").touch()
    with all_or_nothing(tmp_path) as temporary:
        for name in ("a.txt", "b.txt"):
            temporary(name).write_text("new")
        private = temporary("c.json")
        private.chmod(0o600)  # as safetensors leaves its files
        assert private.suffix == ".json" and private.name.startswith(".")
        assert (tmp_path / "b.txt").read_text() == "old" and not (tmp_path / "a.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "b.txt", "c.json", "plain"}
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.txt").read_text() == "new"
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "a.txt") as one, whole_file(tmp_path / "a.txt") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "a.txt").read_text() == "one"  # closed last
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("failure", "seen"), [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space"), UserError)]
)
def test_nothing_is_left_of_a_failure(tmp_path, failure, seen):
    with pytest.raises(seen), whole_file(tmp_path / "new/deeper/a.txt") as temporary:
        temporary.write_text("the part that still fitted")
        raise failure
    assert not list(tmp_path.iterdir())

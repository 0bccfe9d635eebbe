"""The command line from outside: one sentence and a non-zero exit for mistakes, and no torch for `--help`."""

import subprocess
import sys
import time

import pytest

from causvid import cli, cli_options
from causvid.cli_options import tell_named
from causvid.errors import UserError
from causvid.training import parallel
from tiny_models import moving_model


def run(*arguments: str, **options):
    return subprocess.run(
        [sys.executable, "-m", "causvid", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_help_and_import_need_no_torch():
    code = """
import sys, causvid, causvid.cli
from typer.testing import CliRunner
result = CliRunner().invoke(causvid.cli.app, ["--help"])
assert result.exit_code == 0 and "generate" in result.output
assert CliRunner().invoke(causvid.cli.app, ["generate", "--help"]).exit_code == 0
heavy = {"torch", "diffusers", "transformers", "av", "fastapi"} & set(sys.modules)
assert not heavy, heavy
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr


def test_the_package_runs_as_a_module_without_torch():
    """What `python -X importtime -m causvid --help` imports, and tells."""
    code = [sys.executable, "-X", "importtime", "-m", "causvid", "--help"]
    result = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "generate" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "causvid.cli" in imported and not {"torch", "numpy", "av", "fastapi"} & imported


@pytest.mark.slow
def test_help_is_quick():
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert run("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) <= 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "-o", "clip.xyz"], "cannot tell what to write"),
        (["generate", "x", "-o", "/proc/none/clip.mp4"], "cannot write"),
        (["generate", "x", "-o", "clip.mp4", "--seconds", "-3"], "more than 0 seconds"),
        (["generate", "x", "-o", "clip.mp4", "--seconds", "inf"], "more than 0 seconds"),
        (["generate", "x", "-o", "clip.mp4", "--at", "12s", "it snows"], "after 10 s, before --at 12s; add --seconds"),
        (["generate", "x", "-o", "clip.mp4", "--switch", "blend"], "use one of keep, recache, flush"),
        (["generate", "x", "-o", "clip.mp4", "--teacher", "--guidance", "nan"], "1, which is none, to 100"),
        (["animate", "/nowhere.png", "-p", "x", "--seconds", "nan"], "more than 0 seconds"),
        (["extend", "/nowhere.mp4", "-p", "x", "--seconds", "-1"], "more than 0 seconds"),
        (["demo", "-o", "/dev/null/out"], "name a folder"),
        (["generate", "x", "-o", "clip.mp4", "--at", "soon", "it snows"], "'soon' is not a time"),
        (["generate", "x", "-o", "clip.mp4", "--at", "4s"], "lacks a prompt"),
        (["generate", "x", "-o", "clip.mp4", "--model", "/nowhere"], "there is no model '/nowhere'"),
        (["generate", "x", "-o", "clip.mp4", "--teacher", "--at", "1s", "y"], "leave out --teacher or --at"),
        (["generate", "x", "-o", "clip.mp4", "--eta", "1"], "add --teacher"),
        (["generate", "x", "-o", "clip.mp4", "--guidance", "3"], "add --teacher"),
        (["convert", "/nowhere", "-o", "x", "--to", "onnx"], "no layout 'onnx'"),
        (["convert", "/nowhere", "-o", "x"], "/nowhere"),
        (["config", "diff", "/nowhere", "/nowhere"], "not a configuration"),
        (["animate", "/nowhere.png", "-p", "x"], "/nowhere.png"),
        (["take", "info", "/nowhere.take"], "/nowhere.take"),
        (["train", "teacher", "-r", "run", "--set", "optim.rl=1", "--steps", "1"], "did you mean lr"),
        (["train", "techer", "-r", "run"], "no stage 'techer'"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("causvid: ") and message in lines[0], result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["train", "nothing"], 1)])
def test_one_of_several_processes_leaves_without_taking_the_interpreter_down(monkeypatch, arguments, code):
    left = []
    monkeypatch.setattr(parallel, "leave", left.append)
    monkeypatch.setattr(sys, "argv", ["causvid", *arguments])
    for several in (False, True):
        if several:
            monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == code and left == [code] * several


def test_wrong_usage_has_its_own_exit_code():
    assert run("generate").returncode == 2
    assert run("generate", "x", "--nonsense").returncode == 2


@pytest.mark.parametrize(("text", "seconds"), [("4", 4), ("4s", 4), ("1.5s", 1.5), ("1:30", 90), ("0", 0)])
def test_times(text, seconds):
    assert cli_options.read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1s", "nan", "inf", "1:x"])
def test_times_that_are_none(text):
    with pytest.raises(UserError, match="is not a time"):
        cli_options.read_time(text)


def test_a_time_and_a_prompt_become_one_word():
    arguments = ["generate", "x", "--at", "4s", "it snows", "--at", "8s then night", "--seed", "1"]
    assert cli.join_times(arguments) == ["generate", "x", "--at", "4s it snows", "--at", "8s then night", "--seed", "1"]
    assert cli_options.read_change("4s it snows") == (4.0, "it snows")


def test_lora_scales():
    assert cli_options.read_lora("style.safetensors") == ("style.safetensors", 1.0)
    assert cli_options.read_lora("style.safetensors:0.5") == ("style.safetensors", 0.5)
    with pytest.raises(UserError, match="FILE or FILE:SCALE"):
        cli_options.read_lora("style.safetensors:half")


def test_what_a_prompt_leaves_open_is_told(capsys):
    for prompt, story in (("a red car", True), ("tint7 a red car", True), ("a red car", False)):
        tell_named(moving_model().session(prompt, seed=4, story=story))
    assert capsys.readouterr().err == "causvid: what is left open the seed chooses: 'tint1 a red car'\n"

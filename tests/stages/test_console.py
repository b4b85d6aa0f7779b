import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages import train
from stages.console import command_line, printable
from tests.projects import ROOT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain [red] caf\u00e9, \U0001f600", "a plain [red] caf\u00e9, \U0001f600"),
        ("two\nlines\r\nand\u2028more", "two lines and more"),
        ("\x1b[31mred\a\0", r"\x1b[31mred\x07\x00"),
        ("no\udcff text", r"no\udcff text"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
    ],
)
def test_control_and_unprintable_characters_are_escaped(text, shown) -> None:
    assert printable(text) == shown


def test_a_command_line_gives_every_option_its_value() -> None:
    words = command_line(train.main, {"validation_prompts": Path("a b"), "params_file": Path("p.yaml")})
    assert words == ["--validation-prompts", "a b", "--params", "p.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, None)],
)
def test_the_users_own_openmp_setting_wins(given, spins) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    code = "import os, sys, stages.train; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=others | given, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(spins), "False"]  # set before torch reads it

import subprocess
import sys

from tests.projects import ROOT


def test_a_decoding_process_needs_no_torch() -> None:
    code = "import sys, t2i.encode.decoder; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0

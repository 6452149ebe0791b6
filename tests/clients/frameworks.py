"""`make test-clients`: starts the servers, and runs `python/` in the clients' own environment against them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.clients.servers import run_limited, variables
from tests.support.servers import run_server

FOLDER = Path(__file__).parent / "python"


def main() -> int:
    """The status of pytest. The first argument is the environment's Python, the others are pytest's."""
    python, *arguments = sys.argv[1:]
    # The parent folders' conftest.py are the server's, and import what is not there.
    command = [Path(python).absolute(), "-m", "pytest", "--confcutdir", ".", *arguments]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # else LiteLLM fetches prices when it is imported
    named = ("--served-model-name", "my-model")
    with run_server("--model", "fake") as fake, run_server(*named) as whisper, run_limited() as limited:
        env = {**os.environ, **variables(fake, whisper, limited), **offline}
        return subprocess.run(command, cwd=FOLDER, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

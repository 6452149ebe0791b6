"""Use an audio-language model from the terminal: `python client.py speech.ogg "What is said here?"`, and `--help`.

Works with any server that speaks the OpenAI API and takes audio; copy it with `cli/` into your own project.
"""

from __future__ import annotations

import sys

from cli.main import main

if __name__ == "__main__":
    sys.exit(main())

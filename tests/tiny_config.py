"""The tiny configuration as a file, for commands: --config=tests/tiny_config.py:JSON of dotted keys."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import conftest


def get_config(changes="{}"):
    c = conftest._tiny_config()
    c.update_from_flattened_dict(json.loads(changes))
    return c

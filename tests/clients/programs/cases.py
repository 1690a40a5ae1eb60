"""Runs a program's cases and says what became of each, as one line of JSON."""

import json
import sys

WORDS = json.loads(sys.argv[1])  # prompt, image (base64 of a PNG)


def run(cases):
    """Print the value of each case, or the exception that it ended with."""
    for name, case in cases.items():
        said = {"case": name}
        try:
            said["value"] = case()
        except Exception as error:
            status = getattr(error, "status_code", None) or getattr(error, "code", None)
            said["error"] = type(error).__name__
            said["status"] = status if isinstance(status, int) else None
            said["message"] = str(error)
        print(json.dumps(said), flush=True)

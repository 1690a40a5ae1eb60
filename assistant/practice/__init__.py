"""The practice model: an OpenAI-compatible server without a model in it.

It answers by rules, says so in every answer, and needs neither internet nor a real key. For the
proof that secrets do not reach a model it also shows what reached it, at ``/practice/requests``: a
real model server has no such route.
"""

from __future__ import annotations


def serve(*, port: int, pace: float) -> None:
    """Run until SIGTERM; `pace` is the pause between streamed words in seconds. Raises OSError."""
    from assistant import life, log
    from assistant.practice.server import PracticeModel

    log.never_wait()
    life.run(PracticeModel(pace).serve(port))

"""What can go wrong while a sandbox is made, kept and ended."""

from __future__ import annotations


class SandboxError(Exception):
    """A sandbox could not be made or kept. `code` is stable; `fix` says what to do."""

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.fix = fix


class LaunchFailed(SandboxError):
    """One step of the launch failed; nothing of the workload ran."""

    def __init__(self, workload: str, step: str, reason: str) -> None:
        super().__init__(
            "launch_failed",
            f"{workload}: step '{step}' failed: {reason}",
            "the step names the layer; `anchorhold doctor` tells what this host can do, "
            "`anchorhold policy explain` what the sandbox holds",
        )
        self.step = step


class VerificationFailed(SandboxError):
    """The process found from outside is not what the plan promised; it was killed unreleased."""

    def __init__(self, workload: str, differences: list[str]) -> None:
        super().__init__(
            "verification_failed",
            f"{workload}: differs from its plan: " + "; ".join(differences),
            "a kernel or host setting undid a layer; `anchorhold doctor` names it",
        )
        self.differences = differences

"""The named errors of the vault: name, exit code, sentence, fix. Standard library only.

The helper exits with the code; the supervisor turns the code back into the name, the sentence and
the fix with `fault_of`, and reads nothing that the helper wrote. Codes are stable: never reuse one.
"""

from __future__ import annotations

import enum


class Fault(enum.Enum):
    """One named error. Members carry (exit code, sentence, fix)."""

    INTERNAL = (1, "the vault helper failed unexpectedly", "report it with the location it printed")
    USAGE = (2, "the vault helper was called wrongly", "see the verbs in supervisor/vault")

    TPM_ABSENT = (
        10,
        "no TPM answers at the place named",
        "enable the TPM in the firmware, or start the software TPM first",
    )
    TPM_DENIED = (
        11,
        "the TPM may not be opened by this user",
        "put the helper's user into group tss and check the device rule",
    )
    TPM_CHANGED = (
        12,
        "the storage root key is not the one the vault was sealed to",
        "expected after a board swap or a firmware update: make a new vault and store the keys "
        "again; otherwise treat it as tampering",
    )
    TPM_CLEARED = (
        13,
        "the TPM holds no storage root key: it was cleared, or it is another TPM",
        "make a new vault and store the keys again; if nobody cleared it, treat it as tampering",
    )
    SOFTWARE_TPM = (
        14,
        "this is a software TPM, which protects nothing against root",
        "use a hardware TPM, or waive software-tpm by name in the host file",
    )
    OWNER_AUTH_SET = (
        15,
        "the TPM's owner hierarchy has a password, so no storage root key can be made",
        "clear the owner password, or create the storage root key at 0x81000001 yourself",
    )
    TPM_FAULT = (
        16,
        "the TPM refused a command or answered nonsense",
        "look up the return code with tpm2_rc_decode; restart the machine if it stays",
    )
    TPM_LOCKOUT = (17, "the TPM is in dictionary-attack lockout", "wait until the lockout is over")

    PCR_CHANGED = (
        20,
        "the machine did not boot into a state this vault was approved for",
        "compare with the last update; explained: make a new vault; unexplained: do not unlock",
    )
    PCR_BANK_MISSING = (
        21,
        "the TPM has no usable SHA-256 bank for the PCRs named",
        "switch on the SHA-256 bank in the firmware, or choose PCRs that the firmware measures",
    )
    PCR_UNSTABLE = (
        22,
        "PCRs kept changing while the vault was opened",
        "try again; look for a process that keeps extending PCRs",
    )

    VAULT_ABSENT = (30, "there is no vault yet", "make one: anchorhold keys add NAME")
    VAULT_EXISTS = (31, "there is a vault already", "remove it by hand if its keys may be lost")
    VAULT_BUSY = (32, "another process is using the vault", "wait for the other command to end")
    VAULT_VERSION = (
        33,
        "the vault file has a format version that this program does not know",
        "use the Anchorhold release that wrote it",
    )
    VAULT_FULL = (34, "the vault file would grow over 64 KiB", "remove keys that are not used")
    VAULT_UNWRITABLE = (
        35,
        "the vault directory cannot be read or written",
        "check its owner, its mode and the free space",
    )
    TAMPERED = (
        36,
        "the vault file is damaged or was changed",
        "restore it from a backup and find out who changed it",
    )

    KEY_UNKNOWN = (40, "the vault holds no key of that name", "see the names: anchorhold keys list")
    KEY_NAME = (
        41,
        "that is not a key name",
        "use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit",
    )
    KEY_VALUE = (
        42,
        "that is not a key value",
        "give 8 to 16384 printable ASCII characters on one line; what is shorter could not be "
        "recognised and masked",
    )
    TOKEN_CLAIM = (
        43,
        "the token cannot be made as asked",
        "client and workload: 1 to 63 of a-z, 0-9, '.', '-', '_'; lifetime: 1 to 31536000 seconds",
    )

    SECRET_MEMORY_MISSING = (
        50,
        "the kernel gives no secret memory (memfd_secret)",
        "boot with secretmem.enable=1, raise RLIMIT_MEMLOCK, or waive secret-memory by name",
    )
    HANDOVER_FAILED = (
        51,
        "the keys could not be handed to the egress proxy",
        "see whether the egress proxy runs, then unlock again",
    )

    @property
    def code(self) -> int:
        """The exit code of the helper."""
        return self.value[0]

    @property
    def sentence(self) -> str:
        """What is wrong, for a person."""
        return self.value[1]

    @property
    def fix(self) -> str:
        """What to do about it."""
        return self.value[2]


_BY_CODE = {fault.code: fault for fault in Fault}


def fault_of(code: int) -> Fault | None:
    """The fault of a helper's exit code; None for 0. A signal or unknown code is INTERNAL."""
    return None if code == 0 else _BY_CODE.get(code, Fault.INTERNAL)


class VaultError(Exception):
    """A named error. `detail` is shown to people and never holds a secret."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault, detail)
        self.fault = fault
        self.detail = detail

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.fault.name}: {self.fault.sentence}{detail}; {self.fault.fix}"

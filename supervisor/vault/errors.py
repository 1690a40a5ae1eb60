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
        "expected after a board swap or a firmware update: anchorhold keys recover; otherwise "
        "treat it as tampering",
    )
    TPM_CLEARED = (
        13,
        "the TPM holds no storage root key: it was cleared, or it is another TPM",
        "anchorhold keys recover; if nobody cleared it, treat it as tampering",
    )
    SOFTWARE_TPM = (
        14,
        "this is a software TPM, which protects nothing against root",
        "use a hardware TPM, or waive software-tpm by name in the host file",
    )
    OWNER_AUTH_SET = (
        15,
        "the TPM's owner hierarchy has a password, so no storage root key or counter can be made",
        "clear the owner password for the time of this command",
    )
    TPM_FAULT = (
        16,
        "the TPM refused a command or answered nonsense",
        "look up the return code with tpm2_rc_decode; restart the machine if it stays",
    )
    DA_LOCKOUT = (
        17,
        "the TPM is in dictionary-attack lockout after wrong PINs, and refuses the right one too",
        "wait; the recovery code works meanwhile: anchorhold keys unlock --recovery",
    )
    TPM_BUSY = (18, "the TPM is busy", "try again; see which other program uses it")

    PCR_CHANGED = (
        20,
        "the machine did not boot into a state this vault was approved for",
        "compare with the last update; explained: anchorhold keys recover; unexplained: do not "
        "unlock",
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

    ROLLBACK = (
        23,
        "the vault file is older than the TPM's counter says: an old copy was put back",
        "restore the newest file; if it is lost: anchorhold keys recover, then change the keys at "
        "the providers",
    )
    COUNTER_BEHIND = (
        24,
        "the TPM's counter is behind the vault file: the TPM's state went back",
        "anchorhold keys recover; find out why the TPM went back",
    )
    NV_MISSING = (
        25,
        "the TPM has lost the vault's rollback counter",
        "anchorhold keys recover; find out who undefined it",
    )
    NV_TAMPERED = (
        26,
        "something else stands in the place of the vault's rollback counter",
        "find out who put it there, then anchorhold keys recover",
    )
    NV_FULL = (
        27,
        "the TPM has no room for a rollback counter",
        "remove NV indexes that nothing uses (tpm2_getcap handles-nv-index, tpm2_nvundefine)",
    )
    PREDICTION = (
        28,
        "that is not a prediction for this vault",
        'give JSON with every bound PCR and nothing else: {"7": "64 hex digits"}',
    )

    VAULT_ABSENT = (30, "there is no vault yet", "make one: anchorhold keys init")
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
    KEY_FILE_REFUSED = (
        37,
        "this vault is opened by a key file on the disk, and that is not allowed here",
        "waive file-key by name in the host file, or move it into a TPM: anchorhold keys rotate",
    )
    KEY_FILE_MISSING = (
        38,
        "the key file of this vault is missing or is another one",
        "restore it from a backup, or anchorhold keys recover",
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
    PIN_NEEDED = (44, "the vault wants its PIN", "give it: anchorhold keys unlock")
    PIN_WRONG = (
        45,
        "that is not the PIN",
        "try again; after too many tries the TPM is locked for a while",
    )
    PIN_VALUE = (46, "that cannot be a PIN", "use 6 to 64 printable ASCII characters")
    PIN_RATE_LIMIT = (
        47,
        "the TPM's lockout hierarchy has no password, so whoever has the device can guess on",
        "set a lockout password (tpm2_changeauth -c lockout), or waive pin-rate-limit by name",
    )
    PIN_ABSENT = (48, "the vault has no PIN, and cannot have one without a TPM", "leave it out")

    AUDIT_KEY_ABSENT = (
        49,
        "the vault holds no key for the audit log yet",
        "it was made by an earlier release; store or replace any key once",
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

    RECOVERY_CODE_TYPO = (
        60,
        "that is not a recovery code: a letter is wrong or missing",
        "compare the groups of eight letters with the paper",
    )
    RECOVERY_CODE_WRONG = (
        61,
        "that recovery code or private key does not open this vault",
        "look for the one that was made for this vault's id, and after the last recovery-code",
    )
    RECOVERY_ABSENT = (
        62,
        "the vault has no recovery code",
        "make one while it still opens: anchorhold keys recovery-code",
    )
    RECOVERY_STALE = (
        63,
        "nothing here can tell whether this vault file is the newest one",
        "compare its generation and date with what you know, then say --accept-stale",
    )
    RECOVERY_UNCONFIRMED = (
        64,
        "PCRs are bound only once the recovery code was typed back",
        "anchorhold keys recovery-code, then confirm-recovery",
    )
    PUBLIC_KEY = (
        65,
        "that is not a public key of the kind wanted",
        "give PEM: X25519 for a recipient, Ed25519 for a signer of policies (openssl pkey -pubout)",
    )
    NAME_UNKNOWN = (66, "there is nothing of that name", "see the names: anchorhold keys status")
    NAME_TAKEN = (67, "that name is taken", "remove the old one first, or use another name")
    LIST_FULL = (68, "there is no room for one more", "remove what is not used")
    POLICIES_UNSIGNED = (
        69,
        "no signer that the vault trusts signed these policies",
        "anchorhold policy sign KEY, with a key whose public half was added: anchorhold keys trust "
        "add NAME",
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

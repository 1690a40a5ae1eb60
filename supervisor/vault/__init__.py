"""The key vault: API keys sealed to the TPM, and the helper process that opens it.

The helper is `/usr/bin/python3 -I app/supervisor/vault VERB [OPTIONS]`: own uid, no network, alive
for a second. It needs Debian's cryptography (and tpm2_pytss 1.2.0 for `--backend esapi`), nothing
of PyPI, and sees no other part of Anchorhold. It exits with 0 or the code of a
`supervisor.vault.errors.Fault`; stderr has one line for people, which the supervisor does not parse
(`fault_of(code)` gives the same).

Options of every verb:
- `--dir DIR`: the vault directory, default /state.
- `--tpm device` (default: /dev/tpmrm0, needs group tss) or `--tpm socket:/PATH` (swtpm).
- `--backend raw` (default) or `esapi`: who speaks to the TPM. Raw is pure Python: whatever the TPM
  or the bus answers can only raise an exception, while libtss2 before 4.1.4 (Debian 12 has 3.2.1)
  reads past its buffers on bad answers in every encrypted session (GHSA-7638-f8gq-c475); it starts
  in half the time with two thirds of the memory, and needs no memory that is writable and
  executable. libtss2 is older and seen by more eyes: it is kept as the second opinion, does every
  verb, and the tests run each against the other's vaults.
- `--srk-name HEX`: the storage root key's name, kept by the caller where the vault's own uid cannot
  write. Another one is TPM_CHANGED. Results tell it as tpm.srk_name.
- `--secure-boot`, `--uki` (a signed unified kernel image was booted), `--disk-encrypted` (the root
  file system is on LUKS): facts that the helper cannot see. They only set the level shown.
- `--allow-key-file`: the waiver file-key. Without it a vault of level T0 that is opened by a key
  file beside it is neither made nor opened.

Descriptors are inherited from number 3 on, named by LISTEN_FDS and LISTEN_FDNAMES; those in
brackets may be left out. The vault directory must be writable (w), or may be read-only (r):

| verb and arguments                                            | descriptors              |   |
| init [--pcrs LIST] [--allow-software-tpm]                     | result                   | w |
| set NAME [--new] [--allow-plain-memfd]                        | secret, [handover, pin]  | w |
| remove NAME [--allow-plain-memfd]                             | [handover, pin]          | w |
| list [--accept-stale]                                         | result, [pin|recovery]   | r |
| status                                                        | result                   | r |
| unlock [--names a,b] [--allow-plain-memfd] [--accept-stale]   | handover, [pin|recovery] | r |
| token --client C --workload W --lifetime SEC                  | result, [pin|recovery]   | r |
| audit-sign --count N --digest HEX                             | result, [pin|recovery]   | r |
| policy-verify --digest HEX                                    | secret, result, [pin]    | r |
| recovery-code                                                 | code, [pin]              | w |
| confirm-recovery                                              | secret, result, [pin]    | w |
| recover [--accept-stale] [--pcrs LIST] [--allow-software-tpm] | secret, result           | w |
| approve [--note T]                                            | [pin]                    | w |
| approve --predict [--note T]                                  | prediction, [pin]        | w |
| rebind [--pcrs LIST]                                          | result, [pin]            | w |
| rotate [--pcrs LIST] [--allow-software-tpm]                   | result, [pin]            | w |
| pin-set [--allow-pin-reset]                                   | secret, [result, pin]    | w |
| pin-remove                                                    | pin, [result]            | w |
| recipient-add NAME --kind host|backup                         | secret, [pin]            | w |
| recipient-remove NAME                                         | [pin]                    | w |
| trust-add NAME                                                | secret, [pin]            | w |
| trust-remove NAME                                             | [pin]                    | w |

LIST is numbers separated by commas, or `none`. What each verb does:

- `set` replaces a key of that name. `init` binds to the rollback counter only: the PCRs it is given
  (without `--pcrs`: 7 with `--secure-boot`, else none) are remembered as wanted.
- `recovery-code` makes a fresh code, which replaces an older one, and writes it to `code`, the
  operator's terminal. `confirm-recovery` takes it typed back and binds to the wanted PCRs.
  `rebind` binds to others, once the code is confirmed.
- `recover` opens by the code, or by a recipient's private key in PEM, and enrols whatever TPM is
  there with fresh keys. Where no counter proves that the file is the newest it ends with
  RECOVERY_STALE: show generation and date of `status`, ask, and say `--accept-stale`. A PIN is gone
  afterwards.
- A reading verb with `recovery` opens by the code and leaves everything as it is (a TPM in lockout
  or under repair).
- `approve --predict` approves the PCR values in `prediction`, JSON {"7": "64 hex digits"} with
  every bound PCR; `approve` keeps the present state alone and forgets open predictions.
- `rotate` makes KEK, policy key, sealed object and counter anew, also when a key file (T0) moves
  into a TPM that has appeared. `pin-set` and `pin-remove` do the same with or without a PIN.
- `recipient-add` takes an X25519 public key, `trust-add` an Ed25519 one, both in PEM
  (`openssl pkey -pubout`).
- `audit-sign` signs "anchorhold/audit/v1", a zero byte, the count (8 bytes, big endian)
  and the digest (32 bytes) with the audit key.

The descriptors:
- `secret`, `pin`, `recovery`, `prediction`: pipe or file, read to its end; one trailing newline is
  stripped. A key is at most 16 KiB of printable ASCII, a PIN 6 to 64 of them.
- `handover`: AF_UNIX SOCK_SEQPACKET to the egress proxy. One datagram of one zero byte carries one
  memfd_secret descriptor (SCM_RIGHTS). Layout: `!I` count, then per key `!H` name length, name,
  `!H` value length, value; the rest of the last page is zero. Sender and receiver both need an
  RLIMIT_MEMLOCK of at least the size (up to 68 KiB); pages stay locked while they are mapped.
- `result`: pipe; one line of JSON, at most 64 KiB, never a secret. (A token is a credential of a
  client: whoever reads `result` of `token` passes it on and keeps no copy.)
  header: {id, format, generation, date, pcrs, wanted_pcrs, recovery: {code, confirmed, recipients:
  [{name, kind}]}, pin, key_file, keys: [{kid, x}], audit: [{kid, x}], trust: [{name, x}]}.
  init, confirm-recovery, recover, rebind, rotate, pin-set, pin-remove: header and {tpm, level}.
  list: {names, keys, audit, trust}, all authenticated. token: {token, claims}.
  audit-sign: {kid, signature (base64url), count, digest}.
  status: {problem, detail, vault: header or null, tpm, counter: {value, generation, state}, pcrs:
  [{pcr, now, approved, expected}], approvals: [{note, kind, gen, pcr}], approval, upgrade, level,
  waivers}. It exits with 0 whenever it could report; `problem` names the Fault in the way, as far
  as it can be seen without unsealing (a forged header that is well-formed shows at `unlock` only).

`level` is {code, stops, does_not_stop, reasons, next}. A software TPM and a key file are always T0.
`init` refuses a software TPM at /dev/tpmrm0 without `--allow-software-tpm`; `--tpm socket:` is that
choice already.

Limits. An older vault file together with an older state of a software TPM is not noticed. Copies of
a file of format 1 stay good on their TPM until it is cleared. `init` killed between making the
counter and writing the file leaves one NV index that nobody uses.
"""

"""The key vault: API keys sealed to the TPM, and the helper process that opens it.

The helper is `/usr/bin/python3 -I app/supervisor/vault VERB [OPTIONS]`: own uid, no network, alive
for a second. It needs Debian's tpm2_pytss 1.2.0 and cryptography, nothing of PyPI, and sees no
other part of Anchorhold. It exits with 0 or the code of a `supervisor.vault.errors.Fault`; stderr
has one line for people, which the supervisor does not parse (`fault_of(code)` gives the same).

Options of every verb: `--dir DIR` (the vault directory, default /state), `--tpm device` (default:
/dev/tpmrm0, needs group tss) or `--tpm socket:/PATH` (swtpm's raw command stream),
`--secure-boot` if Secure Boot is on (the helper cannot see it; it only sets the level shown).

Descriptors are inherited from number 3 on, named by LISTEN_FDS and LISTEN_FDNAMES:

| verb and arguments                             | descriptors | /state    |
| init [--pcrs 7,11] [--allow-software-tpm]      | result      | writable  |
| set NAME                                       | secret      | writable  |
| remove NAME                                    |             | writable  |
| list                                           | result      | read-only |
| status                                         | result      | read-only |
| unlock [--names a,b] [--allow-plain-memfd]     | handover    | read-only |
| token --client C --workload W --lifetime SEC   | result      | read-only |

- `secret`: pipe or file with the value, read to its end; at most 16 KiB of printable ASCII, one
  trailing newline is stripped.
- `handover`: AF_UNIX SOCK_SEQPACKET to the egress proxy. One datagram of one zero byte carries one
  memfd_secret descriptor (SCM_RIGHTS). Layout: `!I` count, then per key `!H` name length, name,
  `!H` value length, value; the rest of the last page is zero. Sender and receiver both need an
  RLIMIT_MEMLOCK of at least the size (up to 68 KiB); pages stay locked while they are mapped.
- `result`: pipe; one line of JSON, at most 64 KiB, never a secret. (A token is a credential of a
  client: whoever reads `result` of `token` passes it on and keeps no copy.)
  init: {id, generation, date, pcrs, keys: [{kid, x}], level}. list: {names}.
  token: {token, claims}.
  status: {problem, detail, vault: null or as init without level, tpm, level, approval}; it exits
  with 0 whenever it could report; `problem` names the Fault in the way, as far as it can be seen
  without unsealing (a forged header that is well-formed shows at `unlock` only).

`level` is {code, stops, does_not_stop}. A software TPM is always T0. `init` refuses a software TPM
at /dev/tpmrm0 without `--allow-software-tpm`; `--tpm socket:` is that choice already.

Not in this release, and part of the format (see `document`): recovery code, PIN, rollback counter.
So an older vault file put back in place is not noticed, and a TPM that is lost loses the keys.
Where W+X memory is refused, `--tpm socket:` needs memfd_create and mmap with PROT_EXEC (libffi).
"""

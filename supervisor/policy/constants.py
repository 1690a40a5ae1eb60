"""Kernel constants that group files may name. Sources: the uapi headers named beside each block."""

from __future__ import annotations

CONSTANTS: dict[str, int] = {
    # linux/socket.h
    "AF_UNIX": 1,
    "AF_INET": 2,
    "AF_INET6": 10,
    # linux/net.h; a bit that SOCK_RAW (3), SOCK_DCCP (6) and SOCK_PACKET (10) have as well
    "SOCK_DGRAM": 2,
    # linux/in.h
    "IPPROTO_IP": 0,
    "IPPROTO_TCP": 6,
    # asm-generic/fcntl.h, linux/fcntl.h
    "F_DUPFD": 0,
    "F_GETFD": 1,
    "F_SETFD": 2,
    "F_GETFL": 3,
    "F_SETFL": 4,
    "F_GETLK": 5,
    "F_SETLK": 6,
    "F_SETLKW": 7,
    "F_OFD_GETLK": 36,
    "F_OFD_SETLK": 37,
    "F_OFD_SETLKW": 38,
    "F_DUPFD_CLOEXEC": 1030,
    "F_GET_SEALS": 1034,
    # linux/prctl.h
    "PR_SET_PDEATHSIG": 1,
    "PR_GET_DUMPABLE": 3,
    "PR_SET_DUMPABLE": 4,
    "PR_SET_KEEPCAPS": 8,
    "PR_SET_NAME": 15,
    "PR_GET_NAME": 16,
    "PR_SET_SECCOMP": 22,
    "PR_CAPBSET_READ": 23,
    "PR_GET_SECUREBITS": 27,
    "PR_SET_SECUREBITS": 28,
    "PR_SET_MM": 35,
    "PR_GET_NO_NEW_PRIVS": 39,
    "PR_CAP_AMBIENT": 47,
    "PR_SET_SYSCALL_USER_DISPATCH": 59,
    "PR_SET_PTRACER": 0x59616D61,
    "PR_SET_VMA": 0x53564D41,
    "PR_GET_MDWE": 66,
    # asm-generic/ioctls.h
    "TCGETS": 0x5401,
    "TIOCSTI": 0x5412,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "TIOCLINUX": 0x541C,
    "FIONBIO": 0x5421,
    "TIOCSETD": 0x5423,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    # linux/perf_event.h
    "PERF_EVENT_IOC_ENABLE": 0x2400,
    "PERF_EVENT_IOC_DISABLE": 0x2401,
    "PERF_EVENT_IOC_SET_BPF": 0x40042408,
    # linux/sched.h
    "CLONE_NEWTIME": 0x00000080,
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
    # asm-generic/mman-common.h; both bits together are one value
    "PROT_EXEC": 4,
    "PROT_WRITE_EXEC": 2 | 4,
    # linux/memfd.h
    "MFD_NOEXEC_SEAL": 8,
    "MFD_NOEXEC_SEAL_CLOEXEC": 8 | 1,
    # linux/stat.h; block devices are 0o060000, and of what mknod makes only devices have this bit
    "S_IFCHR": 0o020000,
    "S_ISUID": 0o4000,
    "S_ISGID": 0o2000,
    # linux/personality.h
    "PER_LINUX": 0,
    "PER_QUERY": 0xFFFFFFFF,
}

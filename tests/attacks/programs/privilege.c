// A18-A24: other ids, capabilities, keys, and what only the machine's owner may do.
#include "attempt.h"
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <grp.h>
#include <sys/personality.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>

// What this process is now: for a program that was set-uid or carries capabilities.
static long who_am_i(char **words)
{
    (void)words;
    char status[4096], *line;
    if (slurp("/proc/self/status", status, sizeof status) < 0)
        return -1;
    line = strstr(status, "CapEff:");
    note("euid=%d egid=%d CapEff=%.16s", geteuid(), getegid(), line ? line + 8 : "?");
    return 0;
}

// program: execute it by descriptor, as who_am_i.
static long execute(char **words)
{
    char *argv[] = { words[0], "who-am-i", "who-am-i", NULL }, *environment[] = { NULL };
    int fd = syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY, 0);
    return fd == -1 ? -1 : syscall(SYS_execveat, fd, "", argv, environment, AT_EMPTY_PATH);
}

static long set_uids(char **words) { (void)words; return syscall(SYS_setresuid, 0, 0, 0); }
static long set_gids(char **words) { (void)words; return syscall(SYS_setresgid, 0, 0, 0); }
static long set_uid(char **words) { (void)words; return syscall(SYS_setuid, 0); }
static long set_groups(char **words)
{
    (void)words;
    gid_t group = 0;
    return syscall(SYS_setgroups, 1L, &group);
}

// Permitted capabilities made inheritable; on an empty set, CAP_SYS_ADMIN asked for.
static long raise_sets(char **words)
{
    (void)words;
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[2] = { 0 };
    syscall(SYS_capget, &header, sets);
    for (int i = 0; i < 2; i++)
        sets[i].inheritable = sets[i].permitted;
    if (!sets[0].permitted)
        sets[0].permitted = sets[0].effective = sets[0].inheritable = 1u << CAP_SYS_ADMIN;
    return syscall(SYS_capset, &header, sets);
}

static long raise_ambient(char **words)
{
    raise_sets(words);
    return syscall(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0L, 0L);
}

static long bounding_set(char **words)
{
    (void)words;
    long found = 0;
    for (long bit = 0; bit < 64; bit++)
        found += syscall(SYS_prctl, PR_CAPBSET_READ, bit, 0L, 0L, 0L) == 1;
    return found;
}

static long unlock_securebits(char **words)
{
    (void)words;
    return syscall(SYS_prctl, PR_SET_SECUREBITS, 0L, 0L, 0L, 0L);
}

// operation, first argument
static long keys(char **words)
{
    return syscall(SYS_keyctl, number(words[0]), number(words[1]), 0L, 0L, 0L);
}

static long add_key(char **words)
{
    (void)words;
    return syscall(SYS_add_key, "user", "anchorhold-attack", "x", 1L, KEY_SPEC_PROCESS_KEYRING);
}

static long request_key(char **words)
{
    (void)words;
    return syscall(SYS_request_key, NOWHERE, NULL, NULL, 0L);
}

// Landlock's rules are still there: the root, which nobody may list.
static long list_root(char **words)
{
    (void)words;
    return syscall(SYS_openat, AT_FDCWD, "/", O_RDONLY | O_DIRECTORY, 0);
}

// path: a file with set-uid and set-gid bits from its first moment.
static long create_setuid(char **words)
{
    long fd = syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY | O_CREAT, 06755);
    struct stat status;
    if (fd == -1 || fstat(fd, &status))
        return -1;
    note("mode %04o", status.st_mode & 07777);
    return fd;
}

static long create(const char *path)
{
    return syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT, 0600);
}

static long make_setuid(char **words)
{
    return create(words[0]) < 0 ? -1 : syscall(SYS_chmod, words[0], 06755);
}
static long make_setuid_fd(char **words)
{
    long fd = create(words[0]);
    return fd < 0 ? -1 : syscall(SYS_fchmod, fd, 06755);
}
static long make_setuid_at(char **words)
{
    return create(words[0]) < 0 ? -1 : syscall(SYS_fchmodat, AT_FDCWD, words[0], 06755);
}
static long make_setuid_at2(char **words)
{
    return create(words[0]) < 0 ? -1 : syscall(452, AT_FDCWD, words[0], 06755, 0);
}
static long give_away(char **words)
{
    return create(words[0]) < 0 ? -1 : syscall(SYS_chown, words[0], 0, 0);
}
static long set_attribute(char **words)
{
    if (create(words[0]) < 0)
        return -1;
    return syscall(SYS_setxattr, words[0], "user.anchorhold", "x", 1L, 0);
}

// number, then arguments in the harmless form that still reaches the kernel: "*" is a bad pointer,
// "0*" one to zeros.
static long call(char **words)
{
    static char zeros[256];
    long given[6] = { 0 };
    for (int i = 0; i < 6 && words[1 + i]; i++)
        given[i] = !strcmp(words[1 + i], "*") ? (long)NOWHERE
            : !strcmp(words[1 + i], "0*") ? (long)zeros : number(words[1 + i]);
    return syscall(number(words[0]), given[0], given[1], given[2], given[3], given[4], given[5]);
}

ACTS({ "who-am-i", who_am_i },
     { "execute", execute },
     { "setresuid", set_uids },
     { "setresgid", set_gids },
     { "setuid", set_uid },
     { "setgroups", set_groups },
     { "capset", raise_sets },
     { "ambient", raise_ambient },
     { "bounding-set", bounding_set },
     { "securebits", unlock_securebits },
     { "keyctl", keys },
     { "add-key", add_key },
     { "request-key", request_key },
     { "list-root", list_root },
     { "create-setuid", create_setuid },
     { "chmod", make_setuid },
     { "fchmod", make_setuid_fd },
     { "fchmodat", make_setuid_at },
     { "fchmodat2", make_setuid_at2 },
     { "chown", give_away },
     { "setxattr", set_attribute },
     { "call", call })

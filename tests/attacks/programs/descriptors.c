// A01-A08: inherited descriptors, and what /proc and /sys give away.
#include "attempt.h"
#include <dirent.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

enum { MOST = 64 };

// Every open descriptor above the standard three, in order; how many.
static int inherited(int fds[MOST])
{
    int found = 0;
    for (int fd = 3; fd < 1024 && found < MOST; fd++)
        if (fcntl(fd, F_GETFD) != -1)
            fds[found++] = fd;
    return found;
}

static long harmless(char **words) { (void)words; return 0; }

static long fd_list(char **words)
{
    (void)words;
    DIR *directory = opendir("/proc/self/fd");
    if (!directory)
        return -1;
    long extra = 0;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(directory))
            continue;
        note("%s%d", saw[0] ? " " : "", fd);
        extra += fd > 2;
    }
    return extra;
}

static long fd_directories(char **words)
{
    (void)words;
    int fds[MOST], directories = 0;
    struct stat status;
    for (int i = 0, n = inherited(fds); i < n; i++)
        directories += !fstat(fds[i], &status) && S_ISDIR(status.st_mode);
    for (int fd = 0; fd < 3; fd++)
        directories += !fstat(fd, &status) && S_ISDIR(status.st_mode);
    return directories;
}

static long fd_parent(char **words)
{
    (void)words;
    int fds[MOST];
    for (int i = inherited(fds) - 1; i >= 0; i--)
        if (syscall(SYS_openat, fds[i], "..", O_PATH, 0) != -1)
            return fds[i];
    return syscall(SYS_openat, 0, "..", O_PATH, 0);
}

static long fd_enter(char **words)
{
    (void)words;
    int fds[MOST];
    for (int i = inherited(fds) - 1; i >= 0; i--)
        if (!syscall(SYS_fchdir, fds[i]))
            return fds[i];
    return syscall(SYS_fchdir, 0);
}

// A file for reading: path. Says how it begins.
static long open_read(char **words)
{
    char text[64];
    long length = slurp(words[0], text, sizeof text);
    if (length > 0)
        note("%.*s", (int)strcspn(text, "\n="), text);
    return length;
}

static long open_directory(char **words)
{
    return syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY | O_DIRECTORY, 0);
}

// A file for writing, and nothing is written: path.
static long open_write(char **words) { return syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY, 0); }

static long open_both(char **words) { return syscall(SYS_openat, AT_FDCWD, words[0], O_RDWR, 0); }

// Something below a magic link of the parent: what, path there.
static long parent_link(char **words)
{
    char path[512];
    snprintf(path, sizeof path, "/proc/%d/%s", getppid(), words[0]);
    return syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
}

// Descriptors of any other process that can be listed.
static long foreign_fds(char **words)
{
    (void)words;
    DIR *directory = opendir("/proc");
    if (!directory)
        return -1;
    long found = 0, others = 0;
    char self[16] = "";  // not getpid(): this may be the /proc of another pid namespace
    struct dirent *entry;
    syscall(SYS_readlink, "/proc/self", self, sizeof self - 1);
    while ((entry = readdir(directory))) {
        int pid = atoi(entry->d_name);
        if (pid <= 0 || pid == atoi(self))
            continue;
        others++;
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/fd", pid);
        DIR *fds = opendir(path);
        found += fds != NULL;
        if (fds)
            closedir(fds);
    }
    note("%ld other processes", others);
    return found;
}

// path, text: write it and say what the kernel answered.
static long write_text(char **words)
{
    int fd = syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY, 0);
    return fd == -1 ? -1 : syscall(SYS_write, fd, words[1], strlen(words[1]));
}

// In a new user namespace a group map needs setgroups denied first.
static long write_gid_map(char **words)
{
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/setgroups", O_WRONLY, 0);
    if (fd != -1)
        syscall(SYS_write, fd, "deny", 4);
    return write_text(words);
}

static long vm_write(char **words)
{
    char byte = 0;
    struct iovec mine = { &byte, 1 }, theirs = { NOWHERE, 1 };
    return syscall(SYS_process_vm_writev, (pid_t)number(words[0]), &mine, 1L, &theirs, 1L, 0L);
}

static long vm_read(char **words)
{
    char byte = 0;
    struct iovec mine = { &byte, 1 }, theirs = { NOWHERE, 1 };
    return syscall(SYS_process_vm_readv, (pid_t)number(words[0]), &mine, 1L, &theirs, 1L, 0L);
}

static long trace(long request, pid_t pid)
{
    long result = syscall(SYS_ptrace, request, pid, 0L, 0L);
    if (result == -1)
        return -1;
    if (request == PTRACE_SEIZE)
        syscall(SYS_ptrace, PTRACE_INTERRUPT, pid, 0L, 0L);
    waitpid(pid, NULL, __WALL);
    syscall(SYS_ptrace, PTRACE_DETACH, pid, 0L, 0L);
    return result;
}

static long attach(char **words) { return trace(PTRACE_ATTACH, number(words[0])); }
static long seize(char **words) { return trace(PTRACE_SEIZE, number(words[0])); }

static long take_fd(char **words)
{
    int pidfd = syscall(SYS_pidfd_open, (pid_t)number(words[0]), 0);
    return syscall(SYS_pidfd_getfd, pidfd, 0, 0);
}

static long compare(char **words)
{
    return syscall(SYS_kcmp, getpid(), (pid_t)number(words[0]), 1L, 0L, 0L);
}

ACTS({ "harmless", harmless },
     { "fd-list", fd_list },
     { "fd-directories", fd_directories },
     { "fd-parent", fd_parent },
     { "fd-enter", fd_enter },
     { "open-read", open_read },
     { "open-directory", open_directory },
     { "open-write", open_write },
     { "open-both", open_both },
     { "parent-link", parent_link },
     { "foreign-fds", foreign_fds },
     { "write-text", write_text },
     { "write-gid-map", write_gid_map },
     { "vm-write", vm_write },
     { "vm-read", vm_read },
     { "attach", attach },
     { "seize", seize },
     { "take-fd", take_fd },
     { "compare", compare })

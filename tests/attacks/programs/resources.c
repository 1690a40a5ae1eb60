// A38-A46: the cgroup tree, more of everything than was given, crashes.
#include "attempt.h"
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

static long open_write(char **words) { return syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY, 0); }

// path: a directory, which is taken away again.
static long make_directory(char **words)
{
    long result = syscall(SYS_mkdir, words[0], 0700);
    if (!result)
        syscall(SYS_rmdir, words[0]);
    return result;
}

// how many, seconds: children that wait; fewer is EAGAIN.
static long bomb(char **words)
{
    long wanted = number(words[0]), made = 0;
    for (; made < wanted; made++) {
        long pid = syscall(SYS_clone, SIGCHLD, 0L, 0L, 0L, 0L);
        if (!pid) {
            struct timespec rest = { number(words[1]), 0 };
            syscall(SYS_nanosleep, &rest, NULL);
            syscall(SYS_exit_group, 0);
        }
        if (pid < 0)
            break;
    }
    int error = errno;
    note("%ld children", made);
    while (wait(NULL) > 0)
        ;
    errno = error;
    return made < wanted ? -1 : made;
}

// MiB: heap that is really used.
static long eat_heap(char **words)
{
    size_t size = number(words[0]) << 20;
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    for (size_t at = 0; at < size; at += 4096)
        memory[at] = 1;
    return number(words[0]);
}

// path, MiB: bytes of one file.
static long fill_bytes(char **words)
{
    static char block[1 << 20];
    int fd = syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd == -1)
        return -1;
    long done = 0, got, wanted = number(words[1]) << 20;
    while (done < wanted && (got = syscall(SYS_write, fd, block, sizeof block)) > 0)
        done += got;
    int error = errno;
    syscall(SYS_unlink, words[0]);
    note("%ld MiB", done >> 20);
    errno = error;
    return done < wanted ? -1 : 0;
}

// directory, how many: empty files.
static long fill_files(char **words)
{
    char path[512];
    long made = 0, wanted = number(words[1]);
    for (; made < wanted; made++) {
        snprintf(path, sizeof path, "%s/attack-%ld", words[0], made);
        int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT, 0600);
        if (fd == -1)
            break;
        syscall(SYS_close, fd);
    }
    int error = errno;
    for (long i = 0; i < made; i++) {
        snprintf(path, sizeof path, "%s/attack-%ld", words[0], i);
        syscall(SYS_unlink, path);
    }
    note("%ld files", made);
    errno = error;
    return made < wanted ? -1 : made;
}

// path, MiB: one byte that far out.
static long write_far(char **words)
{
    int fd = syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY | O_CREAT, 0600);
    signal(SIGXFSZ, SIG_IGN);
    if (fd == -1)
        return -1;
    long result = syscall(SYS_pwrite64, fd, "x", 1L, number(words[1]) << 20);
    int error = errno;
    syscall(SYS_unlink, words[0]);
    errno = error;
    return result;
}

static long big_pipe(char **words)
{
    int ends[2];
    if (syscall(SYS_pipe2, ends, 0))
        return -1;
    return syscall(SYS_fcntl, ends[1], F_SETPIPE_SZ, number(words[0]));
}
static long memory_file(char **words) { (void)words; return syscall(SYS_memfd_create, "attack", 0); }
static long new_segment(char **words)
{
    (void)words;
    long id = syscall(SYS_shmget, 0, 4096L, 0600);
    if (id >= 0)
        syscall(SYS_shmctl, id, 0 /* IPC_RMID */, NULL);
    return id;
}
static long lock_memory(char **words)
{
    (void)words;
    static char page[8192];
    return syscall(SYS_mlock, page, 4096L);
}
// bytes: what a socket may hold beyond the system's own bound (SO_SNDBUFFORCE).
static long big_socket(char **words)
{
    int wanted = number(words[0]), fd = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    return fd == -1 ? -1
        : syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDBUFFORCE, &wanted, sizeof wanted);
}

static long real_time(char **words)
{
    (void)words;
    struct sched_param priority = { 1 };
    return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &priority);
}
static long deadline(char **words)
{
    (void)words;
    struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority;
             uint64_t runtime, deadline, period; } wanted =
        { 48, 6, 0, 0, 0, 10000000, 100000000, 100000000 };
    return syscall(SYS_sched_setattr, 0, &wanted, 0);
}
static long nice_value(char **words)
{
    (void)words;
    return syscall(SYS_setpriority, PRIO_PROCESS, 0, -20);
}

// pid: stop it, and let it go on at once.
static long stop_process(char **words)
{
    long result = syscall(SYS_kill, (pid_t)number(words[0]), SIGSTOP);
    if (!result)
        syscall(SYS_kill, (pid_t)number(words[0]), SIGCONT);
    return result;
}

// resource: back to no limit.
static long raise_limit(char **words)
{
    struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
    return syscall(SYS_prlimit64, 0, number(words[0]), &none, NULL);
}

// Core limit as high as it goes, a name that core_pattern could trip over, then a crash.
static long crash(char **words)
{
    (void)words;
    struct rlimit limit;
    if (!syscall(SYS_prlimit64, 0, RLIMIT_CORE, NULL, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        syscall(SYS_prlimit64, 0, RLIMIT_CORE, &limit, NULL);
    }
    syscall(SYS_prctl, PR_SET_DUMPABLE, 1L, 0L, 0L, 0L);
    signal(SIGSEGV, SIG_DFL);
    *(volatile char *)NOWHERE = 1;
    return 0;
}

ACTS({ "open-write", open_write },
     { "mkdir", make_directory },
     { "bomb", bomb },
     { "eat-heap", eat_heap },
     { "fill-bytes", fill_bytes },
     { "fill-files", fill_files },
     { "write-far", write_far },
     { "big-pipe", big_pipe },
     { "memory-file", memory_file },
     { "new-segment", new_segment },
     { "lock-memory", lock_memory },
     { "big-socket", big_socket },
     { "real-time", real_time },
     { "deadline", deadline },
     { "nice", nice_value },
     { "stop", stop_process },
     { "raise-limit", raise_limit },
     { "crash", crash })

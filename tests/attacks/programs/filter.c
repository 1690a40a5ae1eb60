// A25-A29: ways around the system call filter.
#include "attempt.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define X32 0x40000000

// i386 number and first argument, by the gate of 32-bit programs.
static long gate32(char **words)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "a"(number(words[0])), "b"(number(words[1])), "c"(0), "d"(0)
                     : "memory", "r8", "r9", "r10", "r11");
    result = (int)result;
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return result;
}

static long x32(char **words) { return syscall(number(words[0]) | X32, 0L, 0L, 0L); }

// A 32-bit program, executed by descriptor.
static long execute(char **words)
{
    char *argv[] = { words[0], NULL }, *environment[] = { NULL };
    int fd = syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY, 0);
    return fd == -1 ? -1 : syscall(SYS_execveat, fd, "", argv, environment, AT_EMPTY_PATH);
}

static long ring_setup(char **words)
{
    (void)words;
    char parameters[120] = { 0 };
    return syscall(SYS_io_uring_setup, 1, parameters);
}
static long ring_enter(char **words)
{
    (void)words;
    return syscall(SYS_io_uring_enter, -1, 0, 0, 0, NULL, 0L);
}
static long ring_register(char **words)
{
    (void)words;
    return syscall(SYS_io_uring_register, -1, 0, NULL, 0);
}

static int seccomp_of(const char *path, char *into, size_t room)
{
    char status[4096], *line;
    if (slurp(path, status, sizeof status) < 0 || !(line = strstr(status, "Seccomp:")))
        return -1;
    int mode = -1, filters = -1;
    sscanf(line, "Seccomp: %d Seccomp_filters: %d", &mode, &filters);
    snprintf(into, room, "Seccomp=%d filters=%d", mode, filters);
    return 0;
}

static void *in_thread(void *told)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%ld/status", syscall(SYS_gettid));
    seccomp_of(path, told, 64);
    return NULL;
}

// The first task, a thread and a forked child: how many differ from the first.
static long tasks(char **words)
{
    (void)words;
    char first[64] = "?", thread[64] = "?";
    char *child = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_t other;
    if (seccomp_of("/proc/self/status", first, sizeof first))
        return -1;
    if (pthread_create(&other, NULL, in_thread, thread) || pthread_join(other, NULL))
        return -1;
    long pid = syscall(SYS_clone, SIGCHLD, 0L, 0L, 0L, 0L);
    if (!pid) {
        seccomp_of("/proc/self/status", child, 64);
        syscall(SYS_exit_group, 0);
    }
    if (pid < 0 || waitpid(pid, NULL, 0) < 0)
        return -1;
    note("%s", first);
    return (strcmp(first, thread) != 0) + (strcmp(first, child) != 0);
}

// An own filter that allows all, with a listener.
static long listener(char **words)
{
    (void)words;
    struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { 1, &allow };
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}
static long filter(char **words)
{
    (void)words;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, NOWHERE);
}
static long filter_by_prctl(char **words)
{
    (void)words;
    return syscall(SYS_prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, NOWHERE, 0L, 0L);
}

// Memory that is written, then made executable.
static long written_code(char **words)
{
    (void)words;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return syscall(SYS_mprotect, page, 4096L, PROT_READ | PROT_EXEC);
}
static long writable_code(char **words)
{
    (void)words;
    long protection = PROT_READ | PROT_WRITE | PROT_EXEC;
    long page = syscall(SYS_mmap, NULL, 4096L, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    return page == -1 ? -1 : 0;
}

ACTS({ "gate32", gate32 },
     { "x32", x32 },
     { "execute", execute },
     { "io-uring-setup", ring_setup },
     { "io-uring-enter", ring_enter },
     { "io-uring-register", ring_register },
     { "tasks", tasks },
     { "listener", listener },
     { "filter", filter },
     { "filter-by-prctl", filter_by_prctl },
     { "written-code", written_code },
     { "writable-code", writable_code })

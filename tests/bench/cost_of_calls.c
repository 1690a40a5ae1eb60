/* What a system call costs under seccomp filters.
 *
 * usage: cost_of_calls ROUNDS [FILTER...]
 * Loads the filters in their order and makes each call ROUNDS times, with arguments that the shipped
 * filters allow and that the kernel answers at once. One line per call: name and nanoseconds of processor time.
 */
#include <fcntl.h>
#include <linux/filter.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    long number, a, b, c, d;
} calls[] = {
    {"getppid", SYS_getppid, 0, 0, 0, 0},
    {"read", SYS_read, -1, 0, 0, 0},
    {"prctl", SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0},
    {"fcntl", SYS_fcntl, -1, F_GETFD, 0, 0},
    {"ioctl", SYS_ioctl, -1, 0x541B, 0, 0},
    {"socket", SYS_socket, 1, 4, 0, 0},
    {"clone", SYS_clone, 0x10000, 0, 0, 0},
    {"mmap", SYS_mmap, 0, 0, PROT_READ, MAP_PRIVATE},
    {"mprotect", SYS_mprotect, 0, 0, PROT_READ, 0},
    {"openat", SYS_openat, AT_FDCWD, 0, 0, 0},
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
    static struct sock_filter bytes[8][4096];
    struct sock_fprog programs[8];
    long rounds = atol(argv[1]);
    for (int i = 2; i < argc; i++) {
        int fd = open(argv[i], O_RDONLY);
        programs[i - 2].filter = bytes[i - 2];
        programs[i - 2].len = read(fd, bytes[i - 2], sizeof bytes[i - 2]) / sizeof **bytes;
        close(fd);
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (int i = 2; i < argc; i++)
        if (syscall(SYS_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, 0, &programs[i - 2]))
            return 1;
    for (unsigned i = 0; i < sizeof calls / sizeof *calls; i++) {
        double start = now();
        for (long n = 0; n < rounds; n++)
            syscall(calls[i].number, calls[i].a, calls[i].b, calls[i].c, calls[i].d, -1, 0);
        printf("%s %.2f\n", calls[i].name, (now() - start) / rounds);
    }
    return 0;
}

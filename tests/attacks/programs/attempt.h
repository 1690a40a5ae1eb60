// The one convention of all attack programs:
//
//     PROGRAM ACT NAME [WORD ...]
//
// does exactly the one thing ACT of the table at the bottom of its file, calls itself NAME while it
// does, and prints one line: "returned 3" or the errno's name, then what it saw, if anything. The
// same binary outside is the positive control. Calls are raw, so that no library can replace one.
#ifndef ATTEMPT_H
#define ATTEMPT_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NOWHERE ((void *)1)  // a pointer that the kernel must refuse with EFAULT

struct act {
    const char *name;
    long (*run)(char **words);
};

static char saw[2048];

__attribute__((format(printf, 1, 2), unused)) static void note(const char *format, ...)
{
    size_t used = strlen(saw);
    va_list values;
    va_start(values, format);
    vsnprintf(saw + used, sizeof saw - used, format, values);
    va_end(values);
}

__attribute__((unused)) static long number(const char *word) { return strtol(word, NULL, 0); }

// Copies /proc/self/NAME or any small file; its length, or -1 with errno.
__attribute__((unused)) static long slurp(const char *path, char *text, size_t room)
{
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
    if (fd == -1)
        return -1;
    size_t length = 0;
    long got;
    while (length < room - 1 && (got = syscall(SYS_read, fd, text + length, room - 1 - length)) > 0)
        length += got;
    int error = errno;
    syscall(SYS_close, fd);
    text[length] = 0;
    errno = error;
    return got < 0 && !length ? -1 : (long)length;
}

static int attempt(const struct act *acts, int count, char **argv)
{
    char line[4096];
    if (!argv[1] || !argv[2])
        return 2;
    prctl(PR_SET_NAME, argv[2], 0, 0, 0);
    for (int i = 0; i < count; i++) {
        if (strcmp(acts[i].name, argv[1]))
            continue;
        errno = 0;
        long result = acts[i].run(argv + 3);
        const char *error = errno ? strerrorname_np(errno) : "no errno";
        const char *colon = saw[0] ? ": " : "";
        int length = result < 0
            ? snprintf(line, sizeof line, "%s%s%s\n", error ? error : "unknown errno", colon, saw)
            : snprintf(line, sizeof line, "returned %ld%s%s\n", result, colon, saw);
        return write(1, line, length) != length;
    }
    return 2;
}

#define ACTS(...)                                                                \
    static const struct act acts[] = { __VA_ARGS__ };                            \
    int main(int argc, char **argv)                                              \
    {                                                                            \
        (void)argc;                                                              \
        return attempt(acts, sizeof acts / sizeof *acts, argv);                  \
    }

#endif

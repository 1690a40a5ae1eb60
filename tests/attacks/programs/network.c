// A30-A37: networks, sockets of every family, System V and POSIX IPC.
#include "attempt.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/socket.h>
#include <sys/un.h>

// Lines of /proc/self/net/NAME after its heading: name, lines of heading. Says the first words.
static long net_table(char **words)
{
    char path[64], text[8192], *line, *rest;
    snprintf(path, sizeof path, "/proc/self/net/%s", words[0]);
    if (slurp(path, text, sizeof text) < 0)
        return -1;
    long lines = 0, heading = number(words[1]);
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char first[32] = "";
        if (lines++ >= heading && sscanf(line, " %31[^: \t]", first) == 1)
            note("%s%s", saw[0] ? " " : "", first);
    }
    return lines > heading ? lines - heading : 0;
}

static socklen_t address_of(const char *text, const char *port, struct sockaddr_storage *address)
{
    struct sockaddr_in *four = (struct sockaddr_in *)address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)address;
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(number(port));
        return sizeof *four;
    }
    inet_pton(AF_INET6, text, &six->sin6_addr);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(number(port));
    six->sin6_scope_id = six->sin6_addr.s6_addr[0] == 0xfe || six->sin6_addr.s6_addr[0] == 0xff;
    return sizeof *six;
}

// address, port
static long tcp(char **words)
{
    struct sockaddr_storage address;
    socklen_t length = address_of(words[0], words[1], &address);
    int fd = syscall(SYS_socket, address.ss_family, SOCK_STREAM, 0);
    return fd == -1 ? -1 : syscall(SYS_connect, fd, &address, length);
}

// address, port, (source address): one datagram
static long udp(char **words)
{
    struct sockaddr_storage address, source;
    socklen_t length = address_of(words[0], words[1], &address);
    int on = 1, fd = syscall(SYS_socket, address.ss_family, SOCK_DGRAM, 0);
    if (fd == -1)
        return -1;
    syscall(SYS_setsockopt, fd, SOL_SOCKET, SO_BROADCAST, &on, sizeof on);
    if (words[2]) {
        socklen_t size = address_of(words[2], "0", &source);
        syscall(SYS_setsockopt, fd, IPPROTO_IP, IP_FREEBIND, &on, sizeof on);
        if (syscall(SYS_bind, fd, &source, size))
            return -1;
    }
    return syscall(SYS_sendto, fd, "x", 1L, 0, &address, length);
}

// family, type, protocol
static long any_socket(char **words)
{
    return syscall(SYS_socket, number(words[0]), number(words[1]), number(words[2]));
}

// path, or "@name" for an abstract one
static long unix_connect(char **words)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    size_t length = strlen(words[0]);
    if (length >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, words[0], length);
    int fd = syscall(SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    if (fd == -1)
        return -1;
    if (words[0][0] == '@')
        address.sun_path[0] = 0;
    else
        length++;
    length += offsetof(struct sockaddr_un, sun_path);
    return syscall(SYS_connect, fd, &address, (socklen_t)length);
}

// A segment, semaphore set or queue that exists already: key.
static long shared_memory(char **words) { return syscall(SYS_shmget, number(words[0]), 0L, 0); }
static long semaphores(char **words) { return syscall(SYS_semget, number(words[0]), 0, 0); }
static long message_queue(char **words) { return syscall(SYS_msgget, number(words[0]), 0); }
static long posix_queue(char **words) { return syscall(SYS_mq_open, words[0], O_RDONLY, 0, NULL); }

static long open_read(char **words) { return syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY, 0); }

ACTS({ "net-table", net_table },
     { "tcp", tcp },
     { "udp", udp },
     { "socket", any_socket },
     { "unix", unix_connect },
     { "shmget", shared_memory },
     { "semget", semaphores },
     { "msgget", message_queue },
     { "mq-open", posix_queue },
     { "open-read", open_read })

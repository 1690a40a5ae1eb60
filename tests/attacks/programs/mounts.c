// A09-A17: mounts, new namespaces, files that must stay as they are, devices.
#include "attempt.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>

#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif

// type, target, options
static long mount_new(char **words)
{
    return syscall(SYS_mount, "attack", words[1], words[0], 0UL, words[2]);
}

// source, target
static long mount_bind(char **words)
{
    return syscall(SYS_mount, words[0], words[1], NULL, MS_BIND, NULL);
}

static long remount_writable(char **words)
{
    return syscall(SYS_mount, NULL, words[0], NULL, MS_REMOUNT | MS_BIND, NULL);
}

static long unmount(char **words) { return syscall(SYS_umount2, words[0], MNT_DETACH); }
static long change_root(char **words) { return syscall(SYS_chroot, words[0]); }
static long pivot(char **words) { return syscall(SYS_pivot_root, words[0], words[0]); }

static long new_filesystem(char **words) { return syscall(SYS_fsopen, words[0], 0); }
static long configure(char **words)
{
    (void)words;
    return syscall(SYS_fsconfig, -1, 0, NULL, NULL, 0);
}
static long make_mount(char **words) { (void)words; return syscall(SYS_fsmount, -1, 0, 0); }
static long pick(char **words) { return syscall(SYS_fspick, AT_FDCWD, words[0], 0); }
static long clone_tree(char **words) { return syscall(SYS_open_tree, AT_FDCWD, words[0], 1); }

static long clone_tree_attr(char **words)
{
    return syscall(SYS_open_tree_attr, AT_FDCWD, words[0], 1, NULL, 0L);
}

static long move_tree(char **words)
{
    (void)words;
    return syscall(SYS_move_mount, -1, "", -1, "", 4 | 0x40);
}

static long set_attributes(char **words)
{
    uint64_t attributes[4] = { 2 /* MOUNT_ATTR_NOSUID, to set */ };
    return syscall(SYS_mount_setattr, AT_FDCWD, words[0], 0, attributes, sizeof attributes);
}

static long leave(char **words) { return syscall(SYS_unshare, number(words[0])); }
// The own one, which asks for the same right as another.
static long enter(char **words)
{
    (void)words;
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/ns/net", O_RDONLY, 0);
    return fd == -1 ? -1 : syscall(SYS_setns, fd, 0);
}

// flags: a child that ends at once; its exit status.
static long fork_with(char **words)
{
    int status = 0;
    long pid = syscall(SYS_clone, number(words[0]) | SIGCHLD, 0L, 0L, 0L, 0L);
    if (!pid)
        syscall(SYS_exit_group, 0);
    if (pid > 0)
        waitpid(pid, &status, 0);
    return pid < 0 ? -1 : status;
}

static long fork3_with(char **words)
{
    uint64_t arguments[8] = { number(words[0]), 0, 0, 0, SIGCHLD };
    int status = 0;
    long pid = syscall(SYS_clone3, arguments, sizeof arguments);
    if (!pid)
        syscall(SYS_exit_group, 0);
    if (pid > 0)
        waitpid(pid, &status, 0);
    return pid < 0 ? -1 : status;
}

static int create(const char *path)
{
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_TRUNC, 0700);
    return fd;
}

// from, to
static long move_file(char **words) { return syscall(SYS_rename, words[0], words[1]); }
static long link_file(char **words) { return syscall(SYS_link, words[0], words[1]); }
static long cut_open(char **words)
{
    return syscall(SYS_openat, AT_FDCWD, words[0], O_WRONLY | O_TRUNC, 0);
}
static long cut(char **words) { return syscall(SYS_truncate, words[0], 0L); }
static long remove_file(char **words) { return syscall(SYS_unlink, words[0]); }

static long execute(int fd)
{
    char *argv[] = { "copy", "harmless", "copy", NULL }, *environment[] = { NULL };
    return fd == -1 ? -1 : syscall(SYS_execveat, fd, "", argv, environment, AT_EMPTY_PATH);
}

static long copy_to(int fd, const char *program)
{
    char bytes[65536];
    int from = syscall(SYS_openat, AT_FDCWD, program, O_RDONLY, 0);
    long got, all = 0;
    if (from == -1 || fd == -1)
        return -1;
    while ((got = syscall(SYS_read, from, bytes, sizeof bytes)) > 0)
        all += syscall(SYS_write, fd, bytes, got);
    return got < 0 ? -1 : all;
}

// program, path: a copy of the program there, executed by descriptor.
static long execute_copy(char **words)
{
    int fd = create(words[1]);
    if (fd == -1 || copy_to(fd, words[0]) < 0)
        return -1;
    syscall(SYS_close, fd);
    return execute(syscall(SYS_openat, AT_FDCWD, words[1], O_RDONLY, 0));
}

static long execute_path(char **words)
{
    char *argv[] = { words[0], "harmless", "path", NULL }, *environment[] = { NULL };
    return syscall(SYS_execve, words[0], argv, environment);
}

// program: a copy of it in a memfd, executed.
static long execute_memory(char **words)
{
    int fd = syscall(SYS_memfd_create, "attack", 0x10 /* MFD_EXEC */);
    if (fd == -1 && errno == EINVAL)
        fd = syscall(SYS_memfd_create, "attack", 0);
    return fd == -1 || copy_to(fd, words[0]) < 0 ? -1 : execute(fd);
}

// any path: a real handle where the kernel gives one, else a guessed one of an ext4 root.
static long by_handle(char **words)
{
    struct { unsigned bytes; int type; unsigned char data[128]; } handle = { 128, 1, { 2 } };
    int mount = 0, directory = syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY, 0);
    if (syscall(SYS_name_to_handle_at, AT_FDCWD, words[0], &handle, &mount, 0) == -1)
        handle.bytes = 8;
    return syscall(SYS_open_by_handle_at, directory, &handle, O_RDONLY);
}

static long get_handle(char **words)
{
    struct { unsigned bytes; int type; unsigned char data[128]; } handle = { .bytes = 128 };
    int mount = 0;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, words[0], &handle, &mount, 0);
}

// path, type (b or c), major, minor
static long make_node(char **words)
{
    mode_t mode = (words[1][0] == 'b' ? S_IFBLK : S_IFCHR) | 0600;
    dev_t device = makedev(number(words[2]), number(words[3]));
    long result = syscall(SYS_mknod, words[0], mode, device);
    if (!result)
        syscall(SYS_unlink, words[0]);
    return result;
}

static long open_device(char **words)
{
    return syscall(SYS_openat, AT_FDCWD, words[0], O_RDONLY | O_NONBLOCK, 0);
}

ACTS({ "mount", mount_new },
     { "bind", mount_bind },
     { "remount", remount_writable },
     { "unmount", unmount },
     { "chroot", change_root },
     { "pivot-root", pivot },
     { "fsopen", new_filesystem },
     { "fsconfig", configure },
     { "fsmount", make_mount },
     { "fspick", pick },
     { "open-tree", clone_tree },
     { "open-tree-attr", clone_tree_attr },
     { "move-mount", move_tree },
     { "mount-setattr", set_attributes },
     { "unshare", leave },
     { "setns", enter },
     { "clone", fork_with },
     { "clone3", fork3_with },
     { "rename", move_file },
     { "link", link_file },
     { "open-truncate", cut_open },
     { "truncate", cut },
     { "unlink", remove_file },
     { "execute-copy", execute_copy },
     { "execute-path", execute_path },
     { "execute-memory", execute_memory },
     { "open-by-handle", by_handle },
     { "name-to-handle", get_handle },
     { "mknod", make_node },
     { "open-device", open_device })

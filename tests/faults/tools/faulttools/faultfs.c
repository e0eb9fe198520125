/* A layer between a program and its files that counts the operations below a folder and makes one of them fail.
 *
 * gcc -shared -fPIC -O2 -o faultfs.so faultfs.c -ldl; LD_PRELOAD=./faultfs.so program
 * Nothing happens until faultfs_arm() is called. The counter lies in shared memory: a parent can read its child's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, KILL = 1, TORN = 2, ERRNO = 100 }; /* ERRNO + n: fail with errno n */
#define MAX_FD 4096

static long *counter;
static char prefix[PATH_MAX];
static size_t prefix_length;
static long fault_at = -1;
static int fault_kind = COUNT, fault_sticky = 0;
static unsigned char ours[MAX_FD];

#define REAL(name) \
    static __typeof__(name) *real = NULL; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
    counter = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void faultfs_arm(const char *folder, long at, int kind, int sticky) {
    prefix_length = strlen(folder);
    strncpy(prefix, folder, sizeof(prefix) - 1);
    memset(ours, 0, sizeof(ours));
    *counter = 0;
    fault_at = at;
    fault_kind = kind;
    fault_sticky = sticky;
}

long faultfs_count(void) { return *counter; }

static int below(const char *path) {
    char absolute[PATH_MAX];
    if (!prefix_length || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(absolute, sizeof(absolute) - strlen(path) - 2)) return 0;
        strcat(absolute, "/");
        strcat(absolute, path);
        path = absolute;
    }
    return strncmp(path, prefix, prefix_length) == 0 && (path[prefix_length] == '/' || path[prefix_length] == 0);
}

static int below_at(int folder, const char *path) {
    char link[64], where[PATH_MAX];
    if (folder == AT_FDCWD || (path && path[0] == '/')) return below(path);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, where, sizeof(where) - 1);
    if (length < 0) return 0;
    where[length] = 0;
    return below(where);
}

static int known(int fd) { return fd >= 0 && fd < MAX_FD && ours[fd]; }

static void remember(int fd, int is_ours) {
    if (fd >= 0 && fd < MAX_FD) ours[fd] = (unsigned char)is_ours;
}

/* Count one operation. 0: go on; 1: it fails, errno is set; 2: a write that is torn (half of it goes out). */
static int fault(int is_write) {
    long number = __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
    if (fault_at < 0 || number < fault_at || (number > fault_at && !fault_sticky)) return 0;
    if (fault_kind == KILL || (fault_kind == TORN && !is_write)) kill(getpid(), SIGKILL);
    if (fault_kind == TORN) return 2;
    if (fault_kind < ERRNO) return 0;
    errno = fault_kind - ERRNO;
    return is_write && (errno == ENOSPC || errno == EDQUOT) ? 2 : 1;
}

static ssize_t after_half(void) { /* half of the bytes are out: die, or say what was wrong */
    if (fault_kind == TORN) kill(getpid(), SIGKILL);
    errno = fault_kind - ERRNO;
    return -1;
}

#define OPEN(name, FOLDER_PARAMETER, FOLDER, BELOW) \
    int name(FOLDER_PARAMETER const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(list, mode_t) : 0; \
        va_end(list); \
        REAL(name); \
        int is_ours = BELOW; \
        if (is_ours && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) && fault(0)) return -1; \
        int fd = real(FOLDER path, flags, mode); \
        if (fd >= 0) remember(fd, is_ours); \
        return fd; \
    }
#define NOTHING
#define FOLDER_FD int folder,
#define FOLDER_NAME folder,
OPEN(open, NOTHING, NOTHING, below(path))
OPEN(open64, NOTHING, NOTHING, below(path))
OPEN(openat, FOLDER_FD, FOLDER_NAME, below_at(folder, path))
OPEN(openat64, FOLDER_FD, FOLDER_NAME, below_at(folder, path))

int close(int fd) {
    REAL(close);
    remember(fd, 0);
    return real(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    int what = known(fd) ? fault(1) : 0;
    if (what == 1) return -1;
    if (what == 2) {
        real(fd, data, size / 2);
        return after_half();
    }
    return real(fd, data, size);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(name); \
        int what = known(fd) ? fault(1) : 0; \
        if (what == 1) return -1; \
        if (what == 2) { \
            real(fd, data, size / 2, offset); \
            return after_half(); \
        } \
        return real(fd, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    int what = known(fd) ? fault(1) : 0;
    if (what == 1) return -1;
    if (what == 2) {
        real(fd, parts, count / 2);
        return after_half();
    }
    return real(fd, parts, count);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    REAL(sendfile64);
    int what = known(out) ? fault(1) : 0;
    if (what == 1) return -1;
    if (what == 2) {
        real(out, in, offset, count / 2);
        return after_half();
    }
    return real(out, in, offset, count);
}

#define ON_FD(name) \
    int name(int fd) { \
        REAL(name); \
        return known(fd) && fault(0) ? -1 : real(fd); \
    }
ON_FD(fsync)
ON_FD(fdatasync)

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    return known(fd) && fault(0) ? -1 : real(fd, size);
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    return known(fd) && fault(0) ? -1 : real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return (below(from) || below(to)) && fault(0) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return (below_at(from_folder, from) || below_at(to_folder, to)) && fault(0) ? -1 : real(from_folder, from, to_folder, to);
}

int unlink(const char *path) {
    REAL(unlink);
    return below(path) && fault(0) ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return below_at(folder, path) && fault(0) ? -1 : real(folder, path, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return below(path) && fault(0) ? -1 : real(path, mode);
}

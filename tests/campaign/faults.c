/* Faults below a daemon: loaded with LD_PRELOAD, told what to do in a file that both sides have mapped.
 *
 * A call on the device that `device` names fails with `error` if its bit is in `calls`, after `after` such calls,
 * `times` times; before it `delay_us` microseconds pass. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct plan {
    uint64_t device;
    uint32_t calls;
    int32_t error;
    int64_t after;
    int64_t times;
    uint32_t delay_us;
    uint32_t hits;
};

enum { READ = 1, WRITE = 2, RESIZE = 4, SYNC = 8, CREATE = 16, NAME = 32, ATTRIBUTE = 64 };

static volatile struct plan *plan;

static void find_plan(void)
{
    const char *name = getenv("CMKFS_FAULTS");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        plan = mapped;
}

__attribute__((constructor)) static void begin(void) { find_plan(); }

static int strikes(int call, int fd)
{
    struct stat found;
    if (!plan || !(plan->calls & call))
        return 0;
    int before = errno;
    if (fstat(fd, &found) != 0 || found.st_dev != plan->device) {
        errno = before;
        return 0;
    }
    errno = before;
    if (plan->delay_us)
        usleep(plan->delay_us);
    if (!plan->error || __sync_fetch_and_sub(&plan->after, 1) > 0 || __sync_fetch_and_sub(&plan->times, 1) <= 0)
        return 0;
    plan->hits++;
    errno = plan->error;
    return 1;
}

static int strikes_path(int call, const char *path)
{
    int fd = open(path, O_PATH | O_CLOEXEC);
    int result = fd >= 0 && strikes(call, fd);
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return result;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRAP(result, name, call, fd, parameters, arguments) \
    result name parameters \
    { \
        static __typeof__(&name) real; \
        if (!real) \
            real = REAL(name); \
        return strikes(call, fd) ? -1 : real arguments; \
    }

WRAP(ssize_t, pread64, READ, fd, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
WRAP(ssize_t, preadv64v2, READ, fd, (int fd, const struct iovec *v, int n, off64_t at, int f), (fd, v, n, at, f))
WRAP(ssize_t, preadv64, READ, fd, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRAP(ssize_t, pwrite64, WRITE, fd, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
WRAP(ssize_t, pwritev64v2, WRITE, fd, (int fd, const struct iovec *v, int n, off64_t at, int f), (fd, v, n, at, f))
WRAP(ssize_t, pwritev64, WRITE, fd, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRAP(int, ftruncate64, RESIZE, fd, (int fd, off64_t size), (fd, size))
WRAP(int, fsync, SYNC, fd, (int fd), (fd))
WRAP(int, syncfs, SYNC, fd, (int fd), (fd))
WRAP(int, mkdirat, CREATE, fd, (int fd, const char *name, mode_t mode), (fd, name, mode))
WRAP(int, mknodat, CREATE, fd, (int fd, const char *name, mode_t mode, dev_t device), (fd, name, mode, device))
WRAP(int, symlinkat, CREATE, fd, (const char *target, int fd, const char *name), (target, fd, name))
WRAP(int, linkat, NAME, to, (int fd, const char *old, int to, const char *name, int f), (fd, old, to, name, f))
WRAP(int, renameat, NAME, to, (int fd, const char *old, int to, const char *name), (fd, old, to, name))
WRAP(int, renameat2, NAME, to, (int fd, const char *old, int to, const char *n, unsigned f), (fd, old, to, n, f))
WRAP(int, unlinkat, NAME, fd, (int fd, const char *name, int flags), (fd, name, flags))
WRAP(int, fsetxattr, ATTRIBUTE, fd, (int fd, const char *n, const void *v, size_t s, int f), (fd, n, v, s, f))

int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
    static __typeof__(&setxattr) real;
    if (!real)
        real = REAL(setxattr);
    return strikes_path(ATTRIBUTE, path) ? -1 : real(path, name, value, size, flags);
}

int openat64(int fd, const char *name, int flags, ...)
{
    static int (*real)(int, const char *, int, ...);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list more;
        va_start(more, flags);
        mode = va_arg(more, mode_t);
        va_end(more);
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "openat64");
    return (flags & O_CREAT) && strikes(CREATE, fd) ? -1 : real(fd, name, flags, mode);
}

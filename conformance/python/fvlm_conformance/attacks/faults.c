/* A system that fails from below, for programs that are started with LD_PRELOAD=libfaults.so.
 *
 * FVLM_FAULT names what fails: short (reads and writes give less than was asked), eintr (they are interrupted), enospc and
 * eio (writes and syncs fail), readio (reads fail), clock (the monotonic clock stands still, the real one jumps), malloc
 * (allocations of more than 64 kB fail), thread (no thread can be started). FVLM_FAULT_AFTER is how many calls go well
 * first, FVLM_FAULT_EVERY which of the others fail: 1 all, 3 every third.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_long calls;

static const char *fault(void) {
    const char *name = getenv("FVLM_FAULT");
    return name ? name : "";
}

static int is(const char *name) { return strcmp(fault(), name) == 0; }

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

/* Whether this call is one that fails. */
static int now(void) {
    long call = atomic_fetch_add(&calls, 1) - number("FVLM_FAULT_AFTER", 0);
    long every = number("FVLM_FAULT_EVERY", 1);
    return call >= 0 && call % (every > 0 ? every : 1) == 0;
}

#define REAL(type, name, ...)                                                  \
    static type (*real)(__VA_ARGS__);                                          \
    if (!real) {                                                               \
        *(void **)&real = dlsym(RTLD_NEXT, name);                              \
    }

/* What a read of so many bytes does: a smaller number, or -1 with errno. */
static ssize_t reading(size_t count) {
    if (is("short") && count > 1 && now()) {
        return (ssize_t)((count + 2) / 3);
    }
    if (is("eintr") && now()) {
        errno = EINTR;
        return -1;
    }
    if (is("readio") && now()) {
        errno = EIO;
        return -1;
    }
    return (ssize_t)count;
}

static ssize_t writing(int file, size_t count) {
    /* What the programs say must arrive. */
    if (file == 1 || file == 2) {
        return (ssize_t)count;
    }
    if (is("short") && count > 1 && now()) {
        return (ssize_t)((count + 2) / 3);
    }
    if (is("eintr") && now()) {
        errno = EINTR;
        return -1;
    }
    if ((is("enospc") || is("eio")) && now()) {
        errno = is("eio") ? EIO : ENOSPC;
        return -1;
    }
    return (ssize_t)count;
}

ssize_t read(int file, void *to, size_t count) {
    REAL(ssize_t, "read", int, void *, size_t)
    ssize_t most = reading(count);
    return most < 0 ? -1 : real(file, to, (size_t)most);
}

ssize_t pread64(int file, void *to, size_t count, off64_t from) {
    REAL(ssize_t, "pread64", int, void *, size_t, off64_t)
    ssize_t most = reading(count);
    return most < 0 ? -1 : real(file, to, (size_t)most, from);
}

ssize_t write(int file, const void *from, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t)
    ssize_t most = writing(file, count);
    return most < 0 ? -1 : real(file, from, (size_t)most);
}

int fsync(int file) {
    REAL(int, "fsync", int)
    if ((is("enospc") || is("eio")) && now()) {
        errno = is("eio") ? EIO : ENOSPC;
        return -1;
    }
    return real(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *)
    int result = real(clock, time);
    if (result == 0 && is("clock")) {
        if (clock == CLOCK_REALTIME) {
            /* Ten years to and fro. */
            time->tv_sec += (atomic_fetch_add(&calls, 1) % 2) ? 315360000 : -315360000;
        } else if (now()) {
            /* A machine that slept: a day. */
            time->tv_sec += 86400;
        }
    }
    return result;
}

void *malloc(size_t size) {
    REAL(void *, "malloc", size_t)
    if (size > 65536 && is("malloc") && now()) {
        errno = ENOMEM;
        return NULL;
    }
    return real(size);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *), void *with) {
    REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)
    if (is("thread") && now()) {
        return EAGAIN;
    }
    return real(thread, attributes, start, with);
}

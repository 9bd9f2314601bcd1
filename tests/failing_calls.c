/* Preloaded into a real process: makes the n-th write or sync of a file fail, or all of them slow, as a test says.

   The test and the process share one small file, named by FAILING_CALLS. What counts is a call of a wanted kind on a
   file whose path contains a wanted text. Only calls of the C library are seen; memory that is mapped is not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, CUTS = 4 };

struct orders {
    _Atomic int32_t kinds;
    _Atomic int32_t left;  /* the call that fails, counted from now; 0: none */
    _Atomic int32_t error;
    _Atomic int32_t for_ever;
    _Atomic int32_t delay_ms;
    _Atomic int32_t seen;
    char path[104];
};

static struct orders *orders;

__attribute__((constructor)) static void map_orders(void) {
    const char *name = getenv("FAILING_CALLS");
    int handle = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (handle < 0) return;
    void *found = mmap(NULL, sizeof(struct orders), PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    close(handle);
    if (found != MAP_FAILED) orders = found;
}

static int fails(int kind, int handle) {
    if (!orders || !(orders->kinds & kind)) return 0;
    int before = errno;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 2);
    errno = before;
    if (length < 0) return 0;
    /* With a line end at its end, the text is the end of the path. */
    path[length] = '\n';
    path[length + 1] = 0;
    if (!strstr(path, orders->path)) return 0;
    orders->seen++;
    if (orders->delay_ms) {
        struct timespec wait = {orders->delay_ms / 1000, (orders->delay_ms % 1000) * 1000000L};
        nanosleep(&wait, NULL);
    }
    int left = orders->left;
    while (left > 0 && !atomic_compare_exchange_weak(&orders->left, &left, left == 1 && orders->for_ever ? 1 : left - 1));
    if (left != 1) return 0;
    errno = orders->error;
    return 1;
}

#define PASS_ON(result, name, kind, types, values)                          \
    result name types {                                                     \
        static result(*real) types;                                         \
        if (!real) real = (result(*) types)dlsym(RTLD_NEXT, #name);         \
        return fails(kind, handle) ? -1 : real values;                      \
    }

PASS_ON(ssize_t, write, WRITES, (int handle, const void *data, size_t size), (handle, data, size))
PASS_ON(ssize_t, pwrite, WRITES, (int handle, const void *data, size_t size, off_t at), (handle, data, size, at))
PASS_ON(ssize_t, pwrite64, WRITES, (int handle, const void *data, size_t size, off64_t at), (handle, data, size, at))
PASS_ON(int, fsync, SYNCS, (int handle), (handle))
PASS_ON(int, fdatasync, SYNCS, (int handle), (handle))
PASS_ON(int, ftruncate, CUTS, (int handle, off_t size), (handle, size))
PASS_ON(int, ftruncate64, CUTS, (int handle, off64_t size), (handle, size))

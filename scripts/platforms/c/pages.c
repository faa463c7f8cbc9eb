// Preloaded: a system with larger pages, as far as a program can tell. What such a kernel refuses is refused.
//
//   FVLM_PAGES=65536 LD_PRELOAD=pages.so PROGRAM
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t size(void) {
    const char *given = getenv("FVLM_PAGES");
    return given ? strtoul(given, NULL, 10) : 65536;
}

#define NEXT(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

int getpagesize(void) { return (int)size(); }

long sysconf(int name) { return name == _SC_PAGESIZE ? (long)size() : NEXT(sysconf)(name); }

unsigned long getauxval(unsigned long kind) { return kind == AT_PAGESZ ? size() : NEXT(getauxval)(kind); }

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset) {
    size_t page = size();
    if (offset % (off_t)page != 0 || ((flags & MAP_FIXED) && (uintptr_t)address % page != 0)) {
        errno = EINVAL;
        return MAP_FAILED;
    }
    if (flags & MAP_FIXED)
        return NEXT(mmap)(address, length, protection, flags, file, offset);
    // Room for it wherever the next page begins; what is over stays reserved.
    size_t room = length + page;
    char *reserved = NEXT(mmap)(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (reserved == MAP_FAILED)
        return MAP_FAILED;
    char *at = reserved + (page - (uintptr_t)reserved % page) % page;
    return NEXT(mmap)(at, length, protection, flags | MAP_FIXED, file, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int file, off64_t offset) {
    return mmap(address, length, protection, flags, file, offset);
}

static int aligned(void *address) {
    if ((uintptr_t)address % size() == 0)
        return 1;
    errno = EINVAL;
    return 0;
}

int mprotect(void *address, size_t length, int protection) {
    return aligned(address) ? NEXT(mprotect)(address, length, protection) : -1;
}

int munmap(void *address, size_t length) { return aligned(address) ? NEXT(munmap)(address, length) : -1; }

/* Calls kernels of a ready-made library as a program of any C library can: caller LIBRARY JOB THREADS >MEMORY
 *
 * A job is int64 numbers: bytes of memory, number of calls; then for each call the number of its slots, that of its
 * shares, and twice as many numbers as slots: a value, and 1 where it is a place in the memory; then the calls' symbols,
 * 64 bytes each, and the memory. Where there are several shares, threads of this program take part (`team.py`). What the
 * memory holds in the end is written to standard output. */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef int64_t word;
typedef word kernel(const word *slots, word share, word shares);

enum { HEAD = 48, WORDS = 16, MOST = 64 }; /* of a team: words before its members, words of each */

static word (*work)(word team, word member, word seen);
static word *team;

static void fail(const char *what) {
    fprintf(stderr, "caller: %s\n", what);
    exit(1);
}

static void *member(void *number) {
    work((word)(intptr_t)team, (word)(intptr_t)number, 0);
    return NULL;
}

static word *read_job(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) fail("the job cannot be read");
    *size = (size_t)ftell(file);
    rewind(file);
    void *job = NULL;
    if (posix_memalign(&job, 64, *size) || fread(job, 1, *size, file) != *size) fail("the job cannot be read");
    fclose(file);
    return job;
}

int main(int n, char **arguments) {
    if (n != 4) fail("LIBRARY JOB THREADS");
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) fail(dlerror());
    word n_threads = atoi(arguments[3]);
    void *libc[] = {(void *)malloc, (void *)free, (void *)sched_yield, (void *)clock_gettime, (void *)syscall};
    ((void (*)(void **))dlsym(library, "edgecal_initialize"))(libc);
    work = (word(*)(word, word, word))dlsym(library, "edgecal_work");
    word (*run)(word, word, void *, word, word) = (word(*)(word, word, void *, word, word))dlsym(library, "edgecal_run");

    size_t size;
    word *job = read_job(arguments[2], &size), n_calls = job[1], *slots = job + 2;
    char *memory = (char *)job + size - job[0];
    const char *symbols = memory - 64 * n_calls;

    if (posix_memalign((void **)&team, 128, (HEAD + MOST * WORDS) * sizeof(word))) fail("no memory");
    for (int i = 0; i < HEAD + MOST * WORDS; i++) team[i] = 0;
    for (word i = 1; i < n_threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, member, (void *)(intptr_t)i)) fail("no thread");
    }
    for (word i = 0; i < n_calls; i++) {
        word n_slots = slots[0], shares = slots[1], values[n_slots + 8];
        for (word j = 0; j < n_slots; j++)
            values[j] = slots[2 + 2 * j] + (slots[3 + 2 * j] ? (word)(intptr_t)memory : 0);
        kernel *called = (kernel *)dlsym(library, symbols + 64 * i);
        if (!called) fail(symbols + 64 * i);
        word failed = shares == 1 ? called(values, 0, 1)
                                  : run((word)(intptr_t)team, (word)(intptr_t)called, values, shares, n_threads);
        if (failed) fail("a kernel failed");
        slots += 2 + 2 * n_slots;
        if (i % 2) usleep(2000); /* members fall asleep, and are woken */
    }
    return fwrite(memory, 1, (size_t)job[0], stdout) == (size_t)job[0] ? 0 : 1;
}

/* A small libcuda.so.1 over malloc and memcpy, for the real pycuda: the functions that runtime/cuda_pycuda.py reaches.

   As in tests/cuda_double.py, work waits in its stream until someone waits for it. Each thread has its own stack of
   contexts, as in CUDA, and everything but initialisation needs a context on it. Device addresses are no addresses of
   the CPU. What the environment may say: FAKE_CUDA_INTEGRATED=1, FAKE_CUDA_FAIL=function:code.

   The functions have the names that cuda.h gives to the linker; the others that pycuda links to are made of nothing by
   tests/pycuda_build.py. */

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400, NOT_READY = 600, CONTEXT_IS_DESTROYED = 709, LAUNCH_FAILED = 719
};
enum { INTEGRATED = 18, CAN_MAP_HOST_MEMORY = 19, DEVICEMAP = 2, BLOCKING_SYNC = 1, MOST = 4096 };
#define DEVICE_BIT ((uint64_t)1 << 60)

typedef struct { void *memory; size_t nbytes; int is_host, is_mapped; } Block;
typedef struct Stream Stream;
typedef struct { Stream *stream; long place; double at_ms; int is_live, is_blocking; } Event;
typedef struct { void *to; const void *of; size_t nbytes; Event *recorded; Stream *other; long place; } Operation;
struct Stream { Operation queue[MOST]; long issued, done; int is_live; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static __thread void *stack[16];
static __thread int depth;
static int is_initialized, retained, generation; /* the primary context is its generation: a later one is another */
static int streams, events, pushes, spins, unfinished;
static Block blocks[MOST];
static double now_ms;

static int failing(const char *function) {
    const char *plan = getenv("FAKE_CUDA_FAIL");
    size_t length = strlen(function);
    return plan && !strncmp(plan, function, length) && plan[length] == ':' ? atoi(plan + length + 1) : OK;
}

static int context(const char *function) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (depth == 0) return INVALID_CONTEXT;
    if (!retained || stack[depth - 1] != (void *)(intptr_t)generation) return CONTEXT_IS_DESTROYED;
    return failing(function);
}
#define NEED_CONTEXT do { int code = context(__func__); if (code) return code; } while (0)

/* For the tests. */
int fake_left(void) {
    int left = streams + events;
    for (int i = 0; i < MOST; i++) left += blocks[i].memory != NULL;
    return left;
}
int fake_depth(void) { return depth; }
int fake_pushes(void) { return pushes; }
int fake_retained(void) { return retained; }
int fake_unfinished(void) { return unfinished; } /* streams destroyed with work on them */
int fake_spins(void) { return spins; } /* waits that would have kept a core busy */

/* Device and context. */
int cuInit(unsigned flags) { is_initialized = 1; return failing(__func__); }
int cuDriverGetVersion(int *version) { *version = 13000; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int number) {
    if (!is_initialized) return NOT_INITIALIZED;
    *device = 0;
    return number == 0 ? OK : INVALID_DEVICE;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *integrated = getenv("FAKE_CUDA_INTEGRATED");
    *value = attribute == CAN_MAP_HOST_MEMORY || (attribute == INTEGRATED && integrated && *integrated == '1');
    return OK;
}
int cuDevicePrimaryCtxRetain(void **result, int device) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (retained++ == 0) generation++;
    *result = (void *)(intptr_t)generation;
    return failing(__func__);
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (!retained) return INVALID_CONTEXT;
    retained--;
    return OK;
}
int cuCtxPushCurrent_v2(void *pushed) {
    if (!is_initialized) return NOT_INITIALIZED;
    if (depth == 16) return INVALID_VALUE;
    stack[depth++] = pushed;
    __sync_fetch_and_add(&pushes, 1);
    return failing(__func__);
}
int cuCtxPopCurrent_v2(void **popped) {
    if (depth == 0) return INVALID_CONTEXT;
    *popped = stack[--depth];
    __sync_fetch_and_sub(&pushes, 1);
    return OK;
}
int cuCtxGetDevice(int *device) { NEED_CONTEXT; *device = 0; return OK; }

static const struct { int code; const char *name, *text; } errors[] = {
    {OK, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CONTEXT_IS_DESTROYED, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
};
static int known(int code) {
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) return (int)i;
    return INVALID_VALUE;
}
int cuGetErrorString(int code, const char **text) { *text = errors[known(code)].text; return OK; }
int cuGetErrorName(int code, const char **name) { *name = errors[known(code)].name; return OK; }

/* Memory. */
static Block *block_at(const void *memory, size_t nbytes) {
    for (int i = 0; i < MOST; i++) {
        const char *start = blocks[i].memory;
        if (start && (const char *)memory >= start && (const char *)memory + nbytes <= start + blocks[i].nbytes)
            return &blocks[i];
    }
    return NULL;
}
static void *of_device(uint64_t address) { return (void *)(uintptr_t)(address & ~DEVICE_BIT); }
static uint64_t to_device(void *memory) { return (uint64_t)(uintptr_t)memory | DEVICE_BIT; }

static void *allocate(size_t nbytes, int is_host, int is_mapped) {
    for (int i = 0; i < MOST; i++)
        if (!blocks[i].memory) {
            blocks[i] = (Block){malloc(nbytes), nbytes, is_host, is_mapped};
            memset(blocks[i].memory, 0xCD, nbytes);
            return blocks[i].memory;
        }
    return NULL;
}
static int release(void *memory, int is_host) {
    Block *block = block_at(memory, 0);
    if (!block || block->memory != memory || block->is_host != is_host) return INVALID_VALUE;
    free(memory);
    block->memory = NULL;
    return OK;
}
int cuMemAlloc_v2(uint64_t *address, size_t nbytes) {
    NEED_CONTEXT;
    void *memory = nbytes ? allocate(nbytes, 0, 0) : NULL;
    *address = to_device(memory);
    return memory ? OK : INVALID_VALUE;
}
int cuMemFree_v2(uint64_t address) {
    NEED_CONTEXT;
    return address & DEVICE_BIT ? release(of_device(address), 0) : INVALID_VALUE;
}
int cuMemHostAlloc(void **memory, size_t nbytes, unsigned flags) {
    NEED_CONTEXT;
    return (*memory = allocate(nbytes, 1, flags == DEVICEMAP)) ? OK : OUT_OF_MEMORY;
}
int cuMemFreeHost(void *memory) { NEED_CONTEXT; return release(memory, 1); }
int cuMemHostGetDevicePointer_v2(uint64_t *address, void *memory, unsigned flags) {
    NEED_CONTEXT;
    Block *block = block_at(memory, 1);
    if (!block || !block->is_mapped) return INVALID_VALUE;
    *address = to_device(memory);
    return OK;
}

/* Streams: a queue each. */
static void run(Stream *stream, long place) {
    while (stream->done < place) {
        Operation *next = &stream->queue[stream->done % MOST];
        if (next->other) run(next->other, next->place);
        if (next->nbytes) memcpy(next->to, next->of, next->nbytes);
        now_ms += 1;
        if (next->recorded) next->recorded->at_ms = now_ms;
        stream->done++;
    }
}
static int push(Stream *stream, Operation operation) {
    if (!stream || !stream->is_live) return INVALID_HANDLE; /* the default stream is none of ours */
    pthread_mutex_lock(&lock);
    if (stream->issued - stream->done == MOST) run(stream, stream->done + 1);
    stream->queue[stream->issued++ % MOST] = operation;
    pthread_mutex_unlock(&lock);
    return OK;
}
static int finish(Stream *stream, long place) {
    pthread_mutex_lock(&lock);
    run(stream, place);
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuStreamCreate(Stream **stream, unsigned flags) {
    NEED_CONTEXT;
    if (flags != 1) return INVALID_VALUE;
    *stream = calloc(1, sizeof **stream);
    (*stream)->is_live = 1;
    streams++;
    return OK;
}
int cuStreamDestroy_v2(Stream *stream) {
    NEED_CONTEXT;
    if (!stream->is_live) return INVALID_HANDLE;
    unfinished += stream->done < stream->issued;
    stream->is_live = 0;
    streams--;
    return finish(stream, stream->issued);
}
int cuStreamSynchronize(Stream *stream) {
    NEED_CONTEXT;
    spins++;
    return finish(stream, stream->issued);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *of, size_t nbytes, Stream *stream) {
    NEED_CONTEXT;
    Block *source = block_at(of, nbytes), *target = block_at(of_device(to), nbytes);
    if (!source || !source->is_host || !target || !(to & DEVICE_BIT)) return INVALID_VALUE;
    return push(stream, (Operation){of_device(to), of, nbytes, NULL, NULL, 0});
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t of, size_t nbytes, Stream *stream) {
    NEED_CONTEXT;
    Block *target = block_at(to, nbytes), *source = block_at(of_device(of), nbytes);
    if (!source || !(of & DEVICE_BIT) || !target || !target->is_host) return INVALID_VALUE;
    return push(stream, (Operation){to, of_device(of), nbytes, NULL, NULL, 0});
}

/* Events. */
int cuEventCreate(Event **event, unsigned flags) {
    NEED_CONTEXT;
    *event = calloc(1, sizeof **event);
    **event = (Event){NULL, 0, 0, 1, flags & BLOCKING_SYNC};
    events++;
    return OK;
}
int cuEventDestroy_v2(Event *event) {
    NEED_CONTEXT;
    if (!event->is_live) return INVALID_HANDLE;
    event->is_live = 0;
    events--;
    return OK;
}
int cuEventRecord(Event *event, Stream *stream) {
    NEED_CONTEXT;
    if (!stream) return INVALID_HANDLE;
    event->stream = stream;
    event->place = stream->issued + 1;
    return push(stream, (Operation){NULL, NULL, 0, event, NULL, 0});
}
int cuStreamWaitEvent(Stream *stream, Event *event, unsigned flags) {
    NEED_CONTEXT;
    return push(stream, (Operation){NULL, NULL, 0, NULL, event->stream, event->place});
}
int cuEventSynchronize(Event *event) {
    NEED_CONTEXT;
    spins += !event->is_blocking;
    return event->stream ? finish(event->stream, event->place) : OK;
}
int cuEventElapsedTime(float *ms, Event *start, Event *end) {
    NEED_CONTEXT;
    if (!start->stream || !end->stream) return INVALID_HANDLE;
    if (start->stream->done < start->place || end->stream->done < end->place) return NOT_READY;
    *ms = (float)(end->at_ms - start->at_ms);
    return OK;
}
int cuEventElapsedTime_v2(float *ms, Event *start, Event *end) { return cuEventElapsedTime(ms, start, end); }

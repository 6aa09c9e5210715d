/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dcmem.h - read model tensors from a dcmem container, served by dcmemd or opened in-process.
 *
 * Two nouns: `struct dcmem` is an open model, `struct dcmem_conn` a connection to a daemon.
 * One program text serves both ways: dcmem_open("NAME") attaches to a model held by dcmemd,
 * dcmem_open("./FILE.dcmem") opens the file inside this process.
 *
 * Errors: every function returning int gives 0, a negative errno (the operation is broken), or a
 * positive DCMEM_E_... (a documented outcome). Out-parameters come last, start with ret_, and stay
 * untouched unless 0 is returned. dcmem_error() has a sentence about the last failure of a thread.
 *
 * Threads: a struct dcmem and a struct dcmem_conn may be used by any number of threads at once;
 * only the closing call must be alone. Fork: a child must not use a handle of its parent; every call
 * notices and returns DCMEM_E_FORKED. Data of raw tensors stays readable in the child; leased
 * windows are not inherited, and reading one faults.
 *
 * Memory: the daemon moves tensors and shrinks its windows while programs run. What it wants back, a
 * handle unmaps at its next call of any function; one that sleeps for long keeps it from others.
 *
 * The library never prints, never exits, starts no thread, installs no signal handler.
 */
#ifndef DCMEM_H
#define DCMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__) && defined(DCMEM_BUILD)
#define DCMEM_API __attribute__((visibility("default")))
#else
#define DCMEM_API
#endif

#define DCMEM_ABI_VERSION 1
#define DCMEM_MAX_DIMS 8 /* container.h holds the same limit */

/* Documented outcomes. Values are part of the ABI and never reused. */
enum {
	DCMEM_E_NOT_FOUND = 1,	    /* no such model, tensor or file */
	DCMEM_E_CORRUPT = 2,	    /* bytes do not match their hash, or a structure is damaged */
	DCMEM_E_UNSUPPORTED = 3,    /* format version, feature, dtype or scheme unknown to this build */
	DCMEM_E_INVALID = 4,	    /* an argument is out of range */
	DCMEM_E_NO_DAEMON = 5,	    /* nobody listens on the socket */
	DCMEM_E_DISCONNECTED = 6,   /* the daemon went away, and reconnecting failed */
	DCMEM_E_BUDGET = 7,	    /* does not fit the daemon's memory budget, or leases pin it all */
	DCMEM_E_OVERDUE = 8,	    /* this client holds leases past their deadline: release them first */
	DCMEM_E_DENIED = 9,	    /* this user may not do that */
	DCMEM_E_RETIRED = 10,	    /* the model was unloaded */
	DCMEM_E_FORKED = 11,	    /* the handle belongs to the parent process */
	DCMEM_E_EXISTS = 12,	    /* a model of that name is loaded already */
	DCMEM_E_CHANGED = 13,	    /* after a reconnect the model has another fingerprint */
	DCMEM_E_PROTOCOL = 14,	    /* the peer broke the protocol, or speaks another version */
};

enum dcmem_dtype {
	DCMEM_BOOL = 1, /* one byte an element */
	DCMEM_U8 = 2,
	DCMEM_I8 = 3,
	DCMEM_F8_E4M3 = 4,
	DCMEM_F8_E5M2 = 5,
	DCMEM_I16 = 6,
	DCMEM_F16 = 7,
	DCMEM_BF16 = 8,
	DCMEM_I32 = 9,
	DCMEM_F32 = 10,
	DCMEM_I64 = 11,
	DCMEM_U16 = 12,
	DCMEM_U32 = 13,
	DCMEM_U64 = 14,
	DCMEM_F64 = 15,
};

/* What a companion tensor is to the tensor it accompanies. */
enum dcmem_relation {
	DCMEM_REL_SCALE = 1,	      /* w = (q - zero) * scale */
	DCMEM_REL_ZERO_POINT = 2,
	DCMEM_REL_INPUT_SCALE = 3,    /* [cols]: w[r][c] is multiplied by it */
	DCMEM_REL_OUTLIER_VALUES = 4, /* [rows, n]: replaces whole columns */
	DCMEM_REL_OUTLIER_INDEX = 5,  /* [n] I32 or I64: which columns */
};

/* dcmem_tensor.flags */
#define DCMEM_TENSOR_QUANTIZED (1U << 0) /* a lossy form of its source */
#define DCMEM_TENSOR_RAW (1U << 1)	 /* held raw now: dcmem_acquire() is zero-copy */
#define DCMEM_TENSOR_SHARED (1U << 2)	 /* same bytes as an earlier tensor, stored once */

/* A tensor seen as [n_rows, n_cols], n_cols its last dimension (1 for 0-dim tensors). */
struct dcmem_tensor {
	uint64_t id;	    /* 0 .. dcmem_n_tensors() - 1 */
	const char *name;   /* NUL-terminated UTF-8, owned by the handle, valid until it is closed */
	uint32_t dtype;	    /* enum dcmem_dtype */
	uint32_t n_dims;    /* 0 .. DCMEM_MAX_DIMS */
	uint64_t dims[DCMEM_MAX_DIMS];
	uint64_t n_rows, n_cols;
	uint64_t row_bytes; /* n_cols times the size of an element */
	uint64_t n_bytes;   /* decoded */
	uint64_t stored_bytes; /* as stored in the container, without tables */
	uint32_t codec;	    /* id of the first page's codec; 0 is raw */
	uint32_t flags;	    /* DCMEM_TENSOR_... */
	uint32_t page_bytes; /* decoded bytes a page; whole rows where a row fits */
	uint32_t n_companions;
};

struct dcmem_companion {
	uint64_t tensor;     /* id of the companion */
	uint32_t relation;   /* enum dcmem_relation */
	uint32_t scheme;     /* 1: affine, w = (q - zero) * scale */
	int32_t axis;	     /* -1 per tensor, 0 per row, 1 per column of the 2-D view */
	uint32_t group_size; /* elements along the last dimension that share a scale; 0: none */
};

struct dcmem_options {
	size_t size;		 /* sizeof(struct dcmem_options) */
	const char *socket_path; /* NULL: $DCMEM_SOCKET, $XDG_RUNTIME_DIR/dcmem/socket if it exists,
				    else /run/dcmem/socket */
	uint32_t timeout_ms;	 /* of one request to the daemon; 0: 30,000 */
	uint32_t flags;		 /* DCMEM_OPEN_... */
};
#define DCMEM_OPEN_NO_RECONNECT (1U << 0)
#define DCMEM_OPEN_LOCAL (1U << 1) /* dcmem_acquire() decodes into private memory, never a window */
/* Keeps no window that it gave back: each dcmem_acquire() asks the daemon. For programs that read once. */
#define DCMEM_OPEN_NO_KEEP (1U << 2)

struct dcmem;
struct dcmem_conn;

/* --- this library -------------------------------------------------------------------------- */

/* DCMEM_ABI_VERSION of the library that was loaded. */
DCMEM_API uint32_t dcmem_abi_version(void);
/* "0.1.0" */
DCMEM_API const char *dcmem_version(void);
/* A short text for a return value of this library, errno values included. Never NULL. */
DCMEM_API const char *dcmem_strerror(int result);
/* One sentence about this thread's last failed call: what, where, what to do. "" if none. */
DCMEM_API const char *dcmem_error(void);

/* Process-wide hooks; set them before anything else, from one thread. Any member may be NULL. */
struct dcmem_hooks {
	size_t size; /* sizeof(struct dcmem_hooks) */
	void *data;
	void (*log)(void *data, int level, const char *text); /* level as syslog: 3 error .. 7 debug */
	void *(*alloc)(void *data, size_t n_bytes);	      /* must align to 64 bytes */
	void (*free)(void *data, void *memory);
};
DCMEM_API int dcmem_set_hooks(const struct dcmem_hooks *hooks);

/* Name and element size of a dtype ("BF16", 2); NULL and 0 for an unknown one. */
DCMEM_API const char *dcmem_dtype_name(uint32_t dtype);
DCMEM_API size_t dcmem_dtype_bytes(uint32_t dtype);
/* Name of a page codec ("raw", "zstd", ...); NULL for an unknown one. */
DCMEM_API const char *dcmem_codec_name(uint32_t codec);

/* --- models -------------------------------------------------------------------------------- */

/*
 * Opens a model. `name` with a '/' or ending in ".dcmem" is a container file, opened in-process;
 * anything else is the name of a model that dcmemd holds. `options` may be NULL.
 */
DCMEM_API int dcmem_open(const char *name, const struct dcmem_options *options,
			 struct dcmem **ret_model);
/* Closes, releasing every lease and mapping: pointers from dcmem_acquire() die. Returns NULL. */
DCMEM_API struct dcmem *dcmem_close(struct dcmem *model);

/* True if a daemon serves the model; false if it is open in-process. */
DCMEM_API bool dcmem_is_served(const struct dcmem *model);
/* 16 bytes: hash of source, pack options and format version. */
DCMEM_API void dcmem_fingerprint(const struct dcmem *model, uint8_t ret_fingerprint[16]);

DCMEM_API uint64_t dcmem_n_tensors(const struct dcmem *model);
/* The tensor with this id, 0 .. n_tensors - 1, in the order of the container. */
DCMEM_API int dcmem_tensor(struct dcmem *model, uint64_t id, struct dcmem_tensor *ret_tensor);
/* The tensor of this name, or DCMEM_E_NOT_FOUND. Constant time. */
DCMEM_API int dcmem_find(struct dcmem *model, const char *name, struct dcmem_tensor *ret_tensor);
/* Companion i, 0 .. tensor->n_companions - 1. */
DCMEM_API int dcmem_companion(struct dcmem *model, uint64_t tensor, uint32_t i,
			      struct dcmem_companion *ret_companion);

/*
 * Copies a block of a tensor into the caller's memory, decoding in this process (no round trip).
 * The block is rows [row, row + n_rows) and columns [col, col + n_cols) of the 2-D view;
 * n_rows or n_cols of 0 mean "to the end". `stride_bytes` is the distance between rows in `dst`;
 * 0 means dense. `dtype` 0 gives the stored type; DCMEM_BF16, DCMEM_F16 or DCMEM_F32 convert in the
 * same pass, applying the companions of a quantized tensor. `dst_bytes` is checked.
 *
 * Tiles: a block of all columns, `dtype` and `stride_bytes` 0, decodes straight into `dst`, with no
 * copy and nothing allocated, as far as it covers whole pages (page_bytes / row_bytes rows from a
 * multiple of that on, or to the last row). A program that decodes tile after tile into the same
 * memory, small enough for its second-level cache, reads weights at the speed of decoding and writes
 * no memory. Blocks that cut pages decode each of them whole, and copy: counters' copied_bytes.
 */
struct dcmem_read {
	size_t size; /* sizeof(struct dcmem_read) */
	uint64_t tensor;
	uint64_t row, n_rows;
	uint64_t col, n_cols;
	uint64_t stride_bytes;
	uint32_t dtype;
	uint32_t flags; /* must be 0 */
	void *dst;
	size_t dst_bytes;
};
DCMEM_API int dcmem_read(struct dcmem *model, const struct dcmem_read *request);

/*
 * Rows in place, read-only, rows dense. Zero-copy where the tensor is held raw; otherwise a window
 * that the daemon decoded once for every client, or (in-process) a decoded block of this process.
 * How a tensor is held changes with time: a view stays what it is, but one that is never released
 * keeps its memory from being used otherwise.
 * `data` is 64-byte aligned when row is 0. Valid until dcmem_release() or dcmem_close().
 */
struct dcmem_view {
	const void *data;
	uint64_t n_bytes;
	uint64_t row, n_rows;
	uint64_t lease; /* 0: nothing to give back */
	uint32_t kind;	/* DCMEM_VIEW_... */
	uint32_t reserved;
};
#define DCMEM_VIEW_RAW 1
#define DCMEM_VIEW_WINDOW 2
#define DCMEM_VIEW_PRIVATE 3
/* n_rows of 0: to the end. */
DCMEM_API int dcmem_acquire(struct dcmem *model, uint64_t tensor, uint64_t row, uint64_t n_rows,
			    struct dcmem_view *ret_view);
/* Gives a view back and clears it. A cleared view is fine. */
DCMEM_API void dcmem_release(struct dcmem *model, struct dcmem_view *view);
/* Asks for rows to be made ready; returns at once. A hint: 0 says only that it was passed on. */
DCMEM_API int dcmem_prefetch(struct dcmem *model, uint64_t tensor, uint64_t row, uint64_t n_rows);

/*
 * Asking ahead: dcmem_submit() asks for rows and returns, dcmem_poll() and dcmem_wait() hand out the
 * views as they become ready, in any order. With a daemon, asks go through shared memory, and many
 * cost about as much as one. Where there is none, dcmem_poll() and dcmem_wait() decode. At most
 * DCMEM_MAX_ASKS of a handle are on their way; its threads share them. Views that nobody fetched die
 * with the handle.
 */
#define DCMEM_MAX_ASKS 128
struct dcmem_ask {
	uint64_t tensor;
	uint64_t row, n_rows; /* as for dcmem_acquire() */
	void *data;	      /* comes back with the answer */
};
struct dcmem_answer {
	void *data;
	int32_t result; /* what dcmem_acquire() would have returned */
	uint32_t reserved;
	struct dcmem_view view; /* result 0: the caller's, to be released */
};
/*
 * Takes the first *ret_n of n asks: fewer than n, or 0, where no more may be on their way. An ask that
 * makes no sense is taken, and its answer says so.
 */
DCMEM_API int dcmem_submit(struct dcmem *model, const struct dcmem_ask *asks, size_t n, size_t *ret_n);
/* Up to `capacity` answers that are there now; *ret_n may be 0. Never waits for the daemon. */
DCMEM_API int dcmem_poll(struct dcmem *model, struct dcmem_answer *answers, size_t capacity,
			 size_t *ret_n);
/* The same, but waits for the first one: 0 of them only if none is on its way, or after timeout_ms. */
DCMEM_API int dcmem_wait(struct dcmem *model, struct dcmem_answer *answers, size_t capacity,
			 uint32_t timeout_ms, size_t *ret_n);
/*
 * A descriptor of the handle that is readable while dcmem_poll() has something to do, for event loops;
 * to be polled level-triggered and for nothing else. The same one each time, across reconnects.
 */
DCMEM_API int dcmem_event_fd(struct dcmem *model, int *ret_fd);

/* --- sidecar files: everything of the source directory that is not tensor data --------------- */

struct dcmem_file {
	const char *name; /* relative path, owned by the handle */
	uint64_t n_bytes;
};
DCMEM_API uint32_t dcmem_n_files(const struct dcmem *model);
DCMEM_API int dcmem_file(struct dcmem *model, uint32_t i, struct dcmem_file *ret_file);
/* Reads a whole file into memory of the library, NUL-terminated; free it with dcmem_free(). */
DCMEM_API int dcmem_read_file(struct dcmem *model, const char *name, char **ret_data,
			      size_t *ret_n_bytes);
/* Frees memory that the library handed out. NULL is fine. */
DCMEM_API void dcmem_free(void *memory);

/* Counters of this handle. */
struct dcmem_counters {
	size_t size;	       /* in: sizeof(struct dcmem_counters) */
	uint64_t decoded_bytes; /* decoded in this process */
	uint64_t window_bytes;	/* handed out as windows */
	uint64_t raw_bytes;	/* handed out in place */
	uint64_t requests;	/* round trips to the daemon */
	uint64_t reconnects;
	uint64_t copied_bytes; /* of dcmem_read(): what took the way through a page of the library */
};
DCMEM_API int dcmem_counters(struct dcmem *model, struct dcmem_counters *counters);

/* --- the daemon ---------------------------------------------------------------------------- */

DCMEM_API int dcmem_connect(const struct dcmem_options *options, struct dcmem_conn **ret_conn);
DCMEM_API struct dcmem_conn *dcmem_disconnect(struct dcmem_conn *conn);
/*
 * One administrative request: JSON in, JSON out, as on the daemon's text socket (docs/protocol.md):
 * {"cmd":"stats"}, {"cmd":"status"}, {"cmd":"list"}, {"cmd":"load","path":...,"name":...},
 * {"cmd":"unload","name":...}. The reply is NUL-terminated; free it with dcmem_free(). A reply with
 * "ok":false still returns its code as a positive DCMEM_E_... and sets dcmem_error().
 */
DCMEM_API int dcmem_request(struct dcmem_conn *conn, const char *json, char **ret_reply);

#ifdef __cplusplus
}
#endif
#endif
